"""ggml's simple block formats: 32 values with a half-precision scale, or scale and minimum, into ggml's own block bytes.

Blocks (little endian): q8_0 = scale f16, 32 int8; q4_0 = scale, 16 bytes; q4_1 = scale, minimum, 16 bytes; q5_0 and q5_1
put 4 bytes with each value's fifth bit before the nibbles. In the nibbles, byte j holds values j (lower) and j + 16.
Source: ggml's `ggml-common.h` and `ggml-quants.c`.

Operations on rows: float32 values and weights of their squared errors (for the search) -> blocks, and the SUMS figures of the
rounding error (see `error.py`). SEARCH says whether the scale is searched over `steps` (see `search_scales`), BITS the format.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.codec.bits import float_to_half, inline
from numba_kernels.codec.error import add_errors, store_errors
from numba_kernels.codec.search import search_scales, search_scales_and_minima
from numba_kernels.codec.tables import HALF_MAX, HALF_OVERFLOW
from numba_kernels.cpu.op import inner, op
from numba_kernels.simd.doubles import no_doubles
from numba_kernels.simd.kinds import Address, Float
from numba_kernels.simd.memory import get_f32, load_floats, set_f32, set_i32, set_u16, stack, store_as_bytes, store_floats
from numba_kernels.simd.numbers import (
    as_half,
    fifth_bits,
    min_lanes,
    reciprocal,
    round_away,
    round_even,
    splat_words,
    truncate,
)
from numba_kernels.simd.values import LANES, absolute, max_lanes, maximum, minimum, splat, to_floats

SEARCH = True
BITS = 4
VECTORS = 32 // LANES  # of a block
TILE = 64  # blocks that are searched before they are rounded


@inline
def within_half(x: np.float32) -> np.float32:
    """x, or half precision's largest value where x would round to infinity."""
    if abs(x) < HALF_OVERFLOW:
        return x
    return HALF_MAX if x > np.float32(0) else -HALF_MAX


@inner
def top_magnitude(x: Address) -> Float:
    """The largest magnitude of a block."""
    top = absolute(load_floats(x))
    for i in range(1, VECTORS):
        top = maximum(top, absolute(load_floats(x + 4 * LANES * i)))
    return max_lanes(top)


@inner
def largest(x: Address) -> Float:
    """The first value of largest magnitude of a block."""
    top, at = top_magnitude(x), 0
    while at < 124 and abs(get_f32(x + at)) != top:
        at += 4
    return get_f32(x + at)


@inner
def ends(x: Address) -> tuple[Float, Float]:
    """The least and the largest value of a block."""
    low = high = load_floats(x)
    for i in range(1, VECTORS):
        value = load_floats(x + 4 * LANES * i)
        low, high = minimum(low, value), maximum(high, value)
    return min_lanes(low), max_lanes(high)


@op
def quantize_q8_0(  # type: ignore[no-untyped-def]
    values, values_stride, weights, weights_stride, blocks, blocks_stride, errors, errors_stride, rows, columns, steps,
    team, thread,
):  # fmt: skip
    """float32 [rows, columns] -> uint8 [rows, 34 · columns / 32]."""
    low, high = np.float32(-127), np.float32(127)
    scales = stack(256)
    for r in range(rows):
        squared, squares, most, outside = no_doubles(), no_doubles(), no_doubles(), 0
        for b in range(columns // 32):
            x, at = values + r * values_stride + 128 * b, blocks + r * blocks_stride + 34 * b
            if b % TILE == 0:
                count = min(columns // 32 - b, TILE)
                for i in range(count):
                    set_f32(scales + 4 * i, within_half(top_magnitude(x + 128 * i) / high))
                if SEARCH:
                    search_scales(x, weights + r * weights_stride + 128 * b, scales, count, steps, low, high)
            scale = get_f32(scales + 4 * (b % TILE))
            inverse, stored = reciprocal(splat(scale)), as_half(splat(scale))
            end = stored * splat(np.float32(127.5))
            for i in range(VECTORS):
                value = load_floats(x + 4 * LANES * i)
                code = minimum(maximum(value * inverse, splat(low)), splat(high))
                code = round_even(code) if SEARCH else round_away(code)
                store_as_bytes(at + 2 + LANES * i, truncate(code))
                squared, squares, most, outside = add_errors(
                    value, code * stored, splat(np.float32(0)) - end, end, (squared, squares, most, outside)
                )
            set_u16(at, float_to_half(scale))
        store_errors(errors + r * errors_stride, (squared, squares, most, outside))


@op
def quantize_symmetric(  # type: ignore[no-untyped-def]
    values, values_stride, weights, weights_stride, blocks, blocks_stride, errors, errors_stride, rows, columns, steps,
    team, thread,
):  # fmt: skip
    """q4_0 and q5_0: codes −2^(BITS−1) … 2^(BITS−1) − 1 times a scale of either sign.

    float32 [rows, columns] -> uint8 [rows, 18 · columns / 32] or [rows, 22 · columns / 32].
    """
    half, top = np.float32(1 << (BITS - 1)), np.float32((1 << BITS) - 1)
    low, high = -half, half - np.float32(1)
    scales, codes = stack(256), stack(128)
    for r in range(rows):
        squared, squares, most, outside = no_doubles(), no_doubles(), no_doubles(), 0
        for b in range(columns // 32):
            x, at = values + r * values_stride + 128 * b, blocks + r * blocks_stride + (2 + 4 * BITS) * b
            if b % TILE == 0:
                count = min(columns // 32 - b, TILE)
                for i in range(count):
                    set_f32(scales + 4 * i, within_half(largest(x + 128 * i) / low))
                if SEARCH:
                    search_scales(x, weights + r * weights_stride + 128 * b, scales, count, steps, low, high)
            scale = get_f32(scales + 4 * (b % TILE))
            inverse, stored = reciprocal(splat(scale)), as_half(splat(scale))
            first, last = stored * splat(low - np.float32(0.5)), stored * splat(high + np.float32(0.5))
            bottom, end = minimum(first, last), maximum(first, last)
            for i in range(VECTORS):
                value = load_floats(x + 4 * LANES * i)
                if SEARCH:
                    code = round_even(minimum(maximum(value * inverse, splat(low)), splat(high))) + splat(half)
                else:
                    code = value * inverse + splat(half + np.float32(0.5))
                    code = to_floats(truncate(minimum(maximum(code, splat(np.float32(0))), splat(top))))
                store_floats(codes + 4 * LANES * i, code)
                squared, squares, most, outside = add_errors(
                    value, (code - splat(half)) * stored, bottom, end, (squared, squares, most, outside)
                )
            set_u16(at, float_to_half(scale))
            store_codes(at + 2, codes, BITS)
        store_errors(errors + r * errors_stride, (squared, squares, most, outside))


@op
def quantize_minimum(  # type: ignore[no-untyped-def]
    values, values_stride, weights, weights_stride, blocks, blocks_stride, errors, errors_stride, rows, columns, steps,
    team, thread,
):  # fmt: skip
    """q4_1 and q5_1: codes 0 … 2^BITS − 1 times a scale, plus a minimum.

    float32 [rows, columns] -> uint8 [rows, 20 · columns / 32] or [rows, 24 · columns / 32].
    """
    top, half = np.float32((1 << BITS) - 1), np.float32(0.5)
    scales, minima, codes = stack(256), stack(256), stack(128)
    for r in range(rows):
        squared, squares, most, outside = no_doubles(), no_doubles(), no_doubles(), 0
        for b in range(columns // 32):
            x, at = values + r * values_stride + 128 * b, blocks + r * blocks_stride + (4 + 4 * BITS) * b
            if b % TILE == 0:
                count = min(columns // 32 - b, TILE)
                for i in range(count):
                    low, high = ends(x + 128 * i)
                    set_f32(scales + 4 * i, within_half((high - low) / top))
                    set_f32(minima + 4 * i, within_half(low))
                if SEARCH:
                    search_scales_and_minima(x, weights + r * weights_stride + 128 * b, scales, minima, count, steps, top)
            scale, lowest = get_f32(scales + 4 * (b % TILE)), get_f32(minima + 4 * (b % TILE))
            inverse, stored, base = reciprocal(splat(scale)), as_half(splat(scale)), as_half(splat(lowest))
            bottom, end = stored * splat(-half) + base, stored * splat(top + half) + base
            for i in range(VECTORS):
                value = load_floats(x + 4 * LANES * i)
                code = (value - splat(lowest)) * inverse
                if SEARCH:
                    code = round_even(minimum(maximum(code, splat(np.float32(0))), splat(top)))
                else:
                    code = minimum(maximum(code + splat(half), splat(np.float32(0))), splat(top))
                    code = to_floats(truncate(code))
                store_floats(codes + 4 * LANES * i, code)
                squared, squares, most, outside = add_errors(
                    value, stored * code + base, bottom, end, (squared, squares, most, outside)
                )
            set_u16(at, float_to_half(scale))
            set_u16(at + 2, float_to_half(lowest))
            store_codes(at + 4, codes, BITS)
        store_errors(errors + r * errors_stride, (squared, squares, most, outside))


@inner
def store_codes(at: Address, codes: Address, bits: int) -> None:
    """32 codes of 4 or 5 bits, given as float32: the fifth bits first, as one 32-bit number, then the nibbles."""
    if bits == 5:
        fifth = 0
        for i in range(VECTORS):
            fifth |= fifth_bits(truncate(load_floats(codes + 4 * LANES * i))) << (LANES * i)
        set_i32(at, fifth)
        at += 4
    for i in range(VECTORS // 2):
        low = truncate(load_floats(codes + 4 * LANES * i)) & splat_words(15)
        high = truncate(load_floats(codes + 64 + 4 * LANES * i)) & splat_words(15)
        store_as_bytes(at + LANES * i, low | (high << splat_words(4)))
