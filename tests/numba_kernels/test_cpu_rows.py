"""Operations on rows against their reference: random shapes, ragged widths, one thread and two."""

from __future__ import annotations

import numpy as np
import pytest
from problems import FORMATS, weights

from numba_kernels.cpu import rows
from numba_kernels.cpu.embedding import embedding_op
from numba_kernels.cpu.packed import Packed
from numba_kernels.cpu.packing import pack
from numba_kernels.cpu.records import RECORD, SCALE, START, SUM, empty_records
from numba_kernels.reference import ops
from numba_kernels.simd.path import ACTIVE


def fields(records: np.ndarray, columns: int) -> tuple[np.ndarray, ...]:
    """Codes, scales, starts and sums of rows of records."""
    blocks = records[:, : -(-columns // 32) * RECORD].reshape(len(records), -1, RECORD)

    def number(at: int, kind: type) -> np.ndarray:
        return np.ascontiguousarray(blocks[..., at : at + 4]).view(kind)[..., 0]

    codes = np.ascontiguousarray(blocks[..., :32]).view(np.int8).reshape(len(records), -1)
    return codes, number(SCALE, np.float32), number(START, np.int32), number(SUM, np.float32)


def check_records(records: np.ndarray, x: np.ndarray) -> None:
    """The records are x's, to half a code (and a little for the rounding of the scale)."""
    columns = x.shape[1]
    x = np.pad(x, ((0, 0), (0, -columns % 32)))
    codes, scales, starts, sums = fields(records, columns)
    top = np.abs(x.reshape(len(x), -1, 32)).max(-1)
    np.testing.assert_allclose(scales, top / 127, rtol=3e-6)
    assert (np.abs(codes * scales.repeat(32, 1) - x) <= 0.501 * scales.repeat(32, 1)).all()
    quads = codes.reshape(len(x), -1, 8, 4).astype(np.int32).sum(-2)
    totals = quads.sum(-1)
    if ACTIVE.narrow_sums:  # two int16, of two columns of every four each
        halves = starts.view(np.int16).reshape(*starts.shape, 2)
        np.testing.assert_array_equal(halves, -ACTIVE.offset * quads.reshape(*totals.shape, 2, 2).sum(-1))
    else:
        np.testing.assert_array_equal(starts, -ACTIVE.offset * totals)
    np.testing.assert_allclose(sums, totals * scales, rtol=1e-6)


@pytest.mark.parametrize("columns", [32, 96, 576, 2880, 77])
def test_quantize_equals_reference(team, columns):
    rng = np.random.default_rng(columns)
    x = (rng.normal(size=(3, columns)) * np.exp(rng.normal(size=(3, 1)) * 4)).astype(np.float32)
    x[1, :32] = 0
    out = empty_records(3, columns)
    out[:] = 0xAA
    team.call(rows.quantize, x=x, x_stride=x.strides[0], records=out, record_stride=out.strides[0], rows=3, columns=columns)
    check_records(out, x)
    codes, scales = ops.quantize_rows(np.pad(x, ((0, 0), (0, -columns % 32))))
    np.testing.assert_array_equal(fields(out, columns)[0], codes)
    np.testing.assert_allclose(fields(out, columns)[1], scales, rtol=1e-7)


@pytest.mark.parametrize("columns", [32, 576, 2880, 45])
def test_rms_norm(team, columns):
    rng = np.random.default_rng(columns)
    x, weight = rng.normal(size=(4, columns)).astype(np.float32), rng.normal(size=columns).astype(np.float32)
    wide = -(-columns // 32) * 32
    out, quantized = np.full((4, wide), np.nan, np.float32), empty_records(4, columns)
    team.call(
        rows.rms_norm, x=x, x_stride=x.strides[0], weight=weight, out=out, out_stride=out.strides[0], records=quantized,
        record_stride=quantized.strides[0], rows=4, columns=columns, eps=1e-5,
    )  # fmt: skip
    expected = ops.rms_norm(x, weight, 1e-5)
    np.testing.assert_allclose(out[:, :columns], expected, rtol=2e-6, atol=1e-6)
    assert (out[:, columns:] == 0).all()
    check_records(quantized, out[:, :columns])


@pytest.mark.parametrize("columns", [32, 768, 1600, 45, 1])
def test_layer_norm(team, columns):
    rng = np.random.default_rng(columns)
    x, weight, bias = (rng.normal(size=size).astype(np.float32) for size in ((4, columns), columns, columns))
    x += 10  # the mean is most of it
    wide = -(-columns // 32) * 32
    out, quantized = np.full((4, wide), np.nan, np.float32), empty_records(4, columns)
    team.call(
        rows.layer_norm, x=x, x_stride=x.strides[0], weight=weight, bias=bias, out=out, out_stride=out.strides[0],
        records=quantized, record_stride=quantized.strides[0], rows=4, columns=columns, eps=1e-5,
    )  # fmt: skip
    expected = ops.layer_norm(x.astype(np.float64), weight, bias, 1e-5)
    np.testing.assert_allclose(out[:, :columns], expected, rtol=1e-5, atol=1e-5)
    assert (out[:, columns:] == 0).all()
    check_records(quantized, out[:, :columns])


@pytest.mark.parametrize("columns", [32, 3072, 40, 3])
def test_gelu(team, columns):
    rng = np.random.default_rng(columns)
    x = (rng.normal(size=(3, columns)) * 5).astype(np.float32)
    x[0, 0], x[1, 0] = -1e4, 1e4
    wide = -(-columns // 32) * 32
    out, quantized = np.full((3, wide), np.nan, np.float32), empty_records(3, columns)
    team.call(
        rows.gelu, x=x, x_stride=x.strides[0], out=out, out_stride=out.strides[0], records=quantized,
        record_stride=quantized.strides[0], rows=3, columns=columns,
    )  # fmt: skip
    np.testing.assert_allclose(out[:, :columns], ops.gelu(x), rtol=1e-5, atol=1e-6)
    check_records(quantized, out[:, :columns])


@pytest.mark.parametrize(
    ("columns", "gated", "added"), [(96, True, True), (300, False, True), (45, True, False), (1, False, False)]
)
def test_scaled_sum(team, columns, gated, added):
    rng = np.random.default_rng(columns)
    x, residual = (rng.normal(size=(5, columns)).astype(np.float32) for _ in range(2))
    gate, out = rng.normal(size=(5, 32)).astype(np.float32), np.full((5, columns), np.nan, np.float32)
    team.call(
        rows.scaled_sum, x=x, x_stride=x.strides[0], gate=gate if gated else None, gate_stride=gate.strides[0], rows=5,
        columns=columns, residual=residual if added else None, out=out, out_stride=out.strides[0],
    )  # fmt: skip
    expected = (x * ops.sigmoid(gate[:, :1]) if gated else x) + (residual if added else 0)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("heads", "size"), [(3, 32), (5, 7), (1, 45)])
def test_join_heads(team, heads, size):
    rng = np.random.default_rng(size)
    x = rng.normal(size=(heads, 4, size + 3)).astype(np.float32)
    columns = heads * size
    out = np.full((4, -(-columns // 32) * 32), np.nan, np.float32)
    quantized = empty_records(4, columns)
    team.call(
        rows.join_heads, x=x, x_stride=x.strides[1], size=size, out=out, out_stride=out.strides[0], records=quantized,
        record_stride=quantized.strides[0], rows=4, columns=columns,
    )  # fmt: skip
    np.testing.assert_array_equal(out[:, :columns], x[..., :size].transpose(1, 0, 2).reshape(4, -1))
    assert (out[:, columns:] == 0).all()
    check_records(quantized, out[:, :columns])


@pytest.mark.parametrize("activation", ["swiglu", "silu"])
@pytest.mark.parametrize("columns", [32, 1536, 2880, 40])
def test_gated(team, activation, columns):
    rng = np.random.default_rng(columns)
    x = (rng.normal(size=(3, 2 * columns)) * 5).astype(np.float32)
    wide = -(-columns // 32) * 32
    out, quantized = np.full((3, wide), np.nan, np.float32), empty_records(3, columns)
    team.call(
        rows.gated_op(activation), x=x, x_stride=x.strides[0], out=out, out_stride=out.strides[0], records=quantized,
        record_stride=quantized.strides[0], rows=3, columns=columns, limit=7.0, alpha=1.702,
    )  # fmt: skip
    gate, up = x[:, 0::2], x[:, 1::2]
    expected = ops.clamped_swiglu(gate, up) if activation == "swiglu" else ops.silu_gate(gate, up)
    np.testing.assert_allclose(out[:, :columns], expected, rtol=2e-6, atol=1e-6)
    check_records(quantized, out[:, :columns])


@pytest.mark.parametrize("name", FORMATS)
def test_embedding(team, name):
    rng = np.random.default_rng(1)
    planes, values = weights(name, 50, 256, rng)
    packed = Packed(name, 1, 50, 256)
    pack(packed, planes)
    tokens = np.array([0, 49, 17, 17, 31], np.int32)
    out = np.full((5, 256), np.nan, np.float32)
    team.call(
        embedding_op(name), weights=packed.data, panel_bytes=packed.panel_bytes, scales_at=packed.scales_at,
        blocks=packed.blocks, shift=packed.shift, tokens=tokens, rows=5, out=out, out_stride=out.strides[0],
    )  # fmt: skip
    np.testing.assert_allclose(out, ops.embedding(tokens, values), rtol=3e-7, atol=1e-9)
