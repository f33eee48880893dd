"""Weights in bfloat16 that meet activations in bfloat16: rounding, products of any shape, experts, company."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import padded, weights

from numba_kernels.cpu import rows
from numba_kernels.cpu.groups import expert_groups, one_group
from numba_kernels.cpu.linear import add_linear, linear_op
from numba_kernels.cpu.packed import Packed
from numba_kernels.cpu.packing import pack
from numba_kernels.cpu.records import empty_records, quantizing_to
from numba_kernels.cpu.team import Program
from numba_kernels.reference import ops

TOLERANCE = 3e-6  # of the largest result, as for float32 activations: products are exact, and sums are float32


def rounded(team, x):  # type: ignore[no-untyped-def]
    """Records of rows, and the values that they hold, by another's rounding."""
    out = empty_records(*x.shape, "bf16")
    op = quantizing_to(rows.quantize, "bf16")
    team.call(op, x=x, x_stride=x.strides[0], records=out, record_stride=out.strides[0], rows=len(x), columns=x.shape[1])
    return out, x.astype(ml_dtypes.bfloat16).astype(np.float32)


def multiply(team, packed, x, groups=None, **options):  # type: ignore[no-untyped-def]
    """The kernel's result on poisoned memory, and the values of the activations."""
    given, meant = rounded(team, x)
    groups = groups or one_group(len(x))
    out = np.full((groups.rows, packed.rows), np.nan, np.float32)
    program = Program()
    add_linear(program, packed, groups, given, out, activations="bf16", threads=team.threads, **options)
    team.run(program)
    return out, meant


def matrix(height, columns, rng, count=1):  # type: ignore[no-untyped-def]
    packed, values = Packed("bf16", count, height, columns), []
    for number in range(count):
        planes, v = weights("bf16", height, columns, rng)
        pack(packed, planes, matrix=number)
        values.append(v)
    return packed, values


@pytest.mark.parametrize("columns", [32, 77, 96, 130])
def test_records_hold_rounded_values_and_zeros(team, columns):
    rng = np.random.default_rng(columns)
    x = (rng.normal(size=(5, columns)) * np.exp(4 * rng.normal(size=(5, columns)))).astype(np.float32)
    x[0, :4] = [np.inf, -np.inf, np.nan, 1.00390625]  # the last is a tie
    records, meant = rounded(team, x)
    found = records.view(ml_dtypes.bfloat16)[:, : -(-columns // 32) * 32].astype(np.float32)
    np.testing.assert_array_equal(found[:, :columns], meant)
    assert (found[:, columns:] == 0).all()


def test_rms_norm_writes_the_records_that_quantize_writes(team):
    x = np.random.default_rng(0).normal(size=(3, 77)).astype(np.float32)
    weight, out = padded(np.ones((1, 77), np.float32))[0], np.zeros((3, 96), np.float32)
    records = empty_records(3, 77, "bf16")
    team.call(
        quantizing_to(rows.rms_norm, "bf16"), x=x, x_stride=x.strides[0], weight=weight, out=out,
        out_stride=out.strides[0], records=records, record_stride=records.strides[0], rows=3, columns=77, eps=1e-5,
    )  # fmt: skip
    np.testing.assert_array_equal(records, rounded(team, out[:, :77].copy())[0])


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(height=st.integers(1, 120), columns=st.integers(1, 300), tokens=st.integers(1, 31), seed=st.integers(0, 99))
def test_any_shape(team, height, columns, tokens, seed):
    rng = np.random.default_rng(seed)
    packed, (values,) = matrix(height, columns, rng)
    x = rng.normal(size=(tokens, columns)).astype(np.float32)
    bias, residual = (rng.normal(size=s).astype(np.float32) for s in (height, (tokens, height)))
    out, meant = multiply(team, packed, x, bias=bias, residual=residual)
    products = ops.linear(meant.astype(np.float64), values.astype(np.float64))
    size = np.abs(products).max() + np.sqrt(columns)
    assert np.abs(out - (products + bias + residual)).max() <= TOLERANCE * size


def test_a_row_does_not_depend_on_its_company(team):
    """Nor on how columns and tokens fall into blocks: 520 columns, 150 tokens."""
    rng = np.random.default_rng(9)
    packed, _ = matrix(275, 520, rng)
    x = (rng.normal(size=(150, 520)) * np.exp(4 * rng.normal(size=(150, 520)))).astype(np.float32)
    alone = np.concatenate([multiply(team, packed, row[None])[0] for row in x])
    for count in (2, 3, 4, 5, 7, 9, 12, 16, 17, 31, 33, 48, 150):
        np.testing.assert_array_equal(multiply(team, packed, x[:count])[0], alone[:count])


def test_groups_of_experts(team):
    rng = np.random.default_rng(6)
    packed, values = matrix(40, 90, rng, 5)
    x = rng.normal(size=(6, 90)).astype(np.float32)
    groups, sizes = expert_groups(10, 1, 5), {0: 3, 2: 1, 4: 6}
    groups.count[0], groups.matrix[:3] = 3, list(sizes)
    groups.start[:4], groups.index[:] = np.cumsum([0, *sizes.values()]), rng.integers(0, 6, 10)
    out, meant = multiply(team, packed, x, groups, single=False)
    for i, number in enumerate(m for m, count in sizes.items() for _ in range(count)):
        expected = values[number].astype(np.float64) @ meant[groups.index[i]]
        assert np.abs(out[i] - expected).max() <= 2 * TOLERANCE * np.abs(expected).max()


def test_activations_that_are_not_finite_show(team):
    rng = np.random.default_rng(8)
    packed, _ = matrix(16, 64, rng)
    x = rng.normal(size=(3, 64)).astype(np.float32)
    x[0, 3], x[1, 40] = np.nan, np.inf
    out, _ = multiply(team, packed, x)
    assert not np.isfinite(out[:2]).any()
    assert np.isfinite(out[2]).all()


def test_quantized_weights_take_none():
    with pytest.raises(ValueError, match="mxfp4 weights meet no bf16 activations"):
        linear_op("mxfp4", "bf16")
    assert linear_op("f16", "bf16").constants["ACTIVATIONS"] == "f32"
