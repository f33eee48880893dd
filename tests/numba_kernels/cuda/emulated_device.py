"""A device that is none: arrays of NumPy, kernels as the interpreter of PTX runs them, all at once done."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import ptx_machine
from carry_out import ptx

from numba_kernels.cuda.device import Device
from numba_kernels.cuda.seam import Kernel


class Mark:
    """In a stream where everything is done."""

    def synchronize(self) -> None:
        """Nothing is under way."""


class EmulatedGraph:
    """Runs the work once beforehand, as a device does when it records."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work
        work()


class EmulatedDevice(Device):
    """Without a GPU."""

    def __init__(self) -> None:
        self.allocated = self.peak = self.launches = 0
        self.name, self.architecture, self.driver, self.multiprocessors = "emulated", (9, 0), "none", 64

    def memory(self) -> tuple[int, int]:
        return (1 << 33) - self.allocated, 1 << 33

    def empty(self, count: int, dtype: Any) -> Any:
        array = np.empty(max(int(count), 1), dtype)
        array.view(np.uint8)[:] = 0xA5
        self.allocated += array.nbytes
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(array, self._gone, array.nbytes)
        return array

    def give_back(self) -> None:
        """Memory is free at once."""

    def upload(self, target: Any, values: np.ndarray, start: int = 0) -> None:
        assert target.dtype == values.dtype
        assert start + values.size <= target.size
        target[start : start + values.size] = values.reshape(-1)

    upload_soon = upload

    def download(self, source: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
        return source[start:stop].copy()

    def copy(self, target: Any, source: Any, start: int = 0) -> None:
        assert target.dtype == source.dtype
        assert start + source.size <= target.size
        target[start : start + source.size] = source

    def pinned(self, count: int, dtype: Any) -> np.ndarray:
        return np.empty(count, dtype)

    def prepare(self, kernel: Kernel) -> None:
        """Kernels are compiled when they are launched."""

    def resident(self, kernel: Kernel) -> int:
        return 3

    def launch(self, kernel: Kernel, grid: int | tuple[int, ...], *arguments: Any) -> None:
        assert len(arguments) == len(kernel.parameters)
        self.launches += 1
        ptx_machine.launch(ptx(kernel), grid, kernel.threads, arguments)

    def graph(self, work: Callable[[], None]) -> Any:
        return EmulatedGraph(work)

    def synchronize(self) -> None:
        """Nothing is under way."""

    def event(self) -> Any:
        return Mark()

    def mark(self, event: Any) -> None:
        """Marks do not say when they were made."""

    def seconds(self, first: Any, last: Any) -> float:
        return 1.0
