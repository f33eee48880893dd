"""Scalar pieces that the codec kernels share: rounding, and 32-bit to and from 16-bit floats by integer arithmetic."""

from __future__ import annotations

import numpy as np
from numba import njit

inline = njit(nogil=True, inline="always")

HALF_MAX = np.float32(65504)
BFLOAT16_MAX = np.float32(3.3895313892515355e38)
TO_HALF_RANGE = np.float32(2.0**112)
ROUNDER = np.float32(3 << 22)  # adding and subtracting it rounds |x| < 2^22 to the nearest integer, ties to even


@inline
def bits_of(x: np.float32) -> np.int32:
    return np.float32(x).view(np.int32)


@inline
def from_bits(bits: np.int32) -> np.float32:
    return np.int32(bits).view(np.float32)


@inline
def round_even(x: np.float32) -> np.float32:
    """The nearest integer, ties to even, for |x| < 2^22."""
    return (x + ROUNDER) - ROUNDER


@inline
def round_away(x: np.float32) -> np.int32:
    """The nearest integer, ties away from zero (C's roundf), for |x| < 2^22."""
    magnitude = abs(x)
    whole = np.int32(magnitude)
    whole += np.int32(np.float32(2) * (magnitude - np.float32(whole)))
    return whole if x >= np.float32(0) else np.int32(-whole)


@inline
def half_to_float(half: np.uint16) -> np.float32:
    """The value of IEEE half-precision bits."""
    bits = np.int32(half)
    magnitude = from_bits(np.int32((bits & np.int32(0x7FFF)) << np.int32(13))) * TO_HALF_RANGE
    special = np.int32(0x7F800000) if (bits & np.int32(0x7C00)) == np.int32(0x7C00) else np.int32(0)
    return from_bits(bits_of(magnitude) | special | np.int32((bits & np.int32(0x8000)) << np.int32(16)))


@inline
def float_to_half(x: np.float32) -> np.uint16:
    """IEEE half-precision bits, ties to even. Finite values beyond the range become the largest; NaN and infinity stay."""
    bits = bits_of(x)
    magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
    odd = np.int32((magnitude >> np.int32(13)) & np.int32(1))
    normal = np.int32(np.int32(magnitude + np.int32(0xFFF) + odd - np.int32(112 << 23)) >> np.int32(13))
    small = np.int32(bits_of(from_bits(magnitude) + np.float32(0.5)) - np.int32(0x3F000000))
    half = small if magnitude < np.int32(0x38800000) else min(normal, np.int32(0x7BFF))
    if magnitude >= np.int32(0x7F800000):
        half = np.int32(0x7E00) if magnitude > np.int32(0x7F800000) else np.int32(0x7C00)
    return np.uint16(half | np.int32((bits >> np.int32(16)) & np.int32(0x8000)))


@inline
def bfloat16_to_float(bits: np.uint16) -> np.float32:
    """The value of bfloat16 bits."""
    return from_bits(np.int32(np.int32(bits) << np.int32(16)))


@inline
def float_to_bfloat16(x: np.float32) -> np.uint16:
    """bfloat16 bits, ties to even. Finite values beyond the range become the largest; NaN and infinity stay."""
    bits = bits_of(x)
    magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
    odd = np.int32((magnitude >> np.int32(16)) & np.int32(1))
    rounded = min(np.int32((magnitude + np.int32(0x7FFF) + odd) >> np.int32(16)), np.int32(0x7F7F))
    if magnitude >= np.int32(0x7F800000):
        rounded = np.int32(0x7FC0) if magnitude > np.int32(0x7F800000) else np.int32(0x7F80)
    return np.uint16(rounded | np.int32((bits >> np.int32(16)) & np.int32(0x8000)))


@inline
def as_half(x: np.float32) -> np.float32:
    """x rounded to half precision, saturating."""
    return half_to_float(float_to_half(x))


@inline
def as_bfloat16(x: np.float32) -> np.float32:
    """x rounded to bfloat16, saturating."""
    return bfloat16_to_float(float_to_bfloat16(x))
