"""What many tokens need beside matrix × matrix and attention: norms to bfloat16, tokens sorted by expert, and the outputs of
experts put together."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cuda.intrinsics import pack_bf16, wait_for_launch_before
from numba_kernels.cuda.seam import FLOAT, FLOATS, INT, INTS, WARP, WORDS, Kernel, cuda, device, kernel, types
from numba_kernels.cuda.vectors import rms_gain

WARPS = 4
COLUMNS = 0
NORM = 0
TOP = EXPERTS = TOKENS = 1
GAIN: Any = None
ONE, ZERO = np.float32(1), np.float32(0)


# ---- rows -----------------------------------------------------------------------------------------------------------


@kernel(FLOATS, INT, FLOATS, FLOAT, WORDS, INT)
def round_rows(source, stride, weight, epsilon, out, out_stride):  # type: ignore[no-untyped-def]
    """Rows of COLUMNS float32, with NORM normalized, as bfloat16: out [rows, out_stride words], zeros beyond the last column. A
    block has a row."""
    sums = cuda.shared.array(WARPS, types.float32, 16)
    wait_for_launch_before()
    at, gain = cuda.blockIdx.x * stride, ONE
    if NORM:
        gain = GAIN(source, at, epsilon, sums)
    for i in range(cuda.threadIdx.x, out_stride, WARPS * WARP):
        a = b = ZERO
        if 2 * i < COLUMNS:
            a = source[at + 2 * i] * gain * weight[2 * i] if NORM else source[at + 2 * i]
        if 2 * i + 1 < COLUMNS:
            b = source[at + 2 * i + 1] * gain * weight[2 * i + 1] if NORM else source[at + 2 * i + 1]
        out[cuda.blockIdx.x * out_stride + i] = pack_bf16(a, b)


def round_kernel(columns: int, *, norm: bool, warps: int = 4) -> Kernel:
    """The kernel for rows of so many columns."""
    gain = device(rms_gain, WARPS=warps, COLUMNS=columns)
    return round_rows.bind(WARPS=warps, COLUMNS=columns, NORM=int(norm), GAIN=gain)


@kernel(FLOATS, INT, FLOATS, INTS, FLOATS, INT)
def combine(parts, stride, shares, place, out, out_stride):  # type: ignore[no-untyped-def]
    """out[token] += Σ over k of shares[token, k] · parts[place[token, k]]; a grid of (parts of a row, tokens)."""
    wait_for_launch_before()
    column, token = cuda.blockIdx.x * WARPS * WARP + cuda.threadIdx.x, cuda.blockIdx.y
    if column < COLUMNS:
        total = ZERO
        for k in range(TOP):
            total += shares[token * TOP + k] * parts[place[token * TOP + k] * stride + column]
        out[token * out_stride + column] += total


def combine_kernel(columns: int, top: int, warps: int = 4) -> Kernel:
    return combine.bind(WARPS=warps, COLUMNS=columns, TOP=top)


# ---- tokens sorted by expert ----------------------------------------------------------------------------------------


@kernel(INTS, INT, INTS, INTS, INTS, INTS)
def group(ids, pairs, order, place, tiles, tile_count):  # type: ignore[no-untyped-def]
    """Sorts pairs of token and chosen expert by expert, in any order within an expert; one block.

    order[i] is the token of the i-th pair, place[p] where pair p went. tiles [.., 3] are (expert, first, pairs) of tiles of at
    most TOKENS, tile_count [1] how many.
    """
    counts = cuda.shared.array(EXPERTS, types.int32, 16)
    places = cuda.shared.array(EXPERTS, types.int32, 16)  # where an expert's next pair goes
    wait_for_launch_before()
    thread = cuda.threadIdx.x
    for expert in range(thread, EXPERTS, WARPS * WARP):
        counts[expert] = 0
    cuda.syncthreads()
    for p in range(thread, pairs, WARPS * WARP):
        cuda.atomic.add(counts, ids[p], 1)
    cuda.syncthreads()
    for expert in range(thread, EXPERTS, WARPS * WARP):
        start, tile = np.int32(0), np.int32(0)
        for before in range(expert):
            start += counts[before]
            tile += (counts[before] + TOKENS - 1) // TOKENS
        places[expert] = start
        own = (counts[expert] + TOKENS - 1) // TOKENS
        for i in range(own):
            at = 3 * (tile + i)
            tiles[at] = expert
            tiles[at + 1] = start + i * TOKENS
            tiles[at + 2] = min(counts[expert] - i * TOKENS, TOKENS)
        if expert == EXPERTS - 1:
            tile_count[0] = tile + own
    cuda.syncthreads()
    for p in range(thread, pairs, WARPS * WARP):
        at = cuda.atomic.add(places, ids[p], 1)
        order[at] = p // TOP
        place[p] = at


def group_kernel(experts: int, top: int, tokens: int, warps: int = 4) -> Kernel:
    """The kernel for so many experts, `top` of them for each token, and tiles of `tokens`."""
    return group.bind(WARPS=warps, EXPERTS=experts, TOP=top, TOKENS=tokens)


def most_tiles(pairs: int, experts: int, tokens: int) -> int:
    """The most tiles that `group` can make."""
    return min(pairs, pairs // tokens + experts)
