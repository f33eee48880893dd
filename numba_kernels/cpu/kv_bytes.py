"""Keys and values of 8 bits, as they lie in a page: signed bytes, and a float32 scale for each position's key and its value.

A head's keys are panels of LANES positions, in each 2 · LANES bytes for a pair of columns, and the positions' scales come behind
all of them. Values are rows of pairs: those of positions 2 i and 2 i + 1 alternate, column by column; then come their scales. So
2 · LANES bytes become pairs of int16, whose products with two numbers are added by one instruction.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.cpu.op import inner
from numba_kernels.cpu.rows import load_part
from numba_kernels.simd.values import (
    LANES,
    absolute,
    get_u8,
    max_lanes,
    maximum,
    round_to_words,
    set_f32,
    set_u8,
    splat,
    stack,
    store_as_bytes,
    sum_lanes,
)

SCALE_BYTES = 4
LARGEST = 127
TINY = np.float32(1e-36)  # what is smaller throughout is stored as zeros
CODES = 1024 + 16  # room for the bytes of the largest head and the rest of a vector


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
