"""A GPU as the engine uses it: memory, copies, launches, graphs, and time by events."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cuda.bindings import driver as cu

from numba_kernels.cuda.driver import Array, Context, Event, Memory, Pinned, checked, find_gpu
from numba_kernels.cuda.machine_code import MachineCode, machine_code
from numba_kernels.cuda.seam import FLOAT, INT, WARP, CudaMissing, Kernel

COPIED = 1 << 29  # bytes: more than caches hold
BLOCKS = 4  # that a multiprocessor is given to work on at once, if there is work for so many
BLOCKING = "CUDA_LAUNCH_BLOCKING"  # 1: every launch is waited for, so that a failure is named after the kernel that failed

Grid = int | tuple[int, ...]


class Graph:
    """Launches that were recorded once and are put on the stream as one."""

    def __init__(self, device: Device, work: Callable[[], None]) -> None:
        """Runs `work` once, so that its kernels are compiled and loaded, then records it without running it."""
        self._device = device
        work()
        device.synchronize()
        mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED  # memory may be freed meanwhile
        checked("cuStreamBeginCapture", cu.cuStreamBeginCapture(device.stream, mode))
        device.capturing = True
        try:
            work()
        except BaseException:
            cu.cuStreamEndCapture(device.stream)
            raise
        finally:
            device.capturing = False
        graph = checked("cuStreamEndCapture", cu.cuStreamEndCapture(device.stream))
        self._executable = checked("cuGraphInstantiate", cu.cuGraphInstantiate(graph, 0))
        checked("cuGraphDestroy", cu.cuGraphDestroy(graph))
        weakref.finalize(self, cu.cuGraphExecDestroy, self._executable).atexit = False

    def replay(self) -> None:
        """Puts the launches on the stream."""
        self._device.context.use()
        checked("cuGraphLaunch", cu.cuGraphLaunch(self._executable, self._device.stream))


class Launch:
    """A kernel with its arguments, packed once: [grid] puts it on the stream.

    Numba's kernels take an array as seven words: two objects that are none, its length, the size of an element, its address, its
    shape and its strides.
    """

    def __init__(self, device: Device, kernel: Kernel, arguments: Sequence[Any]) -> None:
        if len(arguments) != len(kernel.parameters):
            raise TypeError(f"{kernel.name} takes {len(kernel.parameters)} arguments, not {len(arguments)}")
        self._device, self._kernel, self._kept = device, kernel, tuple(arguments)
        self._function, code = device.function(kernel)
        words: list[int] = []
        for kind, value in zip(kernel.parameters, arguments, strict=True):
            if kind == INT:
                words.append(int(value))
            elif kind == FLOAT:
                words.append(int(np.float32(value).view(np.uint32)))
            else:
                size = value.dtype.itemsize
                words += [0, 0, value.size, size, value.address, value.size, size]
        self._words = np.array(words, np.int64)
        self._places = self._words.ctypes.data + 8 * np.arange(len(words), dtype=np.uint64)
        self._parameters = int(self._places.ctypes.data)
        self._config = cu.CUlaunchConfig()
        self._config.blockDimX, self._config.blockDimY, self._config.blockDimZ = kernel.threads, 1, 1
        self._config.sharedMemBytes = kernel.dynamic
        self._config.hStream = device.stream
        if code.waits:
            dependent = cu.CUlaunchAttribute()
            dependent.id = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            dependent.value.programmaticStreamSerializationAllowed = 1
            self._config.attrs, self._config.numAttrs = [dependent], 1

    def __call__(self, grid: Grid) -> None:
        """A grid of no blocks is not launched."""
        x, y = (grid, 1) if isinstance(grid, int) else (*grid, 1)[:2]
        if x * y == 0:
            return
        self._config.gridDimX, self._config.gridDimY, self._config.gridDimZ = x, y, 1
        result = cu.cuLaunchKernelEx(self._config, self._function, self._parameters, 0)
        if int(result[0]) != 0 or self._device.is_blocking:
            self._look(result, grid)

    def _look(self, result: tuple[Any, ...], grid: Grid) -> None:
        checked(f"the launch of {self._kernel.name}, {grid} blocks", result)
        if not self._device.capturing:
            checked(f"the run of {self._kernel.name}, {grid} blocks", cu.cuStreamSynchronize(self._device.stream))


class Device:
    """The first GPU of this process. All work goes to one stream, in order.

    Attributes:
        name: of the GPU.
        architecture: compute capability.
        driver: the driver's version, and the version of CUDA that it serves.
        multiprocessors: of the GPU.
        allocated, peak: bytes that `empty` gave out and that are alive, now and at most.
        stream: the driver's handle.
        capturing: whether a graph is being recorded.
        is_blocking: whether each launch is waited for.
    """

    def __init__(self) -> None:
        """Raises CudaMissing as `find_gpu` does."""
        self.allocated = self.peak = 0
        gpu = find_gpu()
        self.name, self.architecture, self.driver = gpu.name, gpu.architecture, gpu.driver
        self.multiprocessors = gpu.multiprocessors
        self.context = Context(gpu)
        self.context.use()
        self.stream = checked("cuStreamCreate", cu.cuStreamCreate(cu.CUstream_flags.CU_STREAM_NON_BLOCKING.value))
        self.capturing, self.is_blocking = False, os.environ.get(BLOCKING) == "1"
        self._functions: dict[str, tuple[Any, MachineCode]] = {}

    # ---- memory -----------------------------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """Bytes that the driver says are free, and all of the GPU's."""
        self.context.use()
        error, free, total = cu.cuMemGetInfo()
        checked("cuMemGetInfo", (error,))
        return int(free), int(total)

    def empty(self, count: int, dtype: Any) -> Any:
        """An array of the device, of at least one element, with whatever was in the memory before."""
        dtype, count = np.dtype(dtype), max(int(count), 1)
        memory = Memory(self.context, count * dtype.itemsize)
        self._count(memory, count * dtype.itemsize)
        return Array(memory.address, count, dtype, memory)

    def _count(self, memory: Any, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(memory, self._gone, size).atexit = False

    def _gone(self, size: int) -> None:
        self.allocated -= size

    def zeros(self, count: int, dtype: Any) -> Any:
        array = self.empty(count, dtype)
        checked("cuMemsetD8", cu.cuMemsetD8Async(array.address, 0, array.nbytes, self.stream))
        return array

    def words(self, array: Any) -> Any:
        """The same memory as whole words of 32 bits."""
        return Array(array.address, array.nbytes // 4, np.dtype(np.uint32), array.memory)

    def array(self, values: np.ndarray) -> Any:
        """A copy of an array on the device."""
        array = self.empty(values.size, values.dtype)
        if values.size:
            self.upload(array, values.reshape(-1))
        return array

    def upload(self, target: Any, values: np.ndarray, start: int = 0) -> None:
        """Copies values into target[start …]; done when it returns."""
        self._send(target, np.ascontiguousarray(values).reshape(-1), start)
        self.synchronize()

    def upload_soon(self, target: Any, pinned: np.ndarray, start: int = 0) -> None:
        """The same from pinned memory, which is not to be changed until the stream has come so far."""
        self._send(target, pinned, start)

    def _send(self, target: Any, values: np.ndarray, start: int) -> None:
        part = target[start : start + values.size]
        if part.dtype != values.dtype or part.size != values.size:
            raise ValueError(
                f"{values.size} × {values.dtype} do not fit into {target.size} × {target.dtype} from {start} on"
            )
        self.context.use()
        address = values.ctypes.data
        checked("a copy to the device", cu.cuMemcpyHtoDAsync(part.address, address, values.nbytes, self.stream))

    def download(self, source: Any, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A copy of elements [start, stop), when all work before it is done."""
        part = source[start:stop]
        values = np.empty(len(part), source.dtype)
        self.context.use()
        address = values.ctypes.data
        checked("a copy from the device", cu.cuMemcpyDtoHAsync(address, part.address, values.nbytes, self.stream))
        self.synchronize()
        return values

    def copy(self, target: Any, source: Any, start: int = 0) -> None:
        """From the device to the device: target[start …] = source."""
        part = target[start : start + len(source)]
        if part.dtype != source.dtype or part.size != source.size:
            raise ValueError(
                f"{source.size} × {source.dtype} do not fit into {target.size} × {target.dtype} from {start} on"
            )
        self.context.use()
        checked("a copy on the device", cu.cuMemcpyDtoDAsync(part.address, source.address, source.nbytes, self.stream))

    def pinned(self, count: int, dtype: Any) -> np.ndarray:
        """Memory of the host that the device reads directly."""
        return np.asarray(Pinned(self.context, count, dtype))

    # ---- work -------------------------------------------------------------------------------------------------------

    def blocks(self, warps_of_work: int, kernel: Kernel) -> int:
        """How many blocks a kernel gets whose blocks go on from one piece of work to the next."""
        wanted = -(-warps_of_work * WARP // kernel.threads)
        return max(min(wanted, min(BLOCKS, self.resident(kernel)) * self.multiprocessors), 1)

    def resident(self, kernel: Kernel) -> int:
        """Blocks of a kernel that a multiprocessor has room for at once: with more, the last would run alone."""
        function, _ = self.function(kernel)
        found = cu.cuOccupancyMaxActiveBlocksPerMultiprocessor(function, kernel.threads, kernel.dynamic)
        return max(int(checked(f"the occupancy of {kernel.name}", found)), 1)

    def prepare(self, kernel: Kernel) -> None:
        """Has a kernel compiled, or taken from the cache, and loaded."""
        self.function(kernel)

    def function(self, kernel: Kernel) -> tuple[Any, MachineCode]:
        """A kernel as the driver has it, and its code."""
        if kernel.name not in self._functions:
            self.context.use()
            code = machine_code(kernel, self.architecture)
            module = checked(f"loading {kernel.name}", cu.cuModuleLoadData(code.code))
            function = checked(f"finding {kernel.name}", cu.cuModuleGetFunction(module, code.entry.encode()))
            if kernel.dynamic:
                attribute = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                allowed = cu.cuFuncSetAttribute(function, attribute, kernel.dynamic)
                checked(f"{kernel.dynamic} bytes of shared memory for {kernel.name}", allowed)
            self._functions[kernel.name] = function, code
        return self._functions[kernel.name]

    def bound(self, kernel: Kernel, arguments: Sequence[Any]) -> Callable[[Grid], None]:
        """A launch whose arguments are the same each time."""
        return Launch(self, kernel, arguments)

    def launch(self, kernel: Kernel, grid: Grid, *arguments: Any) -> None:
        """Puts one run on the stream. A grid of no blocks is not launched."""
        self.context.use()
        self.bound(kernel, arguments)(grid)

    def graph(self, work: Callable[[], None]) -> Any:
        """The launches of `work`, recorded."""
        self.context.use()
        return Graph(self, work)

    def synchronize(self) -> None:
        """Waits until all work is done."""
        self.context.use()
        checked("the end of the work before", cu.cuStreamSynchronize(self.stream))

    def event(self) -> Any:
        """A mark in the stream, made now."""
        event = Event(self.context)
        self.mark(event)
        return event

    def mark(self, event: Any) -> None:
        """Moves a mark here."""
        self.context.use()
        checked("cuEventRecord", cu.cuEventRecord(event.handle, self.stream))

    def seconds(self, first: Any, last: Any) -> float:
        """Between two marks, by the device's clock."""
        last.synchronize()
        return float(checked("cuEventElapsedTime", cu.cuEventElapsedTime(first.handle, last.handle))) / 1000

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
        return 2 * size / sorted(seconds[1:])[rounds // 2]


__all__ = ["Array", "CudaMissing", "Device", "Graph", "find_gpu"]
