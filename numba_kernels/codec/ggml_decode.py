"""ggml's simple block formats from their bytes to float32 (see `ggml.py`): plain scalar code, which LLVM vectorizes."""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import half_to_float, inline
from numba_kernels.codec.tables import IQ4_NL


@inline
def load_half(blocks: np.ndarray, row: int, at: int) -> np.float32:
    return half_to_float(np.uint16(np.int32(blocks[row, at]) | np.int32(np.int32(blocks[row, at + 1]) << np.int32(8))))


@njit(cache=True, nogil=True)
def dequantize_q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 34·K/32] -> float32 [R, K]."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 34):
            scale = load_half(blocks, r, 34 * b)
            for i in range(32):
                out[r, 32 * b + i] = np.float32(np.int8(blocks[r, 34 * b + 2 + i])) * scale


@njit(cache=True, nogil=True)
def dequantize_nibbles(blocks: np.ndarray, out: np.ndarray, bits: int, has_minimum: bool) -> None:
    """q4_0, q4_1, q5_0, q5_1: uint8 [R, block bytes · K/32] -> float32 [R, K]."""
    header = 4 if has_minimum else 2
    size = header + (16 if bits == 4 else 20)
    offset = np.int32(0) if has_minimum else np.int32(1 << (bits - 1))
    for r in range(out.shape[0]):
        for b in range(out.shape[1] // 32):
            at, start = size * b, 32 * b
            scale = load_half(blocks, r, at)
            minimum = load_half(blocks, r, at + 2) if has_minimum else np.float32(0)
            at += header
            fifth = np.uint32(0)
            if bits == 5:
                for i in range(4):
                    fifth |= np.uint32(np.uint32(blocks[r, at + i]) << np.uint32(8 * i))
                at += 4
            for i in range(16):
                byte = np.int32(blocks[r, at + i])
                low = np.int32(byte & np.int32(15)) | np.int32((fifth >> np.uint32(i) & np.uint32(1)) << np.uint32(4))
                high = np.int32(byte >> np.int32(4)) | np.int32(
                    ((fifth >> np.uint32(i + 16)) & np.uint32(1)) << np.uint32(4)
                )
                out[r, start + i] = scale * np.float32(np.int32(low - offset)) + minimum
                out[r, start + 16 + i] = scale * np.float32(np.int32(high - offset)) + minimum


@njit(cache=True, nogil=True)
def dequantize_iq4_nl(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 18·K/32] -> float32 [R, K]."""
    for r in range(out.shape[0]):
        for b in range(out.shape[1] // 32):
            scale = load_half(blocks, r, 18 * b)
            for i in range(16):
                byte = blocks[r, 18 * b + 2 + i]
                out[r, 32 * b + i] = scale * IQ4_NL[byte & np.uint8(15)]
                out[r, 32 * b + 16 + i] = scale * IQ4_NL[byte >> np.uint8(4)]
