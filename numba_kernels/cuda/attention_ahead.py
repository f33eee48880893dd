"""Attention of one token, as `attend`, whose pages are on their way before they are needed: the first before the launch
before has ended, the next while one is worked on. For heads of which a thread can hold its part of a page in registers, in
bfloat16."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.attention import PAGE, Attention
from numba_kernels.cuda.attention_steps import attend_constants
from numba_kernels.cuda.blocks import bf16_pair
from numba_kernels.cuda.elements import write_bf16
from numba_kernels.cuda.intrinsics import (
    count_up,
    let_next_begin,
    load_floats,
    load_words,
    settled,
    settled_words,
    wait_for_launch_before,
)
from numba_kernels.cuda.seam import FLOAT, FLOATS, INTS, SHARED, WARP, WORDS, Kernel, cuda, device, kernel, types

WARPS = 4
HEADS = KV = SPLITS = RING = SINKS = TURNED = 1
SIZE, HALF, WINDOW = 64, 32, 0
ELEMENT = "bf16"
LANES, LANES_LOG, WIDTH, EIGHTS, CHUNKS = 2, 1, 32, 4, 4
VALUE_WORDS, PAGE_WORDS, HEAD_SIZE, WEIGHTS, STATS, PART, HELD = 32, 1, 1, 1, 1, 1, 1
KEY_STEP = VALUES_AT = 1
OWN = 1  # words of the token's own key and value
RESIDENT = 4  # blocks of a multiprocessor
TURN: Any = None
ROTATE: Any = None
SOFTEN: Any = None
MEET_ALL: Any = None
GATHER_HELD: Any = None
KEEP_VALUES: Any = None
FINISH: Any = None
KEYS_OF: Any = None
VALUES_OF: Any = None
OWN_VALUES: Any = None
STORE_OWN: Any = None
SCORES_HELD: Any = None
ZERO, ONE = np.float32(0), np.float32(1)
LOWEST = np.float32(-math.inf)
NOTHING = np.uint32(0)


def store_own(qkv, cos, sin, cache, words, kv, position, own):  # type: ignore[no-untyped-def]
    """Puts the token's rotated key and its value into its page, which begins at `words`, and into own; by the last threads of a
    block first, as the first ones have queries to rotate."""
    slot, angle = position % PAGE, position * HALF
    key, value = (HEADS * KV + kv) * SIZE, (HEADS * KV + KV + kv) * SIZE
    keys = words + (kv * PAGE + slot) * VALUE_WORDS
    values = keys + KV * PAGE * VALUE_WORDS
    for i in range(WARPS * WARP - 1 - cuda.threadIdx.x, HALF // 4, WARPS * WARP):
        k = TURN(qkv, key, 4 * i, HALF, cos, sin, angle)
        low, high = load_floats(qkv, value + 4 * i), load_floats(qkv, value + HALF + 4 * i)
        for array, at, other in ((cache, keys, values), (own, 0, VALUE_WORDS)):
            write_bf16(array, at, 2 * i, k[0], k[1])
            write_bf16(array, at, 2 * i + 1, k[2], k[3])
            write_bf16(array, at, HALF // 2 + 2 * i, k[4], k[5])
            write_bf16(array, at, HALF // 2 + 2 * i + 1, k[6], k[7])
            write_bf16(array, other, 2 * i, low[0], low[1])
            write_bf16(array, other, 2 * i + 1, low[2], low[3])
            write_bf16(array, other, HALF // 2 + 2 * i, high[0], high[1])
            write_bf16(array, other, HALF // 2 + 2 * i + 1, high[2], high[3])


def keys_of(cache, keys):  # type: ignore[no-untyped-def]
    """The thread's part of a page's key."""
    at = keys + cuda.threadIdx.x // LANES * VALUE_WORDS + cuda.threadIdx.x % LANES * (WIDTH // 2)
    a = settled_words(cache, at)
    b, c, d = a, a, a
    if EIGHTS > 1:
        b = settled_words(cache, at + 4)
    if EIGHTS > 2:
        c = settled_words(cache, at + 8)
    if EIGHTS > 3:
        d = settled_words(cache, at + 12)
    return a, b, c, d


def own_key(own):  # type: ignore[no-untyped-def]
    """The same of the token's own key."""
    at = cuda.threadIdx.x % LANES * (WIDTH // 2)
    a = load_words(own, at)
    b, c, d = a, a, a
    if EIGHTS > 1:
        b = load_words(own, at + 4)
    if EIGHTS > 2:
        c = load_words(own, at + 8)
    if EIGHTS > 3:
        d = load_words(own, at + 12)
    return a, b, c, d


def values_of(cache, values, low, high):  # type: ignore[no-untyped-def]
    """The thread's words of a page's values; zeros of slots outside of [low, high)."""
    none = (NOTHING, NOTHING, NOTHING, NOTHING)
    a, b, c, d = none, none, none, none
    i = cuda.threadIdx.x
    if low <= i // (VALUE_WORDS // 4) < high:
        a = settled_words(cache, values + 4 * i)
    i += WARPS * WARP
    if CHUNKS > 1 and low <= i // (VALUE_WORDS // 4) < high:
        b = settled_words(cache, values + 4 * i)
    i += WARPS * WARP
    if CHUNKS > 2 and low <= i // (VALUE_WORDS // 4) < high:
        c = settled_words(cache, values + 4 * i)
    i += WARPS * WARP
    if CHUNKS > 3 and low <= i // (VALUE_WORDS // 4) < high:
        d = settled_words(cache, values + 4 * i)
    return a, b, c, d


def own_values(own, chunk, r, slot):  # type: ignore[no-untyped-def]
    """The thread's r-th four words of a page's values, which are the token's own in its slot."""
    i = r * WARPS * WARP + cuda.threadIdx.x
    if i // (VALUE_WORDS // 4) == slot:
        return load_words(own, VALUE_WORDS + 4 * (i % (VALUE_WORDS // 4)))
    return chunk


@device
def eight(w: Any) -> Any:
    """The eight values of four words."""
    return (*bf16_pair(w[0]), *bf16_pair(w[1]), *bf16_pair(w[2]), *bf16_pair(w[3]))


def scores_held(k, base, first, position, queries, weights):  # type: ignore[no-untyped-def]
    """As `attention_steps.scores`, for keys in registers."""
    slot, part = cuda.threadIdx.x // LANES, cuda.threadIdx.x % LANES
    seen = first <= base + slot <= position
    k0, k1, k2, k3 = EIGHT(k[0]), EIGHT(k[1]), EIGHT(k[2]), EIGHT(k[3])
    for g in range(0, HEADS, 2):
        h = min(g + 1, HEADS - 1)
        a = MEET_ALL(k0, k1, k2, k3, queries, g * SIZE + part * WIDTH)
        b = MEET_ALL(k0, k1, k2, k3, queries, h * SIZE + part * WIDTH) if HEADS > 1 else a
        if part == 0:
            weights[g * PAGE + slot] = a if seen else LOWEST
            if h > g:
                weights[h * PAGE + slot] = b if seen else LOWEST


OWN_KEY: Any = None
EIGHT: Any = None


@kernel(FLOATS, FLOATS, FLOATS, FLOAT, FLOATS, WORDS, INTS, INTS, FLOATS, INTS, FLOATS)
def attend_ahead(qkv, cos, sin, scale, sinks, cache, table, state, partial, counters, out):  # type: ignore[no-untyped-def]
    """As `attend`, with the same arguments. The position, the table and what the cache has of earlier positions are of
    launches that have ended when this one begins."""
    queries = cuda.shared.array(HEAD_SIZE, types.float32, 16)
    weights = cuda.shared.array(WEIGHTS, types.float32, 16)
    stats = cuda.shared.array(STATS, types.float32, 16)
    sums = cuda.shared.array(HEAD_SIZE, types.float32, 16)
    held = cuda.shared.array(HELD, types.uint32, 16)
    own = cuda.shared.array(OWN, types.uint32, 16)
    last = cuda.shared.array(1, types.int32, 16)
    thread, kv, split = cuda.threadIdx.x, cuda.blockIdx.x, cuda.blockIdx.y
    position = np.int64(settled(state, 0))
    first: Any = max(position - WINDOW + 1, 0) if WINDOW else 0
    first_page, pages = first // PAGE, position // PAGE - first // PAGE + 1
    each = (pages + SPLITS - 1) // SPLITS
    active = (pages + each - 1) // each
    if split >= active:
        return
    start, stop = first_page + split * each, first_page + min((split + 1) * each, pages)
    number, after = settled(table, start % RING), settled(table, min(start + 1, stop - 1) % RING)
    newest = settled(table, position // PAGE % RING)
    keys = np.int64(number) * PAGE_WORDS + kv * KEY_STEP
    k = KEYS_OF(cache, keys)
    v = VALUES_OF(cache, keys + VALUES_AT, max(first - start * PAGE, 0), position - start * PAGE)
    wait_for_launch_before()
    let_next_begin()
    ROTATE(qkv, cos, sin, scale, kv, position, queries, sums)
    for i in range(thread, HEADS, WARPS * WARP):
        stats[3 * i], stats[3 * i + 1], stats[3 * i + 2] = LOWEST, ZERO, ONE
    if stop == first_page + pages:
        STORE_OWN(qkv, cos, sin, cache, np.int64(newest) * PAGE_WORDS, kv, position, own)
    cuda.syncthreads()
    for page in range(start, stop):
        if page == position // PAGE:
            slot = position % PAGE
            if thread // LANES == slot:
                k = OWN_KEY(own)
            v = (
                OWN_VALUES(own, v[0], 0, slot), OWN_VALUES(own, v[1], 1, slot), OWN_VALUES(own, v[2], 2, slot),
                OWN_VALUES(own, v[3], 3, slot),
            )  # fmt: skip
        SCORES_HELD(k, page * PAGE, first, position, queries, weights)
        KEEP_VALUES(held, v[0], 0)
        if CHUNKS > 1:
            KEEP_VALUES(held, v[1], 1)
        if CHUNKS > 2:
            KEEP_VALUES(held, v[2], 2)
        if CHUNKS > 3:
            KEEP_VALUES(held, v[3], 3)
        if page + 1 < stop:  # the next is on its way while this one is worked on
            keys = np.int64(after) * PAGE_WORDS + kv * KEY_STEP
            k = KEYS_OF(cache, keys)
            v = VALUES_OF(cache, keys + VALUES_AT, 0, position - (page + 1) * PAGE)
            after = settled(table, min(page + 2, stop - 1) % RING)
        cuda.syncthreads()
        SOFTEN(weights, stats)
        cuda.syncthreads()
        GATHER_HELD(held, weights, stats, sums)
        cuda.syncthreads()
    at = (kv * SPLITS + split) * PART
    for i in range(thread, HEAD_SIZE, WARPS * WARP):
        partial[at + i] = sums[i]
    for i in range(thread, HEADS, WARPS * WARP):
        partial[at + HEAD_SIZE + 2 * i] = stats[3 * i]
        partial[at + HEAD_SIZE + 2 * i + 1] = stats[3 * i + 1]
    cuda.syncthreads()
    if thread == 0:
        last[0] = count_up(counters, kv)
    cuda.syncthreads()
    if last[0] == active - 1:
        FINISH(kv, active, partial, sinks, weights, out)
        if thread == 0:
            counters[kv] = 0


def reads_ahead(shape: Attention, warps: int = 4) -> bool:
    """Whether `attend_ahead` is for a layer."""
    lanes = WARP * warps // PAGE
    if shape.element != "bf16" or shape.latent or not lanes or shape.size // lanes % 8:
        return False
    width, group = shape.size // lanes, shape.queries // shape.keys
    words = 2 * group * shape.size + group * (PAGE + 3) + PAGE * shape.value_words + 2 * shape.value_words + 32
    return width <= 32 and PAGE * shape.value_words <= 4 * 4 * WARP * warps and 4 * words <= SHARED


def attend_ahead_kernel(shape: Attention, splits: int, warps: int = 4) -> Kernel:
    """The kernel for a layer that `reads_ahead`, its positions divided among `splits` blocks."""
    constants = {**attend_constants(shape, splits, warps), "OWN": 2 * shape.value_words, "RESIDENT": 512 // (WARP * warps)}
    for name in ("STORES", "STAGED", "STORE", "SCORES", "CHUNK_OF_VALUES", "GATHER", "EIGHT", "FOUR", "WRITE", "MEET"):
        constants.pop(name)
    constants["EIGHT"] = eight
    made = {
        f.__name__.upper(): device(f, **constants) for f in (store_own, keys_of, own_key, values_of, own_values, scores_held)
    }
    return attend_ahead.bind(**constants, **made)


__all__ = ["attend_ahead_kernel", "reads_ahead", "store_own"]
