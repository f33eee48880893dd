"""The searches that the block formats share: of many (scale, minimum) pairs, the one of least weighted squared error.

All candidates of a block are tried side by side, one a vector lane; the error of each is summed in the order of the
values, so that the choice is the same on every processor. Memory is addressed by integers: x and weights are the addresses of a
block's float32 values and of their weights.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.codec.tables import SURE
from numba_kernels.cpu.op import inner
from numba_kernels.simd.numbers import CANDIDATES, as_half, least_lane, reciprocal, round_even
from numba_kernels.simd.values import (
    LANES,
    Address,
    Float,
    Floats,
    get_f32,
    load_floats,
    maximum,
    minimum,
    splat,
    stack,
    store_floats,
)

VECTORS = CANDIDATES // LANES


@inner
def scale_errors(x: Address, weights: Address, scale: Floats, inverse: Floats, low: Float, high: Float) -> Floats:
    """The errors of 32 values as scale · code, the code an integer in [low, high]. Four values are added at a time, since each
    addition waits for the one before."""
    bottom, top = splat(low), splat(high)
    total = splat(np.float32(0))
    for i in range(0, 128, 16):
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
def minimum_errors(x: Address, weights: Address, scale: Floats, lowest: Floats, inverse: Floats, high: Float) -> Floats:
    """The same as scale · code + lowest, the code an integer in [0, high]."""
    bottom, top = splat(np.float32(0)), splat(high)
    total = splat(np.float32(0))
    for i in range(0, 128, 16):
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
def search_scale(x: Address, weights: Address, scale: Float, steps: Address, low: Float, high: Float) -> Float:
    """A half-precision scale for a block of 32 values, never worse than the given one, rounded.

    Each of two passes of steps, float32 [2, 2, CANDIDATES], tries scale · steps[p, 0] with the best scale so far; the first
    of them is 1.
    """
    scales, errors = stack(64), stack(64)
    for p in range(2):
        for v in range(VECTORS):
            tried = as_half(splat(scale) * load_floats(steps + 128 * p + 4 * LANES * v))
            store_floats(scales + 4 * LANES * v, tried)
            found = scale_errors(x, weights, tried, reciprocal(tried), low, high)
            store_floats(errors + 4 * LANES * v, found)
        scale = get_f32(scales + 4 * least_lane(errors, SURE))
    return scale


@inner
def search_scale_and_minimum(
    x: Address, weights: Address, scale: Float, lowest: Float, steps: Address, high: Float
) -> tuple[Float, Float]:
    """As `search_scale`, for codes 0 … high with a minimum, which each of three passes moves by scale · steps[p, 1]."""
    scales, minima, errors = stack(64), stack(64), stack(64)
    for p in range(3):
        for v in range(VECTORS):
            at = 4 * LANES * v
            tried = as_half(splat(scale) * load_floats(steps + 128 * p + at))
            moved = as_half(splat(lowest) + splat(scale) * load_floats(steps + 128 * p + 64 + at))
            store_floats(scales + at, tried)
            store_floats(minima + at, moved)
            store_floats(errors + at, minimum_errors(x, weights, tried, moved, reciprocal(tried), high))
        lane = least_lane(errors, SURE)
        scale, lowest = get_f32(scales + 4 * lane), get_f32(minima + 4 * lane)
    return scale, lowest
