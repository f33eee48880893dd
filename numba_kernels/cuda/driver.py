"""The CUDA driver, through NVIDIA's bindings: which GPU there is, its memory, and calls whose failures are one line each."""

from __future__ import annotations

import re
import subprocess
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver as cu

from numba_kernels.cuda.seam import OLDEST, CudaMissing

ATTRIBUTE = cu.CUdevice_attribute


def checked(what: str, result: tuple[Any, ...]) -> Any:
    """The value of a call of the driver. Raises CudaMissing, which says what failed."""
    error, *values = result
    if int(error) != 0:
        raise CudaMissing(f"the CUDA driver reports {error.name} at {what}")
    return values[0] if values else None


@dataclass(frozen=True)
class Gpu:
    """What the driver says of the first GPU.

    Attributes:
        number: the driver's handle.
        architecture: compute capability.
        driver: the driver's version, and the version of CUDA that it serves.
    """

    number: Any
    name: str
    architecture: tuple[int, int]
    multiprocessors: int
    driver: str


def find_gpu() -> Gpu:
    """The first GPU; takes none of its memory. Raises CudaMissing, in one line, if there is no driver, no GPU, or none that
    these kernels run on."""
    try:
        checked("cuInit", cu.cuInit(0))
        count = checked("cuDeviceGetCount", cu.cuDeviceGetCount())
    except Exception as error:  # where there is no driver, the bindings raise what they like
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" :")]
        raise CudaMissing(f"no NVIDIA driver can be used here: {' '.join(lines)}") from None
    if not count:
        raise CudaMissing("this machine has an NVIDIA driver but no GPU")
    number = checked("cuDeviceGet", cu.cuDeviceGet(0))
    major, minor, multiprocessors = (
        int(checked("cuDeviceGetAttribute", cu.cuDeviceGetAttribute(attribute, number)))
        for attribute in (
            ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            ATTRIBUTE.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
    )
    name = checked("cuDeviceGetName", cu.cuDeviceGetName(128, number)).split(b"\0")[0].decode(errors="replace")
    if (major, minor) < OLDEST:
        need = ".".join(map(str, OLDEST))
        raise CudaMissing(f"{name} has compute capability {major}.{minor}, the kernels need {need} (Ampere) or later")
    version = int(checked("cuDriverGetVersion", cu.cuDriverGetVersion()))
    return Gpu(
        number, name, (major, minor), multiprocessors, f"{_driver_version()} (CUDA {version // 1000}.{version % 1000 // 10})"
    )


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


class Context:
    """The GPU's primary context, which this process shares with whatever else uses the GPU."""

    def __init__(self, gpu: Gpu) -> None:
        self.handle = checked("cuDevicePrimaryCtxRetain", cu.cuDevicePrimaryCtxRetain(gpu.number))
        self._thread = threading.local()  # numbers of threads come again

    def use(self) -> None:
        """Makes it this thread's."""
        if not hasattr(self._thread, "uses"):
            checked("cuCtxSetCurrent", cu.cuCtxSetCurrent(self.handle))
            self._thread.uses = True


class Memory:
    """Memory of the device; given back when nothing refers to it any more."""

    def __init__(self, context: Context, size: int) -> None:
        """Raises CudaMissing where there is not so much."""
        context.use()
        self.address = int(checked(f"cuMemAlloc of {size} bytes", cu.cuMemAlloc(size)))
        weakref.finalize(self, _free, context, self.address).atexit = False


def _free(context: Context, address: int) -> None:
    context.use()
    cu.cuMemFree(address)


@dataclass(frozen=True, eq=False)
class Array:
    """A row of elements in the device's memory. Slices are views.

    Attributes:
        address: of the first element.
        size: elements.
        memory: what is kept while this array is.
    """

    address: int
    size: int
    dtype: np.dtype
    memory: Any

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> Array:
        first, last, step = part.indices(self.size)
        if step != 1:
            raise IndexError("arrays of the device have slices of neighbours only")
        return Array(self.address + first * self.dtype.itemsize, max(last - first, 0), self.dtype, self.memory)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class Pinned:
    """Memory of the host that the device reads directly, for NumPy."""

    def __init__(self, context: Context, count: int, dtype: Any) -> None:
        context.use()
        size = max(count * np.dtype(dtype).itemsize, 1)
        address = int(checked(f"cuMemHostAlloc of {size} bytes", cu.cuMemHostAlloc(size, 0)))
        self.__array_interface__ = {
            "shape": (count,), "typestr": np.dtype(dtype).str, "data": (address, False), "version": 3,
        }  # fmt: skip
        weakref.finalize(self, _free_host, context, address).atexit = False


def _free_host(context: Context, address: int) -> None:
    context.use()
    cu.cuMemFreeHost(address)


class Event:
    """A mark in a stream."""

    def __init__(self, context: Context) -> None:
        context.use()
        self._context = context
        self.handle = checked("cuEventCreate", cu.cuEventCreate(0))
        weakref.finalize(self, _destroy_event, context, self.handle).atexit = False

    def synchronize(self) -> None:
        """Waits until the stream has come here."""
        self._context.use()
        checked("cuEventSynchronize", cu.cuEventSynchronize(self.handle))


def _destroy_event(context: Context, handle: Any) -> None:
    context.use()
    cu.cuEventDestroy(handle)
