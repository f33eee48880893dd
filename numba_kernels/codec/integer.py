"""8-bit integers, symmetric in −127 … 127, with a bfloat16 scale for every group of values of a row."""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import as_bfloat16, bfloat16_to_float, float_to_bfloat16, inline, round_even
from numba_kernels.codec.search import least, reciprocal
from numba_kernels.codec.tables import FLOAT32_MAX, LANES

TOP = np.float32(127)
LEAST_POWER = -133  # of two, in bfloat16's denormals


@inline
def power_of_two_scale(top: np.float32) -> np.float32:
    """The least power of two, of bfloat16's, in which nothing up to `top` exceeds 127 steps; 0 for 0."""
    if top == np.float32(0):
        return np.float32(0)
    bits = np.float64(np.float64(top) / 127).view(np.int64)  # float64 has no denormals here
    exponent = max(int(bits + ((1 << 52) - 1) >> 52) - 1023, LEAST_POWER)
    return np.float32(np.int64((exponent + 1023) << 52).view(np.float64))


@njit(cache=True, nogil=True)
def quantize(
    values: np.ndarray,
    importance: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    power_of_two: bool,
    search: bool,
    steps: np.ndarray,
) -> None:
    """Rounds groups of N values to codes times a scale, ties to even.

    Args:
        values: float32 [R, G, N], finite.
        importance: float32 [R or 1, G, N], weights of the squared error for the search.
        codes: int8 [R, G, N], filled.
        scales: uint16 [R, G], filled with bfloat16 bits.
        power_of_two: whether scales are powers of two.
        search: whether to search the scale over its multiples by `steps`, float32 [LANES], of which the first is 1.
    """
    bits = values.view(np.int32)
    lanes, inverses, errors = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float64)
    for r in range(values.shape[0]):
        w = r if importance.shape[0] > 1 else 0
        for g in range(scales.shape[1]):
            top_bits = np.int32(0)
            for i in range(values.shape[2]):
                top_bits = max(top_bits, np.int32(bits[r, g, i] & np.int32(0x7FFFFFFF)))
            top = np.int32(top_bits).view(np.float32)
            scale = power_of_two_scale(top) if power_of_two else as_bfloat16(top / TOP)
            if search:
                for c in range(LANES):
                    lanes[c] = as_bfloat16(scale * steps[c])
                scale = best_scale(values[r, g], importance[w, g], lanes, inverses, errors)
            scales[r, g] = float_to_bfloat16(scale)
            divisor = scale if scale > np.float32(0) else np.float32(np.inf)
            limit = min(TOP, np.floor(FLOAT32_MAX / divisor))  # so that decoding stays finite
            for i in range(values.shape[2]):
                codes[r, g, i] = np.int8(round_even(min(max(values[r, g, i] / divisor, -limit), limit)))


@njit(nogil=True)
def best_scale(
    values: np.ndarray, importance: np.ndarray, lanes: np.ndarray, inverses: np.ndarray, errors: np.ndarray
) -> np.float32:
    """The scale of least weighted squared error over a group; the first unless another is surely better."""
    for c in range(LANES):
        inverses[c] = reciprocal(lanes[c])
        errors[c] = 0.0
    for i in range(values.size):
        x, weight = values[i], importance[i]
        for c in range(LANES):
            difference = x - round_even(min(max(x * inverses[c], -TOP), TOP)) * lanes[c]
            errors[c] += np.float64(weight * (difference * difference))
    return lanes[least(errors)]


@njit(cache=True, nogil=True)
def dequantize(codes: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """int8 [R, G, N] and bfloat16 bits, uint16 [R, G] -> float32 [R, G, N]."""
    for r in range(codes.shape[0]):
        for g in range(scales.shape[1]):
            scale = bfloat16_to_float(scales[r, g])
            for i in range(codes.shape[2]):
                out[r, g, i] = np.float32(codes[r, g, i]) * scale
