"""Operations on rows of activations: normalize, quantize, gate, join, with the passes fused that read the same row.

Rows of float32 lie `stride` bytes apart and are padded with zeros to a multiple of 32 columns; so are their `records`, of int8
unless `quantizing_to` made the operation. Where an operation has both outputs, either may be 0.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.cpu.blocks import BLOCK
from numba_kernels.cpu.op import Op, inner, maker, op
from numba_kernels.cpu.records import RECORD, write_record
from numba_kernels.cpu.team import take, thread_count
from numba_kernels.simd.memory import get_f32, load_first, load_floats, set_f32, stack, store_first, store_floats
from numba_kernels.simd.values import LANES, evens, exp, fma, maximum, minimum, odds, splat, sum_lanes

CHUNK = 8 * BLOCK  # columns of a piece of work where a row is divided
MANY = 8  # rows for each thread, from which on a piece is a whole row: two threads that take one wait for each other


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
