"""Routers and expert layers against their reference: ties, logits that are not finite, tokens sorted by expert."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import weights

from numba_kernels.cpu import experts, rows
from numba_kernels.cpu.groups import expert_groups, one_group
from numba_kernels.cpu.linear import add_linear
from numba_kernels.cpu.packed import Packed
from numba_kernels.cpu.packing import pack
from numba_kernels.cpu.records import empty_records
from numba_kernels.cpu.team import Program
from numba_kernels.reference import ops


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
