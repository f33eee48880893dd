"""Row operations and expert bookkeeping against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
from problems import FORMATS, weights

from numba_kernels.cpu import experts, rows
from numba_kernels.cpu.blocks import RECORD, SCALE, START, SUM
from numba_kernels.cpu.linear import add_linear, expert_groups, one_group
from numba_kernels.cpu.packing import Packed, pack
from numba_kernels.cpu.team import Program
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
    totals = codes.reshape(len(x), -1, 32).astype(np.int32).sum(-1)
    np.testing.assert_array_equal(starts, -ACTIVE.offset * totals)
    np.testing.assert_allclose(sums, totals * scales, rtol=1e-6)


@pytest.mark.parametrize("columns", [32, 96, 576, 2880, 77])
def test_quantize_equals_reference(team, columns):
    rng = np.random.default_rng(columns)
    x = (rng.normal(size=(3, columns)) * np.exp(rng.normal(size=(3, 1)) * 4)).astype(np.float32)
    x[1, :32] = 0
    out = rows.empty_records(3, columns)
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
    out, quantized = np.full((4, wide), np.nan, np.float32), rows.empty_records(4, columns)
    team.call(
        rows.rms_norm, x=x, x_stride=x.strides[0], weight=weight, out=out, out_stride=out.strides[0], records=quantized,
        record_stride=quantized.strides[0], rows=4, columns=columns, eps=1e-5,
    )  # fmt: skip
    expected = ops.rms_norm(x, weight, 1e-5)
    np.testing.assert_allclose(out[:, :columns], expected, rtol=2e-6, atol=1e-6)
    assert (out[:, columns:] == 0).all()
    check_records(quantized, out[:, :columns])


@pytest.mark.parametrize("activation", ["swiglu", "silu"])
@pytest.mark.parametrize("columns", [32, 1536, 2880, 40])
def test_gated(team, activation, columns):
    rng = np.random.default_rng(columns)
    x = (rng.normal(size=(3, 2 * columns)) * 5).astype(np.float32)
    wide = -(-columns // 32) * 32
    out, quantized = np.full((3, wide), np.nan, np.float32), rows.empty_records(3, columns)
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
    planes, values = weights(name, 50, 128, rng)
    packed = Packed(name, 1, 50, 128)
    pack(packed, planes)
    tokens = np.array([0, 49, 17, 17, 31], np.int32)
    out = np.full((5, 128), np.nan, np.float32)
    team.call(
        rows.embedding_op(name), weights=packed.data, panel_bytes=packed.panel_bytes, scales_at=packed.scales_at,
        blocks=packed.blocks, shift=packed.shift, tokens=tokens, rows=5, out=out, out_stride=out.strides[0],
    )  # fmt: skip
    np.testing.assert_allclose(out, ops.embedding(tokens, values), rtol=3e-7, atol=1e-9)


def route(team, logits: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    n, count = logits.shape
    ids, shares = np.full((n, top), -1, np.int32), np.full((n, top), np.nan, np.float32)
    team.call(
        experts.route, logits=logits, logits_stride=logits.strides[0], rows=n, experts=count, top=top, ids=ids,
        weights=shares,
    )  # fmt: skip
    return ids, shares


@pytest.mark.parametrize(("count", "top"), [(32, 4), (7, 3), (128, 4), (5, 5), (1, 1)])
def test_route(team, count, top):
    rng = np.random.default_rng(count)
    logits = rng.normal(size=(9, count)).astype(np.float32)
    logits[3] = np.round(logits[3])  # ties
    ids, shares = route(team, logits, top)
    expected_ids, expected_shares = ops.route(logits, top)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(shares, expected_shares, rtol=2e-6)


def test_route_without_finite_logits_stays_in_bounds(team):
    logits = np.full((2, 6), np.nan, np.float32)
    logits[1] = -np.inf
    ids, _ = route(team, logits, 3)
    assert ((ids >= 0) & (ids < 6)).all()
    assert all(len(set(row)) == 3 for row in ids.tolist())


@pytest.mark.parametrize(("tokens", "count", "top"), [(1, 8, 4), (2, 8, 4), (37, 5, 2)])
@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_expert_layer(team, tokens, count, top, activations):
    """All operations of gpt-oss's expert layer together."""
    rng = np.random.default_rng(tokens)
    hidden, inner = 96, 64
    x = rng.normal(size=(tokens, hidden)).astype(np.float32)
    logits = rng.normal(size=(tokens, count)).astype(np.float32)
    gate_up, down = Packed("mxfp4", count, 2 * inner, hidden), Packed("mxfp4", count, hidden, inner)
    values: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for matrix in range(count):
        for which, packed in enumerate((gate_up, down)):
            planes, v = weights("mxfp4", packed.rows, packed.columns, rng)
            pack(packed, planes, matrix=matrix)
            values[which].append(v)
    biases = [rng.normal(size=(count, p.rows)).astype(np.float32) for p in (gate_up, down)]
    residual = rng.normal(size=x.shape).astype(np.float32)

    groups = expert_groups(tokens, top, count)
    ids, shares, place = (
        np.zeros((tokens, top), np.int32),
        np.zeros((tokens, top), np.float32),
        np.zeros((tokens, top), np.int32),
    )
    both, gated = (np.full((tokens * top, n), np.nan, np.float32) for n in (2 * inner, inner))
    outputs, out = np.full((tokens * top, hidden), np.nan, np.float32), np.full(x.shape, np.nan, np.float32)
    first, second = rows.empty_records(tokens, hidden), rows.empty_records(tokens * top, inner)
    program = Program()
    if activations == "int8":
        program.add(
            rows.quantize, x=x, x_stride=x.strides[0], records=first, record_stride=first.strides[0], rows=tokens,
            columns=hidden,
        )  # fmt: skip
    program.add(
        experts.route, logits=logits, logits_stride=logits.strides[0], rows=tokens, experts=count, top=top, ids=ids,
        weights=shares,
    )  # fmt: skip
    program.add(
        experts.group_by_expert, ids=ids, rows=tokens, top=top, experts=count, groups=groups.count, place=place,
        group_expert=groups.matrix, group_start=groups.start, index=groups.index,
    )  # fmt: skip
    options = {"activations": activations, "single": tokens == 1, "threads": team.threads}
    add_linear(program, gate_up, groups, first if activations == "int8" else x, both, bias=biases[0], **options)
    program.add(
        rows.gated_op("swiglu"), x=both, x_stride=both.strides[0], out=gated, out_stride=gated.strides[0], records=second,
        record_stride=second.strides[0], rows=tokens * top, columns=inner, limit=7.0, alpha=1.702,
    )  # fmt: skip
    in_order = one_group(tokens * top).index
    add_linear(
        program, down, groups, second if activations == "int8" else gated, outputs, bias=biases[1], index=in_order, **options
    )
    program.add(
        experts.combine, x=outputs, x_stride=outputs.strides[0], place=place, weights=shares, rows=tokens, top=top,
        columns=hidden, residual=residual, out=out, out_stride=out.strides[0],
    )  # fmt: skip
    for _ in range(2):  # a program can be replayed
        out[:] = np.nan
        team.run(program)
        expected = residual + ops.expert_mlp(
            x, *ops.route(logits, top), np.array(values[0]), biases[0], np.array(values[1]), biases[1]
        )
        error = np.sqrt(np.mean((out - expected) ** 2) / np.mean(expected**2))
        assert error < (2e-6 if activations == "f32" else 5e-2)  # two roundings of activations to 8 bits
