"""Row operations and expert bookkeeping against the NumPy reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import FORMATS, weights

from numba_kernels.cpu import experts, rows
from numba_kernels.cpu.embedding import embedding_op
from numba_kernels.cpu.linear import add_linear, expert_groups, one_group
from numba_kernels.cpu.packing import Packed, pack
from numba_kernels.cpu.records import RECORD, SCALE, START, SUM, empty_records
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


def route_by_score(team, logits: np.ndarray, top: int, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    n, count = logits.shape
    ids, shares = np.full((n, top), -1, np.int32), np.full((n, top), np.nan, np.float32)
    scratch = np.full((n, 3 * -(-count // 32) * 32), np.nan, np.float32)
    options = {"correction": None, "groups": 1, "groups_chosen": 1, "group_best": 2, "epsilon": 1e-20, "scale": 1.0}
    kind = {"is_sigmoid": how.pop("sigmoid_scores", False), "is_renormalized": how.pop("renormalized", True)}
    team.call(
        experts.route_by_score, logits=logits, logits_stride=logits.strides[0], rows=n, experts=count, top=top, ids=ids,
        weights=shares, scratch=scratch, scratch_stride=scratch.strides[0], **kind, **(options | how),
    )  # fmt: skip
    return ids, shares


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_router(team, data):
    groups, size = data.draw(st.integers(1, 8), "groups"), data.draw(st.integers(2, 40), "experts of a group")
    kept = data.draw(st.integers(1, groups), "groups chosen")
    top = data.draw(st.integers(1, min(size * kept, 12)), "top")
    rng = np.random.default_rng(data.draw(st.integers(0, 1000), "seed"))
    logits = (rng.normal(size=(7, groups * size)) * 3).astype(np.float32)
    how = {
        "sigmoid_scores": data.draw(st.booleans(), "sigmoid"),
        "renormalized": data.draw(st.booleans(), "renormalized"),
        "correction": data.draw(st.sampled_from([None, rng.normal(size=groups * size).astype(np.float32)]), "correction"),
        "groups": groups,
        "groups_chosen": kept,
        "group_best": data.draw(st.sampled_from([1, 2]), "group_best"),
        "scale": data.draw(st.sampled_from([1.0, 2.5]), "scale"),
    }
    ids, shares = route_by_score(team, logits, top, **how)
    expected_ids, expected_shares = ops.route_by_score(logits, top, **how)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(shares, expected_shares, rtol=2e-5)


def test_every_form_of_the_softmax_of_the_chosen_is_the_same(team):
    logits = np.random.default_rng(1).normal(size=(9, 33)).astype(np.float32)
    ids, shares = route(team, logits, 4)
    others = route_by_score(team, logits, 4)
    np.testing.assert_array_equal(ids, others[0])
    np.testing.assert_array_equal(shares, others[1])


def test_equal_scores_go_to_the_lower_number(team):
    logits = np.zeros((2, 12), np.float32)
    how = {"groups": 4, "groups_chosen": 2, "sigmoid_scores": True}
    ids, shares = route_by_score(team, logits, 4, **how)
    np.testing.assert_array_equal(ids, [[0, 1, 2, 3]] * 2)
    np.testing.assert_allclose(shares, 0.25, rtol=1e-6)


@pytest.mark.parametrize("sigmoid_scores", [False, True])
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_routers_without_finite_logits_stay_in_bounds(team, value, sigmoid_scores):
    logits = np.full((2, 12), value, np.float32)
    how = {"groups": 4, "groups_chosen": 2, "correction": np.full(12, value, np.float32)}
    ids, _ = route_by_score(team, logits, 3, sigmoid_scores=sigmoid_scores, **how)
    assert ((ids >= 0) & (ids < 12)).all()
    assert all(len(set(row)) == 3 for row in ids.tolist())


@pytest.mark.parametrize(("tokens", "count", "top"), [(1, 256, 8), (300, 7, 3), (5, 60, 4)])
def test_pairs_are_sorted_by_expert(team, tokens, count, top):
    rng = np.random.default_rng(tokens)
    ids = np.array([rng.permutation(count)[:top] for _ in range(tokens)], np.int32)
    groups, place = expert_groups(tokens, top, count), np.full((tokens, top), -1, np.int32)
    groups.start[:] = 77  # of another pass
    team.call(
        experts.group_by_expert, ids=ids, rows=tokens, top=top, experts=count, groups=groups.count, place=place,
        group_expert=groups.matrix, group_start=groups.start, index=groups.index,
    )  # fmt: skip
    order = np.argsort(ids.reshape(-1), kind="stable")
    chosen, starts = np.unique(np.sort(ids.reshape(-1)), return_index=True)
    assert groups.count[0] == len(chosen)
    np.testing.assert_array_equal(groups.matrix[: len(chosen)], chosen)
    np.testing.assert_array_equal(groups.start[: len(chosen) + 1], [*starts, tokens * top])
    np.testing.assert_array_equal(groups.index, order // top)
    np.testing.assert_array_equal(place.reshape(-1)[order], np.arange(tokens * top))


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
    first, second = empty_records(tokens, hidden), empty_records(tokens * top, inner)
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
