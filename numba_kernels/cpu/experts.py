"""What surrounds the matrices of an expert layer: choosing experts, sorting tokens by expert, and adding the experts' outputs."""

from __future__ import annotations

import numpy as np

from numba_kernels.cpu.op import inner, op
from numba_kernels.cpu.rows import load_part
from numba_kernels.cpu.team import take
from numba_kernels.simd.values import (
    LANES,
    exp,
    fma,
    get_f32,
    get_i32,
    load_floats,
    max_lanes,
    set_f32,
    set_i32,
    splat,
    store_first,
    store_floats,
)

CHUNK = 256  # columns of a piece of work


@inner
def exp_one(x):  # type: ignore[no-untyped-def]
    """e^x of one number."""
    return max_lanes(exp(splat(x)))


@op
def route(logits, logits_stride, rows, experts, top, ids, weights, team, thread):  # type: ignore[no-untyped-def]
    """The `top` largest of each row's logits, largest first (the lower number first among equals), and their softmax.

    logits: float32 [rows, experts]; ids: int32 [rows, top]; weights: float32 [rows, top]. A piece of work is a row.
    """
    row = take(team)
    while row < rows:
        at = logits + row * logits_stride
        for j in range(top):
            best, value = -1, np.float32(0)
            for e in range(experts):
                logit = get_f32(at + 4 * e)
                if best < 0 or logit > value:
                    is_new = True
                    for i in range(j):
                        is_new = is_new and get_i32(ids + (row * top + i) * 4) != e
                    if is_new:
                        best, value = e, logit
            set_i32(ids + (row * top + j) * 4, best)
            set_f32(weights + (row * top + j) * 4, value)
        largest = get_f32(weights + row * top * 4)
        total = np.float32(0)
        for j in range(top):
            share = exp_one(get_f32(weights + (row * top + j) * 4) - largest)
            set_f32(weights + (row * top + j) * 4, share)
            total += share
        for j in range(top):
            place = weights + (row * top + j) * 4
            set_f32(place, get_f32(place) / total)
        row = take(team)


@op
def group_by_expert(  # type: ignore[no-untyped-def]
    ids, rows, top, experts, groups, group_expert, group_start, index, place, team, thread
):
    """Sorts the (token, choice) pairs by expert: the groups that `linear` works on.

    ids: int32 [rows, top]. Results, int32: groups [1]; group_expert [experts]; group_start [experts + 1]; index
    [rows · top], the token of each sorted pair; place [rows, top], where each pair has gone. One thread does it all.
    """
    if take(team) != 0:
        return
    count = 0
    row = 0
    for e in range(experts):
        set_i32(group_start + 4 * count, row)
        before = row
        for pair in range(rows * top):
            if get_i32(ids + 4 * pair) == e:
                set_i32(index + 4 * row, pair // top)
                set_i32(place + 4 * pair, row)
                row += 1
        if row > before:
            set_i32(group_expert + 4 * count, e)
            count += 1
    set_i32(group_start + 4 * count, row)
    set_i32(groups, count)


@op
def combine(  # type: ignore[no-untyped-def]
    x, x_stride, place, weights, rows, top, columns, residual, out, out_stride, team, thread
):
    """out[i] = residual[i] + Σ_j weights[i, j] · x[place[i, j]]; a piece of work is CHUNK columns of a row.

    x: float32 [rows · top, columns]; place: int32 [rows, top]; weights: float32 [rows, top]; residual, out: rows
    out_stride bytes apart, residual may be out or 0.
    """
    pieces = (columns + CHUNK - 1) // CHUNK
    item = take(team)
    while item < rows * pieces:
        row = item // pieces
        begin = (item - row * pieces) * CHUNK
        for i in range(begin, min(begin + CHUNK, columns), LANES):
            left = columns - i
            target = row * out_stride + 4 * i
            total = load_part(residual + target, left) if residual else splat(np.float32(0))
            for j in range(top):
                weight = splat(get_f32(weights + (row * top + j) * 4))
                source = get_i32(place + (row * top + j) * 4)
                total = fma(weight, load_part(x + source * x_stride + 4 * i, left), total)
            if left >= LANES:
                store_floats(out + target, total)
            else:
                store_first(out + target, total, left)
        item = take(team)


__all__ = ["combine", "exp_one", "group_by_expert", "load_floats", "route"]
