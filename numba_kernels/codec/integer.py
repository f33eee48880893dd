"""8-bit integers, symmetric in −127 … 127, with a bfloat16 scale for every group of values of a row."""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import as_bfloat16, bfloat16_to_float, float_to_bfloat16, inline, round_even
from numba_kernels.codec.search import VECTORS
from numba_kernels.codec.tables import FLOAT32_MAX, SURE
from numba_kernels.cpu.op import inner
from numba_kernels.simd.doubles import add_first, add_last, no_doubles, store_doubles
from numba_kernels.simd.kinds import Address, Int
from numba_kernels.simd.memory import get_f32, load_floats
from numba_kernels.simd.numbers import CANDIDATES, reciprocal
from numba_kernels.simd.numbers import round_even as round_even_lanes
from numba_kernels.simd.values import LANES, maximum, minimum, splat

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
        search: whether to search the scale over its multiples by `steps`, float32 [CANDIDATES], of which the first is 1.
    """
    bits = values.view(np.int32)
    lanes, errors = np.empty(CANDIDATES, np.float32), np.empty(CANDIDATES, np.float64)
    for r in range(values.shape[0]):
        w = r if importance.shape[0] > 1 else 0
        for g in range(scales.shape[1]):
            top_bits = np.int32(0)
            for i in range(values.shape[2]):
                top_bits = max(top_bits, np.int32(bits[r, g, i] & np.int32(0x7FFFFFFF)))
            top = np.int32(top_bits).view(np.float32)
            scale = power_of_two_scale(top) if power_of_two else as_bfloat16(top / TOP)
            if search:
                for c in range(CANDIDATES):
                    lanes[c] = as_bfloat16(scale * steps[c])
                x, weights = np.int64(values[r, g].ctypes.data), np.int64(importance[w, g].ctypes.data)
                scale = best_scale(x, weights, values.shape[2], lanes, errors)
            scales[r, g] = float_to_bfloat16(scale)
            divisor = scale if scale > np.float32(0) else np.float32(np.inf)
            limit = min(TOP, np.floor(FLOAT32_MAX / divisor))  # so that decoding stays finite
            for i in range(values.shape[2]):
                codes[r, g, i] = np.int8(round_even(min(max(values[r, g, i] / divisor, -limit), limit)))


@inner
def scale_errors(x: Address, weights: Address, size: Int, scales: Address, errors: Address) -> None:
    """The weighted squared errors, float64 [CANDIDATES], of a group of values with each of the scales, float32; added one after
    another."""
    for v in range(VECTORS):
        scale = load_floats(scales + 4 * LANES * v)
        inverse, bottom, top = reciprocal(scale), splat(-TOP), splat(TOP)
        first, last = no_doubles(), no_doubles()
        for i in range(0, 4 * size, 4):
            value = splat(get_f32(x + i))
            difference = value - round_even_lanes(minimum(maximum(value * inverse, bottom), top)) * scale
            error = splat(get_f32(weights + i)) * (difference * difference)
            first = add_first(first, error)
            if LANES > 8:
                last = add_last(last, error)
        store_doubles(errors + 8 * LANES * v, first)
        if LANES > 8:
            store_doubles(errors + 8 * LANES * v + 64, last)


@inline
def best_scale(x: Address, weights: Address, size: Int, lanes: np.ndarray, errors: np.ndarray) -> np.float32:
    """The scale of least weighted squared error over a group; the first unless another is surely better."""
    scale_errors(x, weights, size, np.int64(lanes.ctypes.data), np.int64(errors.ctypes.data))
    best = 0
    for c in range(1, errors.size):
        if errors[c] < errors[best]:
            best = c
    return lanes[best] if errors[best] < errors[0] * SURE else lanes[0]


@njit(cache=True, nogil=True)
def dequantize(codes: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """int8 [R, G, N] and bfloat16 bits, uint16 [R, G] -> float32 [R, G, N]."""
    for r in range(codes.shape[0]):
        for g in range(scales.shape[1]):
            scale = bfloat16_to_float(scales[r, g])
            for i in range(codes.shape[2]):
                out[r, g, i] = np.float32(codes[r, g, i]) * scale
