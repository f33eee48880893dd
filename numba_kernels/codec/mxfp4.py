"""MXFP4: 32 values share a power-of-two scale (e8m0); each is a 4-bit e2m1 float.

Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 (e2m1), 5.4.1 (e8m0) and 6.3 (conversion).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import bits_of, from_bits, inline
from numba_kernels.codec.nibbles import join_halves, split_halves
from numba_kernels.codec.tables import (
    LOG2_ROUNDS_UP,
    MXFP4_CANDIDATES,
    MXFP4_HALVES,
    MXFP4_PER_UNIT,
    MXFP4_TOP,
    MXFP4_UNITS,
    SURE,
)

FLOOR, CEIL, OCP, SEARCH = 0, 1, 2, 3  # rules


@inline
def top_bits(bits: np.ndarray, row: int, start: int, count: int) -> np.int32:
    """Bits of the largest magnitude of `count` floats, which order as integers do."""
    top = np.int32(0)
    for i in range(count):
        top = max(top, np.int32(bits[row, start + i] & np.int32(0x7FFFFFFF)))
    return top


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


@inline
def magnitude_code(
    a: np.float32,
    t0: np.float32,
    t1: np.float32,
    t2: np.float32,
    t3: np.float32,
    t4: np.float32,
    t5: np.float32,
    t6: np.float32,
) -> np.int32:
    """e2m1 code 0…7 of a magnitude in units of the scale."""
    code = np.int32(a > t0) + np.int32(a > t1) + np.int32(a > t2) + np.int32(a > t3)
    return np.int32(code + np.int32(a > t4) + np.int32(a > t5) + np.int32(a > t6))


@njit(cache=True, nogil=True)
def quantize(
    values: np.ndarray,
    importance: np.ndarray,
    blocks: np.ndarray,
    scales: np.ndarray,
    rule: int,
    ties: np.ndarray,
    signed_zero: bool,
) -> None:
    """Rounds rows to MXFP4.

    Args:
        values: float32 [R, K], finite.
        importance: float32 [R or 1, K], weights of the squared error for SEARCH.
        blocks: uint8 [R, K/2], filled with two codes a byte, the lower nibble first.
        scales: uint8 [R, K/32], filled with e8m0 scales.
        rule: FLOOR, CEIL, OCP or SEARCH.
        ties: TIES_DOWN, TIES_EVEN or TIES_AWAY.
        signed_zero: whether a negative value that rounds to zero keeps its sign.
    """
    bits = values.view(np.int32)
    errors = np.empty((MXFP4_CANDIDATES, 16), np.float32)
    t0, t1, t2, t3, t4, t5, t6 = ties[0], ties[1], ties[2], ties[3], ties[4], ties[5], ties[6]
    for r in range(values.shape[0]):
        w = r if importance.shape[0] > 1 else 0
        for b in range(values.shape[1] // 32):
            top = top_bits(bits, r, 32 * b, 32)
            if rule == OCP:
                exponent = floor_exponent(top)
            elif rule == CEIL:
                exponent = ceil_exponent(top)
            else:
                exponent = ggml_exponent(top)
            if rule == SEARCH:
                exponent = best_exponent(values, r, importance, w, 32 * b, exponent, errors)
            scales[r, b] = exponent
            inverse = inverse_of(exponent)
            for i in range(16):
                x = values[r, 32 * b + 2 * i] * inverse
                y = values[r, 32 * b + 2 * i + 1] * inverse
                low = with_sign(magnitude_code(abs(x), t0, t1, t2, t3, t4, t5, t6), x, signed_zero)
                high = with_sign(magnitude_code(abs(y), t0, t1, t2, t3, t4, t5, t6), y, signed_zero)
                blocks[r, 16 * b + i] = np.uint8(low | np.int32(high << np.int32(4)))


@inline
def with_sign(code: np.int32, x: np.float32, signed_zero: bool) -> np.int32:
    """The code with x's sign; a code of zero only gets one if zeros are signed."""
    sign = np.int32((bits_of(x) >> np.int32(28)) & np.int32(8))
    return np.int32(code | sign) if signed_zero or code > np.int32(0) else code


@inline
def ggml_exponent(top: np.int32) -> np.int32:
    """The floor rule as ggml computes it: through a float32 logarithm."""
    exponent = np.int32(top >> np.int32(23))
    up = np.int32(np.int32(top & np.int32(0x7FFFFF)) >= LOG2_ROUNDS_UP[exponent])
    return min(max(np.int32(exponent - np.int32(2) + up), np.int32(0)), np.int32(MXFP4_TOP))


@inline
def best_exponent(
    values: np.ndarray,
    row: int,
    importance: np.ndarray,
    weight_row: int,
    start: int,
    plain: np.int32,
    errors: np.ndarray,
) -> np.int32:
    """The scale with the least weighted squared error among two below the plain rule's to one above it.

    Scales further up represent no value that these do not; further down they clip more than half of the range.
    """
    inverse = inverse_of(plain)
    for c in range(MXFP4_CANDIDATES):
        for i in range(16):
            first = squared_error(values[row, start + i] * inverse, importance[weight_row, start + i], c)
            second = squared_error(values[row, start + 16 + i] * inverse, importance[weight_row, start + 16 + i], c)
            errors[c, i] = first + second
    for half in MXFP4_HALVES:
        for c in range(MXFP4_CANDIDATES):
            for i in range(half):
                errors[c, i] += errors[c, i + half]
    best = 2
    for c in (3, 1, 0):
        if errors[c, 0] < errors[best, 0] * SURE and 0 <= plain + c - 2 <= MXFP4_TOP:
            best = c
    return np.int32(plain + best - 2)


@inline
def squared_error(x: np.float32, weight: np.float32, candidate: int) -> np.float32:
    """Weighted squared error of x, in units of the plain scale, with a candidate's scale."""
    difference = abs(x) - round_e2m1(abs(x) * MXFP4_PER_UNIT[candidate]) * MXFP4_UNITS[candidate]
    return weight * (difference * difference)


@inline
def round_e2m1(x: np.float32) -> np.float32:
    """The nearest e2m1 value of a magnitude, ties to even."""
    rounder = np.float32(6291456)  # 1.5 · 2^22: leaves steps of 1/2, as there are below 2
    rounder = np.float32(12582912) if x > np.float32(2) else rounder
    rounder = np.float32(25165824) if x > np.float32(4) else rounder
    return min((x + rounder) - rounder, np.float32(6))


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
