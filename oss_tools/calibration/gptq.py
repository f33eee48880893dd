"""GPTQ on the grid of any format: the error of a column is made up for in the columns behind it.

With H the second moments of a matrix's inputs, the squared error of its outputs is (w − q) H (w − q)ᵀ, summed over its rows. H is
factored into (F + I) D (F + I)ᵀ, F strictly upper triangular. Column k is rounded from w_k + Σ_{l<k} (w_l − q_l) F_lk, which is
GPTQ (https://arxiv.org/abs/2210.17323) without the inverse (https://arxiv.org/abs/2307.13304, theorem 6), and costs D_k times its
squared error. A block of columns that share scales is rounded by several candidates, of which the row keeps the cheapest.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from oss_tools.formats import Format, QTensor, concatenate
from oss_tools.machine.blas import one_thread

LAZY = 128  # columns whose errors are handed to all behind them at once
DAMPING = 0.01
MOST_DAMPING = 1.0  # what an ill-conditioned matrix gets at most, before its columns are rounded by themselves
ROWS = 1440  # rows that are rounded at a time, about


@dataclass(frozen=True)
class Factor:
    """How errors are made up for.

    Attributes:
        order: int64 [K], the columns in the order in which they are rounded; blocks that share scales stay together.
        feedback: float32 [K, K], F, of columns in this order, and zeros below; None: nothing is made up for.
        costs: float32 [K], D, of columns in this order.
        damping: what was added to the diagonal, in units of its mean.
    """

    order: np.ndarray
    feedback: np.ndarray | None
    costs: np.ndarray
    damping: float


def factored(
    moments: np.ndarray, block: int, damping: float = DAMPING, width: int | None = None, sort: bool = True
) -> Factor:
    """The factor of second moments [K, K], float32 or float64.

    Args:
        block: columns whose scales are chosen together; 0 for all.
        width: columns that share one scale, of a block.
        sort: whether blocks, and columns within `width`, of larger inputs come first.
    """
    squares = np.maximum(np.diagonal(moments).astype(np.float64), 0)
    mean = float(squares.mean())
    if not np.isfinite(mean) or mean <= 0:
        return Factor(np.arange(len(squares)), None, np.ones(len(squares), np.float32), 0.0)
    order = _order(squares, block or len(squares), width or block or len(squares)) if sort else np.arange(len(squares))
    backwards = order[::-1]
    added = damping
    while added <= MOST_DAMPING:
        matrix = moments[np.ix_(backwards, backwards)].astype(np.float64)
        matrix[np.diag_indices_from(matrix)] += np.where(squares > 0, added * mean, mean)[backwards]
        try:
            root = np.linalg.cholesky(matrix)[::-1, ::-1]  # upper triangular: H = root · rootᵀ
        except np.linalg.LinAlgError:
            added *= 10
            continue
        pivots = np.diagonal(root).copy()
        feedback = np.empty(root.shape, np.float32)
        np.divide(root, pivots, out=feedback, dtype=np.float64, casting="same_kind")
        np.fill_diagonal(feedback, 0)
        if np.isfinite(feedback).all():
            return Factor(order, feedback, (pivots**2 / mean).astype(np.float32), added)
        added *= 10
    return Factor(np.arange(len(squares)), None, (squares / mean + damping).astype(np.float32), added)


def _order(squares: np.ndarray, block: int, width: int) -> np.ndarray:
    """Columns by falling mean square, in whole blocks, in whole parts of `width` within a block, and within such a part."""
    parts = squares.reshape(-1, block // width, width)
    within = np.argsort(-parts, axis=-1, kind="stable")
    places = np.arange(squares.size).reshape(parts.shape)
    sorted_parts = np.take_along_axis(places, within, -1)
    by_block = np.argsort(-parts.sum((1, 2)), kind="stable")
    return sorted_parts[by_block].reshape(-1)


def gptq(
    weight: np.ndarray,
    factor: Factor,
    format: Format,
    *,
    rule: str | None = None,
    amax: float | None = None,
    threads: int = 1,
) -> QTensor:
    """Rounds a matrix, float32 [R, K], to a format that has a lattice.

    Args:
        rule: how scales are found that are tried, of `format.rules`.
        amax: as in `Format.quantize`.
    """
    bounds = _bounds(len(weight))

    def part(at: int) -> QTensor:
        return _rounded(weight[bounds[at] : bounds[at + 1]], factor, format, rule, amax)

    with one_thread(), ThreadPoolExecutor(max(min(threads, len(bounds) - 1), 1)) as pool:
        return concatenate(list(pool.map(part, range(len(bounds) - 1))))


def _bounds(rows: int) -> list[int]:
    """Where parts of a matrix begin and end, whatever the number of threads; two at a time come out even."""
    count = max(2 * round(rows / (2 * ROWS)), 1)
    return [rows * i // count for i in range(count + 1)]


def _rounded(
    weight: np.ndarray,
    factor: Factor,
    format: Format,
    rule: str | None,
    amax: float | None,
) -> QTensor:
    rows, columns = weight.shape
    block = format.lattice_block or columns
    order, feedback = factor.order, factor.feedback
    planes = {name: np.empty((rows, plane.columns), plane.dtype) for name, plane in format.planes(columns).items()}
    before = np.ascontiguousarray(weight[:, order], np.float32)
    current, lost = before.copy(), np.zeros_like(before)
    lazy = max(LAZY // block, 1) * block
    for first in range(0, columns, lazy):
        last = min(first + lazy, columns)
        for start in range(first, last, block):
            stop = start + block
            here = order[start:stop]
            low = int(here.min())
            part = _round_block(before[:, start:stop], current[:, start:stop], here - low, factor, start, format, rule, amax)
            for name, plane in part.planes.items():
                share = planes[name].shape[1] * block // columns
                if share:
                    planes[name][:, low * share // block : low * share // block + share] = plane
                else:
                    planes[name][:] = plane
            if feedback is not None:
                lost[:, start:stop] = before[:, start:stop] - part.dequantize()[:, here - low]
                current[:, stop:last] += lost[:, start:stop] @ feedback[start:stop, stop:last]
        if feedback is not None:
            current[:, last:] += lost[:, first:last] @ feedback[first:last, last:]
    return QTensor(format, weight.shape, planes)


def _round_block(
    before: np.ndarray, current: np.ndarray, order: np.ndarray, factor: Factor, start: int, format: Format,
    rule: str | None, amax: float | None,
) -> QTensor:  # fmt: skip
    """A block of columns, given in the order of rounding, as a tensor [R, B] with its columns in their own order."""
    from numba_kernels.codec.compensation import round_block

    rows, block = before.shape
    back = np.argsort(order)
    here = slice(start, start + block)
    costs = factor.costs[here]
    values = np.ascontiguousarray(current[:, back])
    searched = format.quantize(values, rule=rule, importance=costs[back], amax=amax)
    tried = [searched, *format.other_scales(searched)]
    lattices = [format.lattice(some) for some in tried]
    scales = np.stack([lattice.scale for lattice in lattices], 1)
    offsets = np.stack([np.zeros_like(scales[:, 0]) if some.offset is None else some.offset for some in lattices], 1)
    feedback = np.zeros((block, block), np.float32)
    if factor.feedback is not None:
        feedback[:] = factor.feedback[here, here]
    codes, _, chosen = round_block(
        np.ascontiguousarray(before[:, back]), values, scales, offsets, feedback, costs, order, lattices[0].levels,
        lattices[0].width,
    )  # fmt: skip
    index = np.arange(rows)
    picked = {name: np.stack([some.planes[name] for some in tried])[chosen, index] for name in searched.planes}
    return format.with_codes(QTensor(format, searched.shape, picked), codes)
