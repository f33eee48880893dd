"""Numba's simulator as a device: arrays are NumPy's, and every thread of a kernel is a Python thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numba_kernels.cuda.device import BLOCKS, Device, Grid
from numba_kernels.cuda.seam import OLDEST, Kernel

MEMORY = 1 << 34


class Mark:
    """In a stream where everything is done."""

    def synchronize(self) -> None:
        """Nothing is under way."""


class Replay:
    """Runs the work once beforehand, as a device does when it records."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work
        work()


class SimulatedDevice(Device):
    """Without a GPU and without a driver. Whatever takes another's place in interpreting kernels overrides `launch`."""

    def __init__(self) -> None:
        self.allocated = self.peak = 0
        self.name, self.architecture, self.driver, self.multiprocessors = "simulator", OLDEST, "none", 1

    def memory(self) -> tuple[int, int]:
        return MEMORY - self.allocated, MEMORY

    def empty(self, count: int, dtype: Any) -> Any:
        array = np.empty(max(int(count), 1), dtype)
        array.view(np.uint8)[:] = 0xA5
        self._count(array, array.nbytes)
        return array

    def zeros(self, count: int, dtype: Any) -> Any:
        array = self.empty(count, dtype)
        array[:] = 0
        return array

    def words(self, array: Any) -> Any:
        return array.view(np.uint8)[: array.nbytes // 4 * 4].view(np.uint32)

    def upload(self, target: Any, values: np.ndarray, start: int = 0) -> None:
        if target.dtype != values.dtype or start + values.size > target.size:
            raise ValueError(
                f"{values.size} × {values.dtype} do not fit into {target.size} × {target.dtype} from {start} on"
            )
        target[start : start + values.size] = values.reshape(-1)

    def upload_soon(self, target: Any, pinned: np.ndarray, start: int = 0) -> None:
        self.upload(target, pinned, start)

    def copy(self, target: Any, source: Any, start: int = 0) -> None:
        self.upload(target, source, start)

    def download(self, source: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
        return np.array(source[start:stop])

    def pinned(self, count: int, dtype: Any) -> np.ndarray:
        return np.empty(count, dtype)

    def resident(self, kernel: Kernel) -> int:
        return BLOCKS

    def prepare(self, kernel: Kernel) -> None:
        """Kernels are Python."""

    def bound(self, kernel: Kernel, arguments: Sequence[Any]) -> Callable[[Grid], None]:
        return lambda grid: self.launch(kernel, grid, *arguments)

    def launch(self, kernel: Kernel, grid: Grid, *arguments: Any) -> None:
        if np.prod(grid) > 0:
            kernel.simulated[grid, kernel.threads](*arguments)

    def graph(self, work: Callable[[], None]) -> Any:
        return Replay(work)

    def synchronize(self) -> None:
        """Nothing is under way."""

    def event(self) -> Any:
        return Mark()

    def mark(self, event: Any) -> None:
        """Marks do not say when they were made."""

    def seconds(self, first: Any, last: Any) -> float:
        return 1.0
