"""Rows of a packed matrix by their numbers, as float32: the embedding of tokens."""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from numba_kernels.cpu.blocks import BLOCK, LAYOUTS, UNIT, float_weights, scales_of
from numba_kernels.cpu.op import Op, maker
from numba_kernels.cpu.packed import kernel_format
from numba_kernels.cpu.team import take
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I32, I64, Builder, Value
from numba_kernels.simd.memory import get_i32
from numba_kernels.simd.values import LANES, Address, Int, Words


@intrinsic(prefer_literal=True)
def decode_row(typing_context: Any, name: Any, codes: Any, scales: Any, block: Any, lane: Any, out: Any) -> Any:
    """Writes one row (`lane`) of block number `block` as float32 [32] (UNIT columns of a float format) to the address `out`."""
    format_name = name.literal_value

    def one(b: Builder, v: Value, lane: Value) -> Value:
        return b.extract_element(v, b.trunc(lane, I32))

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, codes, scales, block, lane, out = args
        layout = LAYOUTS[format_name]
        if layout.decode is None:
            values = [one(b, v, lane) for v in float_weights(b, format_name, codes)]
        else:
            found, added = scales_of(b, format_name, scales, block)
            scale, low = [one(b, v, lane) for v in found], [one(b, v, lane) for v in added] or [F32(0.0)] * len(found)
            values = [scale[0]] * BLOCK
            for column, v in layout.decode(b, codes, 0):
                word = one(b, b.bitcast(v, Words.llvm), lane)
                for i in range(4):
                    code = b.sitofp(b.ashr(b.shl(word, I32(24 - 8 * i)), I32(24)), F32)
                    half = column // 16 if layout.halves else 0
                    values[column + i] = b.fadd(b.fmul(code, scale[half]), low[half])
        for k, value in enumerate(values):
            emit.store(b, value, b.add(out, I64(4 * k)))
        return context.get_dummy_value()

    return types.void(name, Address, Address, Int, Int, Address), lower


FORMAT, CODES, SCALES, STEPS = "bf16", 0, 0, 1


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
