"""Several sequences that generate together: what each is given, and how the gain is reckoned."""

from __future__ import annotations

from typing import Any

from oss_tools.measure.bench_figures import _add_batches
from oss_tools.measure.worker import tokens_of_step


def test_sequences_of_a_step_get_different_tokens() -> None:
    tokens = [5, 9, 2, 7]
    assert tokens_of_step(tokens, 0, 1) == [5]
    assert tokens_of_step(tokens, 3, 3) == [7, 5, 9]
    for step in range(4):
        assert len(set(tokens_of_step(tokens, step, 4))) == 4


def result(batch: int, depth: int, rounds: list[float]) -> dict[str, Any]:
    return {"kind": "generate", "batch": batch, "depth": depth, "rounds": rounds}


def test_the_gain_is_reckoned_round_by_round_at_the_same_depth() -> None:
    alone, deep, several = result(1, 0, [10.0, 20.0, 10.0]), result(1, 64, [5.0] * 3), result(4, 64, [15.0, 10.0, 20.0])
    without = result(4, 128, [1.0] * 3)
    _add_batches({"contenders": {"oss-tools": {"results": [alone, deep, several, without]}}})
    assert several["gain_over_one"] == {"median": 3.0, "range": [2.0, 4.0]}
    assert not any("gain_over_one" in r for r in (alone, deep, without))
