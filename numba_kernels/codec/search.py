"""The search that the block formats share: of many (scale, minimum) pairs, the one of least weighted squared error.

All candidates of a block are tried side by side, one a vector lane; the error of each is summed in the order of the
values, so that the choice is the same on every processor.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import as_half, inline, round_even
from numba_kernels.codec.tables import LANES, SURE


@inline
def reciprocal(x: np.float32) -> np.float32:
    """1 / x; 0 where that is infinite."""
    inverse = np.float32(1) / x if x != np.float32(0) else np.float32(0)
    return inverse if abs(inverse) <= np.float32(3.4e38) else np.float32(0)


@njit(nogil=True)
def squared_error(
    x: np.float32,
    weight: np.float32,
    scale: np.float32,
    minimum: np.float32 | None,
    inverse: np.float32,
    low: np.float32,
    high: np.float32,
) -> np.float32:
    """Weighted squared error of x rounded to scale · code, or scale · code + minimum."""
    if minimum is None:
        difference = x - scale * round_even(min(max(x * inverse, low), high))
    else:
        code = round_even(min(max((x - minimum) * inverse, low), high))
        difference = x - (scale * code + minimum)
    return weight * (difference * difference)


@njit(nogil=True)
def best_lane(
    values: np.ndarray,
    row: int,
    importance: np.ndarray,
    weight_row: int,
    start: int,
    scales: np.ndarray,
    minima: np.ndarray | None,
    inverses: np.ndarray,
    errors: np.ndarray,
    low: np.float32,
    high: np.float32,
) -> int:
    """The lane whose scale · code (+ minimum), the code an integer in [low, high], is nearest to a block of 32 values.

    Lane 0 is kept unless another is surely better. scales, minima, inverses, errors: float32 [LANES]; the last two are
    scratch. Four values are added at a time, since each addition waits for the one before.
    """
    for c in range(LANES):
        inverses[c] = reciprocal(scales[c])
        errors[c] = np.float32(0)
    for i in range(start, start + 32, 4):
        x0, x1, x2, x3 = values[row, i], values[row, i + 1], values[row, i + 2], values[row, i + 3]
        w0, w1 = importance[weight_row, i], importance[weight_row, i + 1]
        w2, w3 = importance[weight_row, i + 2], importance[weight_row, i + 3]
        for c in range(LANES):
            scale, inverse = scales[c], inverses[c]
            minimum = None if minima is None else minima[c]
            errors[c] += (
                squared_error(x0, w0, scale, minimum, inverse, low, high)
                + squared_error(x1, w1, scale, minimum, inverse, low, high)
            ) + (
                squared_error(x2, w2, scale, minimum, inverse, low, high)
                + squared_error(x3, w3, scale, minimum, inverse, low, high)
            )
    return least(errors)


@inline
def least(errors: np.ndarray) -> int:
    """The first lane of least error; lane 0 unless another is surely better. NaN is never better."""
    best = 0
    for c in range(1, errors.size):
        if errors[c] < errors[best]:
            best = c
    return best if errors[best] < errors[0] * SURE else 0


@njit(nogil=True)
def search_scale(
    values: np.ndarray,
    row: int,
    importance: np.ndarray,
    weight_row: int,
    start: int,
    scale: np.float32,
    steps: np.ndarray,
    scratch: np.ndarray,
    low: np.float32,
    high: np.float32,
) -> np.float32:
    """A half-precision scale for a block of 32 values, never worse than the given one, rounded.

    Each pass of `steps`, float32 [passes, 2, LANES], tries scale · steps[p, 0] with the best scale so far; lane 0 is 1.
    scratch: float32 [4, LANES].
    """
    scales = scratch[0]
    for p in range(steps.shape[0]):
        for c in range(LANES):
            scales[c] = as_half(scale * steps[p, 0, c])
        scale = scales[
            best_lane(values, row, importance, weight_row, start, scales, None, scratch[2], scratch[3], low, high)
        ]
    return scale


@njit(nogil=True)
def search_scale_and_minimum(
    values: np.ndarray,
    row: int,
    importance: np.ndarray,
    weight_row: int,
    start: int,
    scale: np.float32,
    minimum: np.float32,
    steps: np.ndarray,
    scratch: np.ndarray,
    high: np.float32,
) -> tuple[np.float32, np.float32]:
    """As `search_scale`, for codes 0 … high with a minimum, which each pass moves by scale · steps[p, 1]."""
    scales, minima = scratch[0], scratch[1]
    low = np.float32(0)
    for p in range(steps.shape[0]):
        for c in range(LANES):
            scales[c] = as_half(scale * steps[p, 0, c])
            minima[c] = as_half(minimum + scale * steps[p, 1, c])
        lane = best_lane(values, row, importance, weight_row, start, scales, minima, scratch[2], scratch[3], low, high)
        scale, minimum = scales[lane], minima[lane]
    return scale, minimum
