"""Sums from which the error figures of a quantization are made: of each row, in one order on every processor.

`add_errors` takes them while a block's values are in registers; `error_sums` compares two arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.codec.call import over_rows
from numba_kernels.cpu.op import inner, op
from numba_kernels.simd.doubles import (
    add_squared_errors,
    add_squares,
    larger_error,
    max_doubles,
    no_doubles,
    set_f64,
    sum_doubles,
)
from numba_kernels.simd.kinds import Address, Floats
from numba_kernels.simd.memory import get_f32, load_first, load_floats
from numba_kernels.simd.numbers import count_first_outside, count_outside
from numba_kernels.simd.values import LANES, splat

SUMS = 4  # float64 of a row: squared errors, squares, the largest error, how many values lie outside their block's range
Totals = tuple[Any, Any, Any, int]  # of a row in registers


def _add_errors(x: Floats, decoded: Floats, low: Floats, high: Floats, totals: Totals) -> Totals:
    """Adds LANES values and what they became; [low, high] is what their scale can express."""
    squared, squares, largest, outside = totals
    return (
        add_squared_errors(squared, x, decoded),
        add_squares(squares, x),
        larger_error(largest, x, decoded),
        outside + count_outside(x, low, high),
    )


def _store_errors(errors: Address, totals: Totals) -> None:
    """Stores the SUMS float64 of a row."""
    squared, squares, largest, outside = totals
    set_f64(errors, sum_doubles(squared))
    set_f64(errors + 8, sum_doubles(squares))
    set_f64(errors + 16, max_doubles(largest))
    set_f64(errors + 24, np.float64(outside))


add_errors, store_errors = inner(_add_errors, "always"), inner(_store_errors)


@op
def compare_rows(  # type: ignore[no-untyped-def]
    values, values_stride, decoded, decoded_stride, low, low_stride, high, high_stride, errors, errors_stride,
    rows, parts, size, team, thread,
):  # fmt: skip
    """float32 values and decoded [rows, parts · size], low and high [rows, parts] -> errors, float64 [rows, SUMS]."""
    for r in range(rows):
        x, y = values + r * values_stride, decoded + r * decoded_stride
        squared, squares, largest, outside = no_doubles(), no_doubles(), no_doubles(), 0
        for p in range(parts):
            bottom, top = splat(get_f32(low + r * low_stride + 4 * p)), splat(get_f32(high + r * high_stride + 4 * p))
            whole = size // LANES * LANES
            for i in range(0, 4 * whole, 4 * LANES):
                a, b = load_floats(x + i), load_floats(y + i)
                squared, squares = add_squared_errors(squared, a, b), add_squares(squares, a)
                largest, outside = larger_error(largest, a, b), outside + count_outside(a, bottom, top)
            if whole < size:
                a, b = load_first(x + 4 * whole, size - whole), load_first(y + 4 * whole, size - whole)
                squared, squares = add_squared_errors(squared, a, b), add_squares(squares, a)
                largest, outside = larger_error(largest, a, b), outside + count_first_outside(a, bottom, top, size - whole)
            x, y = x + 4 * size, y + 4 * size
        store_errors(errors + r * errors_stride, (squared, squares, largest, outside))


def row_errors(
    values: np.ndarray, decoded: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """The SUMS figures of each row, float64 [rows, SUMS].

    Args:
        values, decoded: float32 [rows, K], of contiguous rows.
        low, high: float32 [rows, parts], the range that each block can express (`Format.representable_range`), or None.
        threads: how many threads share the work.
    """
    if low is None or high is None:
        low, high = (np.full((1, 1), bound, np.float32) for bound in (-np.inf, np.inf))
    errors = np.zeros((len(values), SUMS))
    if values.size:
        arrays = {"values": values, "decoded": decoded, "low": np.ascontiguousarray(low, np.float32)}
        arrays |= {"high": np.ascontiguousarray(high, np.float32), "errors": errors}
        parts = low.shape[1]
        over_rows(compare_rows, len(values), arrays, threads, parts=parts, size=values.shape[1] // parts)
    return errors


def error_sums(
    values: np.ndarray, decoded: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None, threads: int = 1
) -> tuple[float, float, float, int]:
    """Compares values with what became of them.

    Args:
        values, decoded: float32 [..., K].
        low, high: float32 [rows, parts], the range that each block can express (`Format.representable_range`), or None.
        threads: how many threads share the work.

    Returns:
        Sum of squared errors, sum of squared values, largest absolute error, number of values outside their range.
        NaN or infinity in `decoded` makes the first one NaN or infinite.
    """
    columns = values.shape[-1] if values.ndim else 1
    values, decoded = (np.ascontiguousarray(a, np.float32).reshape(-1, columns) for a in (values, decoded))
    return total(row_errors(values, decoded, low, high, threads))


def total(errors: np.ndarray) -> tuple[float, float, float, int]:
    """The figures of `error_sums` from those of its rows, float64 [rows, SUMS]."""
    squared, squares, _, outside = (float(column.sum()) for column in errors.T)
    return squared, squares, float(errors[:, 2].max(initial=0)), int(outside)
