"""The steps of attention: a tile of ROWS query rows meets the keys and values of one segment of positions.

What a tile has found so far is its *sums*, float32: LANES references (lane t is row t: the largest score so far times log2 e, as
an integer, so that another reference changes no share's digits), LANES sums of shares, then for each row the shares times values.
Columns of values lie there two vectors at a time, in the order in which `add_values` makes them; `finish_row` puts them in order.

Scores, and the shares in their place, lie by their position in the segment, rows STRIDE bytes apart. Steps for another element of
the cache, or other products, give the same arguments another meaning.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cpu.attention_tiles import (
    LOG2E,
    add_scores,
    add_shares,
    add_values,
    all_ones,
    exp2,
    in_order,
    load_places,
    load_sums,
    max_of_each,
    max_rows,
    save_sums,
    seen_or_zero,
    store_scores,
    sum_of_each,
    whole_part,
)
from numba_kernels.cpu.blocks import PAIR, UNIT
from numba_kernels.cpu.kv_pages import page_of, slot_of, store_row_bf16
from numba_kernels.cpu.rows import store_part
from numba_kernels.simd.memory import get_f32, get_i32, get_i64, load_floats, prefetch, set_i32, set_i64, stack, store_floats
from numba_kernels.simd.tiles import load_tile, zero_tile
from numba_kernels.simd.values import LANES, fma, keep_between, max_lanes, maximum, splat

AHEAD = 64  # positions by which rows of latents are asked for before they are met
SEGMENT = 128  # positions whose scores are held at a time: those from one multiple of it to the next
PART = 512  # positions whose sums are found together, in the same way; a row's parts are added in order
STRIDE = (SEGMENT + LANES) * 4  # bytes between the scores of two rows
HEAD = 8 * LANES  # bytes of references and sums of shares before a tile's sums of values
ROWS, PLACES = 8, 8  # rows of a tile (query tokens × heads of one key-value head), and those for which its queries have room
PANELS = 2  # panels of keys, and vectors of values, that it meets side by side
GROUP = 2 * LANES  # positions whose scores are found together: of PANELS panels, at least two
BOTH, VECTORS = ROWS * PANELS, 2  # accumulators of scores; vectors of a step of sums
WIDTH, ELEMENT, PRODUCTS = 2, "bf16", "f32"
LONGEST = 512  # bytes of a query that is rounded to bfloat16
STEP, SIZE = 1, 4  # positions of a product with values; bytes of a number of queries and shares: 2 and 2 for bf16


def prepare(places, queries, head_dim):  # type: ignore[no-untyped-def]
    """Lays out the queries of a tile, rows of float32 at the addresses places[t] (int64), as products take them: column after
    column (or pair of columns), its PLACES rows beside each other."""
    rounded = stack(LONGEST)
    for t in range(ROWS):
        row, numbers = get_i64(places + 8 * t), head_dim
        if PRODUCTS == "bf16":
            store_row_bf16(rounded, row, head_dim)
            row, numbers = rounded, head_dim // 2
        for k in range(numbers):
            set_i32(queries + (k * PLACES + t) * 4, get_i32(row + 4 * k))


def scores_of(  # type: ignore[no-untyped-def]
    scores, queries, sees, head_dim, low, high, pages, page_bytes, page_positions, table, ring, offset, across, is_ahead
):
    """scores[t, p] = q[t] · k[p] for p in [low, high), within a segment, and for what else lies in their groups: −inf if unseen.

    is_ahead: whether to ask for the values of these keys, as they come from memory. It is not worth its instructions in a prompt,
    where tile after tile reads them.
    """
    all_from, all_to = get_i32(sees + 8 * ROWS - 8), get_i32(sees + 4)  # what the last and the first row see: all rows do
    lowest, highest = low // LANES * LANES, (high - 1) // LANES * LANES  # panels: others may be anywhere
    places = stack(64)
    wanted = np.int64(0)
    for first in range(low // GROUP * GROUP, (high + GROUP - 1) // GROUP * GROUP, LANES * PANELS):
        for i in range(PANELS):
            p = min(max(first + LANES * i, lowest), highest)
            page = page_of(p, pages, page_bytes, page_positions, table, ring) + offset
            slot = slot_of(p, page_positions)
            set_i64(places + 8 * i, page + slot * head_dim * WIDTH)
            if i == 0:
                wanted = page + (page_positions * head_dim + slot * across) * WIDTH
        panels = load_places(PANELS, places)
        tile = zero_tile(BOTH)
        for k in range(0, head_dim // UNIT * UNIT, UNIT):
            if is_ahead:
                for line in range(0, PANELS * UNIT * LANES * WIDTH, 64):
                    prefetch(wanted + k * PANELS * LANES * WIDTH + line)
            tile = add_scores(PRODUCTS, ELEMENT, UNIT, tile, panels, k * LANES * WIDTH, queries + k * PLACES * SIZE)
        for k in range(head_dim // UNIT * UNIT, head_dim, PAIR):
            tile = add_scores(PRODUCTS, ELEMENT, PAIR, tile, panels, k * LANES * WIDTH, queries + k * PLACES * SIZE)
        at = scores + first % SEGMENT * 4
        store_scores(at, STRIDE, tile, panels)
        if first < all_from or first + LANES * PANELS > all_to:
            for t in range(ROWS):
                for i in range(0, LANES * PANELS, LANES):
                    seen = load_floats(at + t * STRIDE + 4 * i)
                    seen = keep_between(first + i, get_i32(sees + 8 * t), get_i32(sees + 8 * t + 4), seen)
                    store_floats(at + t * STRIDE + 4 * i, seen)


def soften(scores, low, high, sums, stride):  # type: ignore[no-untyped-def]
    """Turns scores into shares 2^(score · log2 e − reference), and rescales what has been summed with an older reference. Shares
    of bfloat16 lie at the beginning of their row."""
    numbers = stack(128)
    begin, end = low // GROUP * GROUP % SEGMENT, (high - 1) % SEGMENT + 1
    tile = load_tile(ROWS, scores + 4 * begin, STRIDE)
    for i in range(begin + LANES, end, LANES):
        tile = max_rows(tile, scores + 4 * i, STRIDE)
    before = load_floats(sums)
    top = maximum(whole_part(max_of_each(tile) * splat(np.float32(LOG2E))), before)
    reference = seen_or_zero(top)
    store_floats(numbers, reference)
    totals = zero_tile(ROWS)
    for i in range(begin, end, LANES * STEP):
        totals = add_shares(PRODUCTS, totals, scores + 4 * i, scores + i * SIZE, STRIDE, numbers)
    factor = exp2(before - reference)
    store_floats(sums, top)
    store_floats(sums + 4 * LANES, fma(load_floats(sums + 4 * LANES), factor, sum_of_each(totals)))
    if not all_ones(factor):
        store_floats(numbers, factor)
        for t in range(ROWS):
            each, row = splat(get_f32(numbers + 4 * t)), sums + HEAD + t * stride
            for at in range(row, row + stride, 4 * LANES):
                store_floats(at, load_floats(at) * each)


def add_columns(  # type: ignore[no-untyped-def]
    scores,
    sums,
    stride,
    begin,
    end,
    across,
    low,
    high,
    pages,
    page_bytes,
    page_positions,
    table,
    ring,
    offset,
    keys,
    is_ahead,
):
    """sums[t] += Σ_p shares[t, p] · v[p] for the columns from `begin` to `end`, VECTORS vectors at a time; see `sum_values`.

    The keys of the next segment are asked for in the order of their addresses, as many bytes for a position as are read for it:
    processors load ahead of such a sequence, and lines that are asked for a few at a time do not hold up what is computed.
    """
    row_bytes = across * WIDTH
    for d in range(begin, end, LANES * VECTORS):
        tile = load_sums(ROWS, VECTORS, sums + 4 * d, stride)
        p = low // STEP * STEP
        while p < high:
            slot = slot_of(p, page_positions)
            stop = min(high, p - slot + page_positions)
            values = page_of(p, pages, page_bytes, page_positions, table, ring) + offset + d * WIDTH - (p - slot) * row_bytes
            wanted = page_of(p + SEGMENT, pages, page_bytes, page_positions, table, ring) + keys
            wanted += (slot_of(p + SEGMENT, page_positions) * across + (stop - p) * d) * WIDTH
            shares = scores + p % SEGMENT * SIZE
            for q in range(p, stop, STEP):
                if is_ahead:
                    for line in range(0, STEP * LANES * VECTORS * WIDTH, 64):
                        prefetch(wanted + (q - p) * LANES * VECTORS * WIDTH + line)
                one = other = values + q * row_bytes
                if STEP == 2:
                    one, other = values + max(q, low) * row_bytes, values + min(q + 1, stop - 1) * row_bytes
                tile = add_values(PRODUCTS, ELEMENT, VECTORS, tile, one, other, shares + (q - p) * SIZE, STRIDE)
            p = stop
        save_sums(VECTORS, sums + 4 * d, stride, tile)


add_several: Any = None  # `add_columns` for PANELS, two and one vectors
add_two: Any = None
add_one: Any = None


def sum_values(  # type: ignore[no-untyped-def]
    scores, sums, stride, padded, across, low, high, pages, page_bytes, page_positions, table, ring, offset, keys, is_ahead
):
    """sums[t] += Σ_p shares[t, p] · v[p] for p in [low, high), within a segment; rows of values are `across` values apart.

    is_ahead: whether to ask for the keys of the next segment, which are at the offset `keys` of its pages.

    Products of bfloat16 take pairs of positions, the first of them even. Of a pair that low or high cuts, the share of the part
    that is not seen is 0, and meets the other's values, as its own may be anything.
    """
    several = padded // (PANELS * LANES) * (PANELS * LANES) if PANELS > 2 else 0
    two = padded // (2 * LANES) * (2 * LANES)
    add_several(scores, sums, stride, 0, several, across, low, high,
        pages, page_bytes, page_positions, table, ring, offset, keys, is_ahead)  # fmt: skip
    add_two(scores, sums, stride, several, two, across, low, high,
        pages, page_bytes, page_positions, table, ring, offset, keys, is_ahead)  # fmt: skip
    add_one(scores, sums, stride, two, padded, across, low, high,
        pages, page_bytes, page_positions, table, ring, offset, keys, is_ahead)  # fmt: skip


def clear(sums, stride):  # type: ignore[no-untyped-def]
    """Sums of nothing."""
    store_floats(sums, splat(np.float32(-np.inf)))
    for at in range(sums + 4 * LANES, sums + HEAD + ROWS * stride, 4 * LANES):
        store_floats(at, splat(np.float32(0)))


def merge(total, part, stride):  # type: ignore[no-untyped-def]
    """Adds the sums of a part to those of the parts before it. A part of which a row sees nothing changes nothing, not even a
    rounding, so that a row's result does not depend on the tile that it lies in."""
    numbers = stack(128)
    top = maximum(load_floats(total), load_floats(part))
    reference = seen_or_zero(top)
    ours, theirs = exp2(load_floats(total) - reference), exp2(load_floats(part) - reference)
    store_floats(total, top)
    both = load_floats(total + 4 * LANES) * ours
    store_floats(total + 4 * LANES, fma(load_floats(part + 4 * LANES), theirs, both))
    store_floats(numbers, ours)
    store_floats(numbers + 4 * LANES, theirs)
    for t in range(ROWS):
        x, y = splat(get_f32(numbers + 4 * t)), splat(get_f32(numbers + 4 * (LANES + t)))
        for i in range(HEAD + t * stride, HEAD + t * stride + stride, 4 * LANES):
            store_floats(total + i, fma(load_floats(part + i), y, load_floats(total + i) * x))


def finish_row(at, sums, row, stride, head_dim, padded, sink):  # type: ignore[no-untyped-def]
    """One row of the result from its sums; a sink's logit joins the softmax and brings no value."""
    reference, total = get_f32(sums + 4 * row), get_f32(sums + 4 * (LANES + row))
    share = np.float32(1) / total
    if sink:
        own = get_f32(sink) * np.float32(LOG2E)
        largest = max(own, reference)
        seen = max_lanes(exp2(splat(reference - largest)))
        share = seen / (max_lanes(exp2(splat(own - largest))) + total * seen)
    values = sums + HEAD + row * stride
    for d in range(0, padded // (2 * LANES) * 2 * LANES, 2 * LANES):
        first, second = load_floats(values + 4 * d), load_floats(values + 4 * (d + LANES))
        store_part(at + 4 * d, in_order(PRODUCTS, ELEMENT, 0, first, second) * splat(share), head_dim - d)
        store_part(at + 4 * (d + LANES), in_order(PRODUCTS, ELEMENT, 1, first, second) * splat(share), head_dim - d - LANES)
    for d in range(padded // (2 * LANES) * 2 * LANES, padded, LANES):
        store_part(at + 4 * d, load_floats(values + 4 * d) * splat(share), head_dim - d)
