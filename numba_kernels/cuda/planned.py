"""A device that runs nothing: it says which kernels a program asks for, so that they can be compiled beforehand, anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numba_kernels.cuda.device import Grid
from numba_kernels.cuda.driver import Array
from numba_kernels.cuda.seam import Kernel
from numba_kernels.cuda.simulated import SimulatedDevice

MEMORY = 1 << 40
MULTIPROCESSORS = 132  # of an H100


class PlannedDevice(SimulatedDevice):
    """Memory that is not there: it can be taken, and reads as zeros.

    Attributes:
        kernels: those that were asked for, by name.
    """

    def __init__(self, architecture: tuple[int, int]) -> None:
        super().__init__()
        self.name, self.architecture, self.multiprocessors = "planned", architecture, MULTIPROCESSORS
        self.kernels: dict[str, Kernel] = {}

    def memory(self) -> tuple[int, int]:
        return MEMORY, MEMORY

    def empty(self, count: int, dtype: Any) -> Any:
        return Array(0, max(int(count), 1), np.dtype(dtype), None)

    def zeros(self, count: int, dtype: Any) -> Any:
        return self.empty(count, dtype)

    def words(self, array: Any) -> Any:
        return Array(0, array.nbytes // 4, np.dtype(np.uint32), None)

    def upload(self, target: Any, values: np.ndarray, start: int = 0) -> None:
        """Nothing is kept."""

    def download(self, source: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
        return np.zeros(len(source[start:stop]), source.dtype)

    def prepare(self, kernel: Kernel) -> None:
        self.kernels[kernel.name] = kernel

    def bound(self, kernel: Kernel, arguments: Sequence[Any]) -> Callable[[Grid], None]:
        self.prepare(kernel)
        return lambda grid: None

    def launch(self, kernel: Kernel, grid: Grid, *arguments: Any) -> None:
        self.prepare(kernel)
