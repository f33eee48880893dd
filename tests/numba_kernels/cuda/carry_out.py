"""Runs a kernel on NumPy arrays: on a GPU where there is one, in Numba's simulator, or else by interpreting its PTX."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import ptx_machine

from numba_kernels.cuda.device import Device
from numba_kernels.cuda.driver import find_gpu
from numba_kernels.cuda.seam import SIMULATED, CudaMissing, Kernel
from numba_kernels.cuda.simulated import SimulatedDevice

ARCHITECTURE = (9, 0)


@lru_cache
def where() -> str:
    """device, simulator or interpreter."""
    if SIMULATED:
        return "simulator"
    try:
        find_gpu()
    except CudaMissing:
        return "interpreter"
    return "device"


@lru_cache
def device() -> Device:
    """The GPU, or the simulator."""
    return SimulatedDevice() if SIMULATED else Device()


_texts: dict[str, str] = {}


def ptx(kernel: Kernel) -> str:
    """The kernel's PTX, compiled once."""
    if kernel.name not in _texts:
        _texts[kernel.name] = kernel.ptx(ARCHITECTURE)
    return _texts[kernel.name]


def run(kernel: Kernel, grid: int | tuple[int, ...], *arguments: Any) -> None:
    """One launch; the arrays are changed in place."""
    assert len(arguments) == len(kernel.parameters)
    if where() == "interpreter":
        ptx_machine.launch(ptx(kernel), grid, kernel.threads, arguments)
        return
    held = [device().array(a) if isinstance(a, np.ndarray) else a for a in arguments]
    device().launch(kernel, grid, *held)
    for array, copy in zip(arguments, held, strict=True):
        if isinstance(array, np.ndarray):
            array[:] = device().download(copy, 0, array.size).reshape(array.shape)


def poison(*shape: int, dtype: type = np.float32) -> np.ndarray:
    """An output that nobody wrote yet."""
    return np.full(shape, np.nan if dtype is np.float32 else -77, dtype)
