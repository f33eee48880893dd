"""Divergence over passages: the statistics of `fidelity`, of the tokens that are scored, and 0 of a model from itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oss_tools.errors import BadRequest
from oss_tools.formats import get_format
from oss_tools.measure.divergence import Base, Passages, Predictions, measured, predict
from oss_tools.measure.fidelity import measure_rows
from oss_tools.measure.overlay import Overlay
from oss_tools.models import open_checkpoint


@pytest.mark.parametrize("moved", [0.0, 0.01, 1.0, 30.0])
def test_as_in_float64(moved: float) -> None:
    rng = np.random.default_rng(0)
    p = rng.normal(3, 5, (70, 1001)).astype(np.float32)
    q = p + np.float32(moved) * rng.normal(0.5, 1, p.shape).astype(np.float32)
    came = rng.integers(0, 1001, 70)
    wanted, found = measure_rows(p, q, came), measured(p, q.copy(), came)
    assert np.allclose(found.kld, wanted.kld, rtol=1e-5, atol=1e-6)
    assert np.allclose(found.nll, wanted.nll, atol=1e-5) and np.allclose(found.base_nll, wanted.base_nll, atol=1e-5)
    assert (found.same_top == wanted.same_top).all()


def test_rows_are_those_before_the_scored_tokens() -> None:
    passages = Passages.of(range(100, 121), size=10, context=4, first=[7])
    assert [s.tolist() for s in passages.sequences] == [[7, *range(101, 110)], [7, *range(111, 120)]]
    assert passages.came.tolist() == [*range(104, 110), *range(114, 120)]
    assert passages.rows.tolist() == [*range(3, 9), *range(13, 19)]
    assert len(passages) == 12 and len(passages.only([1])) == 6
    with pytest.raises(BadRequest, match="too few"):
        Passages.of(range(9), size=10, context=4)


@pytest.mark.parametrize("room", [0, 1 << 30])
def test_a_model_against_itself_and_another(tiny_llama: Path, room: int) -> None:
    passages = Passages.of(list(range(1, 200)), size=40, context=5)
    with open_checkpoint(tiny_llama) as checkpoint:
        base = Base(predict(checkpoint, passages), passages.came, room)
        assert base.compare(predict(checkpoint, passages)).kld.max() < 1e-6
        name = "model.layers.0.mlp.down_proj.weight"
        other = predict(Overlay(checkpoint, {name: lambda w, _: get_format("q4_0").quantize(w)}), passages)
        found = base.compare(other)
        logits = [p.logits(slice(0, len(passages))) for p in (base.predictions, other)]
    assert len(found) == len(passages) == 4 * 35
    assert found.kld == pytest.approx(measure_rows(*logits, passages.came).kld, rel=1e-3, abs=1e-7)
    assert found.kld.mean() > 1e-6


def test_logits_are_of_hidden_states_and_head() -> None:
    predictions = Predictions(np.eye(3, dtype=np.float32), np.arange(12, dtype=np.float32).reshape(4, 3))
    assert predictions.logits(slice(1, 2)).tolist() == [[1, 4, 7, 10]]
