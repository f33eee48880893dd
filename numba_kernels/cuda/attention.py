"""Attention over a paged KV cache, for one token of a sequence.

A page holds PAGE positions of one layer: keys [KV, PAGE, SIZE], then values alike, bfloat16 (two in a word) or float32.
A sequence's position p is in page table[p // PAGE % RING]. The positions that are seen are divided among blocks, page by page;
the last block of a key-value head to finish puts the parts together (https://arxiv.org/abs/2311.01282).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from numba_kernels.cuda.elements import (
    as_it_is,
    eight_bf16,
    eight_f32,
    four_bf16,
    four_f32,
    rotated,
    write_bf16,
    write_f32,
)
from numba_kernels.cuda.intrinsics import (
    let_next_begin,
    load_fresh,
    shuffle_xor,
    wait_for_launch_before,
    warp_barrier,
    warp_max,
    warp_sum,
)
from numba_kernels.cuda.seam import (
    FLOAT,
    FLOATS,
    INTS,
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

PAGE = 64  # positions

WARPS = 4
HEADS = 1  # query heads that share a key-value head
KV = 1
SIZE = 64
HALF = 32  # SIZE / 2
WINDOW = 0  # positions that are seen; 0 is all
RING = 1
SPLITS = 1
SINKS = 0
ELEMENT = "bf16"
LANES = 2  # threads that share a key
WIDTH = 32  # values of a key for each of them
VALUE_WORDS = SIZE // 2
PAGE_WORDS = 2 * KV * PAGE * SIZE // 2
HEAD_SIZE = 1  # of the query heads that share one: HEADS · SIZE
WEIGHTS = STATS = 1  # HEADS · PAGE, 3 · HEADS
TURNED = 1
STORES = 1
KEY_STEP = VALUES_AT = 1  # words from a head's keys to the next head's, and to its values
EIGHT: Any = None
FOUR: Any = None
WRITE: Any = None
TURN: Any = None
ZERO, ONE = np.float32(0), np.float32(1)
LOWEST = np.float32(-math.inf)


@dataclass(frozen=True)
class Attention:
    """The compile-time numbers of a layer.

    Attributes:
        queries, keys: heads.
        size: values of a head, a multiple of 16.
        window: positions that are seen, or None.
        ring: pages of a sequence.
        element: bf16 or f32, of the cache.
        sinks: whether a logit per head joins the softmax.
        turned: whether the kernels rotate queries and keys, the halves of a head against each other; else they are taken as
            they are.
        latent: whether a page has one key for all heads, which is its value as well, and is stored by another kernel.
    """

    queries: int
    keys: int
    size: int
    window: int | None
    ring: int
    element: str = "bf16"
    sinks: bool = False
    turned: bool = True
    latent: bool = False

    def __post_init__(self) -> None:
        if self.size % 16 or (not 16 <= self.size <= 256 and not self.latent):
            raise NoKernel(f"head_dim is {self.size}: the GPU's attention takes multiples of 16 up to 256")

    @property
    def value_words(self) -> int:
        """Words of one key or value."""
        return self.size // 2 if self.element == "bf16" else self.size

    @property
    def page_words(self) -> int:
        return (1 if self.latent else 2 * self.keys) * PAGE * self.value_words

    def constants(self) -> dict[str, Any]:
        """For `Kernel.bind`."""
        return {
            "HEADS": self.queries // self.keys,
            "KV": self.keys,
            "SIZE": self.size,
            "HALF": self.size // 2,
            "WINDOW": self.window or 0,
            "RING": self.ring,
            "SINKS": int(self.sinks),
            "ELEMENT": self.element,
            "VALUE_WORDS": self.value_words,
            "PAGE_WORDS": self.page_words,
            "HEAD_SIZE": self.queries // self.keys * self.size,
            "WEIGHTS": self.queries // self.keys * PAGE,
            "STATS": self.queries // self.keys * 3,
            "TURNED": int(self.turned),
            "STORES": int(not self.latent),
            "KEY_STEP": 0 if self.latent else PAGE * self.value_words,
            "VALUES_AT": 0 if self.latent else self.keys * PAGE * self.value_words,
        }

    @property
    def turn(self) -> Any:
        """The function that gives a value of a query or key, rotated or as it is."""
        return rotated if self.turned else as_it_is


# ---- one token ------------------------------------------------------------------------------------------------------


def store(qkv, cos, sin, cache, words, kv, position):  # type: ignore[no-untyped-def]
    """Puts the token's rotated key and its value into its page, which begins at `words`; by the threads of a block."""
    slot, angle = position % PAGE, position * HALF
    key, value = (HEADS * KV + kv) * SIZE, (HEADS * KV + KV + kv) * SIZE
    keys = words + (kv * PAGE + slot) * VALUE_WORDS
    values = keys + KV * PAGE * VALUE_WORDS
    for i in range(cuda.threadIdx.x, HALF, WARPS * WARP):
        first = TURN(qkv, key, 2 * i, HALF, cos, sin, angle)
        WRITE(cache, keys, i, first, TURN(qkv, key, 2 * i + 1, HALF, cos, sin, angle))
        WRITE(cache, values, i, qkv[value + 2 * i], qkv[value + 2 * i + 1])


def scores(cache, keys, base, first, position, queries, weights):  # type: ignore[no-untyped-def]
    """weights[g · PAGE + slot] = query g · key, −∞ where a position is not seen; LANES threads share a key."""
    slot, part = cuda.threadIdx.x // LANES, cuda.threadIdx.x % LANES
    at = keys + slot * VALUE_WORDS + part * WIDTH * VALUE_WORDS // SIZE
    seen = first <= base + slot <= position
    for g in range(HEADS):
        total = ZERO
        for i in range(0, WIDTH, 8):
            k = EIGHT(cache, at + i * VALUE_WORDS // SIZE)
            q = g * SIZE + part * WIDTH + i
            for j in range(8):
                total += k[j] * queries[q + j]
        for step in range(LANES_LOG):
            total += shuffle_xor(total, 1 << step)
        if part == 0:
            weights[g * PAGE + slot] = total if seen else LOWEST


def soften(weights, stats):  # type: ignore[no-untyped-def]
    """From a page's scores to weights beside the largest score so far; a warp has a head. stats [HEADS, 3] are the largest, the
    sum of weights, and the factor for what was summed before."""
    lane = cuda.threadIdx.x % WARP
    for g in range(cuda.threadIdx.x // WARP, HEADS, WARPS):
        a, b = weights[g * PAGE + lane], weights[g * PAGE + WARP + lane]
        before = stats[3 * g]
        top = max(warp_max(max(a, b)), before)
        a, b = np.float32(math.exp(a - top)), np.float32(math.exp(b - top))
        total = warp_sum(a + b)
        weights[g * PAGE + lane] = a
        weights[g * PAGE + WARP + lane] = b
        warp_barrier()  # every lane has read stats
        if lane == 0:
            factor = np.float32(math.exp(before - top))
            stats[3 * g] = top
            stats[3 * g + 1] = stats[3 * g + 1] * factor + total
            stats[3 * g + 2] = factor


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


def finish(kv, active, partial, sinks, out):  # type: ignore[no-untyped-def]
    """out of the heads of `kv`, from the parts [active, HEADS · (SIZE + 2)] that begin at partial's own place."""
    for i in range(cuda.threadIdx.x, HEAD_SIZE, WARPS * WARP):
        g = i // SIZE
        first = kv * SPLITS * (HEAD_SIZE + 2 * HEADS)
        top = sinks[kv * HEADS + g] if SINKS else LOWEST
        for s in range(active):
            top = max(top, load_fresh(partial, first + s * (HEAD_SIZE + 2 * HEADS) + HEAD_SIZE + 2 * g))
        total = np.float32(math.exp(sinks[kv * HEADS + g] - top)) if SINKS else ZERO
        value = ZERO
        for s in range(active):
            at = first + s * (HEAD_SIZE + 2 * HEADS)
            factor = np.float32(math.exp(load_fresh(partial, at + HEAD_SIZE + 2 * g) - top))
            total += factor * load_fresh(partial, at + HEAD_SIZE + 2 * g + 1)
            value += factor * load_fresh(partial, at + i)
        out[kv * HEAD_SIZE + i] = value / total


LANES_LOG = 1
STORE: Any = None
SCORES: Any = None
SOFTEN: Any = None
GATHER: Any = None
FINISH: Any = None


@kernel(FLOATS, FLOATS, FLOATS, FLOAT, FLOATS, WORDS, INTS, INTS, FLOATS, INTS, FLOATS)
def attend(qkv, cos, sin, scale, sinks, cache, table, state, partial, counters, out):  # type: ignore[no-untyped-def]
    """Rotates the token's queries and key, appends key and value to the cache, and attends: out [KV · HEADS · SIZE]. What is not
    TURNED is rotated already; what does not STORE has been stored.

    A grid of (KV, SPLITS). qkv [(KV · HEADS + 2 · KV) · SIZE]; cos, sin [context, SIZE / 2]; table [RING] page numbers; state[0]
    the position; partial [KV, SPLITS, HEADS · (SIZE + 2)]; counters [KV] are 0 before and after.
    """
    queries = cuda.shared.array(HEAD_SIZE, types.float32, 16)
    weights = cuda.shared.array(WEIGHTS, types.float32, 16)
    stats = cuda.shared.array(STATS, types.float32, 16)
    sums = cuda.shared.array(HEAD_SIZE, types.float32, 16)
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
    for i in range(thread, HEAD_SIZE, WARPS * WARP):
        g, d = i // SIZE, i % SIZE
        queries[i] = TURN(qkv, (kv * HEADS + g) * SIZE, d, HALF, cos, sin, position * HALF) * scale
        sums[i] = ZERO
    for i in range(thread, HEADS, WARPS * WARP):
        stats[3 * i], stats[3 * i + 1], stats[3 * i + 2] = LOWEST, ZERO, ONE
    if STORES and stop == first_page + pages:
        STORE(qkv, cos, sin, cache, np.int64(table[position // PAGE % RING]) * PAGE_WORDS, kv, position)
    cuda.syncthreads()
    for page in range(start, stop):
        words = np.int64(table[page % RING]) * PAGE_WORDS
        keys = words + kv * KEY_STEP
        SCORES(cache, keys, page * PAGE, first, position, queries, weights)
        cuda.syncthreads()
        SOFTEN(weights, stats)
        cuda.syncthreads()
        low, high = max(first - page * PAGE, 0), min(position - page * PAGE + 1, PAGE)
        GATHER(cache, keys + VALUES_AT, low, high, weights, stats, sums)
        cuda.syncthreads()
    at = (kv * SPLITS + split) * (HEAD_SIZE + 2 * HEADS)
    for i in range(thread, HEAD_SIZE, WARPS * WARP):
        partial[at + i] = sums[i]
    for i in range(thread, HEADS, WARPS * WARP):
        partial[at + HEAD_SIZE + 2 * i] = stats[3 * i]
        partial[at + HEAD_SIZE + 2 * i + 1] = stats[3 * i + 1]
    cuda.threadfence()
    cuda.syncthreads()
    if thread == 0:
        cuda.threadfence()
        last[0] = cuda.atomic.add(counters, kv, 1)
    cuda.syncthreads()
    if last[0] == active - 1:
        cuda.threadfence()
        FINISH(kv, active, partial, sinks, out)
        if thread == 0:
            counters[kv] = 0


def attend_constants(shape: Attention, splits: int, warps: int) -> dict[str, Any]:
    """All of them, with the functions that are made for them."""
    lanes = WARP * warps // PAGE
    if lanes * PAGE != WARP * warps or shape.size // lanes % 8:
        raise NoKernel(f"{warps} warps do not divide a page of heads of {shape.size} values")
    numbers = {
        **shape.constants(), "WARPS": warps, "SPLITS": splits, "LANES": lanes, "LANES_LOG": lanes.bit_length() - 1,
        "WIDTH": shape.size // lanes,
    }  # fmt: skip
    is_bf16 = shape.element == "bf16"
    functions = {
        "EIGHT": eight_bf16 if is_bf16 else eight_f32,
        "FOUR": four_bf16 if is_bf16 else four_f32,
        "WRITE": write_bf16 if is_bf16 else write_f32,
        "TURN": shape.turn,
    }
    made = {f.__name__.upper(): device(f, **numbers, **functions) for f in (store, scores, soften, gather, finish)}
    return {**numbers, "TURN": shape.turn, **made}


def attend_kernel(shape: Attention, splits: int, warps: int = 4) -> Kernel:
    """The kernel for a layer, its positions divided among `splits` blocks. Raises NoKernel if so many heads of that size do not
    fit into shared memory."""
    group = shape.queries // shape.keys
    require_shared(
        attend_shared(group, shape.size), f"{group} query heads of {shape.size} values that share a key-value head"
    )
    return attend.bind(**attend_constants(shape, splits, warps))


def attend_shared(group: int, size: int) -> int:
    """Bytes of shared memory for so many query heads that share a key-value head."""
    return 4 * (2 * group * size + group * (PAGE + 3) + 1)


def partial_size(shape: Attention, splits: int) -> int:
    """float32 that `attend` needs for its parts."""
    return shape.keys * splits * (shape.queries // shape.keys) * (shape.size + 2)
