"""Operations on rows of activations: normalize, quantize, gate, look up, with the passes fused that read the same row.

Rows of float32 lie `stride` bytes apart and are padded with zeros to a multiple of 32 columns; their records (see `records`) of
int8 take 44 bytes for every 32 columns. Where an operation has both outputs, either may be 0.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.cpu.blocks import BLOCK, LAYOUTS, UNIT
from numba_kernels.cpu.embedding import decode_row
from numba_kernels.cpu.op import Op, inner, maker, op
from numba_kernels.cpu.packing import kernel_format
from numba_kernels.cpu.records import OFFSETS, RECORD, RECORDS, SCALE, START, SUM
from numba_kernels.cpu.team import take, thread_count
from numba_kernels.simd.memory import (
    get_f32,
    get_i32,
    load_first,
    load_floats,
    set_f32,
    set_i32,
    stack,
    store_as_bytes,
    store_bf16,
    store_first,
    store_floats,
)
from numba_kernels.simd.numbers import splat_words
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import (
    LANES,
    absolute,
    evens,
    exp,
    first_pairs,
    fma,
    max_lanes,
    maximum,
    minimum,
    odds,
    round_to_words,
    splat,
    sum_lanes,
    sum_words,
)

OFFSET, NARROW = ACTIVE.offset, ACTIVE.narrow_sums
FORMAT, CODES, SCALES, STEPS = "bf16", 0, 0, 1
CHUNK = 8 * BLOCK  # columns of a piece of work where a row is divided
MANY = 8  # rows for each thread, from which on a piece is a whole row: two threads that take one wait for each other


def record_bytes(columns: int, activations: str = "int8") -> int:
    """Bytes between rows of records; never a multiple of 512, so that equal columns of rows do not share cache sets."""
    size = -(-columns // BLOCK) * RECORDS[activations]
    return size + 64 - size % 64 if size % 512 == 0 else -(-size // 4) * 4


def empty_records(rows: int, columns: int, activations: str = "int8") -> np.ndarray:
    """Memory for quantized rows: uint8 [rows, record_bytes(columns)]."""
    return np.zeros((rows, record_bytes(columns, activations)), np.uint8)


@inner
def chunk_for(rows, columns, team):  # type: ignore[no-untyped-def]
    """Columns of a piece of work: CHUNK, or all of a row, padded to BLOCK, where there are MANY rows."""
    return (columns + BLOCK - 1) // BLOCK * BLOCK if rows >= MANY * thread_count(team) else CHUNK


@inner
def load_part(address, count):  # type: ignore[no-untyped-def]
    """LANES float32, of which those from `count` on are zero and not read."""
    if count >= LANES:
        return load_floats(address)
    return load_first(address, max(count, 0))


@inner
def store_part(address, value, count):  # type: ignore[no-untyped-def]
    """Stores a vector's lanes, those from `count` on left out."""
    if count >= LANES:
        store_floats(address, value)
    else:
        store_first(address, value, max(count, 0))


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
    """An operation of this file that writes records, with those of another kind."""
    if activations == "int8":
        return op
    write = {"int8_g16": write_fine_record, "bf16": write_bf16_record}[activations]
    return op.bind(RECORDS_OF=activations, RECORD=RECORDS[activations], write_record=write)


@op
def rms_norm(  # type: ignore[no-untyped-def]
    x, x_stride, weight, out, out_stride, records, record_stride, rows, columns, eps: float, team, thread
):
    """out = x / √(mean x² + eps) · weight, as float32 and as records; a piece of work is a row."""
    scratch = stack(128)
    row = take(team)
    while row < rows:
        at = x + row * x_stride
        squares = splat(np.float32(0))
        for i in range(0, columns, LANES):
            v = load_part(at + 4 * i, columns - i)
            squares = fma(v, v, squares)
        mean = sum_lanes(squares) / np.float32(columns)
        factor = splat(np.float32(1) / np.sqrt(mean + eps))
        for first in range(0, columns, BLOCK):
            for i in range(first, first + BLOCK, LANES):
                left = columns - i
                v = load_part(at + 4 * i, left) * factor * load_part(weight + 4 * i, left)
                store_floats(scratch + 4 * (i - first), v)
                if out:
                    store_floats(out + row * out_stride + 4 * i, v)
            if records:
                write_record(records + row * record_stride + first // BLOCK * RECORD, scratch)
        row = take(team)


@op
def layer_norm(  # type: ignore[no-untyped-def]
    x, x_stride, weight, bias, out, out_stride, records, record_stride, rows, columns, eps: float, team, thread
):
    """out = (x − mean) / √(variance + eps) · weight + bias, as float32 and as records; a piece of work is a row."""
    scratch, ones = stack(128), stack(64)
    store_floats(ones, splat(np.float32(1)))
    row = take(team)
    while row < rows:
        at = x + row * x_stride
        total = splat(np.float32(0))
        for i in range(0, columns, LANES):
            total = total + load_part(at + 4 * i, columns - i)
        mean = splat(sum_lanes(total) / np.float32(columns))
        squares = splat(np.float32(0))
        for i in range(0, columns, LANES):
            v = load_part(at + 4 * i, columns - i) - mean * load_part(ones, columns - i)
            squares = fma(v, v, squares)
        factor = splat(np.float32(1) / np.sqrt(sum_lanes(squares) / np.float32(columns) + eps))
        for first in range(0, columns, BLOCK):
            for i in range(first, first + BLOCK, LANES):
                left = columns - i
                v = (load_part(at + 4 * i, left) - mean * load_part(ones, left)) * factor
                v = fma(v, load_part(weight + 4 * i, left), load_part(bias + 4 * i, left))
                store_floats(scratch + 4 * (i - first), v)
                if out:
                    store_floats(out + row * out_stride + 4 * i, v)
            if records:
                write_record(records + row * record_stride + first // BLOCK * RECORD, scratch)
        row = take(team)


@op
def quantize(x, x_stride, records, record_stride, rows, columns, team, thread):  # type: ignore[no-untyped-def]
    """float32 rows as records; a piece of work is a chunk of a row."""
    scratch = stack(128)
    chunk = chunk_for(rows, columns, team)
    pieces = (columns + chunk - 1) // chunk
    item = take(team)
    while item < rows * pieces:
        row = item // pieces
        begin = (item - row * pieces) * chunk
        for first in range(begin, min(begin + chunk, columns), BLOCK):
            for i in range(first, first + BLOCK, LANES):
                store_floats(scratch + 4 * (i - first), load_part(x + row * x_stride + 4 * i, columns - i))
            write_record(records + row * record_stride + first // BLOCK * RECORD, scratch)
        item = take(team)


@inner
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + e^−x)."""
    one = splat(np.float32(1))
    return one / (one + exp(splat(np.float32(0)) - x))


@inner
def clamped_swiglu(gate, up, limit, alpha):  # type: ignore[no-untyped-def]
    """gpt-oss: gate = min(gate, limit), up in ±limit; gate · σ(alpha · gate) · (up + 1)."""
    top = splat(limit)
    gate = minimum(top, gate)
    up = minimum(top, maximum(splat(-limit), up))
    return gate * sigmoid(gate * splat(alpha)) * (up + splat(np.float32(1)))


@inner
def silu(gate, up, limit, alpha):  # type: ignore[no-untyped-def]
    """gate · σ(gate) · up."""
    return gate * sigmoid(gate) * up


activate = silu


def gated(  # type: ignore[no-untyped-def]
    x, x_stride, out, out_stride, records, record_stride, rows, columns, limit: float, alpha: float, team, thread
):
    """`columns` outputs from rows of interleaved gate and up values (2 · columns); a piece of work is a chunk of a row."""
    scratch = stack(128)
    chunk = chunk_for(rows, columns, team)
    pieces = (columns + chunk - 1) // chunk
    item = take(team)
    while item < rows * pieces:
        row = item // pieces
        begin = (item - row * pieces) * chunk
        for first in range(begin, min(begin + chunk, columns), BLOCK):
            for i in range(first, first + BLOCK, LANES):
                at = x + row * x_stride + 8 * i
                low = load_part(at, 2 * (columns - i))
                high = load_part(at + 4 * LANES, 2 * (columns - i) - LANES)
                v = activate(evens(low, high), odds(low, high), limit, alpha)
                store_floats(scratch + 4 * (i - first), v)
                if out:
                    store_floats(out + row * out_stride + 4 * i, v)
            if records:
                write_record(records + row * record_stride + first // BLOCK * RECORD, scratch)
        item = take(team)


@maker
def gated_op(activation: str) -> Op:
    """The operation `gated` with `swiglu` (gpt-oss's, clamped) or `silu`."""
    return Op(gated, ACTIVATION=activation, activate={"swiglu": clamped_swiglu, "silu": silu}[activation])


@op
def gelu(x, x_stride, out, out_stride, records, record_stride, rows, columns, team, thread):  # type: ignore[no-untyped-def]
    """x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), which is x · σ(2 √(2/π) · (…)), as float32 and as records; a piece of work
    is a chunk of a row. Source: https://arxiv.org/abs/1606.08415."""
    scratch = stack(128)
    chunk = chunk_for(rows, columns, team)
    pieces = (columns + chunk - 1) // chunk
    item = take(team)
    while item < rows * pieces:
        row = item // pieces
        begin = (item - row * pieces) * chunk
        for first in range(begin, min(begin + chunk, columns), BLOCK):
            for i in range(first, first + BLOCK, LANES):
                v = load_part(x + row * x_stride + 4 * i, columns - i)
                inner_value = fma(v * v * v, splat(np.float32(0.044715)), v)
                v = v * sigmoid(inner_value * splat(np.float32(1.5957691216057308)))
                store_floats(scratch + 4 * (i - first), v)
                if out:
                    store_floats(out + row * out_stride + 4 * i, v)
            if records:
                write_record(records + row * record_stride + first // BLOCK * RECORD, scratch)
        item = take(team)


@op
def scaled_sum(  # type: ignore[no-untyped-def]
    x, x_stride, gate, gate_stride, rows, columns, residual, out, out_stride, team, thread
):
    """out = residual + x · σ(gate), float32; a piece of work is a chunk of a row.

    gate: a number for each row, gate_stride bytes apart, or 0 for x as it is; residual, out: rows out_stride bytes apart,
    residual may be x, out or 0.
    """
    chunk = chunk_for(rows, columns, team)
    pieces = (columns + chunk - 1) // chunk
    item = take(team)
    while item < rows * pieces:
        row = item // pieces
        begin = (item - row * pieces) * chunk
        for i in range(begin, min(begin + chunk, columns), LANES):
            left = columns - i
            target = row * out_stride + 4 * i
            v = load_part(x + row * x_stride + 4 * i, left)
            if gate:
                v = v * sigmoid(splat(get_f32(gate + row * gate_stride)))
            if residual:
                v = load_part(residual + target, left) + v
            if left >= LANES:
                store_floats(out + target, v)
            else:
                store_first(out + target, v, left)
        item = take(team)


@op
def join_heads(  # type: ignore[no-untyped-def]
    x, x_stride, size, out, out_stride, records, record_stride, rows, columns, team, thread
):
    """Rows of heads side by side, as float32 and as records, from heads one under another: columns head · size + i of row t is
    x[head · rows + t, i]. A piece of work is a chunk of a row."""
    scratch = stack(128)
    chunk = chunk_for(rows, columns, team)
    pieces = (columns + chunk - 1) // chunk
    item = take(team)
    while item < rows * pieces:
        row = item // pieces
        begin = (item - row * pieces) * chunk
        for first in range(begin, min(begin + chunk, columns), BLOCK):
            for i in range(first, first + BLOCK, LANES):
                inside = i % size
                at = scratch + 4 * (i - first)
                if inside + LANES <= size and i + LANES <= columns:
                    store_floats(at, load_floats(x + (i // size * rows + row) * x_stride + inside * 4))
                    continue
                for k in range(i, i + LANES):
                    value = np.float32(0)
                    if k < columns:
                        value = get_f32(x + (k // size * rows + row) * x_stride + k % size * 4)
                    set_f32(at + 4 * (k - i), value)
            if out:
                for i in range(first, first + BLOCK, LANES):
                    store_floats(out + row * out_stride + 4 * i, load_floats(scratch + 4 * (i - first)))
            if records:
                write_record(records + row * record_stride + first // BLOCK * RECORD, scratch)
        item = take(team)


def embedding(  # type: ignore[no-untyped-def]
    weights, panel_bytes, scales_at, blocks, shift, tokens, rows, out, out_stride, team, thread
):
    """out[i] = row tokens[i] (int32) of a packed matrix, as float32."""
    i = take(team)
    while i < rows:
        token = get_i32(tokens + 4 * i)
        codes = weights + token // LANES * panel_bytes
        target = out + i * out_stride
        for k in range(blocks * STEPS):
            scales = codes + scales_at + (k >> shift) * SCALES
            decode_row(FORMAT, codes + k * CODES, scales, k, token % LANES, target + k * (BLOCK // STEPS) * 4)
        i = take(team)


@maker
def embedding_op(format_name: str) -> Op:
    """The operation `embedding` for a format."""
    name = kernel_format(format_name)
    layout = LAYOUTS[name]
    steps = BLOCK // UNIT if layout.decode is None else 1
    codes, scales = layout.block_bytes // steps, layout.scale_step
    return Op(embedding, FORMAT=name, CODES=codes, SCALES=scales, STEPS=steps)
