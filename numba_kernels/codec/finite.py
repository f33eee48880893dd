"""NaN and infinity: how many there are, and replacing them."""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.tables import FLOAT32_MAX


@njit(cache=True, nogil=True)
def _count(bits: np.ndarray) -> int:
    total = 0
    for i in range(bits.size):
        total += 1 if np.int32(bits[i] & np.int32(0x7FFFFFFF)) >= np.int32(0x7F800000) else 0
    return total


@njit(cache=True, nogil=True)
def _clamp(values: np.ndarray, limit: np.float32, out: np.ndarray) -> None:
    for i in range(values.size):
        x = values[i]
        out[i] = min(max(x, -limit), limit) if x == x else np.float32(0)


def nonfinite_count(values: np.ndarray) -> int:
    """How many of the float32 values, of any shape, are NaN or infinite."""
    return int(_count(np.ascontiguousarray(values, np.float32).reshape(-1).view(np.int32)))


def clamp_nonfinite(values: np.ndarray, limit: float = float(FLOAT32_MAX)) -> np.ndarray:
    """A float32 copy with NaN as 0 and everything beyond ±limit, infinity too, as ±limit."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    out = np.empty_like(flat)
    _clamp(flat, np.float32(limit), out)
    return out.reshape(values.shape)
