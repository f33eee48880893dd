"""Attention of one token over a paged KV cache, for any shape; for some, `attention_ahead` or `attention_tiles` is faster."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cuda.attention import PAGE, Attention, attend_shared
from numba_kernels.cuda.attention_steps import LOWEST, ONE, ZERO, attend_constants
from numba_kernels.cuda.intrinsics import count_up, let_next_begin, prefetch_span, wait_for_launch_before
from numba_kernels.cuda.seam import FLOAT, FLOATS, INTS, WARP, WORDS, Kernel, cuda, kernel, require_shared, types

WARPS = 4
HEADS = KV = SPLITS = RING = SINKS = TURNED = STORES = 1
SIZE, HALF, WINDOW = 64, 32, 0
ELEMENT = "bf16"
LANES, LANES_LOG, WIDTH, EIGHTS = 2, 1, 32, 1  # in the kernel's name
VALUE_WORDS, PAGE_WORDS = 32, 1
HEAD_SIZE = PART = 1  # of the query heads that share one: HEADS · SIZE; of what a block leaves
WEIGHTS = STATS = 1  # HEADS · PAGE, 3 · HEADS
STAGED = 0  # whether values pass through shared memory, of which a page takes HELD words, CHUNKS times four for each thread
HELD = CHUNKS = 1
KEY_STEP = VALUES_AT = 1  # words from a head's keys to the next head's, and to its values
STORE: Any = None
ROTATE: Any = None
SCORES: Any = None
SOFTEN: Any = None
GATHER: Any = None
GATHER_HELD: Any = None
CHUNK_OF_VALUES: Any = None
KEEP_VALUES: Any = None
FINISH: Any = None


@kernel(FLOATS, FLOATS, FLOATS, FLOAT, FLOATS, WORDS, INTS, INTS, FLOATS, INTS, FLOATS)
def attend(qkv, cos, sin, scale, sinks, cache, table, state, partial, counters, out):  # type: ignore[no-untyped-def]
    """Rotates the token's queries and key, appends key and value to the cache, and attends: out [KV · HEADS · SIZE]. What is not
    TURNED is rotated already; what does not STORE has been stored.

    A grid of (KV, SPLITS). qkv [(KV · HEADS + 2 · KV) · SIZE]; cos, sin [context, SIZE / 2]; table [RING] page numbers; state[0]
    the position; partial [KV, SPLITS, PART]; counters [KV] are 0 before and after.
    """
    queries = cuda.shared.array(HEAD_SIZE, types.float32, 16)
    weights = cuda.shared.array(WEIGHTS, types.float32, 16)
    stats = cuda.shared.array(STATS, types.float32, 16)
    sums = cuda.shared.array(HEAD_SIZE, types.float32, 16)
    held = cuda.shared.array(HELD, types.uint32, 16)
    last = cuda.shared.array(1, types.int32, 16)
    thread, kv, split = cuda.threadIdx.x, cuda.blockIdx.x, cuda.blockIdx.y
    wait_for_launch_before()
    let_next_begin()
    position = np.int64(state[0])
    first: Any = max(position - WINDOW + 1, 0) if WINDOW else 0
    first_page, pages = first // PAGE, position // PAGE - first // PAGE + 1
    each = (pages + SPLITS - 1) // SPLITS
    active = (pages + each - 1) // each
    if split >= active:
        return
    start, stop = first_page + split * each, first_page + min((split + 1) * each, pages)
    ROTATE(qkv, cos, sin, scale, kv, position, queries, sums)
    for i in range(thread, HEADS, WARPS * WARP):
        stats[3 * i], stats[3 * i + 1], stats[3 * i + 2] = LOWEST, ZERO, ONE
    if STORES and stop == first_page + pages:
        STORE(qkv, cos, sin, cache, np.int64(table[position // PAGE % RING]) * PAGE_WORDS, kv, position)
    number = table[start % RING]
    cuda.syncthreads()
    for page in range(start, stop):
        words = np.int64(number) * PAGE_WORDS
        keys = words + kv * KEY_STEP
        low, high = max(first - page * PAGE, 0), min(position - page * PAGE + 1, PAGE)
        number = table[min(page + 1, stop - 1) % RING]
        if STAGED:  # values are on their way while keys are met
            v0 = CHUNK_OF_VALUES(cache, keys + VALUES_AT, low, high, 0)
            v1, v2, v3 = v0, v0, v0
            if CHUNKS > 1:
                v1 = CHUNK_OF_VALUES(cache, keys + VALUES_AT, low, high, 1)
            if CHUNKS > 2:
                v2 = CHUNK_OF_VALUES(cache, keys + VALUES_AT, low, high, 2)
            if CHUNKS > 3:
                v3 = CHUNK_OF_VALUES(cache, keys + VALUES_AT, low, high, 3)
            SCORES(cache, keys, page * PAGE, first, position, queries, weights)
            KEEP_VALUES(held, v0, 0)
            if CHUNKS > 1:
                KEEP_VALUES(held, v1, 1)
            if CHUNKS > 2:
                KEEP_VALUES(held, v2, 2)
            if CHUNKS > 3:
                KEEP_VALUES(held, v3, 3)
            for r in range(4, CHUNKS):
                KEEP_VALUES(held, CHUNK_OF_VALUES(cache, keys + VALUES_AT, low, high, r), r)
        else:
            SCORES(cache, keys, page * PAGE, first, position, queries, weights)
        if page + 1 < stop and thread == 0:
            after = np.int64(number) * PAGE_WORDS + kv * KEY_STEP
            prefetch_span(cache, after, np.uint32(4 * PAGE * VALUE_WORDS))
            if STORES:
                prefetch_span(cache, after + VALUES_AT, np.uint32(4 * PAGE * VALUE_WORDS))
        cuda.syncthreads()
        SOFTEN(weights, stats)
        cuda.syncthreads()
        if STAGED:
            GATHER_HELD(held, weights, stats, sums)
        else:
            GATHER(cache, keys + VALUES_AT, low, high, weights, stats, sums)
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


def attend_kernel(shape: Attention, splits: int, warps: int = 4) -> Kernel:
    """The kernel for a layer, its positions divided among `splits` blocks. Raises NoKernel if so many heads of that size do not
    fit into shared memory."""
    group = shape.queries // shape.keys
    require_shared(
        attend_shared(group, shape.size), f"{group} query heads of {shape.size} values that share a key-value head"
    )
    constants = attend_constants(shape, splits, warps)
    for name in ("EIGHT", "FOUR", "WRITE", "TURN", "MEET", "MEET_ALL"):
        constants.pop(name)
    return attend.bind(**constants)
