"""Verdicts: what the strongest evidence says comes first, and no mark goes to what is no evidence."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oss_tools.report.comparison import Finding, from_json, read
from oss_tools.report.evidence import FAR, NEAR, judgement
from oss_tools.report.html import is_wide, page
from oss_tools.report.reading import load_sheets
from oss_tools.report.scores import Margins
from oss_tools.report.sheet import sheet_of
from oss_tools.report.table import is_best, text
from oss_tools.report.verdict import summary
from oss_tools.statistics.figures import Estimate

TINY = Path(__file__).parents[2] / "results" / "baselines" / "tiny.json"
SAMPLE = Path(__file__).with_name("sample-comparison.json")


def candidate(**changes: Any):
    """tiny in q8_0, which is near its base in all that was measured."""
    return replace(next(c for c in read(TINY).candidates if c.name == "q8_0"), **changes)


def with_divergence(mean: float, spread: float, bound: float | None = None):
    (first, *_) = candidate().fidelity
    kld = replace(first.kld, mean=mean, low=mean - spread, high=mean + spread)
    return candidate(fidelity=[replace(first, kld=kld, kld_bound=bound)])


def margins(shift: float, spread: float, flips: float, p: float) -> Margins:
    moved = Estimate(shift, spread / 2, shift - spread, shift + spread)
    other = Estimate(flips, 0.01, max(flips - 0.02, 0.0), flips + 0.02)
    return Margins("all", 120, 3.0, 3.0 + shift, Estimate(1.0, None, None, None), other, 1, 1, moved, p, p)


@pytest.mark.parametrize(
    ("mean", "spread", "bound", "level"),
    [
        (NEAR / 2, NEAR / 4, None, "near"),
        (NEAR * 0.9, NEAR / 2, None, "open"),  # the interval reaches beyond
        (NEAR * 0.9, NEAR / 20, NEAR, "open"),  # what a pack left out reaches beyond
        (2 * NEAR, NEAR / 2, None, "moved"),
        (2 * FAR, FAR / 2, None, "far"),
        (1.1 * FAR, FAR / 2, None, "moved"),
    ],
)
def test_a_divergence_counts_by_its_whole_interval(mean: float, spread: float, bound: float | None, level: str) -> None:
    assert judgement(with_divergence(mean, spread, bound)).level == level


def test_scores_alone_prove_no_nearness_and_the_sentence_says_what_they_would_miss() -> None:
    found = judgement(candidate(fidelity=[], weight_error=None, margins=[]))
    assert found.level == "open"
    assert "could be up to 3.7 points lower without being seen" in found.sure  # Tango's interval of 0 of 100
    assert "Predictions were not compared" in found.sure
    assert judgement(candidate(fidelity=[], tasks=[], margins=[])).sure == "Nothing was compared that could tell."


def test_margins_that_shrink_by_evidence_are_harm_and_others_are_not() -> None:
    assert judgement(candidate(margins=[margins(-0.8, 0.3, 0.0, 0.001)])).level == "harmed"
    assert judgement(candidate(margins=[margins(-0.02, 0.01, 0.0, 0.001)])).level == "near"  # evidence of next to nothing
    assert judgement(candidate(margins=[margins(-0.8, 0.9, 0.0, 0.3)])).level == "near"
    assert judgement(candidate(margins=[margins(0.0, 0.1, 0.08, 1.0)])).level == "harmed"


def test_a_score_that_fell_and_a_finding_outweigh_a_small_divergence() -> None:
    (task, *others) = candidate().tasks
    fell = replace(task, difference=replace(task.difference, value=-0.3, low=-0.4, high=-0.2, p_corrected=0.001))
    found = judgement(candidate(tasks=[fell, *others]))
    assert found.level == "harmed"
    assert "30.0 points worse" in found.deciding[0]
    assert judgement(candidate(findings=[Finding("weights", "w", "w is damaged")])).deciding == ("w is damaged",)


def test_a_format_whose_divergence_is_forty_times_another_s_is_not_recommended() -> None:
    (sheet,) = load_sheets([TINY])
    answers = {answer.question: answer.name for answer in summary(sheet)}
    assert answers == {
        "smallest that predicts as the base does": "q8_0",
        "smaller, at a price": "mxfp4",
        "fastest": "q4_0",
    }
    assert "q4_0: worse than the base." in " ".join(text(sheet).split())  # its margins have shrunk
    assert "worse than the base" in page([sheet])


def test_where_none_is_near_the_nearest_is_named_as_that() -> None:
    raw = json.loads(SAMPLE.read_text(encoding="utf-8"))
    raw["candidates"] = [c for c in raw["candidates"] if c["name"] in ("bf16", "mxfp4", "q4_0")]
    answers = summary(sheet_of(from_json(raw)))
    assert answers[0].question == "smaller, at a price"
    assert any(a.name == "q4_0" and "no evidence that any is near" in a.question for a in answers)


def test_no_star_goes_to_what_is_no_evidence() -> None:
    (sheet,) = load_sheets([TINY])
    stars = {metric: [m.name for m in sheet.models if is_best(sheet, m, metric)] for metric in sheet.metrics()}
    assert stars["perplexity"] == []  # q4_0's is below the base's
    assert stars["kld.mean"] == ["int8", "q8_0"]  # whose intervals overlap
    assert stars["kld.p99"] == []  # a percentile without an interval
    assert not any(names for metric, names in stars.items() if metric.startswith("task."))
    assert stars["size"] == ["q4_0"]


def test_a_wide_table_is_turned_on_the_page_and_a_long_name_keeps_both_ends() -> None:
    raw = copy.deepcopy(json.loads(SAMPLE.read_text(encoding="utf-8")))
    name = "a-model-of-a-long-name/" + "x" * 60 + "-Q4_K_M.gguf"
    raw["candidates"][1]["name"] = name
    sheet = sheet_of(from_json(raw))
    assert '<th scope="row" title="KL' in page([sheet]).replace("mean KL", "KL")
    assert is_wide(15, 5)
    assert not is_wide(5, 5)
    assert not is_wide(15, 30)
    heads = next(line for line in text(sheet, 120).splitlines() if line.startswith("model"))
    assert "a-model" in heads
    assert "M.gguf" in heads
    assert len(heads) <= 120
