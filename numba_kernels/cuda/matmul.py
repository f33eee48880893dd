"""Matrix × many tokens on the tensor cores: weights are decoded to bfloat16 in registers, on their way to the instruction.

A block has ROWS rows of the matrix (32 for each warp) and TOKENS tokens. Which columns meet in a step of the matrix instruction
is free as long as both sides agree; so every thread takes 16 bytes of its rows as they lie, and asks shared memory for the
tokens' values of the same columns. Those come by asynchronous copies, SLAB columns at a time: while a warp works on one slab, the
next is on its way.

Tokens lie in rows of bfloat16, padded with zeros to 8 columns. Experts: tokens are sorted by expert, and tiles do not cross from
one to the next. A tile with fewer tokens takes a way through the kernel that does less.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.activations import gelu
from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.fragments import decoders
from numba_kernels.cuda.intrinsics import (
    bits_as_float,
    load_words,
    pack_bf16,
    prefetch,
    wait_for_launch_before,
    warp_barrier,
)
from numba_kernels.cuda.seam import BYTES, FLOAT, FLOATS, HALVES, INT, INTS, WARP, WORDS, Kernel, cuda, device, kernel, types
from numba_kernels.cuda.tiles import anew, commit_copies, copy_words, multiply_unit, store_part, wait_for_copies, zero_tile
from numba_kernels.cuda.token_tiles import ADD, COUNT, FIRST, GELU, MATRIX, ROW_STRIDE, SILU, STORE, SWIGLU, gate, take_tile

WARPS = 4
FORMAT = ""  # in the kernel's name
COLUMNS = CHUNKS = WORDS_PER_ROW = SCALES_PER_ROW = 0
TOKENS, ROWS = 64, 128  # of a block
SLAB = 128  # columns that are in shared memory at once
PLACES = 16  # of 8 columns in a slab
SLABS = FOURS = UNITS = 1  # slabs of a row; groups of four chunks in a slab; places that a chunk fills
UNIT_WORDS = THREAD_WORDS = GROUP_WORDS = 4
AHEAD = 3  # groups of chunks that are brought into the second cache beforehand
STRIDE = 80  # words from a token to the next in shared memory: neighbours are in different banks
BUFFER = X_SIZE = NUMBERS = 0
PART = 32  # tokens whose sums are in shared memory at once
RESIDENT = 3  # blocks that share a multiprocessor
SIZES = 3  # ways through the kernel
FINISH = STORE
GROUPED = INDEXED = BIAS = 0
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
MULTIPLY: Any = None
FILL: Any = None
STORE_FIRST: Any = None
STORE_SECOND: Any = None
WRITE: Any = None
GATE: Any = None
TAKE: Any = None
WHOLE: Any = None
HALF: Any = None
QUARTER: Any = None


# ---- the kernel -----------------------------------------------------------------------------------------------------


def fill_slab(x, x_stride, starts, slab, held):  # type: ignore[no-untyped-def]
    """Asks for SLAB columns of the tokens: copies that go on beside the work. Columns beyond the last become zero; tokens
    beyond the last are left as they are, as no other's sums depend on them.

    In shared memory, unit u of chunk t of four chunks is at place 4u + t: a warp reads, and writes, different banks.
    """
    thread = anew(cuda.threadIdx.x)
    place = thread % PLACES
    four, unit, t = place // 4 // UNITS, place // 4 % UNITS, place % 4
    word = slab * (SLAB // 2) + four * UNITS * 16 + t * THREAD_WORDS + unit * UNIT_WORDS
    at = slab % 2 * BUFFER + 4 * place
    for token in range(thread // PLACES, min(starts[COUNT], TOKENS), WARPS * WARP // PLACES):
        copy_words(held, at + token * STRIDE, x, starts[3 + token] + word, word < x_stride)
    commit_copies()


def sweep(  # type: ignore[no-untyped-def]
    codes, scales, bias, x, x_stride, starts, held, rows, limit, alpha, out, out_words, out_stride
):
    """The work of a block on at most TOKENS tokens."""
    lane, warp = cuda.threadIdx.x % WARP, cuda.threadIdx.x // WARP
    g, t = lane // 4, lane % 4
    base = cuda.blockIdx.y * ROWS + 32 * warp
    row, last = base + 4 * g, rows - 1
    codes_at, scales_at = starts[MATRIX] * rows * WORDS_PER_ROW, starts[MATRIX] * rows * SCALES_PER_ROW
    row_0, row_1, row_2, row_3 = min(row, last), min(row + 1, last), min(row + 2, last), min(row + 3, last)
    words_0, words_1 = np.int32(row_0 * WORDS_PER_ROW), np.int32(row_1 * WORDS_PER_ROW)
    words_2, words_3 = np.int32(row_2 * WORDS_PER_ROW), np.int32(row_3 * WORDS_PER_ROW)
    scales_0, scales_1 = np.int32(row_0 * SCALES_PER_ROW), np.int32(row_1 * SCALES_PER_ROW)
    scales_2, scales_3 = np.int32(row_2 * SCALES_PER_ROW), np.int32(row_3 * SCALES_PER_ROW)
    c = min(t, CHUNKS - 1)
    a, b = FETCH(codes, codes_at, words_0, c), FETCH(codes, codes_at, words_1, c)
    d, e = FETCH(codes, codes_at, words_2, c), FETCH(codes, codes_at, words_3, c)
    h, i = SCALE(scales, scales_at, scales_0, c), SCALE(scales, scales_at, scales_1, c)
    j, k = SCALE(scales, scales_at, scales_2, c), SCALE(scales, scales_at, scales_3, c)
    sums = ZEROS()
    FILL(x, x_stride, starts, 0, held)
    for slab in range(SLABS):
        wait_for_copies()
        cuda.syncthreads()  # all see the slab, and are done with the one before
        if slab + 1 < SLABS:
            FILL(x, x_stride, starts, slab + 1, held)
        if base < rows:
            for four in range(slab * FOURS, min(slab * FOURS + FOURS, (CHUNKS + 3) // 4)):
                at = slab % 2 * BUFFER + g * STRIDE + (four - slab * FOURS) * UNITS * 16 + 4 * t
                c = min(4 * four + 4 + t, CHUNKS - 1)  # asked for before the present ones are worked on
                next_a, next_b = FETCH(codes, codes_at, words_0, c), FETCH(codes, codes_at, words_1, c)
                next_d, next_e = FETCH(codes, codes_at, words_2, c), FETCH(codes, codes_at, words_3, c)
                later = min(GROUP_WORDS * (four + AHEAD), WORDS_PER_ROW - 4)
                prefetch(codes, codes_at + np.int64(np.int32(words_0 + later)))
                prefetch(codes, codes_at + np.int64(np.int32(words_1 + later)))
                prefetch(codes, codes_at + np.int64(np.int32(words_2 + later)))
                prefetch(codes, codes_at + np.int64(np.int32(words_3 + later)))
                p, q, r, s = FACTOR(h), FACTOR(i), FACTOR(j), FACTOR(k)
                h, i = SCALE(scales, scales_at, scales_0, c), SCALE(scales, scales_at, scales_1, c)
                j, k = SCALE(scales, scales_at, scales_2, c), SCALE(scales, scales_at, scales_3, c)
                if UNITS > 1:
                    sums = MULTIPLY(DECODE_0(a, p), DECODE_0(b, q), DECODE_0(d, r), DECODE_0(e, s), held, at, sums)
                if UNITS > 2:
                    sums = MULTIPLY(DECODE_1(a, p), DECODE_1(b, q), DECODE_1(d, r), DECODE_1(e, s), held, at + 16, sums)
                    sums = MULTIPLY(DECODE_2(a, p), DECODE_2(b, q), DECODE_2(d, r), DECODE_2(e, s), held, at + 32, sums)
                u, v, w, z = DECODE_LAST(a, p), DECODE_LAST(b, q), DECODE_LAST(d, r), DECODE_LAST(e, s)
                sums = MULTIPLY(u, v, w, z, held, at + 16 * (UNITS - 1), sums)
                a, b, d, e = next_a, next_b, next_d, next_e
    cuda.syncthreads()
    thread = anew(cuda.threadIdx.x)
    g, t, own = thread % WARP // 4, thread % 4, thread // WARP * PART * ROW_STRIDE
    STORE_FIRST(sums, held, own + 2 * t * ROW_STRIDE + 4 * g, ROW_STRIDE)
    warp_barrier()
    WRITE(held, own, bias, starts, 0, rows, limit, alpha, out, out_words, out_stride)
    if PART < TOKENS:
        warp_barrier()
        STORE_SECOND(sums, held, own + 2 * t * ROW_STRIDE + 4 * g, ROW_STRIDE)
        warp_barrier()
        WRITE(held, own, bias, starts, PART, rows, limit, alpha, out, out_words, out_stride)


def write_rows(held, own, bias, starts, done, rows, limit, alpha, out, out_words, out_stride):  # type: ignore[no-untyped-def]
    """32 rows of at most PART tokens: a token after the other, a row for each thread."""
    thread = anew(cuda.threadIdx.x)
    row = cuda.blockIdx.y * ROWS + thread
    if row < rows:
        first, count = starts[FIRST] + done, min(starts[COUNT] - done, PART)
        added = bias[starts[MATRIX] * rows + row] if BIAS else ZERO
        for token in range(count):
            value = bits_as_float(held[own + token * ROW_STRIDE + thread % WARP]) + added
            at = (first + token) * out_stride + row
            if FINISH == GELU:
                value = gelu(value)
            if FINISH == ADD:
                value += out[at]
            out[at] = value


def write_gated(held, own, bias, starts, done, rows, limit, alpha, out, out_words, out_stride):  # type: ignore[no-untyped-def]
    """Likewise rows in pairs of gate and up: a word of two results for each thread, four tokens at a time."""
    thread = anew(cuda.threadIdx.x)
    lane = thread % WARP
    row = cuda.blockIdx.y * ROWS + thread // WARP * 32 + 4 * (lane % 8)
    if row < rows:
        first, count, bias_at = starts[FIRST] + done, min(starts[COUNT] - done, PART), starts[MATRIX] * rows
        for token in range(lane // 8, count, 4):
            v = load_words(held, own + token * ROW_STRIDE + 4 * (lane % 8))
            value, other = GATE(bits_as_float(v[0]), bits_as_float(v[1]), bias, bias_at + row, limit, alpha), ZERO
            if row + 2 < rows:
                other = GATE(bits_as_float(v[2]), bits_as_float(v[3]), bias, bias_at + row + 2, limit, alpha)
            out_words[(first + token) * out_stride + row // 4] = pack_bf16(value, other)


@kernel(WORDS, "SCALES", FLOATS, WORDS, INT, INTS, INTS, INTS, INT, INT, FLOAT, FLOAT, FLOATS, WORDS, INT)
def matmul(  # type: ignore[no-untyped-def]
    codes, scales, bias, x, x_stride, index, tiles, tile_count, total, rows, limit, alpha, out, out_words, out_stride
):
    """out[token, row] = row · x of the token + bias, its GELU, or added to it (ADD); with SILU and SWIGLU rows alternate gate and
    up, and out_words, bfloat16, is half as wide.

    A grid of (tiles of tokens, ROWS of the matrix). x [.., 2 · x_stride columns]; without GROUPED `total` tokens meet the one
    matrix; with it, tile t of tile_count[0] is tiles[3t …] = (matrix, first token, tokens). With INDEXED, token i is row index[i]
    of x. out_stride in elements of what is written.
    """
    held = cuda.shared.array(X_SIZE, types.uint32, 16)
    starts = cuda.shared.array(NUMBERS, types.int32, 16)
    wait_for_launch_before()
    count = TAKE(x_stride, index, tiles, tile_count, total, starts)
    if count > 0:
        if SIZES > 2 and count <= TOKENS // 4:
            QUARTER(codes, scales, bias, x, x_stride, starts, held, rows, limit, alpha, out, out_words, out_stride)
        elif SIZES > 1 and count <= TOKENS // 2:
            HALF(codes, scales, bias, x, x_stride, starts, held, rows, limit, alpha, out, out_words, out_stride)
        else:
            WHOLE(codes, scales, bias, x, x_stride, starts, held, rows, limit, alpha, out, out_words, out_stride)


def _sweep(shape: Shape, tokens: int, warps: int, finish: int, bias: bool) -> Any:
    """`sweep` for at most so many tokens."""
    part = max(tokens // 2, 8)
    numbers = {"WARPS": warps, "TOKENS": tokens, "BUFFER": tokens * STRIDE}
    rows = decoders(shape)
    columns = 8 * rows["UNITS"]
    write = write_gated if finish in (SILU, SWIGLU) else write_rows
    ending = {"PART": part, "BIAS": int(bias), "FINISH": finish, "ROWS": 32 * warps}
    return device(
        sweep, FORMAT=shape.format, COLUMNS=shape.columns, **numbers, **rows, **ending, SLABS=-(-shape.columns // SLAB),
        FOURS=SLAB // (4 * columns), ZEROS=zero_tile(tokens), MULTIPLY=multiply_unit(STRIDE),
        FILL=device(fill_slab, **numbers, **{name: rows[name] for name in ("UNITS", "UNIT_WORDS", "THREAD_WORDS")}),
        WRITE=device(write, **ending, GATE=device(gate, BIAS=int(bias), FINISH=finish)),
        STORE_FIRST=store_part(0, part // 8), STORE_SECOND=store_part((tokens - part) // 8, part // 8),
    )  # fmt: skip


def matmul_kernel(
    shape: Shape, *, finish: int, bias: bool, tokens: int = 64, grouped: bool = False, indexed: bool = False, warps: int = 4
) -> Kernel:
    """The kernel for rows of this shape and tiles of `tokens` (8 times a power of two). The shape's activations do not matter."""
    layout = shape.layout
    sizes = min(3, int(math.log2(tokens // 8)) + 1)
    ways = [_sweep(shape, max(tokens >> i, 8), warps, finish, bias) for i in range(3)]
    return matmul.bind(
        FORMAT=shape.format, COLUMNS=shape.columns, WARPS=warps, TOKENS=tokens, INDEXED=int(indexed), GROUPED=int(grouped),
        FINISH=finish, BIAS=int(bias), ROWS=32 * warps, X_SIZE=max(2 * tokens * STRIDE, warps * max(tokens // 2, 8) * ROW_STRIDE),
        SCALES=BYTES if layout.scale == "e8m0" else HALVES, NUMBERS=tokens + 3, SIZES=sizes,
        TAKE=device(take_tile, WARPS=warps, TOKENS=tokens, INDEXED=int(indexed), GROUPED=int(grouped)),
        RESIDENT=max(12 // warps, 1), WHOLE=ways[0], HALF=ways[1], QUARTER=ways[2],
    )  # fmt: skip


def matmul_grid(kernel: Kernel, tiles: int, rows: int) -> tuple[int, int]:
    """Blocks for so many tiles of tokens and rows of a matrix."""
    return tiles, -(-rows // int(kernel.constants["ROWS"]))
