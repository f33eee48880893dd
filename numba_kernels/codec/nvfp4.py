"""NVFP4: 16 values share an e4m3 scale, the tensor a float32 one; each value is a 4-bit e2m1 float.

Source: NVIDIA, "Introducing NVFP4 for Efficient and Accurate Low-Precision Inference" (2025); compressed-tensors.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import inline
from numba_kernels.codec.fp8 import decode_e4m3, encode_e4m3
from numba_kernels.codec.mxfp4 import decode_e2m1, magnitude_code, round_e2m1, top_bits, with_sign
from numba_kernels.codec.search import least, reciprocal
from numba_kernels.codec.tables import LANES, NVFP4_STEPS, TIES_EVEN

T0, T1, T2, T3, T4, T5, T6 = TIES_EVEN


@njit(cache=True, nogil=True)
def quantize(
    values: np.ndarray,
    importance: np.ndarray,
    blocks: np.ndarray,
    scales: np.ndarray,
    tensor_scale: np.float32,
    search: bool,
) -> None:
    """Rounds rows to NVFP4, ties to even.

    Args:
        values: float32 [R, K], finite.
        importance: float32 [R or 1, K], weights of the squared error for the search.
        blocks: uint8 [R, K/2], filled with two codes a byte, the lower nibble first.
        scales: uint8 [R, K/16], filled with e4m3 scales.
        tensor_scale: multiplies all scales.
        search: whether to try neighbouring scales beside the one at which a block's largest value is 6.
    """
    bits = values.view(np.int32)
    lanes, inverses, errors = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    codes = np.empty(16, np.int32)
    global_scale = np.float32(1) / tensor_scale
    for r in range(values.shape[0]):
        w = r if importance.shape[0] > 1 else 0
        for b in range(values.shape[1] // 16):
            top = np.int32(top_bits(bits, r, 16 * b, 16)).view(np.float32)
            code = np.int32(encode_e4m3(global_scale * (top / np.float32(6))))
            if search:
                for c in range(LANES):
                    lanes[c] = decode_e4m3(np.uint8(neighbour(code, c))) * tensor_scale
                code = neighbour(code, best_lane(values, r, importance, w, 16 * b, lanes, inverses, errors))
            scales[r, b] = np.uint8(code)
            scale = decode_e4m3(np.uint8(code)) / global_scale  # as compressed-tensors: it decides where ties fall
            divisor = scale if scale > np.float32(0) else np.float32(np.inf)
            for i in range(16):
                x = values[r, 16 * b + i] / divisor
                codes[i] = with_sign(magnitude_code(abs(x), T0, T1, T2, T3, T4, T5, T6), x, True)
            for i in range(8):
                blocks[r, 8 * b + i] = np.uint8(codes[2 * i] | np.int32(codes[2 * i + 1] << np.int32(4)))


@inline
def neighbour(code: np.int32, lane: int) -> np.int32:
    """The scale code that a lane tries: a positive finite one, but the plain one as it is."""
    moved = np.int32(code + NVFP4_STEPS[lane])
    return code if lane == 0 else min(max(moved, np.int32(1)), np.int32(126))


@njit(nogil=True)
def best_lane(
    values: np.ndarray,
    row: int,
    importance: np.ndarray,
    weight_row: int,
    start: int,
    scales: np.ndarray,
    inverses: np.ndarray,
    errors: np.ndarray,
) -> int:
    """The lane of least weighted squared error over 16 values; 0 unless another is surely better."""
    for c in range(LANES):
        inverses[c] = reciprocal(scales[c])
        errors[c] = np.float32(0)
    for i in range(start, start + 16):
        x = abs(values[row, i])
        weight = importance[weight_row, i]
        for c in range(LANES):
            difference = x - round_e2m1(x * inverses[c]) * scales[c]
            errors[c] += weight * (difference * difference)
    return least(errors)


@njit(cache=True, nogil=True)
def dequantize(blocks: np.ndarray, scales: np.ndarray, tensor_scale: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, K/2], uint8 [R, K/16], float32 [R, 1] -> float32 [R, K]."""
    codes = np.empty(16, np.int32)
    for r in range(blocks.shape[0]):
        for b in range(scales.shape[1]):
            scale = decode_e4m3(scales[r, b]) * tensor_scale[r, 0]
            for i in range(8):
                byte = np.int32(blocks[r, 8 * b + i])
                codes[2 * i], codes[2 * i + 1] = np.int32(byte & np.int32(15)), np.int32(byte >> np.int32(4))
            for i in range(16):
                out[r, 16 * b + i] = decode_e2m1(codes[i]) * scale
