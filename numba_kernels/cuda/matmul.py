"""Matrix × many tokens on the tensor cores: weights are decoded to bfloat16 in registers, on their way to the instruction.

A block has ROWS rows of the matrix (16 for each warp) and TOKENS tokens. Which columns meet in a step of the matrix instruction
is free as long as both sides agree; so every thread takes 16 bytes of its rows as they lie, and the tokens' values are put
into shared memory in the order in which they are then asked for.

Tokens lie in rows of bfloat16, padded with zeros to 8 columns. Experts: tokens are sorted by expert, and tiles do not cross from
one to the next; `group` says which tile is whose.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import (
    EIGHTS,
    FOUR,
    NIBBLES,
    ORDER,
    SEVENS,
    SIXTEEN,
    Shape,
    bf16,
    byte_floats,
    e8m0,
    f16_pair,
)
from numba_kernels.cuda.experts import swiglu
from numba_kernels.cuda.intrinsics import (
    bits_as_float,
    byte_permute,
    float_as_bits,
    half_as_float,
    load_words,
    multiply_pairs,
    pack_bf16,
    stream_words,
    wait_for_launch_before,
)
from numba_kernels.cuda.matvec import gelu, no_scale, scale_of_chunk, silu
from numba_kernels.cuda.seam import BYTES, FLOAT, FLOATS, HALVES, INT, INTS, WARP, WORDS, Kernel, cuda, device, kernel, types
from numba_kernels.cuda.tiles import multiply_rows, store_tile, zero_tile

WARPS = 8
FORMAT = ""  # in the kernel's name
COLUMNS = CHUNKS = WORDS_PER_ROW = SCALES_PER_ROW = 0
TILES = 8  # of 8 tokens
TOKENS = 64
ROWS = 128
SLAB = 2  # groups of four chunks that are in shared memory at once
SLAB_COLUMNS = 256
STEPS = 8  # of 16 columns in four chunks
STRIDE = 136  # words from a token to the next in shared memory: threads of half a warp hit different banks
X_SIZE = TOKENS * STRIDE
STORE, ADD, SILU, SWIGLU, GELU = 0, 1, 2, 3, 4
FINISH = STORE
GROUPED = INDEXED = BIAS = PAIRED = 0
SCALES: Any = None
SCALE: Any = None
DECODE: Any = None
ZEROS: Any = None
SCALE_VALUE: Any = None
FILL: Any = None
HALF = np.float32(0.5)


# ---- 16 bytes of codes as pairs of bfloat16: two words for each step ------------------------------------------------

HIGH_POSITIVE, HIGH_POSITIVE_2 = np.uint32(0x3F3F3F00), np.uint32(0x40404040)  # upper bytes of FP4's values in bfloat16
HIGH_NEGATIVE, HIGH_NEGATIVE_2 = np.uint32(0xBFBFBF80), np.uint32(0xC0C0C0C0)
LOW, LOW_2 = np.uint32(0xC0800000), np.uint32(0xC0804000)  # lower bytes
MINUS_ZEROS = np.uint32(0x80008000)
FIRST_PAIR, SECOND_PAIR = np.uint32(0x5140), np.uint32(0x7362)


@device
def fp4_pairs(codes: Any, scale: Any) -> Any:
    """The values of the four codes in the low half of a word, times a pair of equal bfloat16."""
    index = np.uint32(codes & SEVENS)
    positive = byte_permute(HIGH_POSITIVE, HIGH_POSITIVE_2, index)
    negative = byte_permute(HIGH_NEGATIVE, HIGH_NEGATIVE_2, index)
    high = byte_permute(positive, negative, np.uint32((codes & EIGHTS) >> np.uint32(1) | ORDER))
    low = byte_permute(LOW, LOW_2, index)
    first, second = byte_permute(low, high, FIRST_PAIR), byte_permute(low, high, SECOND_PAIR)
    return multiply_pairs(first, scale, MINUS_ZEROS), multiply_pairs(second, scale, MINUS_ZEROS)


@device
def decode_mxfp4(chunk: Any, scale: Any) -> Any:
    factor = e8m0(scale)
    pair = pack_bf16(factor, factor)
    a, b = fp4_pairs(chunk[0], pair), fp4_pairs(np.uint32(chunk[0] >> SIXTEEN), pair)
    c, d = fp4_pairs(chunk[1], pair), fp4_pairs(np.uint32(chunk[1] >> SIXTEEN), pair)
    e, f = fp4_pairs(chunk[2], pair), fp4_pairs(np.uint32(chunk[2] >> SIXTEEN), pair)
    g, h = fp4_pairs(chunk[3], pair), fp4_pairs(np.uint32(chunk[3] >> SIXTEEN), pair)
    return (*a, *b, *c, *d, *e, *f, *g, *h)


@device
def byte_pairs(word: Any, scale: Any, offset: Any) -> Any:
    """Four signed bytes, less an offset, times a scale."""
    v = byte_floats(word)
    return (
        pack_bf16((v[0] - offset) * scale, (v[1] - offset) * scale),
        pack_bf16((v[2] - offset) * scale, (v[3] - offset) * scale),
    )


@device
def decode_q4_0(chunk: Any, scale: Any) -> Any:
    s, eight = half_as_float(scale), np.float32(8)
    a, b = byte_pairs(np.uint32(chunk[0] & NIBBLES), s, eight), byte_pairs(np.uint32(chunk[1] & NIBBLES), s, eight)
    c, d = byte_pairs(np.uint32(chunk[2] & NIBBLES), s, eight), byte_pairs(np.uint32(chunk[3] & NIBBLES), s, eight)
    e = byte_pairs(np.uint32(chunk[0] >> FOUR & NIBBLES), s, eight)
    f = byte_pairs(np.uint32(chunk[1] >> FOUR & NIBBLES), s, eight)
    g = byte_pairs(np.uint32(chunk[2] >> FOUR & NIBBLES), s, eight)
    h = byte_pairs(np.uint32(chunk[3] >> FOUR & NIBBLES), s, eight)
    return (*a, *b, *c, *d, *e, *f, *g, *h)


def decode_bytes(chunk, scale):  # type: ignore[no-untyped-def]
    s, none = SCALE_VALUE(scale), np.float32(0)
    a, b = byte_pairs(chunk[0], s, none), byte_pairs(chunk[1], s, none)
    c, d = byte_pairs(chunk[2], s, none), byte_pairs(chunk[3], s, none)
    return (*a, *b, *c, *d)


@device
def decode_bf16(chunk: Any, scale: Any) -> Any:
    return chunk


@device
def decode_f16(chunk: Any, scale: Any) -> Any:
    (a, b), (c, d) = f16_pair(chunk[0]), f16_pair(chunk[1])
    (e, f), (g, h) = f16_pair(chunk[2]), f16_pair(chunk[3])
    return pack_bf16(a, b), pack_bf16(c, d), pack_bf16(e, f), pack_bf16(g, h)


@device
def decode_f32(chunk: Any, scale: Any) -> Any:
    return (
        pack_bf16(bits_as_float(chunk[0]), bits_as_float(chunk[1])),
        pack_bf16(bits_as_float(chunk[2]), bits_as_float(chunk[3])),
    )


def _decoder(format: str, shape: Shape) -> Any:
    layout = shape.layout
    if layout.bits == 8:
        return device(decode_bytes, SCALE_VALUE=half_as_float if layout.scale == "f16" else bf16)
    return globals()[f"decode_{format}"]


# ---- the kernel -----------------------------------------------------------------------------------------------------


def fill_slab(x, stride, index, first, count, column, held):  # type: ignore[no-untyped-def]
    """Columns [column, column + SLAB_COLUMNS) of TOKENS tokens into shared memory, zeros where there are none: 8 at a time."""
    for i in range(cuda.threadIdx.x, TOKENS * (SLAB_COLUMNS // 8), WARPS * WARP):
        token, place = i // (SLAB_COLUMNS // 8), 8 * (i % (SLAB_COLUMNS // 8))
        a = b = c = d = np.uint32(0)
        if token < count and column + place < 2 * stride:
            row = index[first + token] if INDEXED else first + token
            a, b, c, d = load_words(x, row * stride + (column + place) // 2)
        for half in range(2):
            unit = place // 4 + half  # four columns: two words
            chunk, step = unit // STEPS, unit % STEPS
            at = token * STRIDE + ((chunk // 4 * STEPS + step) * 4 + chunk % 4) * 2
            held[at] = c if half else a
            held[at + 1] = d if half else b


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
    wait_for_launch_before()
    thread, tile = cuda.threadIdx.x, cuda.blockIdx.x
    warp, g, t = thread // WARP, thread % WARP // 4, thread % 4
    matrix, first, count = 0, tile * TOKENS, min(total - tile * TOKENS, TOKENS)
    if GROUPED:
        if tile >= tile_count[0]:
            return
        matrix, first, count = tiles[3 * tile], tiles[3 * tile + 1], tiles[3 * tile + 2]
    base = cuda.blockIdx.y * ROWS + 16 * warp
    low, high = base + g, base + g + 8
    if PAIRED:
        low, high = base + 2 * g, base + 2 * g + 1
    low_row, high_row = matrix * rows + min(low, rows - 1), matrix * rows + min(high, rows - 1)
    low_words, high_words = low_row * WORDS_PER_ROW, high_row * WORDS_PER_ROW
    low_scales, high_scales = low_row * SCALES_PER_ROW, high_row * SCALES_PER_ROW
    sums = ZEROS()
    c = min(t, CHUNKS - 1)
    a, b = stream_words(codes, low_words + 4 * c), stream_words(codes, high_words + 4 * c)
    for slab in range(0, (CHUNKS + 3) // 4, SLAB):
        cuda.syncthreads()
        FILL(x, x_stride, index, first, count, slab // SLAB * SLAB_COLUMNS, held)
        cuda.syncthreads()
        for four in range(slab, min(slab + SLAB, (CHUNKS + 3) // 4)):
            following = min(4 * (four + 1) + t, CHUNKS - 1)  # asked for before the present ones are worked on
            next_a, next_b = stream_words(codes, low_words + 4 * following), stream_words(codes, high_words + 4 * following)
            pairs_a = DECODE(a, SCALE(scales, low_scales, c))
            pairs_b = DECODE(b, SCALE(scales, high_scales, c))
            sums = multiply_rows(pairs_a, pairs_b, held, g * STRIDE + (four - slab) * STEPS * 8 + 2 * t, STRIDE, sums)
            a, b, c = next_a, next_b, following
    cuda.syncthreads()
    store_tile(sums, held, 2 * t * STRIDE + 16 * warp + g, STRIDE, 8)
    cuda.syncthreads()
    if PAIRED:
        for i in range(thread, TOKENS * (ROWS // 4), WARPS * WARP):
            token, word = i // (ROWS // 4), i % (ROWS // 4)
            pair = cuda.blockIdx.y * (ROWS // 2) + 2 * word
            if token < count and 2 * pair < rows:
                at = token * STRIDE + 16 * (word // 4) + 2 * word % 8
                value = GATE(held, at, bias, matrix * rows, pair, rows, limit, alpha)
                other = GATE(held, at + 1, bias, matrix * rows, pair + 1, rows, limit, alpha)
                out_words[(first + token) * out_stride + pair // 2] = pack_bf16(value, other)
    else:
        for i in range(thread, TOKENS * ROWS, WARPS * WARP):
            token, row = i // ROWS, cuda.blockIdx.y * ROWS + i % ROWS
            if token < count and row < rows:
                value = bits_as_float(held[token * STRIDE + i % ROWS])
                if BIAS:
                    value += bias[matrix * rows + row]
                at = (first + token) * out_stride + row
                if FINISH == GELU:
                    value = gelu(value)
                if FINISH == ADD:
                    value += out[at]
                out[at] = value


GATE: Any = None


def gate(held, at, bias, bias_at, pair, rows, limit, alpha):  # type: ignore[no-untyped-def]
    """Of rows 2 · pair and 2 · pair + 1; zero beyond the last."""
    if 2 * pair >= rows:
        return np.float32(0)
    value, up = bits_as_float(held[at]), bits_as_float(held[at + 8])
    if BIAS:
        value += bias[bias_at + 2 * pair]
        up += bias[bias_at + 2 * pair + 1]
    return swiglu(value, up, limit, alpha) if FINISH == SWIGLU else silu(value, up)


def matmul_kernel(
    shape: Shape, *, finish: int, bias: bool, tokens: int = 64, grouped: bool = False, indexed: bool = False, warps: int = 8
) -> Kernel:
    """The kernel for rows of this shape and tiles of `tokens` (a multiple of 8). The shape's activations do not matter."""
    layout = shape.layout
    per_chunk, tiles = layout.per_chunk, tokens // 8
    slab = 256 // (4 * per_chunk)
    per_scale = layout.group or shape.columns
    shift = 62 if not layout.group else 0 if layout.is_float else int(math.log2(per_scale // per_chunk))
    paired = finish in (SILU, SWIGLU)
    numbers = {
        "WARPS": warps, "TOKENS": tokens, "SLAB_COLUMNS": 256, "STEPS": per_chunk // 4, "STRIDE": 136, "INDEXED": int(indexed),
    }  # fmt: skip
    return matmul.bind(
        FORMAT=shape.format, COLUMNS=shape.columns, **numbers, FINISH=finish, BIAS=int(bias), GROUPED=int(grouped),
        PAIRED=int(paired), TILES=tiles, ROWS=16 * warps, SLAB=slab, X_SIZE=136 * tokens, CHUNKS=shape.chunks,
        WORDS_PER_ROW=layout.row_words(shape.columns), SCALES_PER_ROW=layout.row_scales(shape.columns),
        SCALES=BYTES if layout.scale == "e8m0" else HALVES, DECODE=_decoder(shape.format, shape), ZEROS=zero_tile(4 * tiles),
        SCALE=device(no_scale) if layout.is_float else device(scale_of_chunk, SCALE_SHIFT=shift),
        FILL=device(fill_slab, **numbers), GATE=device(gate, BIAS=int(bias), FINISH=finish),
    )  # fmt: skip


def matmul_grid(kernel: Kernel, tiles: int, rows: int) -> tuple[int, int]:
    """Blocks for so many tiles of tokens and rows of a matrix."""
    return tiles, -(-rows // int(kernel.constants["ROWS"]))


__all__ = ["ADD", "GELU", "SILU", "STORE", "SWIGLU", "float_as_bits", "matmul_grid", "matmul_kernel"]
