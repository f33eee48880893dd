"""Keys and values of 8 bits, as they lie in a page: signed bytes, and a float32 scale for each position's key and its value.

A head's keys are panels of LANES positions, in each 2 · LANES bytes for a pair of columns, and the positions' scales come behind
all of them. Values are rows of pairs: those of positions 2 i and 2 i + 1 alternate, column by column; then come their scales. So
2 · LANES bytes become pairs of int16, whose products with two numbers are added by one instruction.

Keys are mixed by a Hadamard transform before they are rounded, and so are the queries that meet them, which leaves their products
as they were: a few large channels, which many models' keys have, would otherwise make the steps of all coarse
(https://arxiv.org/abs/2404.00456).
"""

from __future__ import annotations

import numpy as np

from numba_kernels.cpu.op import inner
from numba_kernels.cpu.rows import load_part
from numba_kernels.simd.memory import get_f32, get_u8, load_floats, set_f32, set_u8, stack, store_as_bytes, store_floats
from numba_kernels.simd.values import LANES, absolute, evens, max_lanes, maximum, odds, round_to_words, splat, sum_lanes

SCALE_BYTES = 4
LARGEST = 127
TINY = np.float32(1e-36)  # what is smaller throughout is stored as zeros
CODES, FLOATS = 1024 + 16, 4 * 1024  # room for the bytes of the largest head and the rest of a vector, and for its float32


@inner
def quantize_head(codes, at, count):  # type: ignore[no-untyped-def]
    """`count` float32 as bytes, rounded to nearest even. Returns their scale, max |x| / 127: NaN if a value is not finite. Writes
    whole vectors."""
    largest, broken = splat(np.float32(0)), splat(np.float32(0))
    for i in range(0, count, LANES):
        x = load_part(at + 4 * i, count - i)
        largest = maximum(absolute(x), largest)
        broken = broken + x * splat(np.float32(0))
    top = max_lanes(largest)
    inverse = np.float32(LARGEST) / top if top > TINY else np.float32(0)
    scale = top / np.float32(LARGEST) if top > TINY else np.float32(0)
    for i in range(0, count, LANES):
        store_as_bytes(codes + i, round_to_words(load_part(at + 4 * i, count - i) * splat(inverse)))
    return scale + sum_lanes(broken)


@inner
def mix(at, count):  # type: ignore[no-untyped-def]
    """The Hadamard transform of `count` float32 in place, divided by the root of its size: of blocks of the largest power of two
    that divides their number. Each of its stages takes sums of neighbours, and then differences."""
    other = stack(FLOATS)
    size = count & -count
    factor = np.float32(1) / np.sqrt(np.float32(size))
    for block in range(at, at + 4 * count, 4 * size):
        source, target, stage = block, other, 1
        while stage < size:
            half = 2 * size  # bytes
            if size >= 2 * LANES:
                for i in range(0, 4 * size, 8 * LANES):
                    x, y = load_floats(source + i), load_floats(source + i + 4 * LANES)
                    first, second = evens(x, y), odds(x, y)
                    store_floats(target + i // 2, first + second)
                    store_floats(target + half + i // 2, first - second)
            else:
                for i in range(0, 4 * size, 8):
                    x, y = get_f32(source + i), get_f32(source + i + 4)
                    set_f32(target + i // 2, x + y)
                    set_f32(target + half + i // 2, x - y)
            source, target, stage = target, source, 2 * stage
        for i in range(0, 4 * size, 4):
            set_f32(block + i, get_f32(source + i) * factor)


@inner
def key_at(keys, slot, head_dim):  # type: ignore[no-untyped-def]
    """The address of the first two bytes of a key; the next two are 2 · LANES bytes further, and so on."""
    return keys + slot // LANES * LANES * head_dim + slot % LANES * 2


@inner
def value_at(values, slot, across):  # type: ignore[no-untyped-def]
    """The address of the first byte of a value; the next one is 2 bytes further, and so on. across: bytes of a row."""
    return values + slot // 2 * 2 * across + slot % 2


@inner
def store_key_bytes(keys, slot, at, head_dim, page_positions):  # type: ignore[no-untyped-def]
    """Stores float32 as the key of a page's position, and its scale."""
    codes = stack(CODES)
    set_f32(keys + page_positions * head_dim + slot * SCALE_BYTES, quantize_head(codes, at, head_dim))
    to = key_at(keys, slot, head_dim)
    for i in range(head_dim):
        set_u8(to + i // 2 * 2 * LANES + i % 2, get_u8(codes + i))


@inner
def store_value_bytes(values, slot, at, head_dim, page_positions):  # type: ignore[no-untyped-def]
    """Stores float32 as the value of a page's position, and its scale."""
    across = (head_dim + LANES - 1) // LANES * LANES
    codes = stack(CODES)
    set_f32(values + page_positions * across + slot * SCALE_BYTES, quantize_head(codes, at, head_dim))
    to = value_at(values, slot, across)
    for i in range(head_dim):
        set_u8(to + 2 * i, get_u8(codes + i))
