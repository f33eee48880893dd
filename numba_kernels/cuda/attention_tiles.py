"""Attention of one token, as `attend`, on the tensor cores: for up to eight query heads of 64 values that share a key,
in bfloat16.

A warp has 16 positions of each page, and meets no other before the end. The rows of a tile are the queries, rounded to bfloat16,
and below them what that left of them; so are the weights of positions. Columns of keys, and of values, stand in whatever order
makes each thread's part 16 bytes side by side: no shared memory is between the cache and the products.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.attend import attend_kernel
from numba_kernels.cuda.attention import PAGE, Attention
from numba_kernels.cuda.attention_ahead import attend_ahead_kernel, reads_ahead, store_own
from numba_kernels.cuda.attention_steps import attend_constants
from numba_kernels.cuda.blocks import bf16_pair
from numba_kernels.cuda.intrinsics import (
    byte_permute,
    count_up,
    let_next_begin,
    load_floats,
    load_words,
    multiply_tiles,
    pack_bf16,
    power_of_two,
    settled,
    settled_words,
    shuffle_xor,
    store_floats,
    wait_for_launch_before,
)
from numba_kernels.cuda.seam import FLOAT, FLOATS, INTS, WARP, WORDS, Kernel, cuda, device, kernel, types

WARPS = 4
ROWS, COLUMNS = 8, 64  # heads and their values, at most
KEYS = 16  # of a page for each warp
HEADS = KV = SPLITS = RING = SINKS = TURNED = 1
SIZE, HALF, WINDOW = 64, 32, 0
ELEMENT = "bf16"
LANES, LANES_LOG, WIDTH, EIGHTS, CHUNKS = 2, 1, 32, 4, 4  # in the kernel's name
VALUE_WORDS, PAGE_WORDS, HEAD_SIZE, WEIGHTS, STATS, PART, HELD = 32, 1, 1, 1, 1, 1, 1
KEY_STEP = VALUES_AT = 1
ALL_SUMS, ALL_STATS = 1, 1  # of the warps
RESIDENT = 4  # blocks of a multiprocessor
ROTATE: Any = None
FINISH: Any = None
STORE_OWN: Any = None
QUERY: Any = None
PAGE_OF: Any = None
OWN: Any = None
SCORES: Any = None
TOGETHER: Any = None
PAIRED: Any = None
ZERO, LOG2E = np.float32(0), np.float32(math.log2(math.e))
LOWEST = np.float32(-math.inf)
NOTHING, LOW_HALVES, HIGH_HALVES = np.uint32(0), np.uint32(0x5410), np.uint32(0x7632)


@device
def halves(x: Any, y: Any) -> Any:
    """Two values in bfloat16, and what that leaves of them."""
    rounded = pack_bf16(x, y)
    a, b = bf16_pair(rounded)
    return rounded, pack_bf16(x - a, y - b)


def query(queries, head, at):  # type: ignore[no-untyped-def]
    """Two steps of the tile of queries: the thread has eight values of a head, from `at` on; zeros beyond the last head."""
    x, y = (ZERO, ZERO, ZERO, ZERO), (ZERO, ZERO, ZERO, ZERO)
    if head < HEADS:
        x, y = load_floats(queries, head * SIZE + at), load_floats(queries, head * SIZE + at + 4)
    a, b, c, d = HALVES(x[0], x[1]), HALVES(x[2], x[3]), HALVES(y[0], y[1]), HALVES(y[2], y[3])
    return (a[0], a[1], b[0], b[1]), (c[0], c[1], d[0], d[1])


def page_of(cache, keys, values, key, part, head, low, high):  # type: ignore[no-untyped-def]
    """The thread's words of a page: of two keys, `key` and eight after it, parts 4 · part … of their two halves; of the values of
    four positions eight values each, zeros of those outside of [low, high)."""
    none = (NOTHING, NOTHING, NOTHING, NOTHING)
    at = keys + key * VALUE_WORDS + 4 * part
    k = (
        settled_words(cache, at), settled_words(cache, at + 16), settled_words(cache, at + 8 * VALUE_WORDS),
        settled_words(cache, at + 8 * VALUE_WORDS + 16),
    )  # fmt: skip
    slot = key - head + 2 * part
    at = values + slot * VALUE_WORDS + 4 * head
    a, b, c, d = none, none, none, none
    if low <= slot < high:
        a = settled_words(cache, at)
    if low <= slot + 1 < high:
        b = settled_words(cache, at + VALUE_WORDS)
    if low <= slot + 8 < high:
        c = settled_words(cache, at + 8 * VALUE_WORDS)
    if low <= slot + 9 < high:
        d = settled_words(cache, at + 9 * VALUE_WORDS)
    return k, (a, b, c, d)


def own_of(own, k, v, key, part, head, slot):  # type: ignore[no-untyped-def]
    """The same, with the token's own key and value at their slot."""
    k0, k1, k2, k3 = k
    v0, v1, v2, v3 = v
    first, mine = key - head + 2 * part, load_words(own, VALUE_WORDS + 4 * head)
    near, far = load_words(own, 4 * part), load_words(own, 16 + 4 * part)
    if key == slot:
        k0, k1 = near, far
    if key + 8 == slot:
        k2, k3 = near, far
    if first == slot:
        v0 = mine
    if first + 1 == slot:
        v1 = mine
    if first + 8 == slot:
        v2 = mine
    if first + 9 == slot:
        v3 = mine
    return (k0, k1, k2, k3), (v0, v1, v2, v3)


def scores(q, near, far):  # type: ignore[no-untyped-def]
    """Eight keys · the queries: of the thread's head two, from their halves."""
    c = multiply_tiles(q[0][0], q[0][1], q[0][2], q[0][3], near[0], near[1], ZERO, ZERO, ZERO, ZERO)
    c = multiply_tiles(q[1][0], q[1][1], q[1][2], q[1][3], near[2], near[3], c[0], c[1], c[2], c[3])
    c = multiply_tiles(q[2][0], q[2][1], q[2][2], q[2][3], far[0], far[1], c[0], c[1], c[2], c[3])
    c = multiply_tiles(q[3][0], q[3][1], q[3][2], q[3][3], far[2], far[3], c[0], c[1], c[2], c[3])
    return c[0] + c[2], c[1] + c[3]


def together(p, v, i, factor, low, high):  # type: ignore[no-untyped-def]
    """Sums of two columns of values, 2i and 2i + 1 of each thread's eight: as they were, times factor, and weights · values."""
    a, b = byte_permute(v[0][i], v[1][i], LOW_HALVES), byte_permute(v[2][i], v[3][i], LOW_HALVES)
    c, d = byte_permute(v[0][i], v[1][i], HIGH_HALVES), byte_permute(v[2][i], v[3][i], HIGH_HALVES)
    x = multiply_tiles(p[0], p[1], p[2], p[3], a, b, low[0] * factor, low[1] * factor, low[2] * factor, low[3] * factor)
    y = multiply_tiles(p[0], p[1], p[2], p[3], c, d, high[0] * factor, high[1] * factor, high[2] * factor, high[3] * factor)
    return x, y


HALVES: Any = None


@kernel(FLOATS, FLOATS, FLOATS, FLOAT, FLOATS, WORDS, INTS, INTS, FLOATS, INTS, FLOATS)
def attend_tiles(qkv, cos, sin, scale, sinks, cache, table, state, partial, counters, out):  # type: ignore[no-untyped-def]
    """As `attention_ahead.attend_ahead`, with the same arguments."""
    queries = cuda.shared.array(HEAD_SIZE, types.float32, 16)
    sums = cuda.shared.array(ALL_SUMS, types.float32, 16)  # [WARPS, HEADS, SIZE]
    stats = cuda.shared.array(ALL_STATS, types.float32, 16)  # [WARPS, HEADS, 2]
    factors = cuda.shared.array(WEIGHTS, types.float32, 16)
    own = cuda.shared.array(COLUMNS, types.uint32, 16)
    last = cuda.shared.array(1, types.int32, 16)
    thread, kv, split = cuda.threadIdx.x, cuda.blockIdx.x, cuda.blockIdx.y
    warp, head, part = thread // WARP, thread % WARP // 4, thread % 4
    key = KEYS * warp + head
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
    low, high = max(first - start * PAGE, 0), position - start * PAGE
    k, v = PAGE_OF(cache, keys, keys + VALUES_AT, key, part, head, low, high)
    wait_for_launch_before()
    let_next_begin()
    ROTATE(qkv, cos, sin, scale, kv, position, queries, sums)
    if stop == first_page + pages:
        STORE_OWN(qkv, cos, sin, cache, np.int64(newest) * PAGE_WORDS, kv, position, own)
    cuda.syncthreads()
    q0, q1 = QUERY(queries, head, 8 * part)
    q2, q3 = QUERY(queries, head, 32 + 8 * part)
    q = (q0, q1, q2, q3)
    top, total, zeros = LOWEST, ZERO, (ZERO, ZERO, ZERO, ZERO)
    s0, s1, s2, s3, s4, s5, s6, s7 = zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros
    for page in range(start, stop):
        if page == position // PAGE:
            k, v = OWN(own, k, v, key, part, head, position % PAGE)
        a, b = SCORES(q, k[0], k[1])
        c, d = SCORES(q, k[2], k[3])
        at = page * PAGE + KEYS * warp + 2 * part
        a, b = a if first <= at <= position else LOWEST, b if first <= at + 1 <= position else LOWEST
        c, d = c if first <= at + 8 <= position else LOWEST, d if first <= at + 9 <= position else LOWEST
        highest = max(max(a, b), max(c, d))
        highest = max(highest, shuffle_xor(highest, 1))
        highest = max(max(highest, shuffle_xor(highest, 2)), top)
        base = highest if highest > LOWEST else ZERO  # a NaN stays in the scores
        factor = power_of_two((top - base) * LOG2E)
        top = highest
        a, b = power_of_two((a - base) * LOG2E), power_of_two((b - base) * LOG2E)
        c, d = power_of_two((c - base) * LOG2E), power_of_two((d - base) * LOG2E)
        total = total * factor + (a + b + (c + d))
        e, f = HALVES(a, b), HALVES(c, d)
        p = (e[0], e[1], f[0], f[1])
        s0, s1 = TOGETHER(p, v, 0, factor, s0, s1)
        s2, s3 = TOGETHER(p, v, 1, factor, s2, s3)
        s4, s5 = TOGETHER(p, v, 2, factor, s4, s5)
        s6, s7 = TOGETHER(p, v, 3, factor, s6, s7)
        if page + 1 < stop:  # the next is on its way while others of the multiprocessor work
            keys = np.int64(after) * PAGE_WORDS + kv * KEY_STEP
            k, v = PAGE_OF(cache, keys, keys + VALUES_AT, key, part, head, 0, position - (page + 1) * PAGE)
            after = settled(table, min(page + 2, stop - 1) % RING)
    total += shuffle_xor(total, 1)
    total += shuffle_xor(total, 2)
    if head < HEADS:
        at = warp * HEAD_SIZE + head * SIZE + 16 * part
        store_floats(sums, at, s0[0] + s0[2], s1[0] + s1[2], s2[0] + s2[2], s3[0] + s3[2])
        store_floats(sums, at + 4, s4[0] + s4[2], s5[0] + s5[2], s6[0] + s6[2], s7[0] + s7[2])
        store_floats(sums, at + 8, s0[1] + s0[3], s1[1] + s1[3], s2[1] + s2[3], s3[1] + s3[3])
        store_floats(sums, at + 12, s4[1] + s4[3], s5[1] + s5[3], s6[1] + s6[3], s7[1] + s7[3])
        if part == 0:
            stats[2 * (warp * HEADS + head)], stats[2 * (warp * HEADS + head) + 1] = top, total
    cuda.syncthreads()
    at = (kv * SPLITS + split) * PART
    for quad in range(thread, HEAD_SIZE // 4, WARPS * WARP):
        g = quad // (SIZE // 4)
        highest = max(max(stats[2 * g], stats[2 * (HEADS + g)]), max(stats[2 * (2 * HEADS + g)], stats[2 * (3 * HEADS + g)]))
        w = x = y = z = whole = ZERO
        for i in range(WARPS):
            factor = power_of_two((stats[2 * (i * HEADS + g)] - highest) * LOG2E)
            values = load_floats(sums, i * HEAD_SIZE + 4 * quad)
            w += factor * values[0]
            x += factor * values[1]
            y += factor * values[2]
            z += factor * values[3]
            whole += factor * stats[2 * (i * HEADS + g) + 1]
        store_floats(partial, at + 4 * quad, w, x, y, z)
        if quad % (SIZE // 4) == 0:
            partial[at + HEAD_SIZE + 2 * g], partial[at + HEAD_SIZE + 2 * g + 1] = highest, whole
    cuda.syncthreads()
    if thread == 0:
        last[0] = count_up(counters, kv)
    cuda.syncthreads()
    if last[0] == active - 1:
        FINISH(kv, active, partial, sinks, factors, out)
        if thread == 0:
            counters[kv] = 0


def fits_tiles(shape: Attention) -> bool:
    """Whether `attend_tiles` is for a layer."""
    return shape.element == "bf16" and not shape.latent and shape.size == COLUMNS and shape.queries <= ROWS * shape.keys


def attend_tiles_kernel(shape: Attention, splits: int) -> Kernel:
    """The kernel for a layer that `fits_tiles`, its positions divided among `splits` blocks."""
    given = attend_constants(shape, splits, WARPS)
    for name in ("STORES", "STAGED", "STORE", "SCORES", "SOFTEN", "CHUNK_OF_VALUES", "KEEP_VALUES", "GATHER", "GATHER_HELD"):
        given.pop(name)
    for name in ("EIGHT", "FOUR", "WRITE", "MEET", "MEET_ALL"):
        given.pop(name)
    own = device(store_own, **given)
    given.pop("TURN")
    sizes = {"ALL_SUMS": WARPS * given["HEAD_SIZE"], "ALL_STATS": 2 * WARPS * given["HEADS"], "RESIDENT": 4}
    made = {
        "STORE_OWN": own, "HALVES": halves, "QUERY": device(query, HEADS=given["HEADS"], SIZE=COLUMNS, HALVES=halves),
        "PAGE_OF": device(page_of, VALUE_WORDS=shape.value_words), "OWN": device(own_of, VALUE_WORDS=shape.value_words),
        "SCORES": device(scores), "TOGETHER": device(together),
    }  # fmt: skip
    return attend_tiles.bind(**given, **sizes, **made)


def one_token_kernel(shape: Attention, splits: int) -> Kernel:
    """The one of the three that a layer takes. Raises NoKernel as `attend_kernel` does."""
    if fits_tiles(shape):
        return attend_tiles_kernel(shape, splits)
    return attend_ahead_kernel(shape, splits) if reads_ahead(shape) else attend_kernel(shape, splits)


__all__ = ["attend_tiles_kernel", "fits_tiles", "one_token_kernel"]
