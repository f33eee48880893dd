"""Rows of a matrix as operands of the matrix instruction: 16 bytes of codes at a time, decoded to pairs of bfloat16.

A *unit* is 8 columns, four words of pairs; a chunk of 16 bytes has one to four of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import NIBBLES, SIXTEEN, Shape, bf16, byte_floats, e8m0, f16_pair
from numba_kernels.cuda.intrinsics import bits_as_float, byte_permute, half_as_float, multiply_pairs, pack_bf16, stream_words
from numba_kernels.cuda.seam import device

WORDS_PER_ROW = 0
SCALE_SHIFT = 0  # the scale of chunk c is c >> SCALE_SHIFT
UNIT = 0  # which of a chunk
SHIFT = np.uint32(0)

HIGH_POSITIVE, HIGH_POSITIVE_2 = np.uint32(0x3F3F3F00), np.uint32(0x40404040)  # upper bytes of FP4's values in bfloat16
HIGH_NEGATIVE, HIGH_NEGATIVE_2 = np.uint32(0xBFBFBF80), np.uint32(0xC0C0C0C0)
LOW, LOW_2 = np.uint32(0xC0800000), np.uint32(0xC0804000)  # lower bytes
SEVENS, FOURS_OF_SIGNS, ORDER = np.uint32(0x77777777), np.uint32(0x44444444), np.uint32(0x32103210)
MINUS_ZEROS = np.uint32(0x80008000)
FIRST_PAIR, SECOND_PAIR = np.uint32(0x5140), np.uint32(0x7362)


@device
def fp4_pairs(index: Any, signs: Any, scale: Any) -> Any:
    """The values of four codes, given their numbers without signs and selectors of positive or negative bytes, times a pair of
    equal bfloat16."""
    positive = byte_permute(HIGH_POSITIVE, HIGH_POSITIVE_2, index)
    negative = byte_permute(HIGH_NEGATIVE, HIGH_NEGATIVE_2, index)
    high, low = byte_permute(positive, negative, signs), byte_permute(LOW, LOW_2, index)
    first, second = byte_permute(low, high, FIRST_PAIR), byte_permute(low, high, SECOND_PAIR)
    return multiply_pairs(first, scale, MINUS_ZEROS), multiply_pairs(second, scale, MINUS_ZEROS)


@device
def byte_pairs(word: Any, scale: Any, offset: Any) -> Any:
    """Four signed bytes, less an offset, times a scale."""
    v = byte_floats(word)
    return (
        pack_bf16((v[0] - offset) * scale, (v[1] - offset) * scale),
        pack_bf16((v[2] - offset) * scale, (v[3] - offset) * scale),
    )


def unit_mxfp4(chunk, factor):  # type: ignore[no-untyped-def]
    index, signs = np.uint32(chunk[UNIT] & SEVENS), np.uint32(chunk[UNIT] >> np.uint32(1) & FOURS_OF_SIGNS | ORDER)
    a, b = fp4_pairs(index, signs, factor), fp4_pairs(np.uint32(index >> SIXTEEN), np.uint32(signs >> SIXTEEN), factor)
    return (*a, *b)


def unit_q4_0(chunk, factor):  # type: ignore[no-untyped-def]
    """Low nibbles are columns 0 to 15, high ones the others."""
    eight = np.float32(8)
    a = byte_pairs(np.uint32(chunk[2 * UNIT % 4] >> SHIFT & NIBBLES), factor, eight)
    b = byte_pairs(np.uint32(chunk[2 * UNIT % 4 + 1] >> SHIFT & NIBBLES), factor, eight)
    return (*a, *b)


def unit_bytes(chunk, factor):  # type: ignore[no-untyped-def]
    none = np.float32(0)
    a, b = byte_pairs(chunk[2 * UNIT], factor, none), byte_pairs(chunk[2 * UNIT + 1], factor, none)
    return (*a, *b)


def unit_bf16(chunk, factor):  # type: ignore[no-untyped-def]
    return chunk[4 * UNIT], chunk[4 * UNIT + 1], chunk[4 * UNIT + 2], chunk[4 * UNIT + 3]


def unit_f16(chunk, factor):  # type: ignore[no-untyped-def]
    (a, b), (c, d) = f16_pair(chunk[4 * UNIT]), f16_pair(chunk[4 * UNIT + 1])
    (e, f), (g, h) = f16_pair(chunk[4 * UNIT + 2]), f16_pair(chunk[4 * UNIT + 3])
    return pack_bf16(a, b), pack_bf16(c, d), pack_bf16(e, f), pack_bf16(g, h)


def unit_f32(chunk, factor):  # type: ignore[no-untyped-def]
    return (
        pack_bf16(bits_as_float(chunk[0]), bits_as_float(chunk[1])),
        pack_bf16(bits_as_float(chunk[2]), bits_as_float(chunk[3])),
        pack_bf16(bits_as_float(chunk[4]), bits_as_float(chunk[5])),
        pack_bf16(bits_as_float(chunk[6]), bits_as_float(chunk[7])),
    )


@device
def pair_of_e8m0(scale: Any) -> Any:
    factor = e8m0(scale)
    return pack_bf16(factor, factor)


@device
def no_factor(scale: Any) -> Any:
    return scale


def fetch_chunk(codes, matrix, row, c):  # type: ignore[no-untyped-def]
    """Chunk c of the row that begins at word `row` of a matrix: offsets of 32 bits take half of the registers."""
    return stream_words(codes, matrix + np.int64(np.int32(row + 4 * c)))


def fetch_two(codes, matrix, row, c):  # type: ignore[no-untyped-def]
    """32 bytes of float32, so that there are 8 columns; the last four may be others where the row has ended."""
    a = stream_words(codes, matrix + np.int64(np.int32(row + 8 * c)))
    b = stream_words(codes, matrix + np.int64(np.int32(row + min(8 * c + 4, WORDS_PER_ROW - 4))))
    return (*a, *b)


def fetch_pair(codes, matrix, row, c):  # type: ignore[no-untyped-def]
    """Of groups of eight chunks, the thread's two: floats of 16 bits fill a step so fast that more has to be on its way."""
    first = 4 * (c - c % 4) * 2 + 4 * (c % 4)
    a = stream_words(codes, matrix + np.int64(np.int32(row + min(first, WORDS_PER_ROW - 4))))
    b = stream_words(codes, matrix + np.int64(np.int32(row + min(first + 16, WORDS_PER_ROW - 4))))
    return (*a, *b)


def scale_of(scales, matrix, row, c):  # type: ignore[no-untyped-def]
    return scales[matrix + np.int64(np.int32(row + (c >> SCALE_SHIFT)))]


def no_scale(scales, matrix, row, c):  # type: ignore[no-untyped-def]
    return scales[0]


def decoders(shape: Shape) -> dict[str, Any]:
    """Constants of kernels that read rows of a shape, four chunks of so many UNITS at a time.

    UNIT_WORDS and THREAD_WORDS: from a unit of a chunk, and from a thread's chunk, to the next in a token's words. GROUP_WORDS:
    words of a row that four threads take at a time.
    """
    layout, name = shape.layout, shape.format if shape.layout.bits != 8 else "bytes"
    pair = layout.bits == 16
    columns = 16 if pair else max(layout.per_chunk, 8)  # that a thread takes at a time
    units = columns // 8
    function = globals()[f"unit_{name}"]
    per_scale = layout.group or shape.columns
    shift = 62 if not layout.group else 0 if layout.is_float else int(math.log2(per_scale // layout.per_chunk))
    factor = {"none": no_factor, "e8m0": pair_of_e8m0, "f16": half_as_float, "bf16": bf16}[layout.scale]
    units_of = [device(function, UNIT=u, SHIFT=np.uint32(4 * (u // 2))) for u in range(units)]
    return {
        "UNITS": units, "CHUNKS": -(-shape.columns // (4 * columns)) * 4 if pair else -(-shape.columns // columns),
        "WORDS_PER_ROW": layout.row_words(shape.columns), "SCALES_PER_ROW": layout.row_scales(shape.columns), "FACTOR": factor,
        "UNIT_WORDS": 16 if pair else 4, "THREAD_WORDS": 4 if pair else 4 * units, "GROUP_WORDS": columns * layout.bits // 8,
        "FETCH": device(
            {16: fetch_pair, 32: fetch_two}.get(layout.bits, fetch_chunk), WORDS_PER_ROW=layout.row_words(shape.columns)
        ),
        "SCALE": device(no_scale) if layout.is_float else device(scale_of, SCALE_SHIFT=shift),
        "DECODE_LAST": units_of[-1],
        **{f"DECODE_{u}": units_of[min(u, units - 1)] for u in range(3)},
    }  # fmt: skip
