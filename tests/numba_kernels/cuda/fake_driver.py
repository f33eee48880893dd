"""The fake driver's other half: the launches it is handed are read, argument by argument, and interpreted when it carries them
out. To be imported, with the folder of its libcuda.so.1 in LD_LIBRARY_PATH, before anything asks for a device."""

from __future__ import annotations

import ctypes
import sys
import traceback
from typing import Any

import numpy as np
import ptx_machine

from numba_kernels.cuda.seam import BYTES, FLOATS, HALVES, INT, INTS, WORDS, Kernel, sources

DTYPES = {BYTES: np.uint8, HALVES: np.uint16, WORDS: np.uint32, INTS: np.int32, FLOATS: np.float32}
THREE = ctypes.POINTER(ctypes.c_uint)
ON_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_char_p, THREE, THREE, ctypes.POINTER(ctypes.c_void_p))
ON_EXECUTE = ctypes.CFUNCTYPE(None, ctypes.c_long)

kernels: dict[str, Kernel] = {}  # by the name that is in the machine code
launches: list[tuple[Kernel, tuple[int, ...], list[Any]]] = []
failures: list[str] = []
_texts: dict[str, str] = {}
_make = Kernel.__init__


def _remember(self: Kernel, *arguments: Any, **named: Any) -> None:
    _make(self, *arguments, **named)
    kernels[f"{self.name}_{sources()}"] = self


Kernel.__init__ = _remember  # type: ignore[method-assign]


def _argument(kind: Any, parameters: Any, at: int) -> tuple[Any, int]:
    """(array or number, the next place) from the pointers to a launch's arguments. An array is seven: two objects, its length,
    the size of an element, its address, its shape and strides."""

    def raw(place: int, kind: Any) -> Any:
        return ctypes.cast(parameters[place], ctypes.POINTER(kind))[0]

    if kind not in DTYPES:
        return (raw(at, ctypes.c_int64) if kind == INT else np.float32(raw(at, ctypes.c_float))), at + 1
    dtype = np.dtype(DTYPES[kind])
    count, size, shape, stride = (raw(at + i, ctypes.c_int64) for i in (2, 3, 5, 6))
    if (size, shape, stride) != (dtype.itemsize, count, dtype.itemsize):
        raise TypeError(f"{count} elements of {size} bytes, shape {shape}, stride {stride}, where {dtype} is wanted")
    memory = ctypes.cast(raw(at + 4, ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint8))
    return np.ctypeslib.as_array(memory, (count * size,)).view(dtype), at + 7


def _on_launch(name: bytes, grid: Any, block: Any, parameters: Any) -> int:
    try:
        kernel = next(
            kernel for key, kernel in kernels.items() if f"{len(key)}{key}" in name.decode() or key in name.decode()
        )
        if list(block[:3]) != [kernel.threads, 1, 1]:
            raise TypeError(f"{kernel.name}: {list(block[:3])} threads")
        arguments, at = [], 0
        for kind in kernel.parameters:
            value, at = _argument(kind, parameters, at)
            arguments.append(value)
        launches.append((kernel, tuple(grid[:3]), arguments))
        return len(launches) - 1
    except Exception:
        traceback.print_exc()
        return -1


def _on_execute(number: int) -> None:
    kernel, grid, arguments = launches[number]
    try:
        if kernel.name not in _texts:
            _texts[kernel.name] = kernel.ptx((9, 0))
        ptx_machine.launch(_texts[kernel.name], grid[:2], kernel.threads, arguments)
    except Exception as error:
        traceback.print_exc()
        failures.append(f"{kernel.name}: {error}")


_callbacks = ON_LAUNCH(_on_launch), ON_EXECUTE(_on_execute)
_library = ctypes.CDLL("libcuda.so.1")
_library.fake_callbacks(*_callbacks)
_library.fake_faults.restype = ctypes.c_long


def check() -> None:
    """Raises AssertionError if anything was done that no program may do."""
    sys.stdout.flush()
    assert not failures, failures
    assert _library.fake_faults() == 0
