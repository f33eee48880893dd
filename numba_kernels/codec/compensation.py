"""Rounding with compensation inside of a block of columns: what is lost in one column is made up for in those behind it.

With H = (F + I) D (F + I)ᵀ, F strictly upper triangular and D diagonal, the squared error (w − q) H (w − q)ᵀ of a row is
Σ D_k (v_k − q_k)², where v_k = w_k + Σ_{l<k} (w_l − q_l) F_lk: GPTQ in the form of https://arxiv.org/abs/2307.13304, theorem 6.
A scale is judged by this sum, which is what it costs when all that follows makes up for it as well as it can.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.tables import SURE

TILE = 16  # rows that are rounded side by side, one a vector lane
MOST_STEPS = 16  # levels that are not evenly spaced are found by comparing with each midpoint


@njit(cache=True, nogil=True)
def round_block(
    weights: np.ndarray,
    values: np.ndarray,
    scales: np.ndarray,
    offsets: np.ndarray,
    codes: np.ndarray,
    losses: np.ndarray,
    chosen: np.ndarray,
    feedback: np.ndarray,
    costs: np.ndarray,
    order: np.ndarray,
    levels: np.ndarray,
    width: int,
) -> None:
    """Rounds each row with each of its candidate scales and keeps the codes of the one that costs least.

    Args:
        weights: float32 [R, B], the weights as they were.
        values: float32 [R, B], with what the blocks before have left to be made up for.
        scales, offsets: float32 [R, C, B / width], of C candidates.
        codes: uint8 [R, B], filled: indices into levels; losses: float32 [R], filled: Σ costs · (value − rounded)²;
        chosen: int64 [R], filled: which candidate, the first unless another is surely better.
        feedback: float32 [B, B], F; costs: float32 [B], D; both in the order of rounding.
        order: int64 [B]: which column is rounded first, second, …
        levels: float32 [L], ascending; evenly spaced by 1 if there are more than MOST_STEPS.
    """
    columns, candidates, count = weights.shape[1], scales.shape[1], levels.size
    even = True
    for i in range(1, count):
        even = even and levels[i] - levels[i - 1] == np.float32(1)
    first, last = levels[0], np.float32(count - 1)
    middles, steps = np.empty(count, np.float32), np.empty(count, np.float32)
    for i in range(count - 1):
        middles[i] = (levels[i] + levels[i + 1]) / np.float32(2)
        steps[i] = levels[i + 1] - levels[i]
    before = np.empty((columns, TILE), np.float32)
    start = np.empty((columns, TILE), np.float32)
    work = np.empty((columns, TILE), np.float32)
    found = np.empty((columns, TILE), np.float32)
    level, code, error = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    scale, offset, inverse = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    loss, least = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for base in range(0, weights.shape[0], TILE):
        rows = min(TILE, weights.shape[0] - base)
        for k in range(columns):
            for i in range(TILE):
                r = base + min(i, rows - 1)
                before[k, i] = weights[r, order[k]]
                start[k, i] = values[r, order[k]]
        for c in range(candidates):
            for i in range(TILE):
                loss[i] = np.float32(0)
            work[:] = start
            group = -1
            for k in range(columns):
                if order[k] // width != group:
                    group = order[k] // width
                    for i in range(TILE):
                        r = base + min(i, rows - 1)
                        scale[i] = scales[r, c, group]
                        offset[i] = offsets[r, c, group]
                        inverse[i] = np.float32(1) / scale[i] if abs(scale[i]) > np.float32(1e-37) else np.float32(0)
                if even:
                    for i in range(TILE):
                        unit = (work[k, i] - offset[i]) * inverse[i] - first
                        code[i] = min(max(np.rint(unit), np.float32(0)), last)
                        level[i] = code[i] + first
                else:
                    for i in range(TILE):
                        code[i] = np.float32(0)
                        level[i] = first
                        error[i] = (work[k, i] - offset[i]) * inverse[i]
                    for s in range(count - 1):
                        middle, step = middles[s], steps[s]
                        for i in range(TILE):
                            above = np.float32(1) if error[i] > middle else np.float32(0)
                            code[i] += above
                            level[i] += above * step
                cost = costs[k]
                for i in range(TILE):
                    rounded = scale[i] * level[i] + offset[i]
                    missed = work[k, i] - rounded
                    loss[i] += cost * (missed * missed)
                    error[i] = before[k, i] - rounded
                    found[k, i] = code[i]
                for later in range(k + 1, columns):
                    factor = feedback[k, later]
                    for i in range(TILE):
                        work[later, i] += factor * error[i]
            for i in range(rows):
                if c == 0 or loss[i] < least[i] * SURE:
                    least[i] = loss[i]
                    chosen[base + i] = c
                    for k in range(columns):
                        codes[base + i, order[k]] = np.uint8(found[k, i])
        for i in range(rows):
            losses[base + i] = least[i]
