"""Uncertainties against scipy and plain formulas, and the record of a task."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.harness import records


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 500), st.data())
def test_wilsons_interval_is_scipys(n: int, more: st.DataObject) -> None:
    stats = pytest.importorskip("scipy.stats")
    k = more.draw(st.integers(0, n))
    low, high = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    assert records.wilson(k, n) == pytest.approx((low, high), abs=1e-12)


def test_shares_have_wilsons_interval_and_other_means_the_normal_one() -> None:
    share = records.share_score([1, 0, 1, 1])
    assert (share.score, share.n) == (0.75, 4)
    assert share.stderr == pytest.approx(np.std([1, 0, 1, 1], ddof=1) / 2)
    assert (share.low, share.high) == records.wilson(3, 4)
    graded = records.share_score([0.5, 0.25, -0.5])
    assert graded.high is not None
    assert graded.stderr is not None
    assert graded.high - graded.score == pytest.approx(1.96 * graded.stderr, rel=1e-4)
    assert records.share_score([1.0]).stderr is None


def test_perplexity_is_of_all_units_and_its_error_of_documents() -> None:
    """Against a bootstrap over documents."""
    random = np.random.default_rng(1)
    rows = [(-float(random.normal(3, 0.4)) * int(n), int(n)) for n in random.integers(50, 400, 60)]
    score = records.perplexity_score(rows, "weighted_perplexity")
    assert score.score == pytest.approx(math.exp(-sum(r[0] for r in rows) / sum(r[1] for r in rows)))
    table = np.array(rows)
    drawn = table[random.integers(0, len(rows), (4000, len(rows)))]
    logs = -drawn[..., 0].sum(-1) / drawn[..., 1].sum(-1)
    assert score.stderr == pytest.approx(np.exp(logs).std(), rel=0.1)
    assert (score.low, score.high) == pytest.approx(tuple(np.exp(np.percentile(logs, [2.5, 97.5]))), rel=0.02)
    bits = records.perplexity_score(rows, "bits_per_byte")
    assert bits.score == pytest.approx(math.log2(score.score))
    assert not bits.higher_is_better


def sample(number: int, metrics: dict[str, Any], kind: str, filter_name: str = "none") -> dict[str, Any]:
    doc = {"kind": kind, "q": number}
    return {
        "doc_id": number,
        "doc": doc,
        "doc_hash": f"{number:064x}",
        "filter": filter_name,
        "metrics": list(metrics),
        **metrics,
    }


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_a_tasks_record_keeps_every_outcome_in_order() -> None:
    task = SimpleNamespace(
        VERSION=2,
        config=SimpleNamespace(num_fewshot=5, metadata=None, repeats=1),
        aggregation=lambda: {"correct": mean, "f1": max},
        higher_is_better=lambda: {"correct": True},
    )
    samples = [
        sample(2, {"correct": 1.0}, "a"),
        sample(0, {"correct": 0.0, "f1": (1, 0)}, "b"),
        sample(1, {"correct": True, "f1": (1, 1)}, "a"),
    ]
    found = records.task_record(task, samples, {"f1,none": 0.5, "f1_stderr,none": "N/A"})
    assert found["items"]["doc"] == [0, 1, 2]
    assert found["items"]["correct"] == [0, True, 1]
    assert found["items"]["f1"] == [[1, 0], [1, 1], None]
    assert found["scores"]["correct"]["score"] == pytest.approx(2 / 3)
    assert (found["scores"]["f1"]["score"], found["scores"]["f1"]["n"]) == (0.5, 2)
    assert found["by_kind"] == {"a": {"correct": {"score": 1.0, "n": 2}}, "b": {"correct": {"score": 0.0, "n": 1}}}
    assert (found["version"], found["num_fewshot"], found["n"]) == (2, 5, 3)
    other = records.task_record(task, [sample(3, {"correct": 1.0}, "a")], {})
    assert other["data_sha256"] != found["data_sha256"]


def test_filters_are_told_apart() -> None:
    task = SimpleNamespace(
        VERSION=1,
        config=SimpleNamespace(num_fewshot=None, metadata=None, repeats=1),
        aggregation=lambda: {"exact": mean},
        higher_is_better=dict,
    )
    samples = [sample(0, {"exact": 1.0}, "a"), sample(0, {"exact": 0.0}, "a", "strict")]
    found = records.task_record(task, samples, {})
    assert {name: score["score"] for name, score in found["scores"].items()} == {"exact": 1.0, "exact,strict": 0.0}
