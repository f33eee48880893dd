"""A GPU as the engine uses it: memory, copies, launches, graphs, and time by events."""

from __future__ import annotations

import re
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from numba_kernels.cuda.seam import OLDEST, SIMULATED, WARP, CudaMissing, Kernel, cuda

COPIED = 1 << 29  # bytes: more than caches hold
BLOCKS = 4  # that a multiprocessor is given to work on at once, if there is work for so many


class Graph:
    """Launches that were recorded once and are put on the stream as one."""

    def __init__(self, device: Device, work: Callable[[], None]) -> None:
        """Runs `work` once, so that its kernels are compiled and loaded, then records it without running it."""
        self._device, self._work = device, work
        work()
        device.synchronize()
        if not SIMULATED:
            self._record()

    def _record(self) -> None:
        from cuda.bindings import driver

        self._driver = driver
        stream = driver.CUstream(self._device.stream_handle)
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED  # Numba may free memory meanwhile
        _checked(driver.cuStreamBeginCapture(stream, mode))
        try:
            self._work()
        finally:
            graph = _checked(driver.cuStreamEndCapture(stream))
        self._executable = _checked(driver.cuGraphInstantiate(graph, 0))
        _checked(driver.cuGraphDestroy(graph))
        weakref.finalize(self, driver.cuGraphExecDestroy, self._executable)

    def replay(self) -> None:
        """Puts the launches on the stream."""
        if SIMULATED:
            self._work()
        else:
            _checked(self._driver.cuGraphLaunch(self._executable, self._driver.CUstream(self._device.stream_handle)))


def _checked(result: tuple[Any, ...]) -> Any:
    """The value of a call of the driver. Raises CudaMissing if it failed."""
    error, *values = result
    if int(error) != 0:
        raise CudaMissing(f"the CUDA driver reports {error.name}")
    return values[0] if values else None


def find_gpu() -> Any:
    """Numba's description of the first GPU; takes none of its memory. Raises CudaMissing, in one line, if there is no driver, no
    GPU, or none that these kernels run on."""
    try:
        driver = cuda.cudadrv.driver.driver
        gpu = driver.get_device(0) if driver.get_device_count() else None
    except Exception as error:  # Numba's errors of drivers and devices have no common base
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" :")]
        raise CudaMissing(f"no NVIDIA driver can be used here: {' '.join(lines)}") from None
    if gpu is None:
        raise CudaMissing("this machine has an NVIDIA driver but no GPU")
    if tuple(gpu.compute_capability) < OLDEST:
        have, need = (".".join(map(str, a)) for a in (gpu.compute_capability, OLDEST))
        raise CudaMissing(f"{_text(gpu.name)} has compute capability {have}, the kernels need {need} (Ampere) or later")
    return gpu


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


class Device:
    """The first GPU of this process. All work goes to one stream, in order.

    Attributes:
        name: of the GPU.
        architecture: compute capability.
        driver: the driver's version, and the version of CUDA that it serves.
        multiprocessors: of the GPU.
        allocated, peak: bytes that `empty` gave out and that are alive, now and at most.
    """

    def __init__(self) -> None:
        """Raises CudaMissing as `find_gpu` does."""
        self.allocated = self.peak = 0
        self._copies: dict[int, Any] = {}
        if SIMULATED:
            self.name, self.architecture, self.driver, self.multiprocessors = "simulator", OLDEST, "none", 1
        else:
            self._find()
        self.stream = cuda.stream()

    def _find(self) -> None:
        gpu = find_gpu()
        self.name = _text(gpu.name)
        self.architecture = tuple(gpu.compute_capability)
        version = cuda.cudadrv.driver.driver.get_version()
        self.driver = f"{_driver_version()} (CUDA {version[0]}.{version[1]})"
        self.multiprocessors = int(gpu.MULTIPROCESSOR_COUNT)

    @property
    def stream_handle(self) -> int:
        """The stream, for the driver."""
        handle = self.stream.handle
        return int(getattr(handle, "value", handle) or 0)

    # ---- memory -----------------------------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """Bytes that the driver says are free, and all of the GPU's."""
        if SIMULATED:
            return 1 << 34, 1 << 34
        free, total = cuda.current_context().get_memory_info()
        return int(free), int(total)

    def empty(self, count: int, dtype: Any) -> Any:
        """An array of the device, of at least one element, with whatever was in the memory before."""
        array = cuda.device_array(max(int(count), 1), dtype)
        if SIMULATED:
            array.view(np.uint8)[:] = 0xA5
        size = int(array.nbytes)
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(array, self._gone, size)
        return array

    def _gone(self, size: int) -> None:
        self.allocated -= size

    def give_back(self) -> None:
        """Returns memory that nothing uses any more to the driver, which Numba keeps for a while else."""
        if not SIMULATED:
            cuda.current_context().memory_manager.deallocations.clear()

    def zeros(self, count: int, dtype: Any) -> Any:
        array = self.empty(count, dtype)
        self.upload(array, np.zeros(max(int(count), 1), dtype))
        return array

    def array(self, values: np.ndarray) -> Any:
        """A copy of an array on the device."""
        array = self.empty(values.size, values.dtype)
        if values.size:
            self.upload(array, values.reshape(-1))
        return array

    def part(self, array: Any, start: int, stop: int) -> Any:
        """A view of elements [start, stop)."""
        return array[start:stop]

    def upload(self, target: Any, values: np.ndarray, start: int = 0) -> None:
        """Copies values into target[start …]; done when it returns."""
        target[start : start + values.size].copy_to_device(np.ascontiguousarray(values).reshape(-1), stream=self.stream)
        self.stream.synchronize()

    def upload_soon(self, target: Any, pinned: np.ndarray, start: int = 0) -> None:
        """The same from pinned memory, which is not to be changed until the stream has come so far."""
        part = target if pinned.size == target.size else target[start : start + pinned.size]
        part.copy_to_device(pinned, stream=self.stream)

    def download(self, source: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A copy of elements [start, stop), when all work before it is done."""
        part = source[start : len(source) if stop is None else stop]
        values = np.empty(len(part), source.dtype)
        part.copy_to_host(values, stream=self.stream)
        self.stream.synchronize()
        return values

    def copy(self, target: Any, source: Any, start: int = 0) -> None:
        """From the device to the device: target[start …] = source."""
        target[start : start + len(source)].copy_to_device(source, stream=self.stream)

    def pinned(self, count: int, dtype: Any) -> np.ndarray:
        """Memory of the host that the device reads directly."""
        return cuda.pinned_array(count, dtype)

    # ---- work -------------------------------------------------------------------------------------------------------

    def blocks(self, warps_of_work: int, kernel: Kernel) -> int:
        """How many blocks a kernel gets whose blocks go on from one piece of work to the next."""
        wanted = -(-warps_of_work * WARP // kernel.threads)
        return max(min(wanted, min(BLOCKS, self.resident(kernel)) * self.multiprocessors), 1)

    def resident(self, kernel: Kernel) -> int:
        """Blocks of a kernel for which a multiprocessor has registers at once: with more, the last would run alone."""
        return BLOCKS if SIMULATED else kernel.resident

    def prepare(self, kernel: Kernel) -> None:
        """Has a kernel compiled, or taken from the cache."""
        if kernel.compiled is None:
            raise RuntimeError(f"{kernel.name} was not compiled")

    def launch(self, kernel: Kernel, grid: int | tuple[int, ...], *arguments: Any) -> None:
        kernel.launch(grid, self.stream, *arguments)

    def graph(self, work: Callable[[], None]) -> Graph:
        """The launches of `work`, recorded."""
        return Graph(self, work)

    def synchronize(self) -> None:
        """Waits until all work is done."""
        self.stream.synchronize()

    def event(self) -> Any:
        """A mark in the stream, made now."""
        event = cuda.event()
        self.mark(event)
        return event

    def mark(self, event: Any) -> None:
        """Moves a mark here."""
        event.record(self.stream)

    def copy_bandwidth(self, size: int = COPIED, rounds: int = 5) -> float:
        """Bytes per second, read and written, of a copy from the device to itself; less is copied if less is free. What that
        takes does not count in `peak`, and is free again."""
        peak, size = self.peak, min(size, self.memory()[0] // 4) // 16 * 16
        source, target = (self.zeros(size // 4, np.uint32) for _ in range(2))
        seconds = []
        for _ in range(rounds + 1):
            began = self.event()
            self.copy(target, source)
            seconds.append(self.seconds(began, self.event()))
        del source, target
        self.peak = peak
        self.give_back()
        return 2 * size / sorted(seconds[1:])[rounds // 2]

    def seconds(self, first: Any, last: Any) -> float:
        """Between two marks, by the device's clock."""
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000


def _told_by(*command: str) -> str:
    """What a command prints; nothing where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _driver_version() -> str:
    """As the kernel module gives it, or NVIDIA's tool where that cannot be read, as in some containers."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        text = _told_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else "unknown"
