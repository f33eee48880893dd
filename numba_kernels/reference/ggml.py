"""ggml's blocks of 32 values in plain NumPy: q4_0, q4_1, q5_0, q5_1, q8_0 and iq4_nl, to the bit; see `formats`."""

from __future__ import annotations

import numpy as np

from numba_kernels.codec import tables
from numba_kernels.codec.tables import IQ4_NL, IQ4_NL_LEAST, IQ4_NL_MIDPOINTS
from numba_kernels.reference.formats import (
    F32,
    Array,
    as_half,
    encode_half,
    first_largest,
    ignoring_overflow,
    least,
    reciprocal,
    within_half,
)


def _search_half(
    values: Array,
    importance: Array | None,
    scale: Array,
    minimum: Array | None,
    steps: Array,
    low: np.float32,
    high: np.float32,
) -> tuple[Array, Array]:
    """The best half-precision scales (and minima), float32 [N, 1], of those that `steps` reach."""
    base = np.zeros_like(scale) if minimum is None else minimum
    weight = np.ones_like(values) if importance is None else importance
    for factors, shifts in steps:
        scales = as_half(scale * factors)
        minima = as_half(base + scale * shifts) if minimum is not None else np.zeros_like(scales)
        inverses = reciprocal(scales)[:, :, None]
        codes = np.rint(np.clip((values[:, None] - minima[:, :, None]) * inverses, low, high))
        difference = values[:, None] - (scales[:, :, None] * codes + minima[:, :, None])
        e = weight[:, None] * (difference * difference)
        errors = np.zeros(scales.shape, F32)
        for i in range(0, 32, 4):  # as the kernel adds them
            errors += (e[..., i] + e[..., i + 1]) + (e[..., i + 2] + e[..., i + 3])
        best = least(errors)[:, None]
        scale, base = np.take_along_axis(scales, best, 1), np.take_along_axis(minima, best, 1)
    return scale, base


@ignoring_overflow
def quantize_q8_0(values: Array, rule: str, importance: Array | None = None) -> Array:
    """float32 [N, 32] -> uint8 [N, 34]; rule: search or plain."""
    scale = within_half(np.abs(values).max(1, keepdims=True) / F32(127))
    if rule == "search":
        scale, _ = _search_half(values, importance, scale, None, tables.STEPS_8_BITS, F32(-127), F32(127))
    units = np.clip(values * reciprocal(scale), F32(-127), F32(127))
    whole = np.trunc(units)
    away = whole + np.trunc(2 * (units - whole))  # half away from zero, as C's roundf
    codes = np.rint(units) if rule == "search" else away
    return np.concatenate([encode_half(scale).view(np.uint8), codes.astype(np.int8).view(np.uint8)], 1)


@ignoring_overflow
def quantize_nibbles(values: Array, bits: int, has_minimum: bool, rule: str, importance: Array | None = None) -> Array:
    """q4_0, q4_1, q5_0, q5_1: float32 [N, 32] -> uint8 [N, block bytes]; rule: search or plain."""
    half, top = F32(1 << (bits - 1)), F32((1 << bits) - 1)
    with np.errstate(over="ignore"):
        if has_minimum:
            low = values.min(1, keepdims=True)
            scale = within_half((values.max(1, keepdims=True) - low) / top)
            minimum, offset, steps = within_half(low), F32(0), tables.STEPS_MINIMUM[bits]
        else:
            scale = within_half(first_largest(values) / -half)
            minimum, offset, steps = np.zeros_like(scale), half, tables.STEPS_SYMMETRIC[bits]
        if rule == "search":
            given = minimum if has_minimum else None
            scale, minimum = _search_half(values, importance, scale, given, steps, -offset, top - offset)
            units = np.clip((values - minimum) * reciprocal(scale), -offset, top - offset)
            codes = np.rint(units) + offset
        else:
            codes = np.trunc(np.clip((values - minimum) * reciprocal(scale) + (offset + F32(0.5)), 0, top))
    header = [encode_half(scale).view(np.uint8)] + [encode_half(minimum).view(np.uint8)] * has_minimum
    return np.concatenate([*header, _store_codes(codes.astype(np.uint8), bits)], 1)


def _store_codes(codes: Array, bits: int) -> Array:
    fifth = [np.packbits(codes >> 4, axis=1, bitorder="little")] if bits == 5 else []
    return np.concatenate([*fifth, codes[:, :16] & 15 | (codes[:, 16:] & 15) << 4], 1)


@ignoring_overflow
def quantize_iq4_nl(values: Array, rule: str, importance: Array | None = None) -> Array:
    """float32 [N, 32] -> uint8 [N, 18]; rule: search or plain."""
    top = first_largest(values)
    empty = np.abs(top) < IQ4_NL_LEAST
    start = np.where(empty, F32(1), top) / IQ4_NL[0]
    codes = _iq4_nl_codes(values * (F32(1) / start))
    with np.errstate(all="ignore"):
        weighted = values * values * IQ4_NL[codes]
        products = np.add.accumulate(weighted * values, 1)[:, -1:]
        squares = np.add.accumulate(weighted * IQ4_NL[codes], 1)[:, -1:]
        scale = np.where((squares > 0) & (squares < np.inf), products / squares, start)
    scale, codes = np.where(empty, F32(0), within_half(scale)), np.where(empty, 0, codes)
    if rule == "search":
        found = _search_iq4_nl(values, importance, scale, within_half(top / IQ4_NL[0]))
        codes = np.where(scale == 0, codes, _iq4_nl_codes(values * reciprocal(found)))
        scale = np.where(scale == 0, scale, found)
    return np.concatenate([encode_half(scale).view(np.uint8), _store_codes(codes.astype(np.uint8), 4)], 1)


def _iq4_nl_codes(units: Array) -> Array:
    return (units[..., None] >= IQ4_NL_MIDPOINTS).sum(-1)


def _search_iq4_nl(values: Array, importance: Array | None, plain: Array, centre: Array) -> Array:
    for p, (factors, _) in enumerate(tables.STEPS_IQ4_NL):
        scales = as_half(centre * factors)
        if p == 0:
            scales[:, :1] = as_half(plain)
        rounded = IQ4_NL[_iq4_nl_codes(values[:, None] * reciprocal(scales)[:, :, None])]
        difference = values[:, None] - rounded * scales[:, :, None]
        e = (1 if importance is None else importance[:, None]) * (difference * difference)
        errors = np.add.accumulate(e, 2)[..., -1]
        centre = np.take_along_axis(scales, least(errors)[:, None], 1)
    return centre


def dequantize_ggml(data: Array, bits: int, has_minimum: bool) -> Array:
    """q4_0, q4_1, q5_0, q5_1 (bits 4 or 5), q8_0 (bits 8): uint8 [N, block bytes] -> float32 [N, 32]."""
    header = 4 if has_minimum else 2
    halves = data[:, :header].copy().view(np.float16).astype(F32)
    scale, minimum = halves[:, :1], halves[:, 1:] if has_minimum else F32(0)
    if bits == 8:
        return data[:, header:].copy().view(np.int8) * scale
    codes = np.concatenate([data[:, -16:] & 15, data[:, -16:] >> 4], 1).astype(int)
    if bits == 5:
        codes |= np.unpackbits(data[:, header : header + 4], axis=1, bitorder="little").astype(int) << 4
    return scale * (codes - (0 if has_minimum else 1 << (bits - 1))).astype(F32) + minimum


def dequantize_iq4_nl(data: Array) -> Array:
    """uint8 [N, 18] -> float32 [N, 32]."""
    codes = np.concatenate([data[:, 2:] & 15, data[:, 2:] >> 4], 1)
    return data[:, :2].copy().view(np.float16).astype(F32) * IQ4_NL[codes]
