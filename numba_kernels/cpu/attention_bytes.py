"""The steps of attention over keys and values of 8 bits: a tile of ROWS query rows meets one segment of positions.

With products "i16" both sums are of integers, which are exact in any order: a row of queries, and a row's shares of a segment
times the scales of the values, are rounded to int16 with one scale each. A pair of bytes becomes a pair of int16, and one
instruction multiplies and adds both where the path has it. With products "f32" bytes become float32 instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numba_kernels.cpu.attention import AHEAD, SEGMENT, USUAL_HEAD
from numba_kernels.cpu.blocks import PAIR, UNIT
from numba_kernels.cpu.kv_bytes import SCALE_BYTES
from numba_kernels.cpu.kv_pages import page_of
from numba_kernels.cpu.op import inner, specialize
from numba_kernels.cpu.rows import load_part
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I8, I16, I32, I64, Builder, Value
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import (
    LANES,
    Address,
    Floats,
    Int,
    Places,
    Words,
    absolute,
    get_i32,
    get_i64,
    keep_between,
    load_floats,
    max_lanes,
    maximum,
    panel_addresses,
    prefetch,
    round_to_words,
    set_f32,
    splat,
    stack,
    store_as_shorts,
    store_floats,
    sum_lanes,
    zero_tile,
)

LARGEST = 32767  # of the int16 that queries and shares become
MOST_SUMMED = 512  # columns of a key: 512 · 127 · 32767 < 2^31
TINY = np.float32(1e-30)  # what is smaller throughout counts as zero
ROWS, PANELS, BOTH, STRIDE = 8, 2, 16, (SEGMENT + LANES) * 4
PRODUCTS, SIZE = "i16", 2  # or f32, 4: bytes of a query's value and of a share
QUERIES = 64  # bytes for rounded queries
ADDRESSES, FACTORS = 128, 64  # bytes of ROWS addresses, and of ROWS float32
Shorts, Pairs = emit.vector(I16, 2 * LANES), emit.vector(I8, 2 * LANES)


# ---- products -------------------------------------------------------------------------------------------------------


def _load_pairs(b: Builder, at: Value) -> Value:
    """Pairs of bytes as pairs of int16, one in each 32-bit lane."""
    return b.sext(emit.load(b, at, Pairs), Shorts)


def _add_pairs(b: Builder, kind: str, total: Value, pairs: Any, at: Value) -> Value:
    """total + both of each pair times the two numbers at an address: int16 for "i16", where the total's bits are an int32."""
    if kind == "i16":
        both = emit.splat(b, emit.load(b, at, I32, 4), LANES)
        sums = ACTIVE.dot_words(b, b.bitcast(total, Words.llvm), pairs, b.bitcast(both, Shorts))
        return b.bitcast(sums, Floats.llvm)
    for i, value in enumerate(pairs):
        number = emit.splat(b, emit.load(b, emit.advance(b, at, 4 * i), F32, 4), LANES)
        total = ACTIVE.fma(b, value, number, total)
    return total


def _as_factors(b: Builder, kind: str, pairs: Value) -> Any:
    """What `_add_pairs` multiplies with: the pairs, or their first and second halves as float32."""
    return pairs if kind == "i16" else [b.sitofp(half, Floats.llvm) for half in emit.word_halves(b, pairs)]


def _as_floats(b: Builder, kind: str, total: Value) -> Value:
    return b.sitofp(b.bitcast(total, Words.llvm), Floats.llvm) if kind == "i16" else total


@intrinsic(prefer_literal=True)
def add_byte_scores(
    typing_context: Any, products: Any, columns: Any, tile: Any, panels: Any, keys: Any, queries: Any, at: Any
) -> Any:
    """The tile plus the products of `columns` (even) columns of panels of keys with those of the queries; that of row t and
    panel i is vector t · panels + i. keys, at: offsets of the columns in panels and in queries, in bytes."""
    kind, count = products.literal_value, columns.literal_value
    size = 2 if kind == "i16" else 4

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        totals = [b.extract_value(args[2], n) for n in range(tile.count)]
        bases = [b.add(b.extract_value(args[3], i), args[4]) for i in range(panels.count)]
        rows = [b.add(b.extract_value(args[5], t), args[6]) for t in range(queries.count)]
        for k in range(0, count, 2):
            pairs = [_as_factors(b, kind, _load_pairs(b, emit.advance(b, base, LANES * k))) for base in bases]
            for n in range(tile.count):
                number = emit.advance(b, rows[n // len(bases)], size * k)
                totals[n] = _add_pairs(b, kind, totals[n], pairs[n % len(bases)], number)
        return _tile(b, tile, totals)

    return tile(products, columns, tile, panels, Int, queries, Int), lower


@intrinsic(prefer_literal=True)
def store_byte_scores(
    typing_context: Any, products: Any, address: Any, stride: Any, tile: Any, scales: Any, factors: Any
) -> Any:
    """Stores the scores of each row, those of its panels beside each other: what `add_byte_scores` has summed times the keys'
    scales (at the addresses `scales`) and the row's factor, float32 at `factors`."""
    kind = products.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, address, stride, sums, places, factors = args
        of_keys = [emit.load(b, b.extract_value(places, i), Floats.llvm) for i in range(scales.count)]
        for n in range(tile.count):
            row = I64(n // scales.count)
            factor = emit.splat(b, emit.load(b, b.add(factors, b.mul(row, I64(4))), F32, 4), LANES)
            score = b.fmul(_as_floats(b, kind, b.extract_value(sums, n)), b.fmul(of_keys[n % scales.count], factor))
            emit.store(b, score, b.add(address, b.add(b.mul(stride, row), I64(n % scales.count * 4 * LANES))))
        return context.get_dummy_value()

    return types.void(products, Address, Int, tile, scales, Address), lower


@intrinsic(prefer_literal=True)
def add_byte_values(typing_context: Any, products: Any, tile: Any, values: Any, shares: Any, stride: Any) -> Any:
    """tile + shares · values of two positions, whose values lie in pairs; the first row's two shares are at `shares`, those of
    the next rows `stride` bytes further."""
    kind = products.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, sums, values, shares, stride = args
        pairs = _as_factors(b, kind, _load_pairs(b, values))
        rows = [b.add(shares, b.mul(stride, I64(t))) for t in range(tile.count)]
        return _tile(b, tile, [_add_pairs(b, kind, b.extract_value(sums, t), pairs, at) for t, at in enumerate(rows)])

    return tile(products, tile, Address, Address, Int), lower


@intrinsic(prefer_literal=True)
def add_to_sums(typing_context: Any, products: Any, address: Any, stride: Any, tile: Any, factors: Any) -> Any:
    """Adds what `add_byte_values` has summed, times a factor for each row (float32 at `factors`), to float32 rows."""
    kind = products.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, address, stride, sums, factors = args
        for t in range(tile.count):
            at = b.add(address, b.mul(stride, I64(t)))
            factor = emit.splat(b, emit.load(b, emit.advance(b, factors, 4 * t), F32, 4), LANES)
            total = ACTIVE.fma(b, _as_floats(b, kind, b.extract_value(sums, t)), factor, emit.load(b, at, Floats.llvm))
            emit.store(b, total, at)
        return context.get_dummy_value()

    return types.void(products, Address, Int, tile, Address), lower


@intrinsic
def store_places(typing_context: Any, address: Any, places: Any) -> Any:
    """Writes addresses to memory, int64."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for t in range(places.count):
            emit.store(b, b.extract_value(args[1], t), emit.advance(b, args[0], 8 * t))
        return context.get_dummy_value()

    return types.void(Address, places), lower


@intrinsic(prefer_literal=True)
def panels_at(typing_context: Any, count: Any, first: Any, second: Any) -> Any:
    """The first address, or both (`count`, a compile-time constant)."""
    places = Places(count.literal_value)

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        return _tile(b, places, list(args[1 : 1 + places.count]))

    return places(count, Address, Address), lower


def _tile(b: Builder, kind: Any, values: list[Value]) -> Value:
    result = ir.Constant(kind.llvm, ir.Undefined)
    for t, value in enumerate(values):
        result = b.insert_value(result, value, t)
    return result


# ---- steps ----------------------------------------------------------------------------------------------------------


def round_queries(addresses, queries, factors, head_dim):  # type: ignore[no-untyped-def]
    """Rounds ROWS rows of queries, at these addresses, to int16 [ROWS, head_dim], with a factor for each: max |q| / 32767, NaN
    if a value is not finite."""
    for t in range(ROWS):
        row, to = get_i64(addresses + 8 * t), queries + t * head_dim * 2
        largest, broken = splat(np.float32(0)), splat(np.float32(0))
        for i in range(0, head_dim, LANES):
            x = load_part(row + 4 * i, head_dim - i)
            largest = maximum(absolute(x), largest)
            broken = broken + x * splat(np.float32(0))
        top = max_lanes(largest)
        inverse = np.float32(LARGEST) / top if top > TINY else np.float32(0)
        factor = top / np.float32(LARGEST) if top > TINY else np.float32(0)
        set_f32(factors + 4 * t, factor + sum_lanes(broken))
        for i in range(0, head_dim, LANES):  # what a row writes beyond its end, the next one overwrites
            store_as_shorts(to + 2 * i, round_to_words(load_part(row + 4 * i, head_dim - i) * splat(inverse)))


def scores_of_bytes(  # type: ignore[no-untyped-def]
    scores, queries, sees, head_dim, low, high, pages, page_bytes, page_positions, table, ring, offset, across, is_ahead
):
    """`attention.scores_of` for keys of 8 bits; PANELS panels at a time."""
    begin = low // LANES * LANES
    all_from, all_to = get_i32(sees + 8 * ROWS - 8), get_i32(sees + 4)  # what the last and the first row see: all rows do
    end = get_i32(sees + 8 * ROWS - 4)  # of what any row sees
    factors = stack(FACTORS)
    if SIZE == 2:
        rounded, addresses = stack(QUERIES), stack(ADDRESSES)
        store_places(addresses, queries)
        round_queries_of_tile(addresses, rounded, factors, head_dim)
        queries = panel_addresses(ROWS, rounded, head_dim * 2, ROWS - 1)
    else:
        for t in range(ROWS):
            set_f32(factors + 4 * t, np.float32(1))
    for first in range(begin, high, LANES * PANELS):
        slot = first % page_positions
        page = page_of(first, pages, page_bytes, page_positions, table, ring) + offset
        keys, scales = page + slot * head_dim, page + page_positions * head_dim + slot * SCALE_BYTES
        beside = min(first + LANES, (high - 1) // LANES * LANES)  # the last of an odd number is its own second
        other_slot = beside % page_positions
        other = page_of(beside, pages, page_bytes, page_positions, table, ring) + offset
        panels = panels_at(PANELS, keys, other + other_slot * head_dim)
        places = panels_at(PANELS, scales, other + page_positions * head_dim + other_slot * SCALE_BYTES)
        later = min(first + AHEAD, (end - 1) // LANES * LANES)
        wanted = page_of(later, pages, page_bytes, page_positions, table, ring) + offset + later % page_positions * head_dim
        values = page + page_positions * (head_dim + SCALE_BYTES) + slot * across
        tile = zero_tile(BOTH)
        for k in range(head_dim // UNIT):
            if is_ahead:
                for line in range(k * UNIT * LANES * PANELS, (k + 1) * UNIT * LANES * PANELS, 64):
                    prefetch(wanted + line)
                    prefetch(values + line)
            tile = add_byte_scores(PRODUCTS, UNIT, tile, panels, k * UNIT * LANES, queries, k * UNIT * SIZE)
        for k in range(head_dim // UNIT * UNIT, head_dim, PAIR):
            tile = add_byte_scores(PRODUCTS, PAIR, tile, panels, k * LANES, queries, k * SIZE)
        at = scores + (first - begin) * 4
        store_byte_scores(PRODUCTS, at, STRIDE, tile, places, factors)
        if first < all_from or first + LANES * PANELS > all_to:
            for t in range(ROWS):
                for i in range(0, LANES * PANELS, LANES):
                    seen = load_floats(at + t * STRIDE + 4 * i)
                    seen = keep_between(first + i, get_i32(sees + 8 * t), get_i32(sees + 8 * t + 4), seen)
                    store_floats(at + t * STRIDE + 4 * i, seen)


def scale_shares(  # type: ignore[no-untyped-def]
    scores, factors, low, high, pages, page_bytes, page_positions, table, ring, offset, scales_at
):
    """Multiplies shares with the scales of the values, in place, and rounds them to int16 for products of these, which lie at the
    beginning of their row then; factors: of each row's sums. A share of 0 stays 0, whatever the scale is."""
    begin = low // LANES * LANES
    for t in range(ROWS):
        row = scores + t * STRIDE
        largest, broken = splat(np.float32(0)), splat(np.float32(0))
        for i in range(0, high - begin, LANES):
            p = begin + i
            page = page_of(p, pages, page_bytes, page_positions, table, ring) + offset
            weight = times_where_some(
                load_floats(row + 4 * i), load_floats(page + scales_at + p % page_positions * SCALE_BYTES)
            )
            store_floats(row + 4 * i, weight)
            largest = maximum(weight, largest)
            broken = broken + weight * splat(np.float32(0))
        if SIZE == 2:
            top = max_lanes(largest)
            inverse = np.float32(LARGEST) / top if top > TINY else np.float32(0)
            factor = top / np.float32(LARGEST) if top > TINY else np.float32(0)
            set_f32(factors + 4 * t, factor + sum_lanes(broken))
            for i in range(0, high - begin, LANES):
                store_as_shorts(row + 2 * i, round_to_words(load_floats(row + 4 * i) * splat(inverse)))
        else:
            set_f32(factors + 4 * t, np.float32(1))


@intrinsic
def times_where_some(typing_context: Any, share: Any, scale: Any) -> Any:
    """share · scale, and 0 where the share is 0."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        share, scale = args
        return b.select(
            b.fcmp_ordered("==", share, emit.same(share.type, 0.0)), emit.same(share.type, 0.0), b.fmul(share, scale)
        )

    return Floats(Floats, Floats), lower


def sum_byte_values(  # type: ignore[no-untyped-def]
    scores, sums, stride, padded, across, low, high, pages, page_bytes, page_positions, table, ring, offset
):
    """`attention.add_values` for values of 8 bits; VECTORS of columns at a time, the last of an odd number is its own second."""
    begin = low // LANES * LANES
    factors = stack(FACTORS)
    scale_rows(scores, factors, low, high, pages, page_bytes, page_positions, table, ring, offset, page_positions * padded)
    for d in range(0, padded, VECTORS * LANES):
        beside = min(d + LANES, padded - LANES) - d
        first, second = zero_tile(ROWS), zero_tile(ROWS)
        p = low // 2 * 2
        while p < high:
            slot = p % page_positions
            stop = min(high, p - slot + page_positions)
            page = page_of(p, pages, page_bytes, page_positions, table, ring) + offset + 2 * d
            for q in range(p, stop, 2):
                values, shares = page + (slot + q - p) * across, scores + (q - begin) * SIZE
                first = add_byte_values(PRODUCTS, first, values, shares, STRIDE)
                if VECTORS == 2:
                    second = add_byte_values(PRODUCTS, second, values + 2 * beside, shares, STRIDE)
            p = stop
        add_to_sums(PRODUCTS, sums + 4 * d, stride, first, factors)
        if VECTORS == 2 and beside:
            add_to_sums(PRODUCTS, sums + 4 * (d + beside), stride, second, factors)


round_queries_of_tile: Any = None  # compiled forms of the functions above, set by `steps`
scale_rows: Any = None
VECTORS = 2


def steps(rows: int, value_dim: int, products: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The constants, and the steps by the names that `attention` gives them, of tiles of so many rows.

    products: "i16", for heads of up to MOST_SUMMED values, or "f32".
    """
    kind = "f32" if value_dim > MOST_SUMMED else products
    panels = 2 if 2 * rows <= ACTIVE.sums else 1
    widest = MOST_SUMMED if value_dim > USUAL_HEAD else USUAL_HEAD
    constants: dict[str, Any] = {
        "ROWS": rows, "PANELS": panels, "VECTORS": panels, "BOTH": rows * panels, "PRODUCTS": kind,
        "SIZE": 2 if kind == "i16" else 4,
        "QUERIES": rows * widest * 2 + 2 * LANES if kind == "i16" else 64, "ADDRESSES": 8 * rows, "FACTORS": 4 * rows,
    }  # fmt: skip
    suffix = f"{rows}_{kind}_{panels}"
    inside = {
        "round_queries_of_tile": inner(specialize(round_queries, f"round_queries_{suffix}", **constants)),
        "scale_rows": inner(specialize(scale_shares, f"scale_shares_{suffix}", **constants)),
    }
    return constants | inside, {"score_keys": scores_of_bytes, "sum_values": sum_byte_values}
