"""Rounding with compensation inside of a block of columns: what is lost in one column is made up for in those behind it.

With H = (F + I) D (F + I)ᵀ, F strictly upper triangular and D diagonal, the squared error (w − q) H (w − q)ᵀ of a row is
Σ D_k (v_k − q_k)², where v_k = w_k + Σ_{l<k} (w_l − q_l) F_lk: GPTQ in the form of https://arxiv.org/abs/2307.13304, theorem 6.
A scale is judged by this sum, which is what it costs when all that follows makes up for it as well as it can.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.codec.call import bound, over_rows
from numba_kernels.codec.tables import SURE
from numba_kernels.cpu.op import inner, op
from numba_kernels.simd.kinds import Address, Floats, Int
from numba_kernels.simd.memory import get_f32, get_i64, load_floats, set_f32, set_i64, set_u8, stack, store_floats
from numba_kernels.simd.numbers import round_even, where_more
from numba_kernels.simd.values import LANES, absolute, maximum, minimum, splat

EVEN = True
MOST_STEPS = 16  # levels that are not evenly spaced are found by comparing with each midpoint
VECTORS = 4  # of rows that are rounded side by side, one a lane: each waits for its own columns, not for the others'
TILE = VECTORS * LANES
SPAN = 4 * TILE
SMALLEST = np.float32(1e-37)  # of scales that are divided by


def round_block(
    weights: np.ndarray,
    values: np.ndarray,
    scales: np.ndarray,
    offsets: np.ndarray,
    feedback: np.ndarray,
    costs: np.ndarray,
    order: np.ndarray,
    levels: np.ndarray,
    width: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rounds each row with each of its candidate scales and keeps the codes of the one that costs least.

    Args:
        weights: float32 [R, B], the weights as they were.
        values: float32 [R, B], with what the blocks before have left to be made up for.
        scales, offsets: float32 [R, C, B / width], of C candidates.
        feedback: float32 [B, B], F; costs: float32 [B], D; both in the order of rounding.
        order: int64 [B]: which column is rounded first, second, …
        levels: float32 [L], ascending; evenly spaced by 1 if there are more than MOST_STEPS.

    Returns codes, uint8 [R, B], indices into levels; losses, float32 [R], Σ costs · (value − rounded)²; and which candidate was
    chosen, int64 [R]: the first unless another is surely better.
    """
    rows, columns = weights.shape
    codes, losses, chosen = (
        np.empty((rows, columns), np.uint8),
        np.empty((rows, 1), np.float32),
        np.empty((rows, 1), np.int64),
    )
    steps = np.diff(levels)
    candidates = scales.shape[1]
    arrays = {
        "weights": weights,
        "values": values,
        "scales": scales.reshape(rows, -1),
        "offsets": offsets.reshape(rows, -1),
        "codes": codes,
        "losses": losses,
        "chosen": chosen,
    }
    over_rows(
        bound(_round_block, EVEN=bool((steps == 1).all())), rows, arrays, columns=columns, candidates=candidates, width=width,
        feedback=np.ascontiguousarray(feedback.T, np.float32), costs=np.ascontiguousarray(costs, np.float32),
        order=np.ascontiguousarray(order, np.int64), levels=levels, middles=(levels[:-1] + levels[1:]) / np.float32(2),
        count=len(levels), scratch=np.empty((4, columns, TILE), np.float32),
    )  # fmt: skip
    return codes, losses[:, 0], chosen[:, 0]


@op
def _round_block(  # type: ignore[no-untyped-def]
    weights, weights_stride, values, values_stride, scales, scales_stride, offsets, offsets_stride, codes, codes_stride,
    losses, losses_stride, chosen, chosen_stride, rows, columns, candidates, width, feedback, costs, order, levels, middles,
    count, scratch, team, thread,
):  # fmt: skip
    """`round_block`. feedback: float32 [B, B], what each column receives. scratch: float32 [4, B, TILE].

    EVEN: whether levels are spaced by 1.
    """
    size, groups = 4 * TILE, columns // width
    before, start = scratch, scratch + columns * size
    errors, found = scratch + 2 * columns * size, scratch + 3 * columns * size
    value, scale, offset, loss, least = stack(SPAN), stack(SPAN), stack(SPAN), stack(SPAN), stack(SPAN)
    for base in range(0, rows, TILE):
        used = min(TILE, rows - base)
        for k in range(columns):
            column = 4 * get_i64(order + 8 * k)
            for i in range(TILE):
                row = base + min(i, used - 1)
                set_f32(before + k * size + 4 * i, get_f32(weights + row * weights_stride + column))
                set_f32(start + k * size + 4 * i, get_f32(values + row * values_stride + column))
        for c in range(candidates):
            group = -1
            for v in range(VECTORS):
                store_floats(loss + 4 * LANES * v, splat(np.float32(0)))
            for k in range(columns):
                here = k * size
                if get_i64(order + 8 * k) // width != group:
                    group = get_i64(order + 8 * k) // width
                    at = 4 * (c * groups + group)
                    for i in range(TILE):
                        row = base + min(i, used - 1)
                        set_f32(scale + 4 * i, get_f32(scales + row * scales_stride + at))
                        set_f32(offset + 4 * i, get_f32(offsets + row * offsets_stride + at))
                add_errors(start + here, errors, feedback + 4 * k * columns, k, value)
                cost = splat(get_f32(costs + 4 * k))
                for v in range(VECTORS):
                    at = 4 * LANES * v
                    x, s, o = load_floats(value + at), load_floats(scale + at), load_floats(offset + at)
                    inverse = where_more(absolute(s), splat(SMALLEST), splat(np.float32(1)) / s, splat(np.float32(0)))
                    unit = (x - o) * inverse
                    if EVEN:
                        code = nearest_even(unit, levels, count)
                        level = code + splat(get_f32(levels))
                    else:
                        code, level = nearest_of(unit, levels, middles, count)
                    rounded = s * level + o
                    missed = x - rounded
                    store_floats(loss + at, load_floats(loss + at) + cost * (missed * missed))
                    store_floats(errors + here + at, load_floats(before + here + at) - rounded)
                    store_floats(found + here + at, code)
            for i in range(used):
                row = base + i
                if c == 0 or get_f32(loss + 4 * i) < get_f32(least + 4 * i) * SURE:
                    set_f32(least + 4 * i, get_f32(loss + 4 * i))
                    set_f32(losses + row * losses_stride, get_f32(loss + 4 * i))
                    set_i64(chosen + row * chosen_stride, c)
                    for k in range(columns):
                        code_at = codes + row * codes_stride + get_i64(order + 8 * k)
                        set_u8(code_at, np.int64(get_f32(found + k * size + 4 * i)))


@inner
def add_errors(start: Address, errors: Address, feedback: Address, count: Int, out: Address) -> None:
    """start + Σ feedback[i] · errors[i] of a tile's rows, summed in this order; errors: float32 [count, TILE]."""
    v0, v1 = load_floats(start), load_floats(start + 4 * LANES)
    v2, v3 = load_floats(start + 8 * LANES), load_floats(start + 12 * LANES)
    for i in range(count):
        factor, at = splat(get_f32(feedback + 4 * i)), errors + 4 * TILE * i
        v0, v1 = v0 + factor * load_floats(at), v1 + factor * load_floats(at + 4 * LANES)
        v2, v3 = v2 + factor * load_floats(at + 8 * LANES), v3 + factor * load_floats(at + 12 * LANES)
    store_floats(out, v0)
    store_floats(out + 4 * LANES, v1)
    store_floats(out + 8 * LANES, v2)
    store_floats(out + 12 * LANES, v3)


@inner
def nearest_even(unit: Floats, levels: Address, count: Int) -> Floats:
    """The codes, as floats, of levels that are spaced by 1; ties to the even code."""
    code = unit - splat(get_f32(levels))
    return round_even(minimum(maximum(code, splat(np.float32(0))), splat(np.float32(count - 1))))


@inner
def nearest_of(unit: Floats, levels: Address, middles: Address, count: Int) -> tuple[Floats, Floats]:
    """The codes, as floats, and their levels; ties to the lower."""
    code, level = splat(np.float32(0)), splat(get_f32(levels))
    for s in range(count - 1):
        middle = splat(get_f32(middles + 4 * s))
        code = where_more(unit, middle, splat(np.float32(s + 1)), code)
        level = where_more(unit, middle, splat(get_f32(levels + 4 * (s + 1))), level)
    return code, level
