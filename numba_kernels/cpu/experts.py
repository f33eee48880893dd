"""What surrounds the matrices of an expert layer: choosing experts, sorting tokens by expert, and adding the experts' outputs."""

from __future__ import annotations

import numpy as np

from numba_kernels.cpu.op import inner, op
from numba_kernels.cpu.rows import chunk_for, load_part, sigmoid
from numba_kernels.cpu.team import take
from numba_kernels.simd.memory import get_f32, get_i32, load_floats, set_f32, set_i32, store_first, store_floats
from numba_kernels.simd.values import LANES, exp, fma, max_lanes, splat


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


@inner
def choose(scores, experts, top, ids):  # type: ignore[no-untyped-def]
    """The numbers of the `top` largest scores, largest first (the lower number first among equals): ids, int32 [top]."""
    for j in range(top):
        best, value = -1, np.float32(0)
        for e in range(experts):
            score = get_f32(scores + 4 * e)
            if best < 0 or score > value:
                is_new = True
                for i in range(j):
                    is_new = is_new and get_i32(ids + 4 * i) != e
                if is_new:
                    best, value = e, score
        set_i32(ids + 4 * j, best)


@inner
def softmax_row(x, count, out):  # type: ignore[no-untyped-def]
    """The softmax of `count` float32; out has room for a multiple of LANES."""
    largest = get_f32(x)
    for e in range(1, count):
        largest = max(largest, get_f32(x + 4 * e))
    for e in range(0, count, LANES):
        store_floats(out + 4 * e, exp(load_part(x + 4 * e, count - e) - splat(largest)))
    total = np.float32(0)
    for e in range(count):
        total += get_f32(out + 4 * e)
    for e in range(0, count, LANES):
        store_floats(out + 4 * e, load_floats(out + 4 * e) / splat(total))


@inner
def keep_best_groups(scores, experts, groups, kept, best, of_group):  # type: ignore[no-untyped-def]
    """Sets the scores to −inf in all but the `kept` best groups of neighbours. A group's score, for which `of_group` has room, is
    its largest score or, if `best` is 2, the sum of its two largest."""
    size = experts // groups
    for k in range(groups):
        first, second = np.float32(-np.inf), np.float32(-np.inf)
        for e in range(k * size, k * size + size):
            score = get_f32(scores + 4 * e)
            if score > first:
                first, second = score, first
            elif score > second:
                second = score
        set_f32(of_group + 4 * k, first + second if best == 2 else first)
    for k in range(groups):
        own, better = get_f32(of_group + 4 * k), 0
        for other in range(groups):
            score = get_f32(of_group + 4 * other)
            if score > own or (score == own and other < k):
                better += 1
        if better >= kept:
            for e in range(k * size, k * size + size):
                set_f32(scores + 4 * e, np.float32(-np.inf))


@op
def route_by_score(  # type: ignore[no-untyped-def]
    logits, logits_stride, rows, experts, top, is_sigmoid, is_renormalized, correction, groups, groups_chosen, group_best,
    epsilon: float, scale: float, scratch, scratch_stride, ids, weights, team, thread,
):  # fmt: skip
    """Each row's experts and their weights by any router; for the softmax of the chosen logits `route` does less.

    With p the softmax or the sigmoid of the logits and s = p + correction (float32 [experts], or 0), the `top` largest s are
    chosen among the experts of the `groups_chosen` best of `groups` groups; a group's score is the sum of its `group_best`
    (1 or 2) largest s. Weights are the chosen p, divided by their sum + epsilon if renormalized, times scale. Softmax without
    a correction chooses by the logits themselves, which have the same order, and renormalized it is the softmax of the chosen.

    scratch: float32 rows of 3 · experts, each third rounded up to a multiple of LANES. A piece of work is a row.
    """
    padded = (experts + LANES - 1) // LANES * LANES
    by_logits = correction == 0 and not is_sigmoid
    row = take(team)
    while row < rows:
        at = logits + row * logits_stride
        p = scratch + row * scratch_stride
        s, of_group = p + 4 * padded, p + 8 * padded
        own = ids + row * top * 4
        shares = weights + row * top * 4
        if is_sigmoid:
            for e in range(0, experts, LANES):
                store_floats(p + 4 * e, sigmoid(load_part(at + 4 * e, experts - e)))
        else:
            softmax_row(at, experts, p)
        for e in range(experts):
            corrected = get_f32(p + 4 * e)
            if correction:
                corrected += get_f32(correction + 4 * e)
            set_f32(s + 4 * e, corrected)
        if groups_chosen < groups:
            keep_best_groups(s, experts, groups, groups_chosen, group_best, of_group)
        if by_logits:
            for e in range(experts):
                if get_f32(s + 4 * e) >= np.float32(0):  # not −inf
                    set_f32(s + 4 * e, get_f32(at + 4 * e))
        choose(s, experts, top, own)
        by_softmax = is_renormalized and not is_sigmoid
        largest = get_f32(at + 4 * get_i32(own))
        for j in range(1, top):
            largest = max(largest, get_f32(at + 4 * get_i32(own + 4 * j)))
        total = np.float32(0)
        for j in range(top):
            e = get_i32(own + 4 * j)
            share = exp_one(get_f32(at + 4 * e) - largest) if by_softmax else get_f32(p + 4 * e)
            set_f32(shares + 4 * j, share)
            total += share
        divisor = np.float32(1)
        if is_renormalized:
            divisor = total if by_softmax else total + epsilon
        for j in range(top):
            set_f32(shares + 4 * j, get_f32(shares + 4 * j) / divisor * scale)
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
    for e in range(experts):
        set_i32(group_start + 4 * e, 0)
    for pair in range(rows * top):
        counter = group_start + 4 * get_i32(ids + 4 * pair)
        set_i32(counter, get_i32(counter) + 1)
    row = 0
    for e in range(experts):  # from how many there are to where the first goes
        count = get_i32(group_start + 4 * e)
        set_i32(group_start + 4 * e, row)
        row += count
    for pair in range(rows * top):
        start = group_start + 4 * get_i32(ids + 4 * pair)
        target = get_i32(start)
        set_i32(index + 4 * target, pair // top)
        set_i32(place + 4 * pair, target)
        set_i32(start, target + 1)
    count, row = 0, 0
    for e in range(experts):  # where the next expert's begin, without the experts that nobody chose
        stop = get_i32(group_start + 4 * e)
        if stop > row:
            set_i32(group_expert + 4 * count, e)
            set_i32(group_start + 4 * count, row)
            count += 1
            row = stop
    set_i32(group_start + 4 * count, row)
    set_i32(groups, count)


@op
def combine(  # type: ignore[no-untyped-def]
    x, x_stride, place, weights, rows, top, columns, residual, out, out_stride, team, thread
):
    """out[i] = residual[i] + Σ_j weights[i, j] · x[place[i, j]]; a piece of work is a chunk of a row.

    x: float32 [rows · top, columns]; place: int32 [rows, top]; weights: float32 [rows, top]; residual, out: rows
    out_stride bytes apart, residual may be out or 0.
    """
    chunk = chunk_for(rows, columns, team)
    pieces = (columns + chunk - 1) // chunk
    item = take(team)
    while item < rows * pieces:
        row = item // pieces
        begin = (item - row * pieces) * chunk
        for i in range(begin, min(begin + chunk, columns), LANES):
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


__all__ = ["combine", "exp_one", "group_by_expert", "route", "route_by_score"]
