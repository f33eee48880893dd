"""MXFP4: 32 values share a power-of-two scale (e8m0); each is a 4-bit e2m1 float.

Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 (e2m1), 5.4.1 (e8m0) and 6.3 (conversion).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import bits_of, from_bits, inline
from numba_kernels.codec.error import add_errors, store_errors
from numba_kernels.codec.ggml import top_magnitude
from numba_kernels.codec.nibbles import join_halves, split_halves
from numba_kernels.codec.tables import LOG2_ROUNDS_UP, MXFP4_PER_UNIT, MXFP4_TOP, MXFP4_UNITS, SURE
from numba_kernels.cpu.op import inner, op
from numba_kernels.simd.doubles import no_doubles
from numba_kernels.simd.kinds import Address, Float, Floats, Int
from numba_kernels.simd.memory import load_floats, set_u8
from numba_kernels.simd.numbers import (
    e2m1_rounding,
    e2m1_values,
    round_e2m1,
    store_pairs,
    with_signs,
    with_signs_unless_zero,
)
from numba_kernels.simd.values import LANES, absolute, splat, sum_lanes

RULE = "search"
VECTORS = 32 // LANES  # of a block


@inline
def floor_exponent(top: np.int32) -> np.int32:
    """Biased exponent of the scale by the OCP rule: that of the largest magnitude, less that of e2m1's largest, 4."""
    return max(np.int32((top >> np.int32(23)) - np.int32(2)), np.int32(0))


@inline
def ceil_exponent(top: np.int32) -> np.int32:
    """Exponent of the least scale for which nothing exceeds e2m1's largest value, 6 = 1.5 · 4, and none is infinite."""
    above = np.int32((top & np.int32(0x7FFFFF)) > np.int32(0x400000))
    return min(max(np.int32((top >> np.int32(23)) - np.int32(2) + above), np.int32(0)), np.int32(MXFP4_TOP))


@inline
def scale_of(exponent: np.int32) -> np.float32:
    """2^(exponent − 127)."""
    return from_bits(np.int32(exponent << np.int32(23))) if exponent > np.int32(0) else from_bits(np.int32(0x400000))


@inline
def inverse_of(exponent: np.int32) -> np.float32:
    """2^(127 − exponent), for exponent ≤ 254."""
    return scale_of(np.int32(254) - exponent)


to_smaller = e2m1_rounding("to_smaller", "down")  # ggml: the first of the equally near codes
to_even = e2m1_rounding("to_even", "even")  # IEEE; torchao
to_larger = e2m1_rounding("to_larger", "away")  # Triton's kernels


@op
def quantize_mxfp4(  # type: ignore[no-untyped-def]
    values, values_stride, weights, weights_stride, blocks, blocks_stride, scales, scales_stride, errors, errors_stride,
    rows, columns, team, thread,
):  # fmt: skip
    """Rounds rows to MXFP4 by RULE.

    Args:
        values: float32 [rows, columns], finite; weights: float32, of their squared errors, for the search.
        blocks: uint8 [rows, columns / 2], filled with two codes a byte, the lower nibble first.
        scales: uint8 [rows, columns / 32], filled with e8m0 scales.
        errors: float64 [rows, SUMS], filled (see `error.py`).
        RULE: search and floor, ties to the smaller magnitude, zeros without a sign; ceil, ties to the larger; ocp, ties to even.
    """
    for r in range(rows):
        squared, squares, most, outside = no_doubles(), no_doubles(), no_doubles(), 0
        for b in range(columns // 32):
            x, at = values + r * values_stride + 128 * b, blocks + r * blocks_stride + 16 * b
            top = bits_of(top_magnitude(x))
            if RULE == "ocp":
                exponent = floor_exponent(top)
            elif RULE == "ceil":
                exponent = ceil_exponent(top)
            else:
                exponent = ggml_exponent(top)
            if RULE == "search":
                exponent = best_exponent(x, weights + r * weights_stride + 128 * b, exponent)
            set_u8(scales + r * scales_stride + b, np.int64(exponent))
            inverse, scale = splat(inverse_of(exponent)), splat(scale_of(exponent))
            end = splat(scale_of(exponent) * np.float32(7))
            for i in range(VECTORS):
                value = load_floats(x + 4 * LANES * i)
                units = value * inverse
                if RULE == "ocp":
                    codes = with_signs(to_even(absolute(units)), units)
                elif RULE == "ceil":
                    codes = with_signs(to_larger(absolute(units)), units)
                else:
                    codes = with_signs_unless_zero(to_smaller(absolute(units)), units)
                store_pairs(at + LANES // 2 * i, codes)
                squared, squares, most, outside = add_errors(
                    value, e2m1_values(codes) * scale, splat(np.float32(0)) - end, end, (squared, squares, most, outside)
                )
        store_errors(errors + r * errors_stride, (squared, squares, most, outside))


@inline
def ggml_exponent(top: np.int32) -> np.int32:
    """The floor rule as ggml computes it: through a float32 logarithm."""
    exponent = np.int32(top >> np.int32(23))
    up = np.int32(np.int32(top & np.int32(0x7FFFFF)) >= LOG2_ROUNDS_UP[exponent])
    return min(max(np.int32(exponent - np.int32(2) + up), np.int32(0)), np.int32(MXFP4_TOP))


@inner
def best_exponent(x: Address, weights: Address, plain: Int) -> Int:
    """The scale with the least weighted squared error among two below the plain rule's to one above it.

    Scales further up represent no value that these do not; further down they clip more than half of the range.
    """
    inverse = splat(inverse_of(plain))
    below, above = candidate_error(x, weights, inverse, 1), candidate_error(x, weights, inverse, 3)
    lowest, least, best = candidate_error(x, weights, inverse, 0), candidate_error(x, weights, inverse, 2), plain
    if above < least * SURE and plain + 1 <= MXFP4_TOP:
        least, best = above, plain + 1
    if below < least * SURE and plain >= 1:
        least, best = below, plain - 1
    if lowest < least * SURE and plain >= 2:
        best = plain - 2
    return best


@inner
def candidate_error(x: Address, weights: Address, inverse: Floats, candidate: Int) -> Float:
    """Weighted squared error of a block, in units of the plain scale, with a candidate's scale."""
    unit, per_unit = splat(MXFP4_UNITS[candidate]), splat(MXFP4_PER_UNIT[candidate])
    total = splat(np.float32(0))
    for i in range(VECTORS // 2):
        at = 4 * LANES * i
        first = absolute(load_floats(x + at) * inverse)
        second = absolute(load_floats(x + 64 + at) * inverse)
        first = first - round_e2m1(first * per_unit) * unit
        second = second - round_e2m1(second * per_unit) * unit
        error = load_floats(weights + at) * (first * first) + load_floats(weights + 64 + at) * (second * second)
        total = total + error if i else error
    return sum_lanes(total)


@njit(cache=True, nogil=True)
def dequantize(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, K/2] and uint8 [R, K/32] -> float32 [R, K]. Scale 255 makes NaN; products beyond float32 are infinite."""
    for r in range(blocks.shape[0]):
        for b in range(scales.shape[1]):
            exponent = np.int32(scales[r, b])
            scale = scale_of(exponent) if exponent < np.int32(255) else np.float32(np.nan)
            for i in range(16):
                byte = np.int32(blocks[r, 16 * b + i])
                out[r, 32 * b + 2 * i] = decode_e2m1(np.int32(byte & np.int32(15))) * scale
                out[r, 32 * b + 2 * i + 1] = decode_e2m1(np.int32(byte >> np.int32(4))) * scale


@inline
def decode_e2m1(code: np.int32) -> np.float32:
    """The value of an e2m1 code, by placing its bits in a float32 of the same exponent, 126 lower, and scaling up."""
    magnitude = from_bits(np.int32((code & np.int32(7)) << np.int32(22))) * np.float32(2.0**126)
    return from_bits(bits_of(magnitude) | np.int32((code & np.int32(8)) << np.int32(28)))


@njit(cache=True, nogil=True)
def pack_ggml(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """Moves codes and scales into ggml's 17-byte blocks: uint8 [R, 17·K/32], all arrays C-contiguous.

    There the scale comes first, and byte j holds values j (lower nibble) and j + 16.
    """
    source, target = blocks.reshape(-1), out.reshape(-1)
    exponents = scales.reshape(-1)
    for b in range(exponents.size):
        target[17 * b] = exponents[b]
        split_halves(source, 16 * b, target, 17 * b + 1)


@njit(cache=True, nogil=True)
def unpack_ggml(data: np.ndarray, blocks: np.ndarray, scales: np.ndarray) -> None:
    """The inverse of `pack_ggml`."""
    source, target = data.reshape(-1), blocks.reshape(-1)
    exponents = scales.reshape(-1)
    for b in range(exponents.size):
        exponents[b] = source[17 * b]
        join_halves(source, 17 * b + 1, target, 16 * b)
