"""ggml's k-quants, ternary quants, iq4_xs and NVFP4 from their bytes to float32: blocks of 256 values (NVFP4: 64).

Plain scalar code over runs of 16 and 32 values, which LLVM vectorizes; products and sums are rounded one after another, as
gguf-py's. Source: ggml's `ggml-common.h` (blocks) and gguf-py's `quants.py` (order of the arithmetic).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import half_to_float, inline
from numba_kernels.codec.tables import E2M1, IQ4_NL


@inline
def half_at(block: np.ndarray, at: int) -> np.float32:
    """The half-precision value at a byte of a block."""
    return half_to_float(np.uint16(np.int32(block[at]) | np.int32(np.int32(block[at + 1]) << np.int32(8))))


@inline
def bits_at(block: np.ndarray, at: int, shift: int, mask: int) -> np.int32:
    """Some bits of a byte."""
    return np.int32((np.int32(block[at]) >> np.int32(shift)) & np.int32(mask))


@njit(cache=True, nogil=True)
def dequantize_q2_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 84 · K/256] -> float32 [R, K]: 16 scales and minima of 4 bits, 2-bit codes, d, dmin."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 84):
            block, y = blocks[r, 84 * b : 84 * b + 84], out[r, 256 * b : 256 * b + 256]
            d, dmin = half_at(block, 80), half_at(block, 82)
            for g in range(16):
                scale = d * np.float32(bits_at(block, g, 0, 15))
                minimum = dmin * np.float32(bits_at(block, g, 4, 15))
                at, shift = 16 + g // 8 * 32 + g % 2 * 16, g % 8 // 2 * 2
                for j in range(16):
                    y[16 * g + j] = scale * np.float32(bits_at(block, at + j, shift, 3)) - minimum


@njit(cache=True, nogil=True)
def dequantize_q3_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 110 · K/256] -> float32 [R, K]: third bits, 2-bit codes, 16 scales of 6 bits, d."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 110):
            block, y = blocks[r, 110 * b : 110 * b + 110], out[r, 256 * b : 256 * b + 256]
            d = half_at(block, 108)
            for g in range(16):
                six = bits_at(block, 96 + g % 8, g // 8 * 4, 15) | np.int32(bits_at(block, 104 + g % 4, g // 4 * 2, 3) << 4)
                scale = d * np.float32(np.int32(six - 32))
                at, shift = 32 + g // 8 * 32 + g % 2 * 16, g % 8 // 2 * 2
                third = g % 2 * 16
                for j in range(16):
                    high = np.int32(bits_at(block, third + j, g // 2, 1) << np.int32(2))
                    y[16 * g + j] = scale * np.float32(np.int32(bits_at(block, at + j, shift, 3) + high - np.int32(4)))


@inline
def six_bits(block: np.ndarray, at: int, shift: int, group: int) -> np.int32:
    """A 6-bit number of q4_k and q5_k, one of 8. The first four are at byte `at`, whose upper bits, and a nibble at byte 12, make
    the others; scales are at byte 4 with the lower nibble, minima at byte 8 with the upper."""
    if group < 4:
        return bits_at(block, at + group, 0, 63)
    return np.int32(bits_at(block, 8 + group, shift, 15) | np.int32(bits_at(block, at + group - 4, 6, 3) << np.int32(4)))


@njit(cache=True, nogil=True)
def dequantize_q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 144 · K/256] -> float32 [R, K]: d, dmin, 8 scales and minima of 6 bits, 4-bit codes."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 144):
            block, y = blocks[r, 144 * b : 144 * b + 144], out[r, 256 * b : 256 * b + 256]
            d, dmin = half_at(block, 0), half_at(block, 2)
            for g in range(8):
                scale, minimum = d * np.float32(six_bits(block, 4, 0, g)), dmin * np.float32(six_bits(block, 8, 4, g))
                at, shift = 16 + g // 2 * 32, g % 2 * 4
                for j in range(32):
                    y[32 * g + j] = scale * np.float32(bits_at(block, at + j, shift, 15)) - minimum


@njit(cache=True, nogil=True)
def dequantize_q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 176 · K/256] -> float32 [R, K]: d, dmin, 8 scales and minima of 6 bits, fifth bits, 4-bit codes."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 176):
            block, y = blocks[r, 176 * b : 176 * b + 176], out[r, 256 * b : 256 * b + 256]
            d, dmin = half_at(block, 0), half_at(block, 2)
            for g in range(8):
                scale, minimum = d * np.float32(six_bits(block, 4, 0, g)), dmin * np.float32(six_bits(block, 8, 4, g))
                at, shift = 48 + g // 2 * 32, g % 2 * 4
                for j in range(32):
                    high = np.int32(bits_at(block, 16 + j, g, 1) << np.int32(4))
                    y[32 * g + j] = scale * np.float32(np.int32(bits_at(block, at + j, shift, 15) | high)) - minimum


@njit(cache=True, nogil=True)
def dequantize_q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 210 · K/256] -> float32 [R, K]: 4 lower bits, 2 upper ones, 16 scales of 8 bits, d."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 210):
            block, y = blocks[r, 210 * b : 210 * b + 210], out[r, 256 * b : 256 * b + 256]
            d = half_at(block, 208)
            for g in range(16):
                scale = d * np.float32(np.int8(block[192 + g]))
                low, shift = g // 8 * 64 + g % 4 * 16, g % 8 // 4 * 4
                high, up = 128 + g // 8 * 32 + g % 2 * 16, g % 8 // 2 * 2
                for j in range(16):
                    code = bits_at(block, low + j, shift, 15) | np.int32(bits_at(block, high + j, up, 3) << np.int32(4))
                    y[16 * g + j] = scale * np.float32(np.int32(code - np.int32(32)))


@inline
def trit(byte: np.uint8, power: np.int32) -> np.float32:
    """One of the five ternary digits of a byte, −1, 0 or 1."""
    shifted = np.int32((np.int32(byte) * power) & np.int32(255))
    return np.float32(np.int32(np.int32(np.int32(shifted * np.int32(3)) >> np.int32(8)) - np.int32(1)))


@njit(cache=True, nogil=True)
def dequantize_tq1_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 54 · K/256] -> float32 [R, K]: 48 bytes of five digits each, 4 of four, d."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 54):
            block, y = blocks[r, 54 * b : 54 * b + 54], out[r, 256 * b : 256 * b + 256]
            d, power = half_at(block, 52), np.int32(1)
            for p in range(5):
                for j in range(32):
                    y[32 * p + j] = d * trit(block[j], power)
                for j in range(16):
                    y[160 + 16 * p + j] = d * trit(block[32 + j], power)
                if p < 4:
                    for j in range(4):
                        y[240 + 4 * p + j] = d * trit(block[48 + j], power)
                power = np.int32(power * np.int32(3))


@njit(cache=True, nogil=True)
def dequantize_tq2_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 66 · K/256] -> float32 [R, K]: digits of 2 bits, d."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 66):
            block, y = blocks[r, 66 * b : 66 * b + 66], out[r, 256 * b : 256 * b + 256]
            d = half_at(block, 64)
            for g in range(8):
                at, shift = g // 4 * 32, g % 4 * 2
                for j in range(32):
                    y[32 * g + j] = d * np.float32(np.int32(bits_at(block, at + j, shift, 3) - np.int32(1)))


@njit(cache=True, nogil=True)
def dequantize_iq4_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 136 · K/256] -> float32 [R, K]: d, 8 scales of 6 bits, codes of iq4_nl's table."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 136):
            block, y = blocks[r, 136 * b : 136 * b + 136], out[r, 256 * b : 256 * b + 256]
            d = half_at(block, 0)
            for g in range(8):
                six = bits_at(block, 4 + g // 2, g % 2 * 4, 15) | np.int32(bits_at(block, 2 + g // 4, g % 4 * 2, 3) << 4)
                scale = d * np.float32(np.int32(six - 32))
                for j in range(16):
                    y[32 * g + j] = scale * IQ4_NL[bits_at(block, 8 + 16 * g + j, 0, 15)]
                    y[32 * g + 16 + j] = scale * IQ4_NL[bits_at(block, 8 + 16 * g + j, 4, 15)]


@inline
def unsigned_e4m3(code: np.uint8) -> np.float32:
    """An e4m3 value without a sign; 0 for 127, as ggml reads it."""
    exponent, mantissa = np.int32((np.int32(code) >> np.int32(3)) & np.int32(15)), np.int32(code) & np.int32(7)
    if code == np.uint8(0x7F):
        return np.float32(0)
    if exponent == np.int32(0):
        return np.float32(mantissa) * np.float32(2.0**-9)
    return np.float32(np.int32((exponent + np.int32(120)) << np.int32(23) | mantissa << np.int32(20)).view(np.float32))


@njit(cache=True, nogil=True)
def dequantize_ggml_nvfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 36 · K/64] -> float32 [R, K]: 4 scales, e2m1 codes; byte j of 8 holds values j and j + 8."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 36):
            block, y = blocks[r, 36 * b : 36 * b + 36], out[r, 64 * b : 64 * b + 64]
            for g in range(4):
                scale = unsigned_e4m3(block[g])
                for j in range(8):
                    y[16 * g + j] = scale * E2M1[bits_at(block, 4 + 8 * g + j, 0, 15)]
                    y[16 * g + 8 + j] = scale * E2M1[bits_at(block, 4 + 8 * g + j, 4, 15)]
