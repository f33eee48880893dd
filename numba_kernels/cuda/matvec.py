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
from numba_kernels.cuda.activations import gelu, silu
from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.intrinsics import early_scale, early_words, prefetch, prefetch_span, stream_words, warp_sum
from numba_kernels.cuda.seam import BYTES, FLOAT, FLOATS, HALVES, INT, WARP, WORDS, Kernel, cuda, device, kernel, types

WARPS = 8
FORMAT = KIND = ""  # in the kernel's name
COLUMNS = LAST = STEPS = WORDS_PER_ROW = SCALES_PER_ROW = SCALE_SHIFT = 0
UNROLL = 1
X_SIZE = S_SIZE = 1
X_TYPE: Any = None
SCALES: Any = None
SCALE: Any = None
DOT: Any = None
FILL: Any = None
PREPARE: Any = None
ASK_FOR_ROWS: Any = None
ASK_FOR_TWO: Any = None
READ: Any = None
CHUNKS_OF: Any = None
MORE_CHUNKS: Any = None
MEET: Any = None
PAIR: Any = None
NO_SCALE = np.uint16(0)
NORM = BIAS = ALIGNED = 0
RESIDENT = 3  # blocks of a multiprocessor
SCALED = 0  # whether rows have scales
AHEAD = 16384  # bytes of its first rows that a warp asks for at most, if it has no others
AHEAD_OF_MANY = 4096  # and if it has
STORE, ADD, SILU, GELU = 0, 1, 2, 4
FINISH = STORE
ONE = np.float32(1)


def chunks_of(codes, scales, row, step):  # type: ignore[no-untyped-def]
    """A thread's UNROLL chunks of a row from a step on, and their scales, so that all loads are under way together. Beyond a
    row's last chunk the vectors are zero, and the last chunk is read again."""
    p, words, first = step * WARP + cuda.threadIdx.x % WARP, row * WORDS_PER_ROW, row * SCALES_PER_ROW
    c0, c1, c2, c3 = min(p, LAST), min(p + WARP, LAST), min(p + 2 * WARP, LAST), min(p + 3 * WARP, LAST)
    a = READ(codes, words + 4 * c0)
    b, c, d = a, a, a
    if UNROLL > 1:
        b = READ(codes, words + 4 * c1)
    if UNROLL > 2:
        c = READ(codes, words + 4 * c2)
    if UNROLL > 3:
        d = READ(codes, words + 4 * c3)
    s = SCALE(scales, first, c0)
    t, u, v = s, s, s
    if UNROLL > 1:
        t = SCALE(scales, first, c1)
    if UNROLL > 2:
        u = SCALE(scales, first, c2)
    if UNROLL > 3:
        v = SCALE(scales, first, c3)
    return (a, b, c, d), (s, t, u, v)


def meet(a, b, x_row, x_other, step, x, x_scales):  # type: ignore[no-untyped-def]
    """The products of two rows' chunks with the vectors that begin at quads x_row and x_other."""
    p = step * WARP + cuda.threadIdx.x % WARP
    m, n = DOT(a[0][0], a[1][0], x_row + p, x, x_scales), DOT(b[0][0], b[1][0], x_other + p, x, x_scales)
    if UNROLL > 1:
        p += WARP
        m += DOT(a[0][1], a[1][1], x_row + p, x, x_scales)
        n += DOT(b[0][1], b[1][1], x_other + p, x, x_scales)
    if UNROLL > 2:
        p += WARP
        m += DOT(a[0][2], a[1][2], x_row + p, x, x_scales)
        n += DOT(b[0][2], b[1][2], x_other + p, x, x_scales)
    if UNROLL > 3:
        p += WARP
        m += DOT(a[0][3], a[1][3], x_row + p, x, x_scales)
        n += DOT(b[0][3], b[1][3], x_other + p, x, x_scales)
    return m, n


def pair_sums(codes, scales, row, other, a, b, x_row, x_other, x, x_scales):  # type: ignore[no-untyped-def]
    """A thread's part of the products of two rows with two vectors; a and b are the rows' first chunks."""
    m, n = MEET(a, b, x_row, x_other, 0, x, x_scales)
    for step in range(UNROLL, STEPS, UNROLL):
        more, others = MEET(
            MORE_CHUNKS(codes, scales, row, step), MORE_CHUNKS(codes, scales, other, step), x_row, x_other, step, x, x_scales
        )
        m += more
        n += others
    return m, n


def ask_for_rows(codes, scales, row, count, most, lane):  # type: ignore[no-untyped-def]
    """Has `count` rows from one on, `most` bytes of their codes and 8 lines of their scales, brought into the second cache; by a
    warp."""
    if lane == 0:
        prefetch_span(codes, row * WORDS_PER_ROW, np.uint32(min(4 * count * WORDS_PER_ROW, most)))
    elif SCALED and lane <= 8:
        prefetch(scales, row * SCALES_PER_ROW + (lane - 1) * (count * SCALES_PER_ROW - 1) // 7)


def ask_for_two(codes, row, other, lane):  # type: ignore[no-untyped-def]
    """Has the first 16 lines of two rows' codes brought into the second cache; by a warp."""
    which = row if lane < WARP // 2 else other
    prefetch(codes, which * WORDS_PER_ROW + min(32 * (lane % (WARP // 2)), WORDS_PER_ROW - 1))


def scale_of_chunk(scales, first, c):  # type: ignore[no-untyped-def]
    return early_scale(scales, first + (c >> SCALE_SHIFT))


def no_scale(scales, first, c):  # type: ignore[no-untyped-def]
    return NO_SCALE


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
    row, other = min(2 * pair, rows - 1), min(2 * pair + 1, rows - 1)
    a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, other, 0)
    gain = PREPARE(source, 0, weight, epsilon, x, x_scales, sums)
    while pair < pairs:
        first = second = np.float32(0)
        if BIAS:
            first += bias[row]
            second += bias[other]
        if FINISH == ADD:
            first += out[row]
            second += out[other]
        a, b = PAIR(codes, scales, row, other, a_first, b_first, 0, 0, x, x_scales)
        pair += cuda.gridDim.x * WARPS
        a, b = warp_sum(a) * gain + first, warp_sum(b) * gain + second
        if lane == 0:
            if FINISH == SILU:
                out[row // 2] = silu(a, b)
            else:
                out[row] = gelu(a) if FINISH == GELU else a
                if other > row:
                    out[other] = gelu(b) if FINISH == GELU else b
        row, other = 2 * pair, min(2 * pair + 1, rows - 1)
        if pair < pairs:
            a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, other, 0)


def row_constants(shape: Shape, norm: bool, warps: int, vectors_held: int = 1, *, aligned: bool = True) -> dict[str, Any]:
    """What kernels need that multiply rows of this shape: PAIR, ASK_FOR_ROWS, and all of `vectors.constants`."""
    layout = shape.layout
    per_scale = layout.group or shape.columns
    shift = 62 if not layout.group else 0 if layout.is_float else int(math.log2(per_scale // layout.per_chunk))
    scale = device(no_scale) if layout.is_float else device(scale_of_chunk, SCALE_SHIFT=shift)
    rows = {**shape.constants(), "SCALE": scale}
    dot, chunks = rows.pop("DOT"), rows.pop("CHUNKS")
    asked = {name: rows[name] for name in ("WORDS_PER_ROW", "SCALES_PER_ROW")}
    first, more = (device(chunks_of, **rows, LAST=chunks - 1, READ=read) for read in (early_words, stream_words))
    sums = {"STEPS": rows["STEPS"], "UNROLL": rows["UNROLL"], "MORE_CHUNKS": more}
    return {
        **vectors.constants(shape, norm, warps, vectors_held, aligned=aligned),
        "WARPS": warps,
        "RESIDENT": 2
        if shape.unroll == 4 or (shape.quantized and (layout.bits == 8 or (norm and shape.format != "mxfp4")))
        else 3,
        "SCALES": BYTES if layout.scale == "e8m0" else HALVES,
        "CHUNKS_OF": first,
        "PAIR": device(pair_sums, **sums, MEET=device(meet, UNROLL=rows["UNROLL"], DOT=dot)),
        "ASK_FOR_TWO": device(ask_for_two, WORDS_PER_ROW=rows["WORDS_PER_ROW"]),
        "ASK_FOR_ROWS": device(ask_for_rows, **asked, SCALED=int(not layout.is_float)),
    }


def matvec_kernel(shape: Shape, *, norm: bool, bias: bool, finish: int, warps: int = 8, aligned: bool = True) -> Kernel:
    """The kernel for rows of this shape; aligned: whether the vector begins at a multiple of four values."""
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns}
    rows = row_constants(shape, norm, warps, aligned=aligned)
    return matvec.bind(**names, NORM=int(norm), BIAS=int(bias), FINISH=finish, **rows)
