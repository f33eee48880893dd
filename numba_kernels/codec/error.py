"""Sums from which the error figures of a quantization are made, in one pass."""

from __future__ import annotations

import numpy as np
from numba import njit

LANES = 16


@njit(cache=True, nogil=True)
def _sums(values: np.ndarray, decoded: np.ndarray, squared: np.ndarray, norm: np.ndarray, largest: np.ndarray) -> None:
    """Adds squared errors, squares and the largest error of flat arrays to float64 [LANES] each."""
    whole = values.size // LANES
    for i in range(whole):
        for c in range(LANES):
            x = np.float64(values[LANES * i + c])
            difference = abs(x - np.float64(decoded[LANES * i + c]))
            squared[c] += difference * difference
            norm[c] += x * x
            largest[c] = difference if difference > largest[c] else largest[c]
    for i in range(LANES * whole, values.size):
        x = np.float64(values[i])
        difference = abs(x - np.float64(decoded[i]))
        squared[0] += difference * difference
        norm[0] += x * x
        largest[0] = max(largest[0], difference)


@njit(cache=True, nogil=True)
def _outside(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> int:
    """How many values [R, B, N] lie outside of their block's range [R, B]."""
    total = 0
    for r in range(values.shape[0]):
        for b in range(values.shape[1]):
            bottom, top = low[r, b], high[r, b]
            for i in range(values.shape[2]):
                total += 1 if values[r, b, i] < bottom or values[r, b, i] > top else 0
    return total


def error_sums(
    values: np.ndarray, decoded: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None
) -> tuple[float, float, float, int]:
    """Compares values with what became of them.

    Args:
        values, decoded: float32 [..., K].
        low, high: float32 [rows, blocks], the range that each block can express (`Format.representable_range`), or None.

    Returns:
        Sum of squared errors, sum of squared values, largest absolute error, number of values outside their range.
        NaN or infinity in `decoded` makes the first one NaN or infinite.
    """
    values, decoded = (np.ascontiguousarray(a, np.float32) for a in (values, decoded))
    squared, norm, largest = np.zeros((3, LANES))
    _sums(values.reshape(-1), decoded.reshape(-1), squared, norm, largest)
    clipped = 0
    if low is not None and high is not None:
        clipped = _outside(values.reshape(*low.shape, -1), np.ascontiguousarray(low), np.ascontiguousarray(high))
    return float(squared.sum()), float(norm.sum()), float(largest.max()), int(clipped)
