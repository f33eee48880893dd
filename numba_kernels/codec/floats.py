"""Plain floats: float32 to and from the bits of bfloat16 and half precision."""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import bfloat16_to_float, float_to_bfloat16, float_to_half, half_to_float


@njit(cache=True, nogil=True)
def encode_bfloat16(values: np.ndarray, out: np.ndarray) -> None:
    """float32 [R, K] -> bfloat16 bits, uint16 [R, K]; ties to even, saturating."""
    for r in range(values.shape[0]):
        for i in range(values.shape[1]):
            out[r, i] = float_to_bfloat16(values[r, i])


@njit(cache=True, nogil=True)
def decode_bfloat16(codes: np.ndarray, out: np.ndarray) -> None:
    """bfloat16 bits, uint16 [R, K] -> float32 [R, K]."""
    for r in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            out[r, i] = bfloat16_to_float(codes[r, i])


@njit(cache=True, nogil=True)
def encode_half(values: np.ndarray, out: np.ndarray) -> None:
    """float32 [R, K] -> half-precision bits, uint16 [R, K]; ties to even, saturating."""
    for r in range(values.shape[0]):
        for i in range(values.shape[1]):
            out[r, i] = float_to_half(values[r, i])


@njit(cache=True, nogil=True)
def decode_half(codes: np.ndarray, out: np.ndarray) -> None:
    """Half-precision bits, uint16 [R, K] -> float32 [R, K]."""
    for r in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            out[r, i] = half_to_float(codes[r, i])
