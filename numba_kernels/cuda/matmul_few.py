"""Matrix × few tokens on the tensor cores: batches of sequences that generate together.

What takes time is reading the matrix, so there have to be blocks for all multiprocessors, even where it has few rows: a block has
32 rows, and its warps share the columns. Every warp reads its tokens' values from the caches itself; at the end the warps' sums
meet in shared memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.activations import gelu
from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.fragments import decoders
from numba_kernels.cuda.intrinsics import pack_bf16, prefetch_span, wait_for_launch_before
from numba_kernels.cuda.seam import BYTES, FLOAT, FLOATS, HALVES, INT, INTS, WARP, WORDS, Kernel, cuda, device, kernel, types
from numba_kernels.cuda.tiles import anew, multiply_far, store_part, zero_tile
from numba_kernels.cuda.token_tiles import ADD, COUNT, FIRST, GELU, MATRIX, ROW_STRIDE, SILU, SWIGLU, gate, take_tile

WARPS = 8
FORMAT = ""  # in the kernel's name
COLUMNS = CHUNKS = WORDS_PER_ROW = SCALES_PER_ROW = 0
TOKENS, ROWS = 32, 32  # of a block
UNITS = SIZES = RESIDENT = 1
UNIT_WORDS = THREAD_WORDS = GROUP_WORDS = 4
X_SIZE = NUMBERS = 0
FINISH = GROUPED = INDEXED = BIAS = 0
ZERO = np.float32(0)
SCALES: Any = None
SCALE: Any = None
FACTOR: Any = None
FETCH: Any = None
DECODE_0: Any = None
DECODE_1: Any = None
DECODE_2: Any = None
DECODE_LAST: Any = None
ZEROS: Any = None
STORE: Any = None
WRITE: Any = None
GATE: Any = None
TAKE: Any = None
WHOLE: Any = None
HALF: Any = None
QUARTER: Any = None


def sweep(codes, scales, bias, x, x_stride, starts, held, rows, limit, alpha, out, out_words, out_stride):  # type: ignore[no-untyped-def]
    """The work of a block on at most TOKENS tokens."""
    thread = cuda.threadIdx.x
    warp, g, t = thread // WARP, thread % WARP // 4, thread % 4
    row, last = cuda.blockIdx.y * ROWS + 4 * g, rows - 1
    codes_at, scales_at = starts[MATRIX] * rows * WORDS_PER_ROW, starts[MATRIX] * rows * SCALES_PER_ROW
    row_0, row_1, row_2, row_3 = min(row, last), min(row + 1, last), min(row + 2, last), min(row + 3, last)
    words_0, words_1 = np.int32(row_0 * WORDS_PER_ROW), np.int32(row_1 * WORDS_PER_ROW)
    words_2, words_3 = np.int32(row_2 * WORDS_PER_ROW), np.int32(row_3 * WORDS_PER_ROW)
    scales_0, scales_1 = np.int32(row_0 * SCALES_PER_ROW), np.int32(row_1 * SCALES_PER_ROW)
    scales_2, scales_3 = np.int32(row_2 * SCALES_PER_ROW), np.int32(row_3 * SCALES_PER_ROW)
    c = min(4 * warp + t, CHUNKS - 1)
    a, b = FETCH(codes, codes_at, words_0, c), FETCH(codes, codes_at, words_1, c)
    d, e = FETCH(codes, codes_at, words_2, c), FETCH(codes, codes_at, words_3, c)
    h, i = SCALE(scales, scales_at, scales_0, c), SCALE(scales, scales_at, scales_1, c)
    j, k = SCALE(scales, scales_at, scales_2, c), SCALE(scales, scales_at, scales_3, c)
    sums = ZEROS()
    for four in range(warp, (CHUNKS + 3) // 4, WARPS):
        word = 16 * UNITS * four + THREAD_WORDS * t  # of the tokens' values that the chunk meets
        c = min(4 * (four + WARPS) + t, CHUNKS - 1)  # asked for before the present ones are worked on
        next_a, next_b = FETCH(codes, codes_at, words_0, c), FETCH(codes, codes_at, words_1, c)
        next_d, next_e = FETCH(codes, codes_at, words_2, c), FETCH(codes, codes_at, words_3, c)
        p, q, r, s = FACTOR(h), FACTOR(i), FACTOR(j), FACTOR(k)
        h, i = SCALE(scales, scales_at, scales_0, c), SCALE(scales, scales_at, scales_1, c)
        j, k = SCALE(scales, scales_at, scales_2, c), SCALE(scales, scales_at, scales_3, c)
        if UNITS > 1:
            u, v, w, z = DECODE_0(a, p), DECODE_0(b, q), DECODE_0(d, r), DECODE_0(e, s)
            sums = multiply_far(u, v, w, z, x, starts, 3 + g, word, word < x_stride, sums)
        if UNITS > 2:
            u, v, w, z = DECODE_1(a, p), DECODE_1(b, q), DECODE_1(d, r), DECODE_1(e, s)
            sums = multiply_far(u, v, w, z, x, starts, 3 + g, word + UNIT_WORDS, word + UNIT_WORDS < x_stride, sums)
            u, v, w, z = DECODE_2(a, p), DECODE_2(b, q), DECODE_2(d, r), DECODE_2(e, s)
            sums = multiply_far(u, v, w, z, x, starts, 3 + g, word + 2 * UNIT_WORDS, word + 2 * UNIT_WORDS < x_stride, sums)
        u, v, w, z = DECODE_LAST(a, p), DECODE_LAST(b, q), DECODE_LAST(d, r), DECODE_LAST(e, s)
        word += UNIT_WORDS * (UNITS - 1)
        sums = multiply_far(u, v, w, z, x, starts, 3 + g, word, word < x_stride, sums)
        a, b, d, e = next_a, next_b, next_d, next_e
    thread = anew(cuda.threadIdx.x)
    g, t = thread % WARP // 4, thread % 4
    STORE(sums, held, thread // WARP * TOKENS * ROW_STRIDE + 2 * t * ROW_STRIDE + 4 * g, ROW_STRIDE)
    cuda.syncthreads()
    WRITE(held, bias, starts, rows, limit, alpha, out, out_words, out_stride)


@device
def total(held: Any, at: Any, size: Any, warps: Any) -> Any:
    """Of the warps' sums."""
    value = ZERO
    for warp in range(warps):
        value += held[at + warp * size]
    return value


def write_rows(held, bias, starts, rows, limit, alpha, out, out_words, out_stride):  # type: ignore[no-untyped-def]
    """A row of a token for each thread."""
    first, block = starts[FIRST], cuda.blockIdx.y * ROWS
    for place in range(cuda.threadIdx.x, starts[COUNT] * ROWS, WARPS * WARP):
        token, row = place // ROWS, block + place % ROWS
        if row < rows:
            value = total(held, token * ROW_STRIDE + place % ROWS, TOKENS * ROW_STRIDE, WARPS)
            if BIAS:
                value += bias[starts[MATRIX] * rows + row]
            at = (first + token) * out_stride + row
            if FINISH == GELU:
                value = gelu(value)
            if FINISH == ADD:
                value += out[at]
            out[at] = value


def write_gated(held, bias, starts, rows, limit, alpha, out, out_words, out_stride):  # type: ignore[no-untyped-def]
    """Likewise two pairs of gate and up, whose results make a word."""
    first, block, bias_at = starts[FIRST], cuda.blockIdx.y * ROWS, starts[MATRIX] * rows
    for place in range(cuda.threadIdx.x, starts[COUNT] * (ROWS // 4), WARPS * WARP):
        token, row = place // (ROWS // 4), block + 4 * (place % (ROWS // 4))
        if row < rows:
            at, size = token * ROW_STRIDE + row - block, TOKENS * ROW_STRIDE
            value, up = total(held, at, size, WARPS), total(held, at + 1, size, WARPS)
            value, other = GATE(value, up, bias, bias_at + row, limit, alpha), ZERO
            if row + 2 < rows:
                next_value, up = total(held, at + 2, size, WARPS), total(held, at + 3, size, WARPS)
                other = GATE(next_value, up, bias, bias_at + row + 2, limit, alpha)
            out_words[(first + token) * out_stride + row // 4] = pack_bf16(value, other)


@kernel(WORDS, "SCALES", FLOATS, WORDS, INT, INTS, INTS, INTS, INT, INT, FLOAT, FLOAT, FLOATS, WORDS, INT)
def matmul_few(  # type: ignore[no-untyped-def]
    codes, scales, bias, x, x_stride, index, tiles, tile_count, total, rows, limit, alpha, out, out_words, out_stride
):
    """What `matmul` computes, with the same arguments: another division of the work."""
    held = cuda.shared.array(X_SIZE, types.float32, 16)
    starts = cuda.shared.array(NUMBERS, types.int32, 16)
    block = cuda.blockIdx.y * ROWS
    span = np.uint32(4 * WORDS_PER_ROW * min(ROWS, rows - block))
    if not GROUPED and cuda.threadIdx.x == 0:
        prefetch_span(codes, block * WORDS_PER_ROW, span)
    wait_for_launch_before()
    count = TAKE(x_stride, index, tiles, tile_count, total, starts)
    if count > 0:
        if GROUPED and cuda.threadIdx.x == 0:
            prefetch_span(codes, (starts[MATRIX] * rows + block) * WORDS_PER_ROW, span)
        if SIZES > 2 and count <= TOKENS // 4:
            QUARTER(codes, scales, bias, x, x_stride, starts, held, rows, limit, alpha, out, out_words, out_stride)
        elif SIZES > 1 and count <= TOKENS // 2:
            HALF(codes, scales, bias, x, x_stride, starts, held, rows, limit, alpha, out, out_words, out_stride)
        else:
            WHOLE(codes, scales, bias, x, x_stride, starts, held, rows, limit, alpha, out, out_words, out_stride)


def _sweep(shape: Shape, tokens: int, warps: int, finish: int, bias: bool) -> Any:
    """`sweep` for at most so many tokens."""
    numbers = {"WARPS": warps, "TOKENS": tokens, "ROWS": ROWS, "BIAS": int(bias), "FINISH": finish}
    write = write_gated if finish in (SILU, SWIGLU) else write_rows
    return device(
        sweep, FORMAT=shape.format, COLUMNS=shape.columns, **numbers, **decoders(shape), ZEROS=zero_tile(tokens),
        WRITE=device(write, **numbers, GATE=device(gate, BIAS=int(bias), FINISH=finish)), STORE=store_part(0, tokens // 8),
    )  # fmt: skip


def matmul_few_kernel(
    shape: Shape, *, finish: int, bias: bool, tokens: int = 32, grouped: bool = False, indexed: bool = False, warps: int = 8
) -> Kernel:
    """The kernel for rows of this shape and tiles of `tokens` (8, 16 or 32). The shape's activations do not matter."""
    sizes = int(math.log2(tokens // 8)) + 1
    ways = [_sweep(shape, max(tokens >> i, 8), warps, finish, bias) for i in range(3)]
    return matmul_few.bind(
        FORMAT=shape.format, COLUMNS=shape.columns, WARPS=warps, TOKENS=tokens, INDEXED=int(indexed), GROUPED=int(grouped),
        FINISH=finish, BIAS=int(bias), ROWS=ROWS, X_SIZE=warps * tokens * ROW_STRIDE, NUMBERS=tokens + 3,
        SCALES=BYTES if shape.layout.scale == "e8m0" else HALVES, SIZES=sizes, RESIDENT=max(16 // warps, 1),
        WORDS_PER_ROW=shape.layout.row_words(shape.columns),
        TAKE=device(take_tile, WARPS=warps, TOKENS=tokens, INDEXED=int(indexed), GROUPED=int(grouped)),
        WHOLE=ways[0], HALF=ways[1], QUARTER=ways[2],
    )  # fmt: skip
