"""The steps of attention of one token over one page: queries are rotated, meet keys, and their shares are summed with values.

The positions that are seen are divided among blocks, page by page; the last block of a key-value head to finish puts the parts
together (https://arxiv.org/abs/2311.01282).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.attention import PAGE, Attention, attend_shared, part_size
from numba_kernels.cuda.elements import (
    eight_as_they_are,
    eight_bf16,
    eight_f32,
    eight_rotated,
    four_bf16,
    four_f32,
    write_bf16,
    write_f32,
)
from numba_kernels.cuda.intrinsics import (
    load_floats,
    load_words,
    shuffle_xor,
    store_floats,
    store_words,
    warp_barrier,
    warp_max,
    warp_sum,
)
from numba_kernels.cuda.seam import SHARED, WARP, NoKernel, cuda, device

WARPS = 4
HEADS = 1  # query heads that share a key-value head
KV = 1
SIZE = 64
HALF = 32  # SIZE / 2
SPLITS = 1
SINKS = 0
LANES, LANES_LOG = 2, 1  # threads that share a key
WIDTH = 32  # values of a key for each of them
VALUE_WORDS = SIZE // 2
HEAD_SIZE = 1  # of the query heads that share one: HEADS · SIZE
PART = 1  # of what a block leaves: sums, then two numbers of each head
EIGHTS = 1
EIGHT: Any = None
FOUR: Any = None
WRITE: Any = None
TURN: Any = None
MEET: Any = None
MEET_ALL: Any = None
ZERO, ONE = np.float32(0), np.float32(1)
LOWEST = np.float32(-math.inf)
NOTHING = np.uint32(0)


def store(qkv, cos, sin, cache, words, kv, position):  # type: ignore[no-untyped-def]
    """Puts the token's rotated key and its value into its page, which begins at `words`; by the last threads of a block first, as
    the first ones have queries to rotate."""
    slot, angle = position % PAGE, position * HALF
    key, value = (HEADS * KV + kv) * SIZE, (HEADS * KV + KV + kv) * SIZE
    keys = words + (kv * PAGE + slot) * VALUE_WORDS
    values = keys + KV * PAGE * VALUE_WORDS
    for i in range(WARPS * WARP - 1 - cuda.threadIdx.x, HALF // 4, WARPS * WARP):
        k = TURN(qkv, key, 4 * i, HALF, cos, sin, angle)
        low, high = load_floats(qkv, value + 4 * i), load_floats(qkv, value + HALF + 4 * i)
        WRITE(cache, keys, 2 * i, k[0], k[1])
        WRITE(cache, keys, 2 * i + 1, k[2], k[3])
        WRITE(cache, keys, HALF // 2 + 2 * i, k[4], k[5])
        WRITE(cache, keys, HALF // 2 + 2 * i + 1, k[6], k[7])
        WRITE(cache, values, 2 * i, low[0], low[1])
        WRITE(cache, values, 2 * i + 1, low[2], low[3])
        WRITE(cache, values, HALF // 2 + 2 * i, high[0], high[1])
        WRITE(cache, values, HALF // 2 + 2 * i + 1, high[2], high[3])


def rotate(qkv, cos, sin, scale, kv, position, queries, sums):  # type: ignore[no-untyped-def]
    """The queries of `kv`, rotated, times scale; and zeros in sums, which is alike. A thread has eight values of a head."""
    for i in range(cuda.threadIdx.x, HEAD_SIZE // 8, WARPS * WARP):
        at, d = i // (HALF // 4) * SIZE, 4 * (i % (HALF // 4))
        q = TURN(qkv, kv * HEAD_SIZE + at, d, HALF, cos, sin, position * HALF)
        store_floats(queries, at + d, q[0] * scale, q[1] * scale, q[2] * scale, q[3] * scale)
        store_floats(queries, at + HALF + d, q[4] * scale, q[5] * scale, q[6] * scale, q[7] * scale)
        store_floats(sums, at + d, ZERO, ZERO, ZERO, ZERO)
        store_floats(sums, at + HALF + d, ZERO, ZERO, ZERO, ZERO)


def meet(k, queries, q):  # type: ignore[no-untyped-def]
    """Eight values of a key · a query."""
    x, y = load_floats(queries, q), load_floats(queries, q + 4)
    low = k[0] * x[0] + k[1] * x[1] + k[2] * x[2] + k[3] * x[3]
    return low + (k[4] * y[0] + k[5] * y[1] + k[6] * y[2] + k[7] * y[3])


def meet_all(k0, k1, k2, k3, queries, q):  # type: ignore[no-untyped-def]
    """What a thread has of a key · a query, in every thread that shares the key."""
    total = MEET(k0, queries, q)
    if EIGHTS > 1:
        total += MEET(k1, queries, q + 8)
    if EIGHTS > 2:
        total += MEET(k2, queries, q + 16)
    if EIGHTS > 3:
        total += MEET(k3, queries, q + 24)
    for step in range(LANES_LOG):
        total += shuffle_xor(total, 1 << step)
    return total


def scores(cache, keys, base, first, position, queries, weights):  # type: ignore[no-untyped-def]
    """weights[g · PAGE + slot] = query g · key, −∞ where a position is not seen; LANES threads share a key, of which each holds
    EIGHTS · 8 values in registers while all heads meet them, two at a time."""
    slot, part = cuda.threadIdx.x // LANES, cuda.threadIdx.x % LANES
    at = keys + slot * VALUE_WORDS + part * WIDTH * VALUE_WORDS // SIZE
    seen = first <= base + slot <= position
    for i in range(0, WIDTH, 8 * EIGHTS):
        k0 = EIGHT(cache, at + i * VALUE_WORDS // SIZE)
        k1, k2, k3 = k0, k0, k0
        if EIGHTS > 1:
            k1 = EIGHT(cache, at + (i + 8) * VALUE_WORDS // SIZE)
        if EIGHTS > 2:
            k2 = EIGHT(cache, at + (i + 16) * VALUE_WORDS // SIZE)
        if EIGHTS > 3:
            k3 = EIGHT(cache, at + (i + 24) * VALUE_WORDS // SIZE)
        for g in range(0, HEADS, 2):
            h = min(g + 1, HEADS - 1)
            a = MEET_ALL(k0, k1, k2, k3, queries, g * SIZE + part * WIDTH + i)
            b = MEET_ALL(k0, k1, k2, k3, queries, h * SIZE + part * WIDTH + i) if HEADS > 1 else a
            if part == 0:
                if i > 0:
                    a += weights[g * PAGE + slot]
                    b += weights[h * PAGE + slot]
                weights[g * PAGE + slot] = a if seen else LOWEST
                if h > g:
                    weights[h * PAGE + slot] = b if seen else LOWEST


def soften(weights, stats):  # type: ignore[no-untyped-def]
    """From a page's scores to weights beside the largest score so far; a warp has a head, or two at a time. stats [HEADS, 3] are
    the largest, the sum of weights, and the factor for what was summed before."""
    lane = cuda.threadIdx.x % WARP
    for g in range(cuda.threadIdx.x // WARP, HEADS, 2 * WARPS):
        h = g + WARPS if g + WARPS < HEADS else g
        a, b = weights[g * PAGE + lane], weights[g * PAGE + WARP + lane]
        c, d = weights[h * PAGE + lane], weights[h * PAGE + WARP + lane]
        before, h_before = stats[3 * g], stats[3 * h]
        total_before, h_total_before = stats[3 * g + 1], stats[3 * h + 1]
        top, h_top = max(a, b), max(c, d)
        for mask in (16, 8, 4, 2, 1):
            top, h_top = max(top, shuffle_xor(top, mask)), max(h_top, shuffle_xor(h_top, mask))
        top, h_top = max(top, before), max(h_top, h_before)
        a, b = np.float32(math.exp(a - top)), np.float32(math.exp(b - top))
        c, d = np.float32(math.exp(c - h_top)), np.float32(math.exp(d - h_top))
        total, h_total = a + b, c + d
        for mask in (16, 8, 4, 2, 1):
            total, h_total = total + shuffle_xor(total, mask), h_total + shuffle_xor(h_total, mask)
        weights[g * PAGE + lane] = a
        weights[g * PAGE + WARP + lane] = b
        if h > g:
            weights[h * PAGE + lane] = c
            weights[h * PAGE + WARP + lane] = d
        warp_barrier()  # every lane has read stats
        if lane == 0:
            factor, h_factor = np.float32(math.exp(before - top)), np.float32(math.exp(h_before - h_top))
            stats[3 * g], stats[3 * g + 1], stats[3 * g + 2] = top, total_before * factor + total, factor
            if h > g:
                stats[3 * h], stats[3 * h + 1], stats[3 * h + 2] = h_top, h_total_before * h_factor + h_total, h_factor


def gather(cache, values, low, high, weights, stats, sums):  # type: ignore[no-untyped-def]
    """sums [HEADS, SIZE] = sums · factor + weights · values of slots [low, high); a thread has four columns of a head."""
    for quad in range(cuda.threadIdx.x, HEAD_SIZE // 4, WARPS * WARP):
        g, d = quad // (SIZE // 4), 4 * (quad % (SIZE // 4))
        factor = stats[3 * g + 2]
        a, b = sums[4 * quad] * factor, sums[4 * quad + 1] * factor
        c, e = sums[4 * quad + 2] * factor, sums[4 * quad + 3] * factor
        for slot in range(low, high):
            v = FOUR(cache, values + slot * VALUE_WORDS + d * VALUE_WORDS // SIZE)
            w = weights[g * PAGE + slot]
            a += w * v[0]
            b += w * v[1]
            c += w * v[2]
            e += w * v[3]
        sums[4 * quad], sums[4 * quad + 1], sums[4 * quad + 2], sums[4 * quad + 3] = a, b, c, e


def chunk_of_values(cache, values, low, high, r):  # type: ignore[no-untyped-def]
    """The thread's r-th four words of a page's values; zeros of slots that are not seen."""
    c = r * WARPS * WARP + cuda.threadIdx.x
    if low <= c // (VALUE_WORDS // 4) < high:
        return load_words(cache, values + 4 * c)
    return NOTHING, NOTHING, NOTHING, NOTHING


def keep_values(held, chunk, r):  # type: ignore[no-untyped-def]
    store_words(held, 4 * (r * WARPS * WARP + cuda.threadIdx.x), chunk[0], chunk[1], chunk[2], chunk[3])


def gather_held(held, weights, stats, sums):  # type: ignore[no-untyped-def]
    """The same as `gather` for a page's values in shared memory."""
    for quad in range(cuda.threadIdx.x, HEAD_SIZE // 4, WARPS * WARP):
        g = quad // (SIZE // 4)
        at, factor = 4 * (quad % (SIZE // 4)) * VALUE_WORDS // SIZE, stats[3 * g + 2]
        before = load_floats(sums, 4 * quad)
        a, b, c, e = before[0] * factor, before[1] * factor, before[2] * factor, before[3] * factor
        for slot in range(0, PAGE, 4):
            w = load_floats(weights, g * PAGE + slot)
            for i in range(4):
                v = FOUR(held, at + (slot + i) * VALUE_WORDS)
                a += w[i] * v[0]
                b += w[i] * v[1]
                c += w[i] * v[2]
                e += w[i] * v[3]
        store_floats(sums, 4 * quad, a, b, c, e)


def finish(kv, active, partial, sinks, factors, out):  # type: ignore[no-untyped-def]
    """out of the heads of `kv`, from `active` parts [PART] that begin at partial's own place; factors [HEADS, PAGE] is shared."""
    lane, first = cuda.threadIdx.x % WARP, kv * SPLITS * PART
    for g in range(cuda.threadIdx.x // WARP, HEADS, WARPS):
        stats = first + HEAD_SIZE + 2 * g
        low_at, high_at = stats + lane * PART, stats + (lane + WARP) * PART
        low = high = LOWEST
        low_total = high_total = ZERO
        if lane < active:
            low, low_total = partial[low_at], partial[low_at + 1]
        if lane + WARP < active:
            high, high_total = partial[high_at], partial[high_at + 1]
        top = warp_max(max(low, high))
        if SINKS:
            top = max(top, sinks[kv * HEADS + g])
        low, high = np.float32(math.exp(low - top)), np.float32(math.exp(high - top))
        total = warp_sum(low * low_total + high * high_total)
        if SINKS:
            total += np.float32(math.exp(sinks[kv * HEADS + g] - top))
        factors[g * PAGE + lane], factors[g * PAGE + WARP + lane] = low / total, high / total
    cuda.syncthreads()
    for quad in range(cuda.threadIdx.x, HEAD_SIZE // 4, WARPS * WARP):
        row, at = quad // (SIZE // 4) * PAGE, first + 4 * quad
        a = b = c = e = ZERO
        for s in range(0, active, 8):  # loads first, so that they are under way together; factors beyond the last are 0
            v0, v1 = load_floats(partial, at + s * PART), load_floats(partial, at + min(s + 1, active - 1) * PART)
            v2 = load_floats(partial, at + min(s + 2, active - 1) * PART)
            v3 = load_floats(partial, at + min(s + 3, active - 1) * PART)
            v4 = load_floats(partial, at + min(s + 4, active - 1) * PART)
            v5 = load_floats(partial, at + min(s + 5, active - 1) * PART)
            v6 = load_floats(partial, at + min(s + 6, active - 1) * PART)
            v7 = load_floats(partial, at + min(s + 7, active - 1) * PART)
            f, h = load_floats(factors, row + s), load_floats(factors, row + s + 4)
            a += f[0] * v0[0] + f[1] * v1[0] + f[2] * v2[0] + f[3] * v3[0]
            b += f[0] * v0[1] + f[1] * v1[1] + f[2] * v2[1] + f[3] * v3[1]
            c += f[0] * v0[2] + f[1] * v1[2] + f[2] * v2[2] + f[3] * v3[2]
            e += f[0] * v0[3] + f[1] * v1[3] + f[2] * v2[3] + f[3] * v3[3]
            a += h[0] * v4[0] + h[1] * v5[0] + h[2] * v6[0] + h[3] * v7[0]
            b += h[0] * v4[1] + h[1] * v5[1] + h[2] * v6[1] + h[3] * v7[1]
            c += h[0] * v4[2] + h[1] * v5[2] + h[2] * v6[2] + h[3] * v7[2]
            e += h[0] * v4[3] + h[1] * v5[3] + h[2] * v6[3] + h[3] * v7[3]
        store_floats(out, kv * HEAD_SIZE + 4 * quad, a, b, c, e)


def attend_constants(shape: Attention, splits: int, warps: int) -> dict[str, Any]:
    """All of them, with the functions that are made for them."""
    lanes = WARP * warps // PAGE
    if lanes * PAGE != WARP * warps or shape.size // lanes % 8:
        raise NoKernel(f"{warps} warps do not divide a page of heads of {shape.size} values")
    if splits > PAGE:
        raise NoKernel(f"positions cannot be divided among {splits} blocks")
    eights = next(n for n in (4, 3, 2, 1) if shape.size // lanes // 8 % n == 0)
    group, page = shape.queries // shape.keys, PAGE * shape.value_words
    staged = attend_shared(group, shape.size) + 4 * page <= SHARED
    numbers = {
        **shape.constants(), "WARPS": warps, "SPLITS": splits, "LANES": lanes, "LANES_LOG": lanes.bit_length() - 1,
        "WIDTH": shape.size // lanes, "EIGHTS": eights, "STAGED": int(staged), "HELD": page if staged else 4,
        "CHUNKS": page // (4 * WARP * warps), "PART": part_size(group, shape.size),
    }  # fmt: skip
    is_bf16 = shape.element == "bf16"
    functions = {
        "EIGHT": eight_bf16 if is_bf16 else eight_f32,
        "FOUR": four_bf16 if is_bf16 else four_f32,
        "WRITE": write_bf16 if is_bf16 else write_f32,
        "TURN": eight_rotated if shape.turned else eight_as_they_are,
    }
    functions["MEET"] = device(meet)
    functions["MEET_ALL"] = device(meet_all, **numbers, MEET=functions["MEET"])
    kinds = (store, rotate, scores, soften, gather, gather_held, chunk_of_values, keep_values, finish)
    made = {f.__name__.upper(): device(f, **numbers, **functions) for f in kinds}
    return {**numbers, **functions, **made}
