"""Multi-head latent attention (https://arxiv.org/abs/2405.04434) in the absorbed form.

A page holds PAGE positions of one layer: the normed latent, the rotated key that all heads share, and zeros up to a multiple of
16 values. Each head's projection of latents to keys is multiplied with its query, which then meets that whole row as one key;
what the softmax sums, of the same rows, is projected to the head's value. So `attend` serves for one token; the heads are
divided into groups that fit into shared memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cuda.attention import PAGE, Attention, attend_shared
from numba_kernels.cuda.attention_steps import LOWEST, attend_constants
from numba_kernels.cuda.elements import write_bf16, write_f32
from numba_kernels.cuda.intrinsics import let_next_begin, wait_for_launch_before
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
    types,
)
from numba_kernels.cuda.vectors import rms_gain

MOST_HEADS = 16  # of a group

WARPS = 4
HEADS = KV = 1
SIZE = RANK = NOPE = ROPE = 16
PAIRS = INTERLEAVED = NORM = 0
RING = 1
ELEMENT = "bf16"
VALUE_WORDS = PAGE_WORDS = 1
HEAD_SIZE = WEIGHTS = STATS = 1
GAIN: Any = None
TURN: Any = None
WRITE: Any = None
SCORES: Any = None
SOFTEN: Any = None
GATHER: Any = None
ZERO, ONE = np.float32(0), np.float32(1)


def latent_shape(queries: int, rank: int, rope: int, ring: int, element: str = "bf16") -> Attention:
    """The layer for `attend`: its key heads are the groups of query heads. Raises NoKernel for rows that do not fit."""
    size = -(-(rank + rope) // 16) * 16
    fits = [n for n in range(1, MOST_HEADS + 1) if queries % n == 0 and attend_shared(n, size) <= SHARED]
    if not fits:
        raise NoKernel(f"latents of {rank} values and keys of {rope} do not fit into a block's shared memory")
    return Attention(queries, queries // max(fits), size, None, ring, element, turned=False, latent=True)


# ---- what is kept of a token ----------------------------------------------------------------------------------------


def part_of_key(row, at, d, cos, sin, angle):  # type: ignore[no-untyped-def]
    """Value d of the ROPE values that begin at `at`, of which the first 2 · PAIRS are rotated."""
    value = row[at + d]
    if d < 2 * PAIRS:
        if INTERLEAVED:
            other = -row[at + d + 1] if d % 2 == 0 else row[at + d - 1]
            value = value * cos[angle + d // 2] + other * sin[angle + d // 2]
        else:
            other = -row[at + d + PAIRS] if d < PAIRS else row[at + d - PAIRS]
            value = value * cos[angle + d % PAIRS] + other * sin[angle + d % PAIRS]
    return value


def value_of_row(latent, at, gain, weight, key, key_at, d, cos, sin, angle):  # type: ignore[no-untyped-def]
    """Value d of what is kept."""
    if d < RANK:
        return latent[at + d] * gain * weight[d] if NORM else latent[at + d]
    if d < RANK + ROPE:
        return TURN(key, key_at, d - RANK, cos, sin, angle)
    return ZERO


VALUE: Any = None


@kernel(
    FLOATS, INT, FLOATS, FLOAT, FLOATS, INT, FLOATS, INT, FLOATS, FLOATS, WORDS, INTS, INTS, INTS, FLOATS
)  # fmt: skip
def store_latents(  # type: ignore[no-untyped-def]
    latent, latent_stride, weight, epsilon, key, key_stride, query, query_stride, cos, sin, cache, tables, positions, sequences,
    absorbed,
):  # fmt: skip
    """Puts the tokens' latents, with NORM normalized, and rotated keys into their pages; a block has a token.

    latent [tokens, latent_stride], RANK values; key [tokens, key_stride], ROPE values; query [tokens, query_stride], of each head
    NOPE and ROPE values, of which the last, rotated, and zeros behind them go to absorbed [tokens, HEADS, SIZE] from RANK on.
    cos, sin [context, PAIRS]; tables [sequences, RING]; positions, sequences [tokens].
    """
    sums = cuda.shared.array(WARPS, types.float32, 16)
    wait_for_launch_before()
    let_next_begin()
    thread, token = cuda.threadIdx.x, cuda.blockIdx.x
    at, gain = token * latent_stride, ONE
    if NORM:
        gain = GAIN(latent, at, epsilon, sums)
    position = np.int64(positions[token])
    angle = position * PAIRS
    page = np.int64(tables[np.int64(sequences[token]) * RING + position // PAGE % RING])
    words = page * PAGE_WORDS + position % PAGE * VALUE_WORDS
    for i in range(thread, SIZE // 2, WARPS * WARP):
        a = VALUE(latent, at, gain, weight, key, token * key_stride, 2 * i, cos, sin, angle)
        b = VALUE(latent, at, gain, weight, key, token * key_stride, 2 * i + 1, cos, sin, angle)
        WRITE(cache, words, i, a, b)
    for i in range(thread, HEADS * (SIZE - RANK), WARPS * WARP):
        head, d = i // (SIZE - RANK), i % (SIZE - RANK)
        value = ZERO
        if d < ROPE:
            value = TURN(query, token * query_stride + head * (NOPE + ROPE) + NOPE, d, cos, sin, angle)
        absorbed[(token * HEADS + head) * SIZE + RANK + d] = value


def store_latents_kernel(
    shape: Attention, rank: int, rope: int, nope: int, *, pairs: int, interleaved: bool, norm: bool, warps: int = 4
) -> Kernel:
    """The kernel for a layer of that shape."""
    turn = device(part_of_key, PAIRS=pairs, INTERLEAVED=int(interleaved))
    sizes = {"RANK": rank, "ROPE": rope, "NORM": int(norm)}
    constants = shape.constants()
    return store_latents.bind(
        WARPS=warps, **sizes, NOPE=nope, PAIRS=pairs, INTERLEAVED=int(interleaved), HEADS=shape.queries, SIZE=shape.size,
        ELEMENT=shape.element, RING=shape.ring, VALUE_WORDS=constants["VALUE_WORDS"], PAGE_WORDS=constants["PAGE_WORDS"],
        TURN=turn, VALUE=device(value_of_row, **sizes, TURN=turn), GAIN=device(rms_gain, WARPS=warps, COLUMNS=rank),
        WRITE=write_bf16 if shape.element == "bf16" else write_f32,
    )  # fmt: skip


# ---- many tokens ----------------------------------------------------------------------------------------------------


@kernel(FLOATS, FLOAT, WORDS, INTS, INTS, INTS, FLOATS)
def attend_latents(absorbed, scale, cache, tables, positions, sequences, out):  # type: ignore[no-untyped-def]
    """What the softmax sums for each token and head, out like absorbed [tokens, KV · HEADS, SIZE]; a grid of (KV, tokens), KV
    being the groups of heads. The tokens' own rows are in the cache already."""
    queries = cuda.shared.array(HEAD_SIZE, types.float32, 16)
    weights = cuda.shared.array(WEIGHTS, types.float32, 16)
    stats = cuda.shared.array(STATS, types.float32, 16)
    sums = cuda.shared.array(HEAD_SIZE, types.float32, 16)
    wait_for_launch_before()
    let_next_begin()
    thread, token = cuda.threadIdx.x, cuda.blockIdx.y
    position, table = np.int64(positions[token]), np.int64(sequences[token]) * RING
    at = (token * KV + cuda.blockIdx.x) * HEAD_SIZE
    for i in range(thread, HEAD_SIZE, WARPS * WARP):
        queries[i] = absorbed[at + i] * scale
        sums[i] = ZERO
    for i in range(thread, HEADS, WARPS * WARP):
        stats[3 * i], stats[3 * i + 1], stats[3 * i + 2] = LOWEST, ZERO, ONE
    cuda.syncthreads()
    for page in range(position // PAGE + 1):
        words = np.int64(tables[table + page % RING]) * PAGE_WORDS
        SCORES(cache, words, page * PAGE, 0, position, queries, weights)
        cuda.syncthreads()
        SOFTEN(weights, stats)
        cuda.syncthreads()
        GATHER(cache, words, 0, min(position - page * PAGE + 1, PAGE), weights, stats, sums)
        cuda.syncthreads()
    for i in range(thread, HEAD_SIZE, WARPS * WARP):
        out[at + i] = sums[i] / stats[3 * (i // SIZE) + 1]


def attend_latents_kernel(shape: Attention, warps: int = 4) -> Kernel:
    """The kernel for a layer of that shape."""
    names = ("HEADS", "KV", "SIZE", "RING", "ELEMENT", "VALUE_WORDS", "PAGE_WORDS", "HEAD_SIZE", "WEIGHTS", "STATS", "WARPS")
    constants = attend_constants(shape, 1, warps)
    return attend_latents.bind(**{name: constants[name] for name in (*names, "SCORES", "SOFTEN", "GATHER")})
