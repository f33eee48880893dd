"""ggml's k-quants from float32: blocks of 256 values in ggml's own bytes (`k_quants.py` reads them).

Operations on rows: float32 values and weights of their squared errors (for the search) -> blocks, and the SUMS figures of the
rounding error (see `error.py`). SEARCH says whether scales are sought (`k_search.py`), BITS the format. A block's scale, or two,
is half precision; each group of SIZE values has whole numbers of MOST at most (or from −MOST on) that multiply it.
Source: ggml's `ggml-common.h`.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.codec.bits import float_to_half
from numba_kernels.codec.error import add_errors, store_errors
from numba_kernels.codec.k_search_minima import plain_pairs, search_pairs
from numba_kernels.codec.k_search_signed import plain_scales, search_scales_of_either_sign
from numba_kernels.cpu.op import inner, op
from numba_kernels.simd.doubles import no_doubles
from numba_kernels.simd.kinds import Address, Int, Words
from numba_kernels.simd.memory import get_f32, load_floats, set_u8, set_u16, stack, store_as_bytes, store_floats
from numba_kernels.simd.numbers import reciprocal, round_even, splat_words, truncate
from numba_kernels.simd.values import LANES, maximum, minimum, splat

SEARCH = True
BITS, SIZE, MOST, BYTES = 4, 32, 63, 144  # of a code; of a group, of its numbers, of a block


@op
def quantize_pairs(  # type: ignore[no-untyped-def]
    values, values_stride, weights, weights_stride, blocks, blocks_stride, errors, errors_stride, rows, columns, steps, nearby,
    team, thread,
):  # fmt: skip
    """q2_k, q4_k and q5_k: codes 0 … 2^BITS − 1 times a scale, less a minimum.

    float32 [rows, columns] -> uint8 [rows, BYTES · columns / 256].
    """
    high, most, half = np.float32((1 << BITS) - 1), np.float32(MOST), np.float32(0.5)
    scales, minima, codes, found, bases = stack(64), stack(64), stack(1024), stack(64), stack(64)
    zero = splat(np.float32(0))
    for i in range(0, 64, 4 * LANES):
        store_floats(found + i, zero)
        store_floats(bases + i, zero)
    for r in range(rows):
        squared, squares, outermost, outside = no_doubles(), no_doubles(), no_doubles(), 0
        for b in range(columns // 256):
            x, at = values + r * values_stride + 1024 * b, blocks + r * blocks_stride + BYTES * b
            if SEARCH:
                its_weights = weights + r * weights_stride + 1024 * b
                d, dmin = search_pairs(x, its_weights, scales, minima, steps, nearby, most, high, SIZE)
            else:
                d, dmin = plain_pairs(x, found, bases, scales, minima, most, high, SIZE)
            for g in range(256 // SIZE):
                scale, lowest = splat(d * get_f32(scales + 4 * g)), zero - splat(dmin * get_f32(minima + 4 * g))
                bottom, end = lowest - scale * splat(half), scale * splat(high + half) + lowest
                inverse = reciprocal(scale)
                for i in range(4 * SIZE * g, 4 * SIZE * (g + 1), 4 * LANES):
                    value = load_floats(x + i)
                    code = round_even(minimum(maximum((value - lowest) * inverse, zero), splat(high)))
                    store_floats(codes + i, code)
                    squared, squares, outermost, outside = add_errors(
                        value, scale * code + lowest, bottom, end, (squared, squares, outermost, outside)
                    )
            if BITS == 2:
                for g in range(16):
                    set_u8(at + g, number(scales, g) | number(minima, g) << 4)
                store_two_bits(at + 16, codes)
                set_u16(at + 80, float_to_half(d))
                set_u16(at + 82, float_to_half(dmin))
            else:
                set_u16(at, float_to_half(d))
                set_u16(at + 2, float_to_half(dmin))
                store_six_bits(at + 4, scales, minima)
                if BITS == 5:
                    store_bits(at + 16, codes, 4)
                for p in range(4):
                    store_nibbles(at + BYTES - 128 + 32 * p, codes + 256 * p, codes + 256 * p + 128, 32)
        store_errors(errors + r * errors_stride, (squared, squares, outermost, outside))


@op
def quantize_signed(  # type: ignore[no-untyped-def]
    values, values_stride, weights, weights_stride, blocks, blocks_stride, errors, errors_stride, rows, columns, steps, nearby,
    team, thread,
):  # fmt: skip
    """q3_k and q6_k: codes −2^(BITS − 1) … 2^(BITS − 1) − 1 times a scale of either sign.

    float32 [rows, columns] -> uint8 [rows, BYTES · columns / 256].
    """
    offset, least = np.float32(1 << (BITS - 1)), np.float32(-MOST)
    low, high = -offset, offset - np.float32(1)
    scales, codes, found = stack(64), stack(1024), stack(64)
    for r in range(rows):
        squared, squares, outermost, outside = no_doubles(), no_doubles(), no_doubles(), 0
        for b in range(columns // 256):
            x, at = values + r * values_stride + 1024 * b, blocks + r * blocks_stride + BYTES * b
            if SEARCH:
                its_weights = weights + r * weights_stride + 1024 * b
                d = search_scales_of_either_sign(x, its_weights, scales, steps, nearby, least, low, high, SIZE)
            else:
                d = plain_scales(x, found, scales, least, low, SIZE)
            for g in range(256 // SIZE):
                scale = splat(d * get_f32(scales + 4 * g))
                first, last = scale * splat(low - np.float32(0.5)), scale * splat(high + np.float32(0.5))
                bottom, end, inverse = minimum(first, last), maximum(first, last), reciprocal(scale)
                for i in range(4 * SIZE * g, 4 * SIZE * (g + 1), 4 * LANES):
                    value = load_floats(x + i)
                    code = round_even(minimum(maximum(value * inverse, splat(low)), splat(high)))
                    store_floats(codes + i, code + splat(offset))
                    squared, squares, outermost, outside = add_errors(
                        value, scale * code, bottom, end, (squared, squares, outermost, outside)
                    )
            if BITS == 3:
                store_bits(at, codes, 2)
                store_two_bits(at + 32, codes)
                store_signed_six_bits(at + 96, scales)
            else:
                for h in range(2):
                    store_nibbles(at + 64 * h, codes + 512 * h, codes + 512 * h + 256, 64)
                    store_upper_bits(at + 128 + 32 * h, codes + 512 * h)
                for g in range(16):
                    set_u8(at + 192 + g, number(scales, g) & 255)
            set_u16(at + BYTES - 2, float_to_half(d))
        store_errors(errors + r * errors_stride, (squared, squares, outermost, outside))


# ---- bytes of codes, float32 [256] ----------------------------------------------------------------------------------


@inner
def number(figures: Address, g: Int) -> Int:
    """One of the groups' whole numbers."""
    return int(get_f32(figures + 4 * g))


@inner
def codes_at(codes: Address) -> Words:
    """LANES codes."""
    return truncate(load_floats(codes))


@inner
def store_nibbles(at: Address, low: Address, high: Address, count: Int) -> None:
    """The lower four bits of `count` codes from `low` on, beside those of as many from `high` on."""
    for i in range(0, count, LANES):
        first, second = codes_at(low + 4 * i) & splat_words(15), codes_at(high + 4 * i) & splat_words(15)
        store_as_bytes(at + i, first | (second << splat_words(4)))


@inner
def store_bits(at: Address, codes: Address, bit: Int) -> None:
    """One bit of 256 codes: in byte j those of the codes j, j + 32, j + 64, …"""
    for i in range(0, 32, LANES):
        byte = splat_words(0)
        for k in range(8):
            one = (codes_at(codes + 4 * (32 * k + i)) >> splat_words(bit)) & splat_words(1)
            byte = byte | (one << splat_words(k))
        store_as_bytes(at + i, byte)


@inner
def store_two_bits(at: Address, codes: Address) -> None:
    """The lower two bits of 256 codes: in byte j of each half those of its codes j, j + 32, j + 64 and j + 96."""
    for h in range(2):
        for i in range(0, 32, LANES):
            byte = splat_words(0)
            for k in range(4):
                two = codes_at(codes + 4 * (128 * h + 32 * k + i)) & splat_words(3)
                byte = byte | (two << splat_words(2 * k))
            store_as_bytes(at + 32 * h + i, byte)


@inner
def store_upper_bits(at: Address, codes: Address) -> None:
    """The upper two of six bits of 128 codes: in byte j those of the codes j, j + 32, j + 64 and j + 96."""
    for i in range(0, 32, LANES):
        byte = splat_words(0)
        for k in range(4):
            byte = byte | ((codes_at(codes + 4 * (32 * k + i)) >> splat_words(4)) << splat_words(2 * k))
        store_as_bytes(at + i, byte)


@inner
def store_six_bits(at: Address, scales: Address, minima: Address) -> None:
    """Eight scales and minima of six bits in 12 bytes: what `k_quants.six_bits` takes apart."""
    for g in range(4):
        s, m = number(scales, g), number(minima, g)
        t, n = number(scales, g + 4), number(minima, g + 4)
        set_u8(at + g, s | (t >> 4) << 6)
        set_u8(at + 4 + g, m | (n >> 4) << 6)
        set_u8(at + 8 + g, (t & 15) | (n & 15) << 4)


@inner
def store_signed_six_bits(at: Address, scales: Address) -> None:
    """Sixteen scales −32 … 31, raised by 32, in 12 bytes: lower nibbles of g and g + 8, then upper bits of every fourth."""
    for g in range(8):
        set_u8(at + g, ((number(scales, g) + 32) & 15) | ((number(scales, g + 8) + 32) & 15) << 4)
    for g in range(4):
        byte = 0
        for k in range(4):
            byte |= (number(scales, g + 4 * k) + 32) >> 4 << (2 * k)
        set_u8(at + 8 + g, byte)
