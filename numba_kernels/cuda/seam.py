"""The one place that imports the CUDA target of Numba: kernels, and their PTX, are had from here.

`NUMBA_ENABLE_CUDASIM=1` puts Numba's simulator in the device's place (`SIMULATED`): every thread is a Python thread then,
and the intrinsics take their plain forms. Compiling to PTX needs neither a GPU nor a driver; `machine_code` assembles it, and
`device` runs it.
"""

from __future__ import annotations

import hashlib
import re
import types as python_types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

if not hasattr(np, "row_stack"):  # NumPy 2.5 took it away, and Numba's CUDA target asks for it while it compiles
    vars(np)["row_stack"] = np.vstack

import _numba_cuda_redirector  # type: ignore[import-untyped]  # noqa: F401  (makes numba.cuda the package numba-cuda)
from numba import cuda
from numba.cuda import types
from numba.cuda.core import config


class CudaMissing(RuntimeError):
    """The driver or the device that kernels need is not there, or fails; the message is one line."""


config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # a choice of one token needs few blocks
SIMULATED = bool(config.ENABLE_CUDASIM)
ARCHITECTURES = ((8, 0), (9, 0), (10, 0))  # what the kernels are compiled for in tests
OLDEST = (8, 0)  # bf16 matrix instructions
WARP = 32
SHARED = 48 << 10  # bytes of a block's shared arrays, at most
DEPENDENT = (9, 0)  # the oldest that lets a launch begin while the one before it still runs

BYTES, HALVES, WORDS, INTS, FLOATS = (
    t[::1] for t in (types.uint8, types.uint16, types.uint32, types.int32, types.float32)
)  # arrays as parameters
INT, FLOAT = types.int64, types.float32  # numbers as parameters

if SIMULATED:
    import sys

    from numba.cuda.simulator import kernel as simulated_kernel
    from numba.cuda.simulator import kernelapi

    def _shared_array(self: Any, shape: Any, dtype: Any, alignment: int | None = None) -> np.ndarray:
        """One array for each line of the kernel, as the simulator has it, whatever its alignment."""
        frame = sys._getframe(1)
        place = (frame.f_code.co_filename, frame.f_lineno)
        with kernelapi.addlock:
            if place not in self._allocations:
                self._allocations[place] = np.full(shape, 0xA5, np.dtype(str(dtype)))  # stale, as on a device
        return self._allocations[place]

    kernelapi.FakeCUDAShared.array = _shared_array
    sys.setswitchinterval(1e-4)  # threads of a block wait for each other all the time


class NoKernel(ValueError):
    """No kernel can be made for these sizes; the message is one line."""


def require_shared(nbytes: int, what: str) -> None:
    """Raises NoKernel if shared arrays of so many bytes are more than a block can have."""
    if nbytes > SHARED:
        raise NoKernel(f"{what} need {nbytes} bytes of a block's shared memory, which has {SHARED}")


# ---- kernels --------------------------------------------------------------------------------------------------------


@cache
def sources() -> str:
    """A digest of all code that kernels are made of: Numba's cache looks at one file only."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def specialize(function: Callable[..., Any], name: str, **constants: Any) -> Any:
    """A copy of a function whose module globals have other values, under a name that says so."""
    copy = python_types.FunctionType(function.__code__, {**function.__globals__, **constants}, name)
    copy.__qualname__ = f"{name}_{sources()}"  # Numba's cache tells functions of one line apart by this
    copy.__module__ = function.__module__
    return copy


class _Running:
    """In the simulator, the device as the running kernel sees it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(simulated_kernel._get_kernel_context(), name)


def device(function: Callable[..., Any], **constants: Any) -> Any:
    """A function that kernels call, with constants as kernels have them."""
    return _device(function, tuple(sorted(constants.items())))


@cache
def _device(function: Callable[..., Any], constants: tuple[tuple[str, Any], ...]) -> Any:
    values = [str(v) for _, v in constants if isinstance(v, (str, int))]
    name = "_".join([function.__name__, *values])
    if SIMULATED:
        return specialize(function, name, **dict(constants), cuda=_Running())
    return cuda.jit(device=True)(specialize(function, name, **dict(constants)))


@contextmanager
def _pretended(architecture: tuple[int, int]) -> Iterator[None]:
    """Device functions ask the device of the process which architecture it has, even where nothing is to be run."""
    from numba.cuda import dispatcher

    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: python_types.SimpleNamespace(compute_capability=architecture)
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


class Kernel:
    """A kernel with its compile-time constants: globals of its module in capitals that `bind` replaces.

    Attributes:
        constants: by name. WARPS is the number of warps in a block.
    """

    def __init__(self, function: Callable[..., Any], parameters: Sequence[Any], constants: dict[str, Any]) -> None:
        self.function, self.constants, self._parameters = function, constants, tuple(parameters)
        unknown = [name for name in constants if name not in function.__globals__]
        if unknown:
            raise TypeError(f"{function.__name__}: no constants named {', '.join(unknown)}")
        values = [str(v).replace("-", "m") for v in constants.values() if isinstance(v, (str, int))]
        self.name = "_".join([function.__name__, *values])

    def bind(self, **constants: Any) -> Kernel:
        """The same kernel with other compile-time constants."""
        return Kernel(self.function, self._parameters, {**self.constants, **constants})

    @property
    def parameters(self) -> tuple[Any, ...]:
        """Numba types of the arguments, in order."""
        return tuple(self.constants[p] if isinstance(p, str) else p for p in self._parameters)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return WARP * int(self.constants.get("WARPS", self.function.__globals__.get("WARPS", 1)))

    @property
    def dynamic(self) -> int:
        """Bytes of shared memory that a block is given at its launch, beside its own arrays."""
        return int(self.constants.get("SHARED_BYTES", 0))

    def resident(self, architecture: tuple[int, int]) -> int:
        """How many blocks are to share a multiprocessor, 0 if that is left open. Two at most before Hopper, where the assembler
        needs more registers for the same code."""
        wanted = int(self.constants.get("RESIDENT", 0))
        return min(wanted, 2) if architecture < DEPENDENT else wanted

    def _bounds(self, architecture: tuple[int, int]) -> tuple[int, int] | None:
        """Threads of a block, and how many blocks are to share a multiprocessor: the assembler takes no more registers."""
        resident = self.resident(architecture)
        return (self.threads, resident) if resident else None

    @cached_property
    def _specialized(self) -> Any:
        return specialize(self.function, self.name, **self.constants)

    def ptx(self, architecture: tuple[int, int]) -> str:
        """The PTX for a compute capability. Needs no device."""
        signature = types.void(*self.parameters)
        with _pretended(architecture):
            text, _ = cuda.compile(
                self._specialized, signature, cc=architecture, device=False, abi="numba", output="ptx",
                launch_bounds=self._bounds(architecture),
            )  # fmt: skip
        if architecture < DEPENDENT:
            return re.sub(r"^.*(griddepcontrol|cp\.async\.bulk\.prefetch)\..*\n", "", str(text), flags=re.M)
        return str(text)

    @cached_property
    def simulated(self) -> Any:
        """The kernel in Numba's simulator: [grid, threads](*arguments) runs it."""
        return cuda.jit(self._specialized)


def kernel(*parameters: Any, **constants: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Makes a kernel of a function, given the types of its parameters (or the constants that are their types)."""
    return lambda function: Kernel(function, parameters, constants)
