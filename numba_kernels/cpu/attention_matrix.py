"""The steps of attention over a cache of bfloat16 with matrix registers (`simd/amx.py`): see `attention_steps`.

A panel of keys lies in memory as a right operand: pairs of columns, LANES positions. Values lie in rows; `gather_values` lays
those of a segment out as right operands, pairs of positions and LANES columns, once for all tiles that meet it. Left operands are
a tile's queries, rounded to bfloat16, and its shares of the softmax, as `soften` rounds them.

`tdpbf16ps` adds what the even and the odd numbers of BLOCK columns (of keys) or BLOCK positions (of values) bring, in a chain of
float32 each, and then both to the sum. Which numbers share a chain follows from their positions, and a row's sums do not depend
on the other rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import intrinsic

from numba_kernels.cpu.attention_steps import SEGMENT, STRIDE
from numba_kernels.cpu.attention_tiles import pairs_of_rows
from numba_kernels.cpu.kv_pages import page_of, slot_of, store_row_bf16
from numba_kernels.cpu.op import inner, specialize
from numba_kernels.simd import amx
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import Builder, Value
from numba_kernels.simd.memory import get_i32, get_i64, load_floats, prefetch_far, set_i32, stack, store_floats
from numba_kernels.simd.values import LANES, Address, Int, Void, keep_between, splat

TILES = (1, 2, 4, 8, 16)  # rows of a tile
BLOCK = 32  # columns, or positions, of a product
OPERAND = amx.ROWS * amx.ROW  # bytes of a right operand
REST = 2 * OPERAND  # bytes of the columns of two panels that fill no operand
VALUES = 4  # registers of sums that meet shares side by side
WIDTH = 2
ROWS = 16


@intrinsic(prefer_literal=True)
def configure_registers(typing_context: Any, rows: Any) -> Any:
    """Registers 0 to 3 for sums of so many rows, 4 for a left operand, 6 and 7 for right ones."""
    shapes = [(rows.literal_value, amx.ROW)] * 6 + [(amx.ROWS, amx.ROW)] * 2

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        amx.configure(b, shapes)
        return context.get_dummy_value()

    return Void(rows), lower


@intrinsic
def release_registers(typing_context: Any) -> Any:
    """The end of what `configure_registers` began."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        amx.release(b)
        return context.get_dummy_value()

    return Void(), lower


@intrinsic
def clear_scores(typing_context: Any) -> Any:
    """The sums of two panels of keys: zero."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for register in range(2):
            amx.zero(b, register)
        return context.get_dummy_value()

    return Void(), lower


@intrinsic
def add_scores(typing_context: Any, queries: Any, stride: Any, first: Any, second: Any) -> Any:
    """These sums plus the products of BLOCK columns: of rows of queries, `stride` bytes apart, and of two panels at `first` and
    `second`."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        queries, stride, *panels = args
        amx.load(b, 4, queries, stride)
        for register, panel in enumerate(panels):
            amx.load(b, 6 + register, panel, amx.ROW)
            amx.multiply_floats(b, register, 4, 6 + register)
        return context.get_dummy_value()

    return Void(Address, Int, Address, Address), lower


@intrinsic
def store_scores(typing_context: Any, scores: Any) -> Any:
    """Stores these sums, those of the two panels beside each other, rows STRIDE bytes apart."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for register in range(2):
            amx.store(b, register, emit.advance(b, args[0], register * amx.ROW), STRIDE)
        return context.get_dummy_value()

    return Void(Address), lower


@intrinsic(prefer_literal=True)
def load_sums(typing_context: Any, vectors: Any, sums: Any, stride: Any) -> Any:
    """Sums of so many vectors of values, beside each other, rows `stride` bytes apart."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for register in range(vectors.literal_value):
            amx.load(b, register, emit.advance(b, args[1], register * amx.ROW), args[2])
        return context.get_dummy_value()

    return Void(vectors, Address, Int), lower


@intrinsic(prefer_literal=True)
def add_values(typing_context: Any, vectors: Any, shares: Any, values: Any) -> Any:
    """The sums plus shares, rows STRIDE bytes apart, times gathered values of BLOCK positions."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        amx.load(b, 4, args[1], STRIDE)
        for register in range(vectors.literal_value):
            amx.load(b, 6 + register % 2, emit.advance(b, args[2], register * OPERAND), amx.ROW)
            amx.multiply_floats(b, register, 4, 6 + register % 2)
        return context.get_dummy_value()

    return Void(vectors, Address, Address), lower


@intrinsic(prefer_literal=True)
def save_sums(typing_context: Any, vectors: Any, sums: Any, stride: Any) -> Any:
    """Stores what `load_sums` has loaded."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for register in range(vectors.literal_value):
            amx.store(b, register, emit.advance(b, args[1], register * amx.ROW), args[2])
        return context.get_dummy_value()

    return Void(vectors, Address, Int), lower


@intrinsic(prefer_literal=True)
def gather_pair(typing_context: Any, vectors: Any, first: Any, second: Any, out: Any) -> Any:
    """Writes the pairs of two positions' values, 1 or an even number of vectors of columns, each to its own operand; in the order
    of columns that `attention_tiles.in_order` knows."""
    count = vectors.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, first, second, out = args
        together = min(count, 2)
        for i in range(0, count, together):
            one, other = (emit.advance(b, at, i * LANES * WIDTH) for at in (first, second))
            for j, pairs in enumerate(pairs_of_rows(b, one, other, together)):
                emit.store(b, pairs, emit.advance(b, out, (i + j) * OPERAND))
        return context.get_dummy_value()

    return Void(vectors, Address, Address, Address), lower


def prepare(places, queries, head_dim):  # type: ignore[no-untyped-def]
    """Rounds the queries of a tile, rows of float32 at the addresses places[t] (int64), to bfloat16, with zeros up to a multiple
    of BLOCK columns."""
    columns = (head_dim + BLOCK - 1) // BLOCK * BLOCK
    for t in range(ROWS):
        row = queries + t * columns * WIDTH
        store_row_bf16(row, get_i64(places + 8 * t), head_dim)
        for k in range(head_dim, columns, 2):
            set_i32(row + k * WIDTH, 0)


def scores_of(  # type: ignore[no-untyped-def]
    scores, queries, sees, head_dim, low, high, pages, page_bytes, page_positions, table, ring, offset, across, is_ahead
):
    """As `attention_steps.scores_of`. is_ahead: whether to ask for the values of the next segment."""
    all_from, all_to = get_i32(sees + 8 * ROWS - 8), get_i32(sees + 4)
    lowest, highest = low // LANES * LANES, (high - 1) // LANES * LANES
    whole = head_dim // BLOCK * BLOCK
    query_bytes = (head_dim + BLOCK - 1) // BLOCK * BLOCK * WIDTH
    rest = stack(REST)
    if whole < head_dim:
        for at in range(rest, rest + REST, 4 * LANES):
            store_floats(at, splat(np.float32(0)))
    for p in range(low // BLOCK * BLOCK, (high + BLOCK - 1) // BLOCK * BLOCK, BLOCK):
        first, second = max(p, lowest), min(p + LANES, highest)
        slot = slot_of(first, page_positions)
        panel = page_of(first, pages, page_bytes, page_positions, table, ring) + offset + slot * head_dim * WIDTH
        next_panel = panel + (second - first) * head_dim * WIDTH
        if slot + second - first >= page_positions:
            next_panel = page_of(second, pages, page_bytes, page_positions, table, ring) + offset
        wanted = page_of(p + SEGMENT, pages, page_bytes, page_positions, table, ring) + offset
        wanted += (page_positions * head_dim + slot_of(p + SEGMENT, page_positions) * across) * WIDTH
        clear_scores()
        for k in range(0, whole, BLOCK):
            if is_ahead:  # a part for each product, as many lines at once hold up what is computed
                for line in range(0, BLOCK * BLOCK * WIDTH, 64):
                    prefetch_far(wanted + k * BLOCK * WIDTH + line)
            add_scores(queries + k * WIDTH, query_bytes, panel + k * LANES * WIDTH, next_panel + k * LANES * WIDTH)
        if whole < head_dim:
            for k in range(0, (head_dim - whole) * LANES * WIDTH, 4 * LANES):
                store_floats(rest + k, load_floats(panel + whole * LANES * WIDTH + k))
                store_floats(rest + OPERAND + k, load_floats(next_panel + whole * LANES * WIDTH + k))
            add_scores(queries + whole * WIDTH, query_bytes, rest, rest + OPERAND)
        row = scores + p % SEGMENT * 4
        store_scores(row)
        if p < all_from or p + BLOCK > all_to:
            for t in range(ROWS):
                for i in range(0, BLOCK, LANES):
                    seen = load_floats(row + t * STRIDE + 4 * i)
                    seen = keep_between(p + i, get_i32(sees + 8 * t), get_i32(sees + 8 * t + 4), seen)
                    store_floats(row + t * STRIDE + 4 * i, seen)


@inner
def gather_row(first, second, out, padded):  # type: ignore[no-untyped-def]
    """Writes the pairs of two positions' values, rows of bfloat16."""
    d = 0
    while d + VALUES * LANES <= padded:
        gather_pair(VALUES, first + d * WIDTH, second + d * WIDTH, out + d // LANES * OPERAND)
        d += VALUES * LANES
    while d + 2 * LANES <= padded:
        gather_pair(2, first + d * WIDTH, second + d * WIDTH, out + d // LANES * OPERAND)
        d += 2 * LANES
    if d < padded:
        gather_pair(1, first + d * WIDTH, second + d * WIDTH, out + d // LANES * OPERAND)


def gather_values(  # type: ignore[no-untyped-def]
    out, head_dim, padded, low, high, pages, page_bytes, page_positions, table, ring, offset, keys, is_ahead
):
    """Lays out the values of the positions [low, high), within a segment, as right operands; those of a block lie together. Of a
    pair that low or high cuts, both are the one that is seen; where none is, they are zero.

    is_ahead: whether to ask for the keys of these positions, which are at the offset `keys` of their pages.
    """
    row_bytes, key_bytes = padded * WIDTH, head_dim * WIDTH
    p, end = low // BLOCK * BLOCK, (high + BLOCK - 1) // BLOCK * BLOCK
    while p < end:
        at = out + p % SEGMENT // BLOCK * BLOCK * row_bytes + p % BLOCK // 2 * amx.ROW
        if p + 2 <= low or p >= high:
            for i in range(0, padded // LANES * OPERAND, OPERAND):
                store_floats(at + i, splat(np.float32(0)))
            p += 2
            continue
        slot = slot_of(p, page_positions)
        page = page_of(p, pages, page_bytes, page_positions, table, ring)
        row, key = page + offset + slot * row_bytes, page + keys + slot * key_bytes
        if p < low or p + 1 == high:
            seen = row + (p < low) * row_bytes
            gather_row(seen, seen, at, padded)
            p += 2
            continue
        stop = min(p + LANES - p % LANES, high // 2 * 2)  # of a panel, which lies in one page
        while p < stop:
            if is_ahead:
                for line in range(0, 2 * key_bytes, 64):
                    prefetch_far(key + line)
            gather_row(row, row + row_bytes, at, padded)
            row, key, at, p = row + 2 * row_bytes, key + 2 * key_bytes, at + amx.ROW, p + 2


VECTORS = 1


def add_columns(shares, values, sums, stride, padded, low, high):  # type: ignore[no-untyped-def]
    """sums[t] += Σ_p shares[t, p] · v[p] for VECTORS vectors of columns, whose gathered values are at `values`."""
    load_sums(VECTORS, sums, stride)
    for p in range(low % SEGMENT // BLOCK * BLOCK, (high - 1) % SEGMENT + 1, BLOCK):
        add_values(VECTORS, shares + p * WIDTH, values + p * padded * WIDTH)
    save_sums(VECTORS, sums, stride)


add_several: Any = add_columns  # with VALUES vectors
add_one: Any = add_columns


def sum_values(  # type: ignore[no-untyped-def]
    scores, sums, stride, padded, across, low, high, pages, page_bytes, page_positions, table, ring, offset, keys, is_ahead
):
    """sums[t] += Σ_p shares[t, p] · v[p] for p in [low, high), within a segment, of the values that `gather_values` has laid out
    behind the scores."""
    gathered = scores + ROWS * STRIDE
    several = padded // (VALUES * LANES) * (VALUES * LANES)
    for d in range(0, several, VALUES * LANES):
        add_several(scores, gathered + d // LANES * OPERAND, sums + 4 * d, stride, padded, low, high)
    for d in range(several, padded, LANES):
        add_one(scores, gathered + d // LANES * OPERAND, sums + 4 * d, stride, padded, low, high)


def matrix_steps(constants: dict[str, Any]) -> dict[str, Any]:
    """The steps by the names that `attention` gives them, compiled with its constants."""
    rows = constants["ROWS"]

    def compiled(function: Any, **more: Any) -> Any:
        values = [str(v) for v in more.values() if isinstance(v, int)]
        return inner(specialize(function, "_".join([function.__name__, *values, f"{rows}_matrix"]), ROWS=rows, **more))

    several, one = (compiled(add_columns, VECTORS=n) for n in (VALUES, 1))
    return {
        "prepare_queries": compiled(prepare),
        "score_keys": compiled(scores_of),
        "gather": compiled(gather_values),
        "sum_segment": compiled(sum_values, add_several=several, add_one=one),
    }
