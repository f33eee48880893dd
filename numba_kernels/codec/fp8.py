"""FP8 e4m3 (1 sign, 4 exponent, 3 mantissa bits, no infinity, largest value 448) with a bfloat16 scale for every row, or with
float32 scales for blocks of values.

Source: OCP 8-bit Floating Point Specification (OFP8) 1.0; https://arxiv.org/abs/2209.05433.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import as_bfloat16, bfloat16_to_float, bits_of, float_to_bfloat16, from_bits, inline
from numba_kernels.codec.tables import FLOAT32_MAX

TOP, NEXT_TO_TOP = np.float32(448), np.float32(416)
LEAST_NORMAL = np.float32(2.0**-6)
DENORMAL_ROUNDER = np.float32(2.0**14)  # whose last place is the step of the denormals, 2^-9


@inline
def encode_e4m3(x: np.float32) -> np.uint8:
    """The nearest code, ties to even; beyond ±448 the largest."""
    magnitude = min(abs(x), TOP)
    bits = bits_of(magnitude)
    odd = np.int32((bits >> np.int32(20)) & np.int32(1))
    normal = np.int32((bits + np.int32(0x7FFFF) + odd - np.int32(120 << 23)) >> np.int32(20))
    small = np.int32(bits_of(magnitude + DENORMAL_ROUNDER) - bits_of(DENORMAL_ROUNDER))
    code = small if magnitude < LEAST_NORMAL else normal
    return np.uint8(code | np.int32((bits_of(x) >> np.int32(24)) & np.int32(0x80)))


@inline
def decode_e4m3(code: np.uint8) -> np.float32:
    """The value of a code, by placing its bits in a float32 of an exponent 120 lower and scaling up; 127 and 255 are NaN."""
    bits = np.int32(code)
    magnitude = from_bits(np.int32((bits & np.int32(0x7F)) << np.int32(20))) * np.float32(2.0**120)
    magnitude = np.float32(np.nan) if (bits & np.int32(0x7F)) == np.int32(0x7F) else magnitude
    return from_bits(bits_of(magnitude) | np.int32((bits & np.int32(0x80)) << np.int32(24)))


@njit(cache=True, nogil=True)
def quantize(values: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> None:
    """float32 [R, K] -> e4m3 codes uint8 [R, K] and scales, bfloat16 bits uint16 [R, 1], by which a row's largest is 448."""
    bits = values.view(np.int32)
    for r in range(values.shape[0]):
        top = np.int32(0)
        for i in range(values.shape[1]):
            top = max(top, np.int32(bits[r, i] & np.int32(0x7FFFFFFF)))
        scale = as_bfloat16(np.int32(top).view(np.float32) / TOP)
        scales[r, 0] = float_to_bfloat16(scale)
        divisor = scale if scale > np.float32(0) else np.float32(np.inf)
        limit = TOP if scale <= FLOAT32_MAX / TOP else NEXT_TO_TOP  # so that decoding stays finite
        for i in range(values.shape[1]):
            codes[r, i] = encode_e4m3(min(max(values[r, i] / divisor, -limit), limit))


@njit(cache=True, nogil=True)
def dequantize(codes: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, K] and bfloat16 bits, uint16 [R, 1] -> float32 [R, K]."""
    for r in range(codes.shape[0]):
        scale = bfloat16_to_float(scales[r, 0])
        for i in range(codes.shape[1]):
            out[r, i] = decode_e4m3(codes[r, i]) * scale


@njit(cache=True, nogil=True)
def block_scales(values: np.ndarray, scales: np.ndarray, side: int) -> None:
    """float32 [R, K] -> scales float32 [R, ⌈K / side⌉], the same in the `side` rows of a block, whose largest magnitude becomes 448;
    1 for a block of zeros and for what is too small for a scale."""
    bits, columns = values.view(np.int32), values.shape[1]
    tops = np.empty(scales.shape[1], np.int32)
    for first in range(0, values.shape[0], side):
        last = min(first + side, values.shape[0])
        tops[:] = 0
        for r in range(first, last):
            for block in range(scales.shape[1]):
                part, top = bits[r, block * side : min((block + 1) * side, columns)], tops[block]
                for i in range(part.size):
                    top = max(top, np.int32(part[i] & np.int32(0x7FFFFFFF)))
                tops[block] = top
        for block in range(scales.shape[1]):
            scale = tops[block : block + 1].view(np.float32)[0] / TOP
            for r in range(first, last):
                scales[r, block] = scale if scale != np.float32(0) else np.float32(1)


@njit(cache=True, nogil=True)
def quantize_blocks(values: np.ndarray, scales: np.ndarray, codes: np.ndarray, side: int) -> None:
    """float32 [R, K] and positive scales float32 [R, ⌈K / side⌉] -> e4m3 codes uint8 [R, K]."""
    columns = values.shape[1]
    for r in range(values.shape[0]):
        for block in range(scales.shape[1]):
            scale = scales[r, block]
            limit = TOP if scale <= FLOAT32_MAX / TOP else NEXT_TO_TOP  # so that decoding stays finite
            start, stop = block * side, min((block + 1) * side, columns)
            part, out = values[r, start:stop], codes[r, start:stop]
            for i in range(part.size):
                out[i] = encode_e4m3(min(max(part[i] / scale, -limit), limit))


@njit(cache=True, nogil=True)
def dequantize_blocks(codes: np.ndarray, scales: np.ndarray, out: np.ndarray, side: int) -> None:
    """uint8 [R, K] and scales float32 [R, ⌈K / side⌉] -> float32 [R, K]."""
    columns = codes.shape[1]
    for r in range(codes.shape[0]):
        for block in range(scales.shape[1]):
            scale = scales[r, block]
            start, stop = block * side, min((block + 1) * side, columns)
            part, values = codes[r, start:stop], out[r, start:stop]
            for i in range(part.size):
                values[i] = decode_e4m3(part[i]) * scale
