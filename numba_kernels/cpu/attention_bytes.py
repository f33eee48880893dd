"""The steps of attention over keys and values of 8 bits: a tile of ROWS query rows meets one segment of positions.

They take what the steps of `attention_steps` take, but for the queries: a factor for each row, float32, lies before the numbers.

With products "i16" both sums are of integers, which are exact in any order: a row of queries, and a row's shares of a segment
times the scales of the values, are rounded to int16 with one factor each. A pair of bytes becomes a pair of int16, and one
instruction multiplies and adds both where the path has it. With products "f32" bytes become float32 instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numba_kernels.cpu.attention_steps import SEGMENT, STRIDE, prepare
from numba_kernels.cpu.attention_tiles import load_places, places_of
from numba_kernels.cpu.blocks import PAIR, UNIT
from numba_kernels.cpu.kv_bytes import SCALE_BYTES
from numba_kernels.cpu.kv_pages import page_of
from numba_kernels.cpu.op import inner, specialize
from numba_kernels.cpu.rows import load_part
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I8, I16, I32, I64, Builder, Value
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
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.tiles import Tile, zero_tile
from numba_kernels.simd.values import (
    LANES,
    Address,
    Floats,
    Int,
    Words,
    absolute,
    keep_between,
    max_lanes,
    maximum,
    round_to_words,
    splat,
    sum_lanes,
)

LARGEST = 32767  # of the int16 that queries and shares become
MOST_SUMMED = 512  # columns of a key: 512 · 127 · 32767 < 2^31
TINY = np.float32(1e-30)  # what is smaller throughout counts as zero
ROWS, PLACES, PANELS, GROUP = 8, 8, 2, 2 * LANES  # as in `attention_steps`
BOTH, VECTORS = ROWS * PANELS, 2
PRODUCTS, SIZE = "i16", 2  # or f32, 4: bytes of a query's value and of a share
ROUNDED = 64  # bytes for a rounded query
Shorts, Pairs = emit.vector(I16, 2 * LANES), emit.vector(I8, 2 * LANES)


# ---- products -------------------------------------------------------------------------------------------------------


def _load_pairs(b: Builder, kind: str, at: Value) -> Any:
    """Pairs of bytes as pairs of int16, one in each 32-bit lane, or for "f32" their first and second ones as float32."""
    pairs = b.sext(emit.load(b, at, Pairs), Shorts)
    return pairs if kind == "i16" else [b.sitofp(half, Floats.llvm) for half in emit.word_halves(b, pairs)]


def _add_pairs(b: Builder, kind: str, totals: list[Value], pairs: Sequence[Any], at: Value, between: int) -> list[Value]:
    """Each total + both numbers of each pair times two numbers in memory, which all lanes share: int16 beside each other for
    "i16", where the bits of a total are an int32, else float32 so many bytes apart."""
    if kind == "i16":
        both = b.bitcast(emit.splat(b, emit.load(b, at, I32, 4), LANES), Shorts)
        sums = [ACTIVE.dot_words(b, b.bitcast(t, Words.llvm), p, both) for t, p in zip(totals, pairs, strict=True)]
        return [b.bitcast(x, Floats.llvm) for x in sums]
    for i in range(2):
        number = emit.splat(b, emit.load(b, emit.advance(b, at, between * i), F32, 4), LANES)
        totals = [ACTIVE.fma(b, p[i], number, t) for t, p in zip(totals, pairs, strict=True)]
    return totals


def _as_floats(b: Builder, kind: str, total: Value) -> Value:
    return b.sitofp(b.bitcast(total, Words.llvm), Floats.llvm) if kind == "i16" else total


def _tile(b: Builder, kind: Tile, values: list[Value]) -> Value:
    result = ir.Constant(kind.llvm, ir.Undefined)
    for t, value in enumerate(values):
        result = b.insert_value(result, value, t)
    return result


def _rows_of(b: Builder, tile: Tile, value: Value, count: int) -> list[list[Value]]:
    """The accumulators of a tile, `count` of each row."""
    every = [b.extract_value(value, n) for n in range(tile.count)]
    return [every[n : n + count] for n in range(0, tile.count, count)]


@intrinsic(prefer_literal=True)
def add_byte_scores(
    typing_context: Any, products: Any, columns: Any, tile: Any, panels: Any, offset: Any, queries: Any
) -> Any:
    """The tile plus the products of `columns` (even) columns of panels of keys with those of the queries; that of row t and
    panel i is vector t · panels + i.

    offset: of the columns in their panels, in bytes; queries: the address of the columns in the queries.
    """
    kind, count = products.literal_value, columns.literal_value
    line = 4 * places_of(tile.count // panels.count)  # from one number of queries to the next

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        rows = _rows_of(b, tile, args[2], panels.count)
        bases = [b.add(b.extract_value(args[3], i), args[4]) for i in range(panels.count)]
        for k in range(0, count, 2):
            pairs = [_load_pairs(b, kind, emit.advance(b, base, LANES * k)) for base in bases]
            first = k // 2 if kind == "i16" else k
            for t, totals in enumerate(rows):
                rows[t] = _add_pairs(b, kind, totals, pairs, emit.advance(b, args[5], first * line + 4 * t), line)
        return _tile(b, tile, [total for totals in rows for total in totals])

    return tile(products, columns, tile, panels, Int, Address), lower


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
        for t, totals in enumerate(_rows_of(b, tile, sums, scales.count)):
            at = b.add(address, b.mul(stride, I64(t)))
            factor = emit.splat(b, emit.load(b, emit.advance(b, factors, 4 * t), F32, 4), LANES)
            for i, total in enumerate(totals):
                score = b.fmul(_as_floats(b, kind, total), b.fmul(of_keys[i], factor))
                emit.store(b, score, emit.advance(b, at, 4 * LANES * i))
        return context.get_dummy_value()

    return types.void(products, Address, Int, tile, scales, Address), lower


@intrinsic(prefer_literal=True)
def add_byte_values(
    typing_context: Any, products: Any, vectors: Any, tile: Any, values: Any, shares: Any, stride: Any
) -> Any:
    """tile + shares · values of two positions, whose values lie in pairs, in so many `vectors` of columns; the first row's two
    shares are at `shares`, those of the next rows `stride` bytes further."""
    kind, count = products.literal_value, vectors.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        pairs = [_load_pairs(b, kind, emit.advance(b, args[3], 2 * LANES * i)) for i in range(count)]
        rows = _rows_of(b, tile, args[2], count)
        for t, totals in enumerate(rows):
            rows[t] = _add_pairs(b, kind, totals, pairs, b.add(args[4], b.mul(args[5], I64(t))), 4)
        return _tile(b, tile, [total for totals in rows for total in totals])

    return tile(products, vectors, tile, Address, Address, Int), lower


@intrinsic(prefer_literal=True)
def add_to_sums(typing_context: Any, products: Any, vectors: Any, address: Any, stride: Any, tile: Any, factors: Any) -> Any:
    """Adds what `add_byte_values` has summed, times a factor for each row (float32 at `factors`), to float32 rows."""
    kind, count = products.literal_value, vectors.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for t, totals in enumerate(_rows_of(b, tile, args[4], count)):
            factor = emit.splat(b, emit.load(b, emit.advance(b, args[5], 4 * t), F32, 4), LANES)
            for i, total in enumerate(totals):
                at = emit.advance(b, b.add(args[2], b.mul(args[3], I64(t))), 4 * LANES * i)
                added = ACTIVE.fma(b, _as_floats(b, kind, total), factor, emit.load(b, at, Floats.llvm))
                emit.store(b, added, at)
        return context.get_dummy_value()

    return types.void(products, vectors, Address, Int, tile, Address), lower


@intrinsic
def weigh(typing_context: Any, tile: Any, shares: Any, stride: Any, scales: Any) -> Any:
    """Multiplies the shares of LANES positions with the scales of their values, in place, but for shares of 0, which stay 0
    whatever the scale is. Rows of shares are `stride` bytes apart. Returns the larger of each lane of the tile and the results:
    of their bits, so that NaN is the largest."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        scale, zero = emit.load(b, args[3], Floats.llvm), emit.same(Floats.llvm, 0.0)
        found = []
        for t, [most] in enumerate(_rows_of(b, tile, args[0], 1)):
            at = b.add(args[1], b.mul(args[2], I64(t)))
            share = emit.load(b, at, Floats.llvm)
            weight = b.select(b.fcmp_ordered("==", share, zero), zero, b.fmul(share, scale))
            emit.store(b, weight, at)
            found.append(_larger_bits(b, weight, most))
        return _tile(b, tile, found)

    return tile(tile, Address, Int, Address), lower


def _larger_bits(b: Builder, x: Value, y: Value) -> Value:
    x, y = b.bitcast(x, Words.llvm), b.bitcast(y, Words.llvm)
    return b.bitcast(b.select(b.icmp_unsigned(">", x, y), x, y), Floats.llvm)


@intrinsic
def store_factors(typing_context: Any, tile: Any, factors: Any, inverses: Any) -> Any:
    """Of each row's largest number: the step of its int16, and how many steps 1 has; 0 where all is tiny. LANES float32 each."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        top = emit.across_lanes(b, [most for [most] in _rows_of(b, tile, args[0], 1)], lambda x, y: _larger_bits(b, x, y))
        tiny, zero, largest = (emit.same(Floats.llvm, x) for x in (float(TINY), 0.0, float(LARGEST)))
        emit.store(b, b.select(b.fcmp_unordered(">", top, tiny), b.fdiv(top, largest), zero), args[1])
        emit.store(b, b.select(b.fcmp_ordered(">", top, tiny), b.fdiv(largest, top), zero), args[2])
        return context.get_dummy_value()

    return types.void(tile, Address, Address), lower


@intrinsic(prefer_literal=True)
def round_rows(typing_context: Any, rows: Any, target: Any, source: Any, stride: Any, inverses: Any) -> Any:
    """LANES numbers of each row (`rows`, a compile-time constant) times the row's number at `inverses`, as int16. Rows of both
    are `stride` bytes apart; a row's target may be before its source."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        magic = emit.same(Floats.llvm, emit.MAGIC)  # adding it leaves the nearest integer in the low bits
        for t in range(rows.literal_value):
            row = b.mul(args[3], I64(t))
            inverse = emit.splat(b, emit.load(b, emit.advance(b, args[4], 4 * t), F32, 4), LANES)
            steps = ACTIVE.fma(b, emit.load(b, b.add(args[2], row), Floats.llvm), inverse, magic)
            emit.store(b, b.trunc(b.bitcast(steps, Words.llvm), emit.vector(I16, LANES)), b.add(args[1], row))
        return context.get_dummy_value()

    return types.void(rows, Address, Address, Int, Address), lower


# ---- steps ----------------------------------------------------------------------------------------------------------


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
    places, scales, values = stack(64), stack(64), stack(64)
    numbers = queries + 4 * PLACES
    for first in range(low // GROUP * GROUP, (high + GROUP - 1) // GROUP * GROUP, LANES * PANELS):
        for i in range(PANELS):
            p = min(max(first + LANES * i, lowest), highest)
            page = page_of(p, pages, page_bytes, page_positions, table, ring) + offset
            slot = p % page_positions
            set_i64(places + 8 * i, page + slot * head_dim)
            set_i64(scales + 8 * i, page + page_positions * head_dim + slot * SCALE_BYTES)
            set_i64(values + 8 * i, page + page_positions * (head_dim + SCALE_BYTES) + slot * across)
        panels = load_places(PANELS, places)
        tile = zero_tile(BOTH)
        for k in range(0, head_dim // UNIT * UNIT, UNIT):
            if is_ahead:
                for i in range(PANELS):
                    for line in range(0, UNIT * LANES, 64):
                        prefetch(get_i64(values + 8 * i) + k * LANES + line)
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
        of_values = page + scales + p % page_positions * SCALE_BYTES
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
            slot = p % page_positions
            stop = min(high, p - slot + page_positions)
            values = page_of(p, pages, page_bytes, page_positions, table, ring) + offset + 2 * d + slot * across
            wanted = page_of(p + SEGMENT, pages, page_bytes, page_positions, table, ring) + keys + 2 * d
            wanted += (p + SEGMENT) % page_positions * across
            shares = scores + p % SEGMENT * SIZE
            for q in range(0, stop - p, 2):
                if is_ahead:
                    for line in range(0, 2 * LANES * VECTORS, 64):
                        prefetch(wanted + q * across + line)
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
