"""Activations with a scale for each 16 values: every producer and every weight format, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from problems import K_QUANTS, padded, weights

from numba_kernels.cpu import rows
from numba_kernels.cpu.linear import linear_op
from numba_kernels.cpu.packed import Packed
from numba_kernels.cpu.packing import pack
from numba_kernels.cpu.records import empty_records, quantizing_to
from numba_kernels.reference import ops

KIND = "int8_g16"


def quantized(team, x):  # type: ignore[no-untyped-def]
    """Records of rows, and the values that they stand for."""
    x = padded(x)
    out = empty_records(*x.shape, KIND)
    op = quantizing_to(rows.quantize, KIND)
    team.call(op, x=x, x_stride=x.strides[0], records=out, record_stride=out.strides[0], rows=len(x), columns=x.shape[1])
    codes, scales = ops.quantize_rows(x, 16)
    return out, codes * scales.repeat(16, 1)


USUAL = ("mxfp4", "q8_0", "q4_k")
OTHERS = ("q4_0", "q2_k", "q6_k", "q4_1", "q5_0", "q5_1", "iq4_nl", "int8", "q3_k", "q5_k")


@pytest.mark.parametrize("name", [*USUAL, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
@pytest.mark.parametrize("tokens", [1, 5, 21])
def test_linear(team, name, tokens):
    rng = np.random.default_rng(tokens)
    columns = 512 if name in K_QUANTS else 96
    planes, values = weights(name, 40, columns, rng)
    packed = Packed(name, 1, 40, columns)
    pack(packed, planes)
    x = (rng.normal(size=(tokens, columns)) * np.exp(rng.normal(size=columns))).astype(np.float32)
    records, meant = quantized(team, x)
    out = np.zeros((tokens, 64), np.float32)
    team.call(
        linear_op(name, KIND, many=tokens > 1), weights=packed.data, matrix_bytes=packed.matrix_bytes,
        panel_bytes=packed.panel_bytes, scales_at=packed.scales_at, blocks=packed.blocks, shift=packed.shift, height=40,
        panels_at_once=1, groups=np.ones(1, np.int32), group_matrix=np.zeros(1, np.int32),
        group_start=np.array([0, tokens], np.int32), index=np.arange(tokens, dtype=np.int32), x=records,
        x_stride=records.strides[0], bias=None, bias_stride=0, residual=None, out=out, out_stride=out.strides[0],
    )  # fmt: skip
    expected = ops.linear(meant, values)
    np.testing.assert_allclose(out[:, :40], expected, atol=2e-6 * np.abs(expected).max())


def test_rms_norm_writes_the_records_that_quantize_writes(team):
    x = np.random.default_rng(0).normal(size=(3, 96)).astype(np.float32)
    weight = np.linspace(0.5, 2, 96, dtype=np.float32)
    out, records = np.zeros((3, 96), np.float32), empty_records(3, 96, KIND)
    team.call(
        quantizing_to(rows.rms_norm, KIND), x=x, x_stride=x.strides[0], weight=weight, out=out, out_stride=out.strides[0],
        records=records, record_stride=records.strides[0], rows=3, columns=96, eps=1e-5,
    )  # fmt: skip
    np.testing.assert_array_equal(records, quantized(team, out)[0])
