"""Attention of many tokens on the tensor cores (https://arxiv.org/abs/2205.14135); their keys and values are stored first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.attention import PAGE, Attention
from numba_kernels.cuda.intrinsics import pack_bf16, power_of_two, shuffle_xor, wait_for_launch_before
from numba_kernels.cuda.seam import (
    FLOAT,
    FLOATS,
    INT,
    INTS,
    SHARED,
    WARP,
    WORDS,
    Kernel,
    NoKernel,
    cuda,
    device,
    kernel,
    require_shared,
    types,
)
from numba_kernels.cuda.tiles import (
    commit_copies,
    copy_words,
    load_row,
    masked_tile,
    multiply_columns,
    multiply_rows,
    powers_of_two,
    row_maxima,
    row_sums,
    scaled_tile,
    store_rows,
    wait_for_copies,
    zero_tile,
)

WARPS = 4
ONE, ZERO = np.float32(1), np.float32(0)
LOWEST = np.float32(-math.inf)
LOG2_E = np.float32(math.log2(math.e))
HEADS = 1  # query heads that share a key-value head
KV = 1
SIZE = 64
HALF = 32
WINDOW = 0
RING = 1
SINKS = 0
TURNED = 1
TURN: Any = None
VALUE_WORDS = 32
PAGE_WORDS = 1
TILE_TOKENS = 8  # tokens of a tile
KEY_STRIDE, VALUE_STRIDE = 40, 36  # words from a position to the next in shared memory, so that threads hit different banks
KEYS_SIZE = VALUES_SIZE = BUFFERS = 1  # pages in shared memory at once
FILL: Any = None
ROW: Any = None
SCORES: Any = None
OUTPUT: Any = None


@kernel(FLOATS, INT, FLOATS, FLOATS, FLOAT, WORDS, INTS, INTS, INTS, WORDS)
def store_many(qkv, stride, cos, sin, scale, cache, tables, positions, sequences, queries):  # type: ignore[no-untyped-def]
    """Rotates queries and keys if they are not TURNED already, and puts keys and values into their pages; a block has a token.

    qkv [tokens, stride]; tables [sequences, RING]; positions, sequences [tokens]. queries [tokens, KV · HEADS · SIZE / 2 words]
    are bfloat16, scaled, times log2(e).
    """
    wait_for_launch_before()
    token = cuda.blockIdx.x
    at, position = token * stride, np.int64(positions[token])
    angle, factor = position * HALF, scale * LOG2_E
    words = np.int64(tables[sequences[token] * RING + position // PAGE % RING]) * PAGE_WORDS + position % PAGE * VALUE_WORDS
    for i in range(cuda.threadIdx.x, KV * HEADS * HALF, WARPS * WARP):
        head, d = i // HALF, 2 * (i % HALF)
        a = TURN(qkv, at + head * SIZE, d, HALF, cos, sin, angle) * factor
        b = TURN(qkv, at + head * SIZE, d + 1, HALF, cos, sin, angle) * factor
        queries[token * KV * HEADS * HALF + i] = pack_bf16(a, b)
    for i in range(cuda.threadIdx.x, KV * HALF, WARPS * WARP):
        kv, d = i // HALF, 2 * (i % HALF)
        key, value = at + (KV * HEADS + kv) * SIZE, at + (KV * HEADS + KV + kv) * SIZE
        place = words + kv * PAGE * VALUE_WORDS + d // 2
        a, b = TURN(qkv, key, d, HALF, cos, sin, angle), TURN(qkv, key, d + 1, HALF, cos, sin, angle)
        cache[place] = pack_bf16(a, b)
        cache[place + KV * PAGE * VALUE_WORDS] = pack_bf16(qkv[value + d], qkv[value + d + 1])


@device
def over_quad(value: Any, other: Any) -> Any:
    """The larger of two rows' numbers over the four threads that share the rows."""
    for mask in (1, 2):
        value, other = max(value, shuffle_xor(value, mask)), max(other, shuffle_xor(other, mask))
    return value, other


@device
def above_nothing(top: Any) -> Any:
    """0 for −∞, so that differences from it are no NaN."""
    return top if top > LOWEST else ZERO


def fill_page(cache, tables, table, page, kv, lowest, highest, keys, values, buffer):  # type: ignore[no-untyped-def]
    """Asks for a page's keys and values: copies that go on beside the work; zeros for positions outside of [lowest, highest),
    where there may be anything, and 0 · NaN is NaN."""
    words = np.int64(tables[table + page % RING]) * PAGE_WORDS + kv * PAGE * VALUE_WORDS
    for i in range(cuda.threadIdx.x, PAGE * (VALUE_WORDS // 4), WARPS * WARP):
        slot, word = i // (VALUE_WORDS // 4), 4 * (i % (VALUE_WORDS // 4))
        seen = lowest <= page * PAGE + slot and page * PAGE + slot < highest
        at = words + slot * VALUE_WORDS + word
        copy_words(keys, (buffer * PAGE + slot) * KEY_STRIDE + word, cache, at, seen)
        copy_words(values, (buffer * PAGE + slot) * VALUE_STRIDE + word, cache, at + KV * PAGE * VALUE_WORDS, seen)
    commit_copies()


@kernel(WORDS, FLOATS, WORDS, INTS, INTS, WORDS)
def attend_many(queries, sinks, cache, tables, tiles, out):  # type: ignore[no-untyped-def]
    """Causal attention of many tokens; a grid of (tiles, KV). out, like queries, [tokens, KV · HEADS · SIZE / 2 words].

    tiles [.., 4] are (first token, tokens ≤ TILE_TOKENS, position of the first, sequence). A warp has 16 rows, a row being a
    query head of a token; keys and values pass through shared memory page by page, the next one being on its way.
    """
    keys = cuda.shared.array(KEYS_SIZE, types.uint32, 16)
    values = cuda.shared.array(VALUES_SIZE, types.uint32, 16)
    wait_for_launch_before()
    thread, kv, tile = cuda.threadIdx.x, cuda.blockIdx.y, 4 * cuda.blockIdx.x
    g, t = thread % WARP // 4, thread % 4
    first, count = np.int64(tiles[tile]), np.int64(tiles[tile + 1])
    start, table = np.int64(tiles[tile + 2]), np.int64(tiles[tile + 3]) * RING
    row, other = thread // WARP * 16 + g, thread // WARP * 16 + g + 8
    valid, other_valid = row < count * HEADS, other < count * HEADS
    row, other = min(row, count * HEADS - 1), min(other, count * HEADS - 1)
    at = (first + row // HEADS) * KV * HEADS * HALF + (kv * HEADS + row % HEADS) * HALF + 2 * t
    other_at = (first + other // HEADS) * KV * HEADS * HALF + (kv * HEADS + other % HEADS) * HALF + 2 * t
    a, b = ROW(queries, at), ROW(queries, other_at)
    stop, other_stop = start + row // HEADS + 1, start + other // HEADS + 1
    begin = max(stop - WINDOW, 0) if WINDOW else 0
    other_begin = max(other_stop - WINDOW, 0) if WINDOW else 0
    lowest: Any = max(start + 1 - WINDOW, 0) if WINDOW else 0
    highest = start + count
    latest_begin: Any = max(highest - WINDOW, 0) if WINDOW else 0
    top = other_top = LOWEST
    total = other_total = ZERO
    sums = OUTPUT()
    page_0, page_end = lowest // PAGE, (highest + PAGE - 1) // PAGE
    if BUFFERS > 1:
        FILL(cache, tables, table, page_0, kv, lowest, highest, keys, values, 0)
    for page in range(page_0, page_end):
        held = (page - page_0) % BUFFERS
        if BUFFERS > 1:
            wait_for_copies()
            cuda.syncthreads()  # all see the page, and are done with the one before
            if page + 1 < page_end:
                FILL(cache, tables, table, page + 1, kv, lowest, highest, keys, values, 1 - held)
        else:
            cuda.syncthreads()
            FILL(cache, tables, table, page, kv, lowest, highest, keys, values, 0)
            wait_for_copies()
            cuda.syncthreads()
        scores = multiply_rows(a, b, keys, held * PAGE * KEY_STRIDE + g * KEY_STRIDE + 2 * t, KEY_STRIDE, SCORES())
        if page * PAGE < latest_begin or (page + 1) * PAGE > start + 1:  # not seen by all rows
            scores = masked_tile(scores, page * PAGE + 2 * t, begin, stop, other_begin, other_stop)
        largest = row_maxima(scores)
        new, other_new = over_quad(max(largest[0], top), max(largest[1], other_top))
        base, other_base = above_nothing(new), above_nothing(other_new)
        weights = powers_of_two(scores, base, other_base)
        factor, other_factor = power_of_two(top - base), power_of_two(other_top - other_base)
        partial = row_sums(weights)
        total, other_total = total * factor + partial[0], other_total * other_factor + partial[1]
        sums = multiply_columns(
            weights,
            values,
            held * PAGE * VALUE_STRIDE + 2 * t * VALUE_STRIDE + g,
            VALUE_STRIDE,
            scaled_tile(sums, factor, other_factor),
        )
        top, other_top = new, other_new
    for mask in (1, 2):
        total += shuffle_xor(total, mask)
        other_total += shuffle_xor(other_total, mask)
    if SINKS:
        sink, other_sink = sinks[kv * HEADS + row % HEADS] * LOG2_E, sinks[kv * HEADS + other % HEADS] * LOG2_E
        base, other_base = max(top, sink), max(other_top, other_sink)
        factor, other_factor = power_of_two(top - base), power_of_two(other_top - other_base)
        total = total * factor + power_of_two(sink - base)
        other_total = other_total * other_factor + power_of_two(other_sink - other_base)
        sums = scaled_tile(sums, factor / total, other_factor / other_total)
    else:
        sums = scaled_tile(sums, ONE / total, ONE / other_total)
    store_rows(sums, out, at, other_at, valid, other_valid)


def _constants(shape: Attention, warps: int) -> dict[str, Any]:
    if shape.element != "bf16":
        raise NoKernel("many tokens at once need a cache in bfloat16")
    names = ("HEADS", "KV", "SIZE", "HALF", "WINDOW", "RING", "SINKS", "VALUE_WORDS", "PAGE_WORDS")
    return {"WARPS": warps, **{name: shape.constants()[name] for name in names}}


def store_many_kernel(shape: Attention, warps: int = 4) -> Kernel:
    return store_many.bind(**_constants(shape, warps), TURNED=int(shape.turned), TURN=shape.turn)


def tile_tokens(shape: Attention, warps: int = 4) -> int:
    """Tokens of one tile of `attend_many`."""
    return max(16 * warps // (shape.queries // shape.keys), 1)


def attend_many_kernel(shape: Attention, warps: int = 4) -> Kernel:
    """The kernel for a layer. Raises NoKernel if so many heads do not fit into a tile, or a page into shared memory."""
    if shape.queries // shape.keys > 16 * warps:
        raise NoKernel(f"{shape.queries // shape.keys} query heads share a key-value head, at most {16 * warps} can")
    key_stride, value_stride = shape.size // 2 + 8, shape.size // 2 + 4
    page = 4 * PAGE * (key_stride + value_stride)
    require_shared(page, f"pages of heads of {shape.size} values")
    numbers = {**_constants(shape, warps), "KEY_STRIDE": key_stride, "VALUE_STRIDE": value_stride}
    buffers = 2 if 2 * page <= SHARED else 1
    return attend_many.bind(
        **numbers, TILE_TOKENS=tile_tokens(shape, warps), BUFFERS=buffers, FILL=device(fill_page, **numbers),
        KEYS_SIZE=buffers * PAGE * key_stride, VALUES_SIZE=buffers * PAGE * value_stride, ROW=load_row(shape.size // 16),
        SCORES=zero_tile(PAGE // 2), OUTPUT=zero_tile(shape.size // 2),
    )  # fmt: skip
