"""Norms of heads, and rotations other than of whole heads by halves: done to queries and keys before they are stored and met."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.intrinsics import let_next_begin, wait_for_launch_before, warp_barrier, warp_sum
from numba_kernels.cuda.seam import FLOAT, FLOATS, INT, INTS, WARP, Kernel, cuda, kernel

WARPS = 4
HEADS = QUERIES = 1  # all, and those of them that come first
SIZE = 2
NORM_QUERIES = NORM_KEYS = 0
PAIRS = INTERLEAVED = 0
ONE = np.float32(1)


@kernel(FLOATS, INT, FLOATS, FLOAT, FLOATS, FLOATS, INTS)
def turn_heads(x, stride, weights, epsilon, cos, sin, positions):  # type: ignore[no-untyped-def]
    """HEADS · SIZE values of x [tokens, stride] in place: each head normalized by its root mean square and a weight, then
    the first 2 · PAIRS of its values rotated; a warp has a head. A grid of (parts of the heads, tokens).

    weights are [SIZE] for queries, if they are normed, and [SIZE] for keys, if those are. cos, sin [context, PAIRS]; pairs are
    values t and t + PAIRS, or 2t and 2t + 1 (INTERLEAVED).
    """
    lane, head = cuda.threadIdx.x % WARP, cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP
    if head >= HEADS:
        return
    wait_for_launch_before()
    let_next_begin()
    token = cuda.blockIdx.y
    at = token * stride + head * SIZE
    if NORM_QUERIES or NORM_KEYS:
        total = np.float32(0)
        for i in range(lane, SIZE, WARP):
            total += x[at + i] * x[at + i]
        gain = ONE / np.float32(math.sqrt(warp_sum(total) / np.float32(SIZE) + epsilon))
        warp_barrier()
        first: Any = 0 if head < QUERIES else SIZE * NORM_QUERIES
        if (NORM_QUERIES and NORM_KEYS) or (head < QUERIES) == (NORM_QUERIES == 1):
            for i in range(lane, SIZE, WARP):
                x[at + i] = x[at + i] * gain * weights[first + i]
        warp_barrier()
    if PAIRS:
        angle = np.int64(positions[token]) * PAIRS
        for t in range(lane, PAIRS, WARP):
            low = at + 2 * t if INTERLEAVED else at + t
            high = low + 1 if INTERLEAVED else low + PAIRS
            a, b, c, s = x[low], x[high], cos[angle + t], sin[angle + t]
            x[low] = a * c - b * s
            x[high] = b * c + a * s


def turn_heads_kernel(
    queries: int, keys: int, size: int, *, norms: tuple[bool, bool], pairs: int, interleaved: bool, warps: int = 4
) -> Kernel:
    """The kernel for heads of so many values; norms: of queries, of keys."""
    numbers: dict[str, Any] = {"HEADS": queries + keys, "QUERIES": queries, "SIZE": size}
    numbers |= {"NORM_QUERIES": int(norms[0]), "NORM_KEYS": int(norms[1])}
    return turn_heads.bind(WARPS=warps, **numbers, PAIRS=pairs, INTERLEAVED=int(interleaved))
