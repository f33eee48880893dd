"""The searches that the block formats share: of many (scale, minimum) pairs, the one of least weighted squared error.

All candidates of a block are tried side by side, one a vector lane; the error of each is summed in the order of the
values, so that the choice is the same on every processor. Memory is addressed by integers: x and weights are the addresses of a
block's float32 values and of their weights.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.codec.tables import SURE
from numba_kernels.cpu.op import inner
from numba_kernels.simd.kinds import Address, Float, Floats, Int
from numba_kernels.simd.memory import get_f32, load_floats, set_f32, stack, store_floats
from numba_kernels.simd.numbers import CANDIDATES, as_half, least_lane, reciprocal, round_even
from numba_kernels.simd.values import LANES, absolute, maximum, minimum, splat

VECTORS = CANDIDATES // LANES


@inner
def scale_errors(x: Address, weights: Address, scale: Floats, inverse: Floats, low: Float, high: Float, size: Int) -> Floats:
    """The errors of `size` values as scale · code, the code an integer in [low, high]. Four values are added at a time, since
    each addition waits for the one before."""
    bottom, top = splat(low), splat(high)
    total = splat(np.float32(0))
    for i in range(0, 4 * size, 16):
        x0, x1 = splat(get_f32(x + i)), splat(get_f32(x + i + 4))
        x2, x3 = splat(get_f32(x + i + 8)), splat(get_f32(x + i + 12))
        d0 = x0 - scale * round_even(minimum(maximum(x0 * inverse, bottom), top))
        d1 = x1 - scale * round_even(minimum(maximum(x1 * inverse, bottom), top))
        d2 = x2 - scale * round_even(minimum(maximum(x2 * inverse, bottom), top))
        d3 = x3 - scale * round_even(minimum(maximum(x3 * inverse, bottom), top))
        first = splat(get_f32(weights + i)) * (d0 * d0) + splat(get_f32(weights + i + 4)) * (d1 * d1)
        second = splat(get_f32(weights + i + 8)) * (d2 * d2) + splat(get_f32(weights + i + 12)) * (d3 * d3)
        total = total + (first + second)
    return total


@inner
def minimum_errors(
    x: Address, weights: Address, scale: Floats, lowest: Floats, inverse: Floats, high: Float, size: Int
) -> Floats:
    """The same as scale · code + lowest, the code an integer in [0, high]."""
    bottom, top = splat(np.float32(0)), splat(high)
    total = splat(np.float32(0))
    for i in range(0, 4 * size, 16):
        x0, x1 = splat(get_f32(x + i)), splat(get_f32(x + i + 4))
        x2, x3 = splat(get_f32(x + i + 8)), splat(get_f32(x + i + 12))
        d0 = x0 - (scale * round_even(minimum(maximum((x0 - lowest) * inverse, bottom), top)) + lowest)
        d1 = x1 - (scale * round_even(minimum(maximum((x1 - lowest) * inverse, bottom), top)) + lowest)
        d2 = x2 - (scale * round_even(minimum(maximum((x2 - lowest) * inverse, bottom), top)) + lowest)
        d3 = x3 - (scale * round_even(minimum(maximum((x3 - lowest) * inverse, bottom), top)) + lowest)
        first = splat(get_f32(weights + i)) * (d0 * d0) + splat(get_f32(weights + i + 4)) * (d1 * d1)
        second = splat(get_f32(weights + i + 8)) * (d2 * d2) + splat(get_f32(weights + i + 12)) * (d3 * d3)
        total = total + (first + second)
    return total


@inner
def magnitude_errors(x: Address, weights: Address, scale: Floats, inverse: Floats, high: Float) -> Floats:
    """`scale_errors` of a scale that is not negative and codes in [−high, high]: of the magnitudes, which need one bound."""
    top = splat(high)
    total = splat(np.float32(0))
    for i in range(0, 128, 16):
        x0, x1 = splat(get_f32(x + i)), splat(get_f32(x + i + 4))
        x2, x3 = splat(get_f32(x + i + 8)), splat(get_f32(x + i + 12))
        d0, d1 = x0 - scale * round_even(minimum(x0 * inverse, top)), x1 - scale * round_even(minimum(x1 * inverse, top))
        d2, d3 = x2 - scale * round_even(minimum(x2 * inverse, top)), x3 - scale * round_even(minimum(x3 * inverse, top))
        first = splat(get_f32(weights + i)) * (d0 * d0) + splat(get_f32(weights + i + 4)) * (d1 * d1)
        second = splat(get_f32(weights + i + 8)) * (d2 * d2) + splat(get_f32(weights + i + 12)) * (d3 * d3)
        total = total + (first + second)
    return total


@inner
def search_scales(
    x: Address, weights: Address, scales: Address, count: Int, steps: Address, low: Float, high: Float
) -> None:
    """Replaces the scales of `count` neighbouring blocks of 32 values, float32, by half-precision ones that are never worse.

    Each of two passes of steps, float32 [2, 2, CANDIDATES], tries scale · steps[p, 0] with the best scale so far; the first
    of them is 1. A pass over many blocks lets the processor begin with the next while it looks for the least of this one.
    """
    tried, errors, magnitudes = stack(64), stack(64), stack(128)
    for p in range(2):
        for b in range(count):
            start, at = splat(get_f32(scales + 4 * b)), x + 128 * b
            if low == -high:
                for i in range(32 // LANES):
                    store_floats(magnitudes + 4 * LANES * i, absolute(load_floats(at + 4 * LANES * i)))
            for v in range(VECTORS):
                scale = as_half(start * load_floats(steps + 128 * p + 4 * LANES * v))
                store_floats(tried + 4 * LANES * v, scale)
                if low == -high:
                    found = magnitude_errors(magnitudes, weights + 128 * b, scale, reciprocal(scale), high)
                else:
                    found = scale_errors(at, weights + 128 * b, scale, reciprocal(scale), low, high, 32)
                store_floats(errors + 4 * LANES * v, found)
            set_f32(scales + 4 * b, get_f32(tried + 4 * least_lane(errors, SURE)))


@inner
def search_scales_and_minima(
    x: Address, weights: Address, scales: Address, minima: Address, count: Int, steps: Address, high: Float
) -> None:
    """As `search_scales`, for codes 0 … high with a minimum, which each of three passes moves by scale · steps[p, 1]."""
    tried, moved, errors = stack(64), stack(64), stack(64)
    for p in range(3):
        for b in range(count):
            start, base = splat(get_f32(scales + 4 * b)), splat(get_f32(minima + 4 * b))
            for v in range(VECTORS):
                at = 4 * LANES * v
                scale = as_half(start * load_floats(steps + 128 * p + at))
                lowest = as_half(base + start * load_floats(steps + 128 * p + 64 + at))
                store_floats(tried + at, scale)
                store_floats(moved + at, lowest)
                found = minimum_errors(x + 128 * b, weights + 128 * b, scale, lowest, reciprocal(scale), high, 32)
                store_floats(errors + at, found)
            lane = least_lane(errors, SURE)
            set_f32(scales + 4 * b, get_f32(tried + 4 * lane))
            set_f32(minima + 4 * b, get_f32(moved + 4 * lane))
