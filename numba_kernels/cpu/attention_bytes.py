"""The steps of attention over keys and values of 8 bits: a tile of ROWS query rows meets one segment of positions.

They take what the steps of `attention_steps` take, but for the queries: a factor for each row, float32, lies before the numbers.

With products "i16" both sums are of integers, which are exact in any order: a row of queries, and a row's shares of a segment
times the scales of the values, are rounded to int16 with one factor each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cpu.attention_byte_tiles import (
    LARGEST,
    TINY,
    add_byte_scores,
    add_byte_values,
    add_to_sums,
    round_rows,
    store_byte_scores,
    store_factors,
    weigh,
)
from numba_kernels.cpu.attention_steps import SEGMENT, STRIDE, prepare
from numba_kernels.cpu.attention_tiles import load_places
from numba_kernels.cpu.blocks import PAIR, UNIT
from numba_kernels.cpu.kv_bytes import SCALE_BYTES
from numba_kernels.cpu.kv_pages import page_of, slot_of
from numba_kernels.cpu.op import inner, specialize
from numba_kernels.cpu.rows import load_part
from numba_kernels.simd.memory import (
    get_i32,
    get_i64,
    load_floats,
    prefetch,
    set_f32,
    set_i32,
    set_i64,
    stack,
    store_as_shorts,
    store_floats,
)
from numba_kernels.simd.tiles import zero_tile
from numba_kernels.simd.values import LANES, absolute, keep_between, max_lanes, maximum, round_to_words, splat, sum_lanes

MOST_SUMMED = 512  # columns of a key: 512 · 127 · 32767 < 2^31
ROWS, PLACES, PANELS, GROUP = 8, 8, 2, 2 * LANES  # as in `attention_steps`
BOTH, VECTORS = ROWS * PANELS, 2
PRODUCTS, SIZE = "i16", 2  # or f32, 4: bytes of a query's value and of a share
ROUNDED = 64  # bytes for a rounded query


def round_queries(places, queries, head_dim):  # type: ignore[no-untyped-def]
    """`attention_steps.prepare` with int16, pairs of columns; factors: max |q| / 32767, NaN if a value is not finite."""
    rounded = stack(ROUNDED)
    for t in range(ROWS):
        row = get_i64(places + 8 * t)
        largest, broken = splat(np.float32(0)), splat(np.float32(0))
        for i in range(0, head_dim, LANES):
            x = load_part(row + 4 * i, head_dim - i)
            largest = maximum(absolute(x), largest)
            broken = broken + x * splat(np.float32(0))
        top = max_lanes(largest)
        inverse = np.float32(LARGEST) / top if top > TINY else np.float32(0)
        factor = top / np.float32(LARGEST) if top > TINY else np.float32(0)
        set_f32(queries + 4 * t, factor + sum_lanes(broken))
        for i in range(0, head_dim, LANES):
            store_as_shorts(rounded + 2 * i, round_to_words(load_part(row + 4 * i, head_dim - i) * splat(inverse)))
        for k in range(head_dim // 2):
            set_i32(queries + ((k + 1) * PLACES + t) * 4, get_i32(rounded + 4 * k))


def keep_queries(places, queries, head_dim):  # type: ignore[no-untyped-def]
    """`attention_steps.prepare` with float32, and factors of 1."""
    for t in range(ROWS):
        set_f32(queries + 4 * t, np.float32(1))
    lay_out(places, queries + 4 * PLACES, head_dim)


def scores_of_bytes(  # type: ignore[no-untyped-def]
    scores, queries, sees, head_dim, low, high, pages, page_bytes, page_positions, table, ring, offset, across, is_ahead
):
    """`attention_steps.scores_of` for keys of 8 bits."""
    all_from, all_to = get_i32(sees + 8 * ROWS - 8), get_i32(sees + 4)  # what the last and the first row see: all rows do
    lowest, highest = low // LANES * LANES, (high - 1) // LANES * LANES  # panels: others may be anywhere
    places, scales = stack(64), stack(64)
    wanted = np.int64(0)
    numbers = queries + 4 * PLACES
    for first in range(low // GROUP * GROUP, (high + GROUP - 1) // GROUP * GROUP, LANES * PANELS):
        for i in range(PANELS):
            p = min(max(first + LANES * i, lowest), highest)
            page = page_of(p, pages, page_bytes, page_positions, table, ring) + offset
            slot = slot_of(p, page_positions)
            set_i64(places + 8 * i, page + slot * head_dim)
            set_i64(scales + 8 * i, page + page_positions * head_dim + slot * SCALE_BYTES)
            if i == 0:
                wanted = page + page_positions * (head_dim + SCALE_BYTES) + slot * across
        panels = load_places(PANELS, places)
        tile = zero_tile(BOTH)
        for k in range(0, head_dim // UNIT * UNIT, UNIT):
            if is_ahead:
                for line in range(0, PANELS * UNIT * LANES, 64):
                    prefetch(wanted + k * PANELS * LANES + line)
            tile = add_byte_scores(PRODUCTS, UNIT, tile, panels, k * LANES, numbers + k * PLACES * SIZE)
        for k in range(head_dim // UNIT * UNIT, head_dim, PAIR):
            tile = add_byte_scores(PRODUCTS, PAIR, tile, panels, k * LANES, numbers + k * PLACES * SIZE)
        at = scores + first % SEGMENT * 4
        store_byte_scores(PRODUCTS, at, STRIDE, tile, load_places(PANELS, scales), queries)
        if first < all_from or first + LANES * PANELS > all_to:
            for t in range(ROWS):
                for i in range(0, LANES * PANELS, LANES):
                    seen = load_floats(at + t * STRIDE + 4 * i)
                    seen = keep_between(first + i, get_i32(sees + 8 * t), get_i32(sees + 8 * t + 4), seen)
                    store_floats(at + t * STRIDE + 4 * i, seen)


def scale_shares(scores, factors, low, high, pages, page_bytes, page_positions, table, ring, scales):  # type: ignore[no-untyped-def]
    """Multiplies shares with the scales of the values, which lie `scales` bytes behind their pages, in place. For products of
    int16 the results are rounded to these, and lie at the beginning of their row then; factors: of each row's sums."""
    begin, end = low // LANES * LANES, (high - 1) // LANES * LANES + LANES
    inverses = stack(64)
    largest = zero_tile(ROWS)
    for p in range(begin, end, LANES):
        page = page_of(p, pages, page_bytes, page_positions, table, ring)
        of_values = page + scales + slot_of(p, page_positions) * SCALE_BYTES
        largest = weigh(largest, scores + p % SEGMENT * 4, STRIDE, of_values)
    if SIZE == 2:
        store_factors(largest, factors, inverses)
        for i in range(begin % SEGMENT, begin % SEGMENT + end - begin, LANES):
            round_rows(ROWS, scores + 2 * i, scores + 4 * i, STRIDE, inverses)
    else:
        store_floats(factors, splat(np.float32(1)))


def add_byte_columns(  # type: ignore[no-untyped-def]
    scores, factors, sums, stride, begin, end, across, low, high,
    pages, page_bytes, page_positions, table, ring, offset, keys, is_ahead,
):  # fmt: skip
    """sums[t] += Σ_p shares[t, p] · v[p] for the columns from `begin` to `end`, VECTORS vectors at a time."""
    for d in range(begin, end, LANES * VECTORS):
        tile = zero_tile(WIDE)
        p = low // 2 * 2
        while p < high:
            slot = slot_of(p, page_positions)
            stop = min(high, p - slot + page_positions)
            values = page_of(p, pages, page_bytes, page_positions, table, ring) + offset + 2 * d + slot * across
            wanted = page_of(p + SEGMENT, pages, page_bytes, page_positions, table, ring) + keys
            wanted += slot_of(p + SEGMENT, page_positions) * across + (stop - p) * d
            shares = scores + p % SEGMENT * SIZE
            for q in range(0, stop - p, 2):
                if is_ahead:
                    for line in range(0, 2 * LANES * VECTORS, 64):
                        prefetch(wanted + q * LANES * VECTORS + line)
                tile = add_byte_values(PRODUCTS, VECTORS, tile, values + q * across, shares + q * SIZE, STRIDE)
            p = stop
        add_to_sums(PRODUCTS, VECTORS, sums + 4 * d, stride, tile, factors)


lay_out: Any = None  # compiled forms of what is above, set by `byte_steps`
scale_rows: Any = None
add_several: Any = None  # `add_byte_columns` for PANELS vectors, and for one
add_one: Any = None
WIDE, FACTORS = 8, 64


def sum_byte_values(  # type: ignore[no-untyped-def]
    scores, sums, stride, padded, across, low, high, pages, page_bytes, page_positions, table, ring, offset, keys, is_ahead
):
    """`attention_steps.sum_values` for values of 8 bits. Of a pair that low or high cuts, the share of the part that is not seen
    is 0, and meets bytes, which are numbers whatever they are."""
    factors = stack(FACTORS)
    scales = offset + page_positions * across
    scale_rows(scores, factors, low, high, pages, page_bytes, page_positions, table, ring, scales)
    most = padded // (PANELS * LANES) * (PANELS * LANES)
    add_several(scores, factors, sums, stride, 0, most, across, low, high,
                pages, page_bytes, page_positions, table, ring, offset, keys, is_ahead)  # fmt: skip
    add_one(scores, factors, sums, stride, most, padded, across, low, high,
            pages, page_bytes, page_positions, table, ring, offset, keys, is_ahead)  # fmt: skip


def byte_steps(constants: dict[str, Any], widest: int, products: str) -> dict[str, Any]:
    """The steps by the names that `attention` gives them, compiled with its constants, for heads of at most `widest` values.

    products: "i16" or "f32".
    """
    rows, panels = constants["ROWS"], constants["PANELS"]
    own: dict[str, Any] = {**constants, "PRODUCTS": products, "SIZE": 2 if products == "i16" else 4, "FACTORS": 4 * LANES}
    own["ROUNDED"] = 2 * (widest + LANES)

    def compiled(function: Any, **more: Any) -> Any:
        values = [str(v) for v in more.values() if isinstance(v, int)]
        return inner(
            specialize(function, "_".join([function.__name__, *values, f"{rows}_{panels}_{products}"]), **own, **more)
        )

    several, one = (compiled(add_byte_columns, VECTORS=n, WIDE=rows * n) for n in (panels, 1))
    plain = inner(specialize(prepare, f"prepare_{rows}_bytes", **constants))
    return {
        "prepare_queries": compiled(round_queries) if products == "i16" else compiled(keep_queries, lay_out=plain),
        "score_keys": compiled(scores_of_bytes),
        "sum_segment": compiled(
            sum_byte_values, scale_rows=compiled(scale_shares), add_several=several, add_one=one
        ),
    }  # fmt: skip
