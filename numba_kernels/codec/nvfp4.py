"""NVFP4: 16 values share an e4m3 scale, the tensor a float32 one; each value is a 4-bit e2m1 float.

Source: NVIDIA, "Introducing NVFP4 for Efficient and Accurate Low-Precision Inference" (2025); compressed-tensors.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.codec.error import add_errors, store_errors
from numba_kernels.codec.fp8 import decode_e4m3, encode_e4m3
from numba_kernels.codec.mxfp4 import to_even
from numba_kernels.codec.search import VECTORS as CANDIDATE_VECTORS
from numba_kernels.codec.tables import SURE
from numba_kernels.cpu.op import inner, op
from numba_kernels.simd.doubles import no_doubles
from numba_kernels.simd.kinds import Address, Float, Floats, Int
from numba_kernels.simd.memory import get_f32, get_i32, get_u8, load_floats, set_u8, stack, store_floats
from numba_kernels.simd.numbers import (
    as_words,
    e2m1_values,
    from_words,
    larger_words,
    least_lane,
    load_pairs,
    reciprocal,
    round_e2m1,
    smaller_words,
    splat_words,
    store_pairs,
    with_signs,
)
from numba_kernels.simd.values import LANES, absolute, max_lanes, maximum, splat

SEARCH = True
VECTORS = 16 // LANES  # of a block


@op
def quantize_nvfp4(  # type: ignore[no-untyped-def]
    values, values_stride, weights, weights_stride, blocks, blocks_stride, scales, scales_stride, errors, errors_stride,
    rows, columns, steps, tensor_scale: float, team, thread,
):  # fmt: skip
    """Rounds rows to NVFP4, ties to even.

    Args:
        values: float32 [rows, columns], finite; weights: float32, of their squared errors, for the search.
        blocks: uint8 [rows, columns / 2], filled with two codes a byte, the lower nibble first.
        scales: uint8 [rows, columns / 16], filled with e4m3 scales.
        errors: float64 [rows, SUMS], filled (see `error.py`).
        steps: int32 [2, CANDIDATES], what the search adds to the plain scale's code, and the least code of each.
        tensor_scale: multiplies all scales.
        SEARCH: whether to try neighbouring scales beside the one at which a block's largest value is 6.
    """
    global_scale = np.float32(1) / tensor_scale
    for r in range(rows):
        squared, squares, most, outside = no_doubles(), no_doubles(), no_doubles(), 0
        for b in range(columns // 16):
            x, at = values + r * values_stride + 64 * b, blocks + r * blocks_stride + 8 * b
            top = absolute(load_floats(x))
            for i in range(1, VECTORS):
                top = maximum(top, absolute(load_floats(x + 4 * LANES * i)))
            code = np.int64(encode_e4m3(global_scale * (max_lanes(top) / np.float32(6))))
            if SEARCH:
                code = search_code(x, weights + r * weights_stride + 64 * b, code, steps, tensor_scale)
            set_u8(scales + r * scales_stride + b, code)
            value_of_code = decode_e4m3(np.uint8(code))
            scale = value_of_code / global_scale  # as compressed-tensors: it decides where ties fall
            divisor = splat(scale if scale > np.float32(0) else np.float32(np.inf))
            stored = splat(value_of_code * tensor_scale)
            end = stored * splat(np.float32(7))
            for i in range(VECTORS):
                value = load_floats(x + 4 * LANES * i)
                units = value / divisor
                e2m1 = with_signs(to_even(absolute(units)), units)
                store_pairs(at + LANES // 2 * i, e2m1)
                squared, squares, most, outside = add_errors(
                    value, e2m1_values(e2m1) * stored, splat(np.float32(0)) - end, end, (squared, squares, most, outside)
                )
        store_errors(errors + r * errors_stride, (squared, squares, most, outside))


@inner
def search_code(x: Address, weights: Address, code: Int, steps: Address, tensor_scale: Float) -> Int:
    """The scale code of least weighted squared error over 16 values: the plain one unless another is surely better."""
    codes, errors = stack(64), stack(64)
    for v in range(CANDIDATE_VECTORS):
        at = 4 * LANES * v
        tried = splat_words(code) + as_words(load_floats(steps + at))
        tried = smaller_words(larger_words(tried, as_words(load_floats(steps + 64 + at))), splat_words(126))
        scale = from_words(tried << splat_words(20)) * splat(np.float32(2.0**120)) * splat(tensor_scale)
        store_floats(codes + at, from_words(tried))
        store_floats(errors + at, e2m1_errors(x, weights, scale, reciprocal(scale)))
    return get_i32(codes + 4 * least_lane(errors, SURE))


@inner
def e2m1_errors(x: Address, weights: Address, scale: Floats, inverse: Floats) -> Floats:
    """The errors of 16 values as scale · (an e2m1 value), added one after another."""
    total = splat(np.float32(0))
    for i in range(0, 64, 4):
        value = absolute(splat(get_f32(x + i)))
        difference = value - round_e2m1(value * inverse) * scale
        total = total + splat(get_f32(weights + i)) * (difference * difference)
    return total


@op
def dequantize_nvfp4(  # type: ignore[no-untyped-def]
    blocks, blocks_stride, scales, scales_stride, tensor_scale, tensor_scale_stride, out, out_stride, rows, columns,
    team, thread,
):  # fmt: skip
    """uint8 [rows, columns / 2], uint8 [rows, columns / 16] and float32 [rows, 1] -> float32 [rows, columns]."""
    for r in range(rows):
        whole = get_f32(tensor_scale + r * tensor_scale_stride)
        for b in range(columns // 16):
            scale = splat(decode_e4m3(np.uint8(get_u8(scales + r * scales_stride + b))) * whole)
            for i in range(VECTORS):
                codes = load_pairs(blocks + r * blocks_stride + 8 * b + LANES // 2 * i)
                store_floats(out + r * out_stride + 64 * b + 4 * LANES * i, e2m1_values(codes) * scale)
