"""ggml's i-quants from their bytes to float32: blocks of 256 values, each 4 or 8 of which are a row of a grid, with signs.

`grid`, float32 [entries, 4 or 8], and `signs`, uint8 [128], the sign bits of which only seven are stored, are gguf-py's tables.
Products are rounded one after another, as gguf-py's. Source: ggml's `ggml-common.h` and gguf-py's `quants.py`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import half_to_float, inline
from numba_kernels.codec.k_quants import bits_at, half_at

DELTA = np.float32(0.125)  # of iq1_s and iq1_m


@inline
def u16(block: np.ndarray, at: int) -> np.int32:
    return np.int32(np.int32(block[at]) | np.int32(np.int32(block[at + 1]) << np.int32(8)))


@inline
def u32(block: np.ndarray, at: int) -> np.uint32:
    return np.uint32(np.uint32(u16(block, at)) | np.uint32(np.uint32(u16(block, at + 2)) << np.uint32(16)))


@inline
def store_signed(y: np.ndarray, at: int, scale: np.float32, row: np.ndarray, count: int, signs: np.int32) -> None:
    """Stores scale · row, negated where a bit of `signs` is set."""
    for i in range(count):
        negative = np.int32((signs >> np.int32(i)) & np.int32(1))
        y[at + i] = (scale * row[i]) * (np.float32(-1) if negative else np.float32(1))


@njit(cache=True, nogil=True)
def dequantize_iq2_xxs(blocks: np.ndarray, out: np.ndarray, grid: np.ndarray, signs: np.ndarray) -> None:
    """uint8 [R, 66 · K/256] -> float32 [R, K]: d; for each 32 values 4 entries, 4 · 7 sign bits and a scale of 4 bits."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 66):
            block, y = blocks[r, 66 * b : 66 * b + 66], out[r, 256 * b : 256 * b + 256]
            d = half_at(block, 0)
            for g in range(8):
                word = u32(block, 2 + 8 * g + 4)
                scale = d * (np.float32(0.5) + np.float32(word >> np.uint32(28))) * np.float32(0.25)
                for k in range(4):
                    sign = np.int32(signs[np.int64(word >> np.uint32(7 * k)) & 127])
                    store_signed(y, 32 * g + 8 * k, scale, grid[block[2 + 8 * g + k]], 8, sign)


@njit(cache=True, nogil=True)
def dequantize_iq2_xs(blocks: np.ndarray, out: np.ndarray, grid: np.ndarray, signs: np.ndarray) -> None:
    """uint8 [R, 74 · K/256] -> float32 [R, K]: d, 32 entries of 9 bits with 7 sign bits, 16 scales of 4 bits."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 74):
            block, y = blocks[r, 74 * b : 74 * b + 74], out[r, 256 * b : 256 * b + 256]
            d = half_at(block, 0)
            for g in range(16):
                scale = d * (np.float32(0.5) + np.float32(bits_at(block, 66 + g // 2, g % 2 * 4, 15))) * np.float32(0.25)
                for k in range(2):
                    entry = u16(block, 2 + 4 * g + 2 * k)
                    sign = np.int32(signs[entry >> np.int32(9)])
                    store_signed(y, 16 * g + 8 * k, scale, grid[entry & np.int32(511)], 8, sign)


@njit(cache=True, nogil=True)
def dequantize_iq2_s(blocks: np.ndarray, out: np.ndarray, grid: np.ndarray, signs: np.ndarray) -> None:
    """uint8 [R, 82 · K/256] -> float32 [R, K]: d, 32 entries of 10 bits in two places, 256 sign bits, 16 scales of 4 bits."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 82):
            block, y = blocks[r, 82 * b : 82 * b + 82], out[r, 256 * b : 256 * b + 256]
            d = half_at(block, 0)
            for g in range(32):
                four = bits_at(block, 74 + g // 4, g // 2 % 2 * 4, 15)
                scale = d * (np.float32(0.5) + np.float32(four)) * np.float32(0.25)
                entry = np.int32(block[2 + g]) | np.int32(bits_at(block, 66 + g // 4, g % 4 * 2, 3) << np.int32(8))
                store_signed(y, 8 * g, scale, grid[entry], 8, np.int32(block[34 + g]))


@njit(cache=True, nogil=True)
def dequantize_iq3_xxs(blocks: np.ndarray, out: np.ndarray, grid: np.ndarray, signs: np.ndarray) -> None:
    """uint8 [R, 98 · K/256] -> float32 [R, K]: d, 64 entries; for each 32 values 4 · 7 sign bits and a scale of 4 bits."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 98):
            block, y = blocks[r, 98 * b : 98 * b + 98], out[r, 256 * b : 256 * b + 256]
            d = half_at(block, 0)
            for g in range(8):
                word = u32(block, 66 + 4 * g)
                scale = d * (np.float32(0.5) + np.float32(word >> np.uint32(28))) * np.float32(0.5)
                for k in range(8):
                    sign = np.int32(signs[np.int64(word >> np.uint32(7 * (k // 2))) & 127]) >> np.int32(4 * (k % 2))
                    store_signed(y, 32 * g + 4 * k, scale, grid[block[2 + 8 * g + k]], 4, sign)


@njit(cache=True, nogil=True)
def dequantize_iq3_s(blocks: np.ndarray, out: np.ndarray, grid: np.ndarray, signs: np.ndarray) -> None:
    """uint8 [R, 110 · K/256] -> float32 [R, K]: d, 64 entries of 9 bits in two places, 256 sign bits, 8 scales of 4 bits."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 110):
            block, y = blocks[r, 110 * b : 110 * b + 110], out[r, 256 * b : 256 * b + 256]
            d = half_at(block, 0)
            for g in range(64):
                four = bits_at(block, 106 + g // 16, g // 8 % 2 * 4, 15)
                scale = d * np.float32(np.int32(np.int32(1) + np.int32(2) * four))
                entry = np.int32(block[2 + g]) | np.int32(bits_at(block, 66 + g // 8, g % 8, 1) << np.int32(8))
                store_signed(y, 4 * g, scale, grid[entry], 4, bits_at(block, 74 + g // 2, g % 2 * 4, 15))


@njit(cache=True, nogil=True)
def dequantize_iq1_s(blocks: np.ndarray, out: np.ndarray, grid: np.ndarray, signs: np.ndarray) -> None:
    """uint8 [R, 50 · K/256] -> float32 [R, K]: d, 32 entries of 11 bits in two places; for each 32 values a scale and a shift."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 50):
            block, y = blocks[r, 50 * b : 50 * b + 50], out[r, 256 * b : 256 * b + 256]
            d = half_at(block, 0)
            for g in range(32):
                high = u16(block, 34 + g // 4 * 2)
                scale = d * np.float32(np.int32(np.int32(2) * ((high >> np.int32(12)) & np.int32(7)) + np.int32(1)))
                shift = -DELTA if high & np.int32(0x8000) else DELTA
                entry = np.int32(block[2 + g]) | np.int32(((high >> np.int32(g % 4 * 3)) & np.int32(7)) << np.int32(8))
                for i in range(8):
                    y[8 * g + i] = scale * (grid[entry, i] + shift)


@njit(cache=True, nogil=True)
def dequantize_iq1_m(blocks: np.ndarray, out: np.ndarray, grid: np.ndarray, signs: np.ndarray) -> None:
    """uint8 [R, 56 · K/256] -> float32 [R, K]: 32 entries of 11 bits in two places with a shift each, 16 scales of 3 bits, and
    d, a nibble in each of four words of scales."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 56):
            block, y = blocks[r, 56 * b : 56 * b + 56], out[r, 256 * b : 256 * b + 256]
            half = np.int32(0)
            for k in range(4):
                half |= np.int32((u16(block, 48 + 2 * k) >> np.int32(12)) << np.int32(4 * k))
            d = half_to_float(np.uint16(half))
            for g in range(32):
                three = (u16(block, 48 + g // 8 * 2) >> np.int32(g // 2 % 4 * 3)) & np.int32(7)
                scale = d * np.float32(np.int32(np.int32(2) * three + np.int32(1)))
                four = bits_at(block, 32 + g // 2, g % 2 * 4, 15)
                shift = -DELTA if four & np.int32(8) else DELTA
                entry = np.int32(block[g]) | np.int32((four & np.int32(7)) << np.int32(8))
                for i in range(8):
                    y[8 * g + i] = scale * (grid[entry, i] + shift)
