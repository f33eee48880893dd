"""Records of activations: rows rounded for the multiplication with packed weights.

Activations come as rows of float32, or as int8 records of 44 bytes per block: 32 codes, the float32 scale, the int32 that
undoes the weights' offset, and scale · Σ codes as float32. Where sums are narrow (`Portable.narrow_sums`), two int16 stand for
the int32: what undoes the offset of the first two of every four columns, and of the others. In the finer kind, int8_g16, each
16 of the 32 codes have a scale and an undoing int32 of their own: 52 bytes. For weights in bf16 there are records of bfloat16, 64
bytes per block.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.cpu.blocks import BLOCK
from numba_kernels.cpu.op import Op, inner, maker
from numba_kernels.simd.memory import load_floats, set_f32, set_i32, store_as_bytes, store_bf16
from numba_kernels.simd.numbers import splat_words
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import (
    LANES,
    absolute,
    first_pairs,
    max_lanes,
    maximum,
    round_to_words,
    splat,
    sum_lanes,
    sum_words,
)

RECORD = 44  # bytes of a quantized activation block
SCALE, START, SUM = 32, 36, 40  # offsets of its scale, start and scale · Σ codes
RECORDS = {"int8": 44, "int8_g16": 52, "bf16": 64}  # bytes of a record by kind
OFFSETS = {"int8": (32, 36, 40), "int8_g16": (32, 40, 48)}  # of its scales, starts and sum
OFFSET, NARROW = ACTIVE.offset, ACTIVE.narrow_sums


def record_bytes(columns: int, activations: str = "int8") -> int:
    """Bytes between rows of records; never a multiple of 512, so that equal columns of rows do not share cache sets."""
    size = -(-columns // BLOCK) * RECORDS[activations]
    return size + 64 - size % 64 if size % 512 == 0 else -(-size // 4) * 4


def empty_records(rows: int, columns: int, activations: str = "int8") -> np.ndarray:
    """Memory for quantized rows: uint8 [rows, record_bytes(columns)]."""
    return np.zeros((rows, record_bytes(columns, activations)), np.uint8)


@inner
def start_of(sums, total):  # type: ignore[no-untyped-def]
    """The 32 bits that undo the weights' offset: −OFFSET · Σ codes, or, where sums are narrow, two int16 of which each undoes two
    of every four columns. `sums`: of codes by their column modulo LANES; `total`: their sum."""
    if NARROW:
        first = sum_words(first_pairs(sums))
        return ((-OFFSET * first) & 0xFFFF) | ((-OFFSET * (total - first)) << 16)
    return -OFFSET * total


@inner
def write_record(record, source):  # type: ignore[no-untyped-def]
    """Quantizes 32 float32: scale = max |x| / 127 (NaN if any x is not finite), codes rounded to nearest even."""
    largest = splat(np.float32(0))
    broken = splat(np.float32(0))
    for i in range(0, BLOCK, LANES):
        x = load_floats(source + 4 * i)
        largest = maximum(absolute(x), largest)
        broken = broken + x * splat(np.float32(0))
    top = max_lanes(largest)
    inverse = np.float32(127) / top if top > np.float32(1e-36) else np.float32(0)
    scale = top / np.float32(127) if top > np.float32(1e-36) else np.float32(0)
    scale = scale + sum_lanes(broken)
    sums = splat_words(0)
    for i in range(0, BLOCK, LANES):
        codes = round_to_words(load_floats(source + 4 * i) * splat(inverse))
        sums = sums + codes
        store_as_bytes(record + i, codes)
    total = sum_words(sums)
    set_f32(record + SCALE, scale)
    set_i32(record + START, start_of(sums, total))
    set_f32(record + SUM, scale * np.float32(total))


HALF = BLOCK // 2
SCALES_16, STARTS_16, SUM_16 = OFFSETS["int8_g16"]


@inner
def write_fine_record(record, source):  # type: ignore[no-untyped-def]
    """Quantizes 32 float32 as `write_record` does, each half with a scale of its own."""
    both = np.float32(0)
    for half in range(2):
        largest = splat(np.float32(0))
        broken = splat(np.float32(0))
        for i in range(half * HALF, half * HALF + HALF, LANES):
            x = load_floats(source + 4 * i)
            largest = maximum(absolute(x), largest)
            broken = broken + x * splat(np.float32(0))
        top = max_lanes(largest)
        inverse = np.float32(127) / top if top > np.float32(1e-36) else np.float32(0)
        scale = top / np.float32(127) if top > np.float32(1e-36) else np.float32(0)
        scale = scale + sum_lanes(broken)
        sums = splat_words(0)
        for i in range(half * HALF, half * HALF + HALF, LANES):
            codes = round_to_words(load_floats(source + 4 * i) * splat(inverse))
            sums = sums + codes
            store_as_bytes(record + i, codes)
        total = sum_words(sums)
        set_f32(record + SCALES_16 + 4 * half, scale)
        set_i32(record + STARTS_16 + 4 * half, start_of(sums, total))
        both += scale * np.float32(total)
    set_f32(record + SUM_16, both)


@inner
def write_bf16_record(record, source):  # type: ignore[no-untyped-def]
    """Rounds 32 float32 to bfloat16, ties to even."""
    for i in range(0, BLOCK, LANES):
        store_bf16(record + 2 * i, load_floats(source + 4 * i))


@maker
def quantizing_to(op: Op, activations: str) -> Op:
    """An operation that writes int8 records, with those of another kind."""
    if activations == "int8":
        return op
    write = {"int8_g16": write_fine_record, "bf16": write_bf16_record}[activations]
    return op.bind(RECORDS_OF=activations, RECORD=RECORDS[activations], write_record=write)
