"""Attention over a paged KV cache of bfloat16 (or float32), laid out as in `kv_pages`."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cpu.blocks import PAIR, UNIT, accumulate, accumulate_pair
from numba_kernels.cpu.experts import exp_one
from numba_kernels.cpu.kv_pages import ELEMENTS, MAX_HEAD, SCALES, page_of
from numba_kernels.cpu.op import Op, inner, maker, specialize
from numba_kernels.cpu.team import take
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import (
    LANES,
    TILES,
    add_outer,
    atomic_add,
    atomic_store,
    exp,
    fma,
    get_f32,
    get_i32,
    keep_between,
    load_bf16,
    load_floats,
    load_tile,
    max_lanes,
    maximum,
    panel_addresses,
    prefetch,
    row_addresses,
    set_f32,
    set_i32,
    spill,
    splat,
    stack,
    store_first,
    store_floats,
    store_tile,
    sum_lanes,
    zero_tile,
)

SEGMENT = 128  # positions whose scores are held at a time: those from one multiple of it to the next
AHEAD = 64  # positions by which keys are asked for before they are met, where they come from memory
PART = 512  # positions whose sums are found together, in the same way; a row's parts are added in order
USUAL_HEAD = 256  # values of a head: up to so many share one kernel
WIDTH, SCALE, FORMAT = 2, 0, "bf16"
load_value: Any = load_bf16


def _element(name: str) -> dict[str, Any]:
    """The constants of a kernel for caches of this element."""
    constants: dict[str, Any] = {"WIDTH": ELEMENTS[name], "SCALE": SCALES.get(name, 0), "FORMAT": name}
    return constants if name == "q8" else constants | {"load_value": {"bf16": load_bf16, "f32": load_floats}[name]}


ROWS = 8  # rows (query tokens × heads of one key-value head) in a tile


@inner
def first_key(position, window):  # type: ignore[no-untyped-def]
    """The first key that a query at this position sees."""
    return max(position - window + 1, 0) if window > 0 else 0


def scores_of(  # type: ignore[no-untyped-def]
    scores, queries, sees, head_dim, low, high, pages, page_bytes, page_positions, table, ring, offset, across, is_ahead
):
    """scores[t, p − low'] = q[t] · k[p] for the panels that cover [low, high), low' the first panel's begin; −inf if unseen.

    is_ahead: whether to ask for later keys and the values of these, as they come from memory. It is not worth its instructions
    in a prompt, where tile after tile reads them.
    """
    begin = low // LANES * LANES
    all_from, all_to = get_i32(sees + 8 * ROWS - 8), get_i32(sees + 4)  # what the last and the first row see: all rows do
    end = get_i32(sees + 8 * ROWS - 4)  # of what any row sees
    for first in range(begin, high, LANES):
        slot = first % page_positions
        keys = page_of(first, pages, page_bytes, page_positions, table, ring) + offset + slot * head_dim * WIDTH
        panel = panel_addresses(1, keys, 0, 0)
        later = min(first + AHEAD, (end - 1) // LANES * LANES)
        there = page_of(later, pages, page_bytes, page_positions, table, ring) + offset
        wanted = there + later % page_positions * head_dim * WIDTH
        values = keys + ((page_positions - slot) * head_dim + slot * across) * WIDTH
        tile = zero_tile(ROWS)
        for k in range(head_dim // UNIT):
            if is_ahead:
                for line in range(k * UNIT * LANES * WIDTH, (k + 1) * UNIT * LANES * WIDTH, 64):
                    prefetch(wanted + line)
                    prefetch(values + line)
            tile = accumulate(FORMAT, "f32", tile, panel, k * UNIT * LANES * WIDTH, 0, 0, queries, k * UNIT * 4)
        for k in range(head_dim // UNIT * UNIT, head_dim, PAIR):
            tile = accumulate_pair(FORMAT, tile, panel, k * LANES * WIDTH, queries, k * 4)
        if first >= all_from and first + LANES <= all_to:
            store_tile(scores + (first - begin) * 4, (SEGMENT + LANES) * 4, tile)
            continue
        results = spill(tile)
        for t in range(ROWS):
            seen = keep_between(
                first, get_i32(sees + 8 * t), get_i32(sees + 8 * t + 4), load_floats(results + t * LANES * 4)
            )
            store_floats(scores + (t * (SEGMENT + LANES) + first - begin) * 4, seen)


def soften(scores, count, area, stride):  # type: ignore[no-untyped-def]
    """Turns scores into e^(score − maximum) with the running maximum, and rescales what has been summed under an older one.

    area: for each row, `stride` bytes apart: the running maximum and sum, then from byte 4 · LANES on the summed values.
    """
    for t in range(ROWS):
        row = scores + t * (SEGMENT + LANES) * 4
        state = area + t * stride
        before = get_f32(state)
        top = splat(before)
        for i in range(0, count, LANES):
            top = maximum(load_floats(row + 4 * i), top)
        largest = max_lanes(top)
        reference = largest if largest > np.float32(-1e30) else np.float32(0)
        total = splat(np.float32(0))
        for i in range(0, count, LANES):
            share = exp(load_floats(row + 4 * i) - splat(reference))
            store_floats(row + 4 * i, share)
            total = total + share
        factor = exp_one(before - reference)
        set_f32(state, largest)
        set_f32(state + 4, get_f32(state + 4) * factor + sum_lanes(total))
        if factor != np.float32(1):
            for at in range(state + 4 * LANES, state + stride, 4 * LANES):
                store_floats(at, load_floats(at) * splat(factor))


def add_values(  # type: ignore[no-untyped-def]
    scores, sums, stride, padded, across, low, high, pages, page_bytes, page_positions, table, ring, offset
):
    """sums[t] += Σ_p shares[t, p] · v[p] for p in [low, high); sums `stride` bytes apart, rows of values `across` values."""
    begin = low // LANES * LANES
    for d in range(0, padded, LANES):
        tile = load_tile(ROWS, sums + 4 * d, stride)
        p = low
        while p < high:
            slot = p % page_positions
            stop = min(high, p - slot + page_positions)
            values = page_of(p, pages, page_bytes, page_positions, table, ring) + offset + (d - (p - slot) * across) * WIDTH
            for q in range(p, stop):
                tile = add_outer(
                    tile, load_value(values + q * across * WIDTH), scores + (q - begin) * 4, (SEGMENT + LANES) * 4
                )
            p = stop
        store_tile(sums + 4 * d, stride, tile)


def add_values_by_two(  # type: ignore[no-untyped-def]
    scores, sums, stride, padded, across, low, high, pages, page_bytes, page_positions, table, ring, offset
):
    """`add_values`, two vectors of columns at a time: a share is loaded once for both, and lines are read whole. The last of an
    odd number of vectors is its own second. The sums are the same bits."""
    begin = low // LANES * LANES
    for d in range(0, padded, 2 * LANES):
        beside = min(d + LANES, padded - LANES) - d
        first, second = load_tile(ROWS, sums + 4 * d, stride), load_tile(ROWS, sums + 4 * (d + beside), stride)
        p = low
        while p < high:
            slot = p % page_positions
            stop = min(high, p - slot + page_positions)
            values = page_of(p, pages, page_bytes, page_positions, table, ring) + offset + (d - (p - slot) * across) * WIDTH
            for q in range(p, stop):
                value, shares = values + q * across * WIDTH, scores + (q - begin) * 4
                first = add_outer(first, load_value(value), shares, (SEGMENT + LANES) * 4)
                second = add_outer(second, load_value(value + beside * WIDTH), shares, (SEGMENT + LANES) * 4)
            p = stop
        store_tile(sums + 4 * d, stride, first)
        store_tile(sums + 4 * (d + beside), stride, second)


def clear(area, stride):  # type: ignore[no-untyped-def]
    """Sums of nothing."""
    for t in range(ROWS):
        for at in range(area + t * stride, area + t * stride + stride, 4 * LANES):
            store_floats(at, splat(np.float32(0)))
        set_f32(area + t * stride, np.float32(-np.inf))


def merge(total, part, stride):  # type: ignore[no-untyped-def]
    """Adds the sums of a part to those of the parts before it. A part of which a row sees nothing changes nothing, not even a
    rounding, so that a row's result does not depend on the tile that it lies in."""
    for t in range(ROWS):
        at, other = total + t * stride, part + t * stride
        largest = max(get_f32(at), get_f32(other))
        reference = largest if largest > np.float32(-1e30) else np.float32(0)
        ours, theirs = exp_one(get_f32(at) - reference), exp_one(get_f32(other) - reference)
        sum_of_both = get_f32(at + 4) * ours + get_f32(other + 4) * theirs
        for i in range(4 * LANES, stride, 4 * LANES):
            value = load_floats(at + i) * splat(ours)
            store_floats(at + i, fma(load_floats(other + i), splat(theirs), value))
        set_f32(at, largest)
        set_f32(at + 4, sum_of_both)


@inner
def finish_row(at, area, head_dim, sink):  # type: ignore[no-untyped-def]
    """One row of the result from its sums; a sink's logit joins the softmax and brings no value."""
    reference, total = get_f32(area), get_f32(area + 4)
    share = np.float32(1) / total
    if sink:
        largest = max(get_f32(sink), reference)
        seen = exp_one(reference - largest)
        share = seen / (exp_one(get_f32(sink) - largest) + total * seen)
    for d in range(0, head_dim, LANES):
        value = load_floats(area + 4 * (LANES + d)) * splat(share)
        if head_dim - d >= LANES:
            store_floats(at + 4 * d, value)
        else:
            store_first(at + 4 * d, value, head_dim - d)


def parts_that_fit(sequences, first_row, row_count, positions, group, kv_heads, pieces):  # type: ignore[no-untyped-def]
    """Parts of the keys of the longest sequence if all pieces of work have an area then, else 1."""
    tiles, longest = 0, 0
    for s in range(sequences):
        rows = get_i32(row_count + 4 * s)
        if rows > 0:
            tiles += (rows * group + ROWS - 1) // ROWS
            longest = max(longest, get_i32(positions + 4 * (get_i32(first_row + 4 * s) + rows - 1)) + 1)
    parts = (longest + PART - 1) // PART
    return parts if tiles * kv_heads * parts <= pieces else 1


LATENT = 0
score_keys: Any = None  # the compiled forms of the steps above, for ROWS rows; set by `attention_op`
soften_scores: Any = None
sum_values: Any = None
clear_sums: Any = None
merge_sums: Any = None
parts_that_fit_in: Any = None


def attention(  # type: ignore[no-untyped-def]
    qkv, stride, rows, out, out_stride, sequences, first_row, row_count, positions, heads, kv_heads, head_dim, value_dim,
    window, sinks, pages, page_bytes, page_positions, tables, table_stride, ring, divided, areas, area_bytes, counters, pieces,
    team, thread,
):  # fmt: skip
    """Causal attention of rotated and scaled queries over the stored keys, the rows' own among them.

    qkv: as `rotate_and_store` left it; out: float32 rows [heads · head_dim], out_stride bytes apart; sequences: how many,
    each with its rows first_row[s] … + row_count[s] (int32) at consecutive positions (int32, per row); window: a key is seen
    when query − key < window, 0 for all; sinks: float32 [heads] or 0; pages … ring: as there. With `divided`, each part of a
    tile's keys is a piece of work, where there is room for them: areas hold what they found, and counters (int64, zeros) how
    many are done (`attention_scratch` makes both).

    With LATENT, all heads share one key of head_dim values, of which the first value_dim are its value (pages as `latent` lays
    them out), and heads lie one under another: that of row r is row head · rows + r of qkv and of out; otherwise value_dim is
    head_dim.

    A row's result is the same bits whatever tile, batch, chunk or number of threads it is computed with: which keys are summed
    together follows from their positions alone.
    """
    group = heads // kv_heads
    padded = (value_dim + LANES - 1) // LANES * LANES
    across = (head_dim + LANES - 1) // LANES * LANES if LATENT else padded
    head_bytes = page_positions * ((head_dim + padded) * WIDTH + 2 * SCALE)
    area_stride = (LANES + padded) * 4
    whole, own = stack(AREA), stack(AREA)
    scores = stack(SCORES)
    index = stack(64)
    sees = stack(128)
    splits = 1
    if divided:
        splits = parts_that_fit_in(sequences, first_row, row_count, positions, group, kv_heads, pieces)
        if ROWS * area_stride > area_bytes:
            splits = 1
    item = take(team)
    done = 0
    s = 0
    while s < sequences:
        queries_of = get_i32(row_count + 4 * s) * group
        tiles = (queries_of + ROWS - 1) // ROWS
        work = tiles * kv_heads * splits
        if item >= done + work:
            done += work
            s += 1
            continue
        number = item - done
        if splits > 1:  # tiles that share keys one after the other: the second finds them in a cache
            number = number % tiles * kv_heads * splits + number // tiles
        tile = tiles - 1 - number // (kv_heads * splits)  # the longest first
        head = number // splits % kv_heads
        split = number % splits
        begin = get_i32(first_row + 4 * s)
        first = begin + tile * ROWS // group
        last = min(tile * ROWS + ROWS, queries_of) - 1
        for t in range(ROWS):
            r = min(tile * ROWS + t, last)
            row = begin + r // group
            position = get_i32(positions + 4 * row)
            if LATENT:
                set_i32(index + 4 * t, (row - first + r % group * rows) * (stride // 4))
            else:
                set_i32(index + 4 * t, (row - first) * (stride // 4) + (head * group + r % group) * head_dim)
            set_i32(sees + 8 * t, first_key(position, window))
            set_i32(sees + 8 * t + 4, position + 1)
        low, high = get_i32(sees), get_i32(sees + 8 * ROWS - 4)
        area = own
        if splits > 1:
            area = areas + (done + number) * area_bytes
            part = (low // PART + split) * PART
            low, high = max(low, part), min(high, part + PART)
        sums = area if low // PART == (high - 1) // PART and splits == 1 else whole
        clear_sums(area, area_stride)
        clear_sums(whole, area_stride)
        queries = row_addresses(ROWS, index, 0, ROWS - 1, qkv + first * stride, 4)
        table = tables + s * table_stride
        keys = head * head_bytes
        values = keys if LATENT else keys + page_positions * (head_dim * WIDTH + SCALE)
        segment = low
        while segment < high:
            stop = min(segment // SEGMENT * SEGMENT + SEGMENT, high)
            score_keys(scores, queries, sees, head_dim, segment, stop,
                       pages, page_bytes, page_positions, table, ring, keys, across, rows == sequences)  # fmt: skip
            soften_scores(scores, stop - segment // LANES * LANES, area, area_stride)
            sum_values(scores, area + 4 * LANES, area_stride, padded, across, segment, stop,
                       pages, page_bytes, page_positions, table, ring, values)  # fmt: skip
            segment = stop
            if splits == 1 and sums == whole and (segment == high or segment % PART == 0):
                merge_sums(whole, area, area_stride)
                clear_sums(area, area_stride)
        counter = counters + 8 * ((done + number) // splits)
        is_last = splits == 1
        if not is_last and atomic_add(counter, 1) == splits - 1:
            atomic_store(counter, 0)
            is_last = True
            for j in range(splits):
                merge_sums(whole, area + (j - split) * area_bytes, area_stride)
        if is_last:
            for t in range(last + 1 - tile * ROWS):
                r = tile * ROWS + t
                query = head * group + r % group
                target = out + (begin + r // group) * out_stride + query * head_dim * 4
                if LATENT:
                    target = out + (query * rows + begin + r // group) * out_stride
                finish_row(target, sums + t * area_stride, value_dim, sinks + 4 * query if sinks else 0)
        item = take(team)


AREA = ROWS * (LANES + USUAL_HEAD) * 4
SCORES = ROWS * (SEGMENT + LANES) * 4


@maker
def attention_op(
    rows: int, element: str = "bf16", value_dim: int = USUAL_HEAD, latent: Any = None, products: str = "i16"
) -> Op:
    """The operation `attention` with tiles of at least `rows` rows where the path has them (heads that share keys, times tokens),
    over caches of this element. It is the same for every value_dim up to USUAL_HEAD. latent: what scores keys that lie in rows,
    of which values are the beginnings, see `latent`."""
    size = next((t for t in TILES if t >= min(rows, 8)), TILES[-1])
    widest = USUAL_HEAD if value_dim <= USUAL_HEAD else MAX_HEAD
    constants = {"ROWS": size, "AREA": size * (LANES + widest) * 4, "SCORES": size * (SEGMENT + LANES) * 4}
    constants |= _element(element) | {"LATENT": int(latent is not None)}
    steps: dict[str, Any] = {
        "score_keys": latent or scores_of,
        "soften_scores": soften,
        "sum_values": add_values_by_two if 2 * size <= ACTIVE.sums else add_values,
        "clear_sums": clear,
        "merge_sums": merge,
        "parts_that_fit_in": parts_that_fit,
    }
    if element == "q8":
        from numba_kernels.cpu import attention_bytes

        more, others = attention_bytes.steps(size, value_dim, products)
        constants |= more
        steps |= others
    compiled = {name: inner(specialize(f, f"{name}_{size}_{element}", **constants)) for name, f in steps.items()}
    return Op(attention, **constants, **compiled)


def attention_scratch(pieces: int, value_dim: int) -> dict[str, Any]:
    """Memory for divided attention, as the kernels' arguments of these names: an area and a counter for each of so many pieces of
    work. Kernels divide where it is enough, and nowhere else: neither how many rows their tiles have nor how long sequences
    are is to be reckoned by who calls them."""
    each = max(TILES) * (LANES + -(-value_dim // LANES) * LANES)
    areas, counters = np.zeros((pieces, each), np.float32), np.zeros(pieces, np.int64)
    return {"areas": areas, "area_bytes": areas.strides[0], "counters": counters, "pieces": pieces}
