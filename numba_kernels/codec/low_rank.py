"""Low-rank updates of a weight's rows, and how much of an update rounding leaves, each in one pass.

A value of an update is summed over the rank in order, in float32 and without fused multiply-add, so that it depends neither on
how many rows are taken at a time nor on the machine.
"""

from __future__ import annotations

import numpy as np
from numba import njit

COLUMNS = 512  # of a row that are summed at a time, so that they stay in the first cache


@njit(cache=True, nogil=True)
def _add(values: np.ndarray, left: np.ndarray, right: np.ndarray, scale: np.float32) -> None:
    """Adds scale · left · right to values [R, K]; left [R, r], right [r, K]."""
    rows, columns = values.shape
    total = np.empty(COLUMNS, np.float32)
    for begin in range(0, columns, COLUMNS):
        width = min(COLUMNS, columns - begin)
        for i in range(rows):
            for c in range(width):
                total[c] = np.float32(0)
            for r in range(left.shape[1]):
                factor = left[i, r]
                for c in range(width):
                    total[c] += factor * right[r, begin + c]
            for c in range(width):
                values[i, begin + c] += scale * total[c]


@njit(cache=True, nogil=True)
def _kept(base: np.ndarray, merged: np.ndarray, rounded: np.ndarray) -> tuple[float, float, float, float]:
    """Of flat arrays: sums of update², change · update, change² and base², in float64."""
    update_squared = along = change_squared = base_squared = 0.0
    for i in range(base.size):
        update = np.float64(merged[i]) - np.float64(base[i])
        change = np.float64(rounded[i]) - np.float64(base[i])
        update_squared += update * update
        along += change * update
        change_squared += change * change
        base_squared += np.float64(base[i]) * np.float64(base[i])
    return update_squared, along, change_squared, base_squared


def add_low_rank(values: np.ndarray, left: np.ndarray, right: np.ndarray, scale: float) -> None:
    """Adds scale · left · right to values, in place.

    Args:
        values: float32 [R, K], C-contiguous.
        left, right: float32 [R, r] and [r, K].
    """
    _add(values, np.ascontiguousarray(left), np.ascontiguousarray(right), np.float32(scale))


def kept_sums(base: np.ndarray, merged: np.ndarray, rounded: np.ndarray) -> tuple[float, float, float, float]:
    """What rounding left of an update, in sums over all values: ‖update‖², ‹change, update›, ‖change‖², ‖base‖².

    The update is merged − base, the change rounded − base. All are float32 of one shape.
    """
    flat = (np.ascontiguousarray(a, np.float32).reshape(-1) for a in (base, merged, rounded))
    update_squared, along, change_squared, base_squared = _kept(*flat)
    return float(update_squared), float(along), float(change_squared), float(base_squared)
