"""What the steps of attention over keys and values of 8 bits need of vectors: as `attention_tiles`, for pairs of bytes.

With products "i16" a pair of bytes becomes a pair of int16, and one instruction multiplies and adds both where the path has it.
With products "f32" bytes become float32 instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from numba_kernels.cpu.attention_tiles import places_of
from numba_kernels.cpu.blocks import Shorts
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I8, I16, I32, I64, Builder, Value
from numba_kernels.simd.memory import splat_at
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.tiles import Tile, tile_of
from numba_kernels.simd.values import LANES, Address, Floats, Int, Words

LARGEST = 32767  # of the int16 that queries and shares become
TINY = np.float32(1e-30)  # what is smaller throughout counts as zero
Pairs = emit.vector(I8, 2 * LANES)


def _load_pairs(b: Builder, kind: str, at: Value) -> Any:
    """Pairs of bytes as pairs of int16, one in each 32-bit lane, or for "f32" their first and second ones as float32."""
    pairs = b.sext(emit.load(b, at, Pairs), Shorts)
    return pairs if kind == "i16" else [b.sitofp(half, Floats.llvm) for half in emit.word_halves(b, pairs)]


def _add_pairs(b: Builder, kind: str, totals: list[Value], pairs: Sequence[Any], at: Value, between: int) -> list[Value]:
    """Each total + both numbers of each pair times two numbers in memory, which all lanes share: int16 beside each other for
    "i16", where the bits of a total are an int32, else float32 so many bytes apart."""
    if kind == "i16":
        both = b.bitcast(splat_at(b, at, I32), Shorts)
        sums = [ACTIVE.dot_words(b, b.bitcast(t, Words.llvm), p, both) for t, p in zip(totals, pairs, strict=True)]
        return [b.bitcast(x, Floats.llvm) for x in sums]
    for i in range(2):
        number = splat_at(b, emit.advance(b, at, between * i), F32)
        totals = [ACTIVE.fma(b, p[i], number, t) for t, p in zip(totals, pairs, strict=True)]
    return totals


def _as_floats(b: Builder, kind: str, total: Value) -> Value:
    return b.sitofp(b.bitcast(total, Words.llvm), Floats.llvm) if kind == "i16" else total


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
        return tile_of(b, tile, [total for totals in rows for total in totals])

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
            factor = splat_at(b, emit.advance(b, factors, 4 * t), F32)
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
        return tile_of(b, tile, [total for totals in rows for total in totals])

    return tile(products, vectors, tile, Address, Address, Int), lower


@intrinsic(prefer_literal=True)
def add_to_sums(typing_context: Any, products: Any, vectors: Any, address: Any, stride: Any, tile: Any, factors: Any) -> Any:
    """Adds what `add_byte_values` has summed, times a factor for each row (float32 at `factors`), to float32 rows."""
    kind, count = products.literal_value, vectors.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for t, totals in enumerate(_rows_of(b, tile, args[4], count)):
            factor = splat_at(b, emit.advance(b, args[5], 4 * t), F32)
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
        return tile_of(b, tile, found)

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
            inverse = splat_at(b, emit.advance(b, args[4], 4 * t), F32)
            steps = ACTIVE.fma(b, emit.load(b, b.add(args[2], row), Floats.llvm), inverse, magic)
            emit.store(b, b.trunc(b.bitcast(steps, Words.llvm), emit.vector(I16, LANES)), b.add(args[1], row))
        return context.get_dummy_value()

    return types.void(rows, Address, Address, Int, Address), lower
