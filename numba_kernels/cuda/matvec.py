"""Matrix × vector, at the speed of the memory that the matrix lies in: every byte of it is read once, 16 at a time.

A warp takes two rows at a time; blocks stay and go on to further rows. The first are asked for, into the second cache, while the
launch before still runs. Every block puts the vector into shared memory, quantized, for itself; the factor that normalizes it
meets the sums.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda import vectors
from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.intrinsics import (
    prefetch,
    prefetch_span,
    stream_words,
    warp_sum,
)
from numba_kernels.cuda.seam import BYTES, FLOAT, FLOATS, HALVES, INT, WARP, WORDS, Kernel, cuda, device, kernel, types

WARPS = 8
FORMAT = KIND = ""  # in the kernel's name
COLUMNS = CHUNKS = STEPS = WORDS_PER_ROW = SCALES_PER_ROW = SCALE_SHIFT = 0
UNROLL = 1
X_SIZE = S_SIZE = 1
X_TYPE: Any = None
SCALES: Any = None
SCALE: Any = None
DOT: Any = None
FILL: Any = None
PREPARE: Any = None
ASK_FOR_ROWS: Any = None
PAIR: Any = None
NORM = BIAS = ALIGNED = 0
RESIDENT = 3  # blocks of a multiprocessor
SCALED = 0  # whether rows have scales
AHEAD = 16384  # bytes of its first rows that a warp asks for at most, if it has no others
AHEAD_OF_MANY = 4096  # and if it has
STORE, ADD, SILU, GELU = 0, 1, 2, 4
FINISH = STORE
ONE = np.float32(1)
GELU_FACTOR, GELU_CUBE = np.float32(2 * math.sqrt(2 / math.pi)), np.float32(0.044715)
MOST_EXPONENT = np.float32(80)


def pair_sums(codes, scales, row, other, x_row, x_other, x, x_scales):  # type: ignore[no-untyped-def]
    """The products of two rows with the vectors that begin at quads x_row and x_other, in every thread of the warp. Beyond a
    row's last chunk the vectors are zero, and the last chunk is read again."""
    lane = cuda.threadIdx.x % WARP
    a_words, b_words = row * WORDS_PER_ROW, other * WORDS_PER_ROW
    a_scales, b_scales = row * SCALES_PER_ROW, other * SCALES_PER_ROW
    a = b = np.float32(0)
    for step in range(0, STEPS, UNROLL):  # all loads first, so that they are under way together
        p0 = step * WARP + lane
        c0 = min(p0, CHUNKS - 1)
        a0, b0 = stream_words(codes, a_words + 4 * c0), stream_words(codes, b_words + 4 * c0)
        if UNROLL > 1:
            p1 = p0 + WARP
            c1 = min(p1, CHUNKS - 1)
            a1, b1 = stream_words(codes, a_words + 4 * c1), stream_words(codes, b_words + 4 * c1)
        if UNROLL > 2:
            p2 = p0 + 2 * WARP
            c2 = min(p2, CHUNKS - 1)
            a2, b2 = stream_words(codes, a_words + 4 * c2), stream_words(codes, b_words + 4 * c2)
        if UNROLL > 3:
            p3 = p0 + 3 * WARP
            c3 = min(p3, CHUNKS - 1)
            a3, b3 = stream_words(codes, a_words + 4 * c3), stream_words(codes, b_words + 4 * c3)
        a += DOT(a0, SCALE(scales, a_scales, c0), x_row + p0, x, x_scales)
        b += DOT(b0, SCALE(scales, b_scales, c0), x_other + p0, x, x_scales)
        if UNROLL > 1:
            a += DOT(a1, SCALE(scales, a_scales, c1), x_row + p1, x, x_scales)
            b += DOT(b1, SCALE(scales, b_scales, c1), x_other + p1, x, x_scales)
        if UNROLL > 2:
            a += DOT(a2, SCALE(scales, a_scales, c2), x_row + p2, x, x_scales)
            b += DOT(b2, SCALE(scales, b_scales, c2), x_other + p2, x, x_scales)
        if UNROLL > 3:
            a += DOT(a3, SCALE(scales, a_scales, c3), x_row + p3, x, x_scales)
            b += DOT(b3, SCALE(scales, b_scales, c3), x_other + p3, x, x_scales)
    return warp_sum(a), warp_sum(b)


def ask_for_rows(codes, scales, row, count, most, lane):  # type: ignore[no-untyped-def]
    """Has `count` rows from one on, `most` bytes of their codes and 8 lines of their scales, brought into the second cache; by a
    warp."""
    if lane == 0:
        prefetch_span(codes, row * WORDS_PER_ROW, np.uint32(min(4 * count * WORDS_PER_ROW, most)))
    elif SCALED and lane <= 8:
        prefetch(scales, row * SCALES_PER_ROW + (lane - 1) * (count * SCALES_PER_ROW - 1) // 7)


def scale_of_chunk(scales, first, c):  # type: ignore[no-untyped-def]
    return scales[first + (c >> SCALE_SHIFT)]


def no_scale(scales, first, c):  # type: ignore[no-untyped-def]
    return scales[0]


@device
def silu(gate: Any, up: Any) -> Any:
    """gate · σ(gate) · up."""
    return gate / (ONE + math.exp(-gate)) * up


@device
def gelu(x: Any) -> Any:
    """x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), where (1 + tanh z) / 2 is σ(2 z)."""
    return x / (ONE + np.float32(math.exp(min(-GELU_FACTOR * (x + GELU_CUBE * x * x * x), MOST_EXPONENT))))


@kernel(WORDS, "SCALES", FLOATS, FLOATS, FLOATS, FLOAT, INT, FLOATS)
def matvec(codes, scales, bias, source, weight, epsilon, rows, out):  # type: ignore[no-untyped-def]
    """out[r] = row r · x + bias[r], its GELU, or added to out (ADD); with SILU rows alternate gate and up, and out is half as
    long.

    x is `source` [COLUMNS], with NORM normalized by its root mean square and `weight`.
    """
    x = cuda.shared.array(X_SIZE, X_TYPE, 16)
    x_scales = cuda.shared.array(S_SIZE, types.float32, 16)
    sums = cuda.shared.array(WARPS, types.float32, 16)
    lane, pair = cuda.threadIdx.x % WARP, cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP
    pairs = (rows + 1) // 2
    if pair < pairs:
        most = AHEAD if cuda.gridDim.x * WARPS >= pairs else AHEAD_OF_MANY
        ASK_FOR_ROWS(codes, scales, 2 * pair, min(rows - 2 * pair, 2), most, lane)
    gain = PREPARE(source, 0, weight, epsilon, x, x_scales, sums)
    while pair < pairs:
        row = 2 * pair
        other = min(row + 1, rows - 1)
        first = second = np.float32(0)
        if BIAS:
            first += bias[row]
            second += bias[other]
        if FINISH == ADD:
            first += out[row]
            second += out[other]
        a, b = PAIR(codes, scales, row, other, 0, 0, x, x_scales)
        a, b = a * gain + first, b * gain + second
        if lane == 0:
            if FINISH == SILU:
                out[pair] = silu(a, b)
            else:
                out[row] = gelu(a) if FINISH == GELU else a
                if other > row:
                    out[other] = gelu(b) if FINISH == GELU else b
        pair += cuda.gridDim.x * WARPS


def row_constants(shape: Shape, norm: bool, warps: int, vectors_held: int = 1, *, aligned: bool = True) -> dict[str, Any]:
    """What kernels need that multiply rows of this shape: PAIR, ASK_FOR_ROWS, and all of `vectors.constants`."""
    layout = shape.layout
    per_scale = layout.group or shape.columns
    shift = 62 if not layout.group else 0 if layout.is_float else int(math.log2(per_scale // layout.per_chunk))
    scale = device(no_scale) if layout.is_float else device(scale_of_chunk, SCALE_SHIFT=shift)
    rows = {**shape.constants(), "SCALE": scale}
    asked = {name: rows[name] for name in ("WORDS_PER_ROW", "SCALES_PER_ROW")}
    return {
        **vectors.constants(shape, norm, warps, vectors_held, aligned=aligned),
        "WARPS": warps,
        "RESIDENT": 2 if layout.bits == 8 or (shape.quantized and norm) else 3,
        "SCALES": BYTES if layout.scale == "e8m0" else HALVES,
        "PAIR": device(pair_sums, **rows),
        "ASK_FOR_ROWS": device(ask_for_rows, **asked, SCALED=int(not layout.is_float)),
    }


def matvec_kernel(shape: Shape, *, norm: bool, bias: bool, finish: int, warps: int = 8, aligned: bool = True) -> Kernel:
    """The kernel for rows of this shape; aligned: whether the vector begins at a multiple of four values."""
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns}
    rows = row_constants(shape, norm, warps, aligned=aligned)
    return matvec.bind(**names, NORM=int(norm), BIAS=int(bias), FINISH=finish, **rows)


__all__ = ["ADD", "GELU", "SILU", "STORE", "gelu", "matvec_kernel", "row_constants", "silu"]
