"""Published figures: rows of their own kind where the same was asked here, else named with the reason."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from oss_tools.errors import BadRecipe
from oss_tools.harness.suites import task_files
from oss_tools.report.comparison import read
from oss_tools.report.gates import judge
from oss_tools.report.html import page
from oss_tools.report.markdown import markdown
from oss_tools.report.published import load_published, parse, published_names, with_published
from oss_tools.report.reading import load_sheets
from oss_tools.report.rules import parse_gate
from oss_tools.report.scores import TaskScore
from oss_tools.report.sheet import sheet_of
from oss_tools.report.table import text
from oss_tools.statistics.figures import Estimate

SAMPLE = Path(__file__).with_name("sample-comparison.json")
OURS = "gpt_oss/evals"


def record(
    task: str = "aime24", effort: str = "high", prompts: str = OURS, limit: int | None = None, model: str = "gpt-oss-20b"
):
    """A comparison in which a task was asked so."""
    found = read(SAMPLE)
    items = [1.0, 0.875, 0.0]
    mean = Estimate(0.625, 0.2, 0.3, 0.9)
    score = TaskScore(task, "math", "correct", True, 3, mean, items, ["a", "b", "c"], "d", None, 8, prompts)
    environment = replace(found.environment, settings=found.environment.settings | {"reasoning": effort, "limit": limit})
    candidates = [replace(c, tasks=[score]) for c in found.candidates]
    return replace(found, model=model, environment=environment, candidates=candidates)


def sheet(*named: str, **how):
    return with_published(sheet_of(record(**how)), named)


def test_what_was_asked_alike_stands_beside_as_a_row_of_its_own() -> None:
    found = sheet()
    (row,) = [model for model in found.models if model.published]
    assert row.name == "gpt-oss-20b, high"
    assert row.figures["task.aime24"].value == pytest.approx(0.921)
    assert "size" not in row.figures
    table = text(found, 200)
    assert "gpt-oss-20b, high (published)" in table
    assert "92.1 %" in table
    assert (
        "gpt-oss-20b (published): figures from gpt-oss-120b & gpt-oss-20b Model Card, 2025-08-08, https://arxiv.org" in table
    )
    assert "| gpt-oss-20b, high (published) |" in markdown([found])
    assert "<small>published</small>" in page([found])


def test_a_published_figure_is_no_best_and_no_candidate_of_a_gate() -> None:
    found = sheet()
    assert found.best("task.aime24") == []  # those that were measured are all alike
    gate = parse_gate({"rules": [{"metric": "task.aime24", "max": 0.7, "strict": True}]}, "here", "g")
    verdict = judge(gate, found)
    assert verdict.passed
    assert not any("published" in outcome.candidate or "high" in outcome.candidate for outcome in verdict.outcomes)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"prompts": ""}, "its questions were worded otherwise (gpt_oss/evals; here: our own words)"),
        ({"limit": 10}, "only 3 questions were asked here"),
        ({"effort": ""}, "no effort was asked for here"),
    ],
)
def test_what_was_asked_otherwise_is_named_with_the_reason(how: dict, reason: str) -> None:
    found = sheet(**how)
    assert not any(model.published for model in found.models)
    ((name, said),) = found.notes
    assert name == "gpt-oss-20b (published)"
    assert said.startswith(
        "AIME 2024 (no tools) 42.1 % (low) / 80.0 % (medium) / 92.1 % (high), in gpt-oss-120b & gpt-oss-20b"
    )
    assert said.endswith(f"not shown beside, as {reason}")


def test_other_models_are_shown_where_they_are_named() -> None:
    assert not sheet(model="something").notes
    ((name, said),) = sheet("o4-mini", model="something").notes
    assert name == "o4-mini (published)"
    assert "93.4 % (high)" in said
    assert said.endswith("as nothing is published of how its questions were worded")
    ((name, said),) = sheet("mixtral-8x7b", model="something").notes
    assert said == "none of its figures (MMLU, GSM8K, MATH) is of a task that was asked"
    assert not sheet("none").notes
    with pytest.raises(BadRecipe, match=r"no published figures named 'gpt-7'; there are deepseek-r1, gpt-oss-120b, "):
        sheet("gpt-7")


def test_records_of_eval_have_them_too(tmp_path: Path) -> None:
    task = {
        "metric": "correct", "repeats": 8, "prompts": OURS, "n": 1, "data_sha256": "d",
        "scores": {"correct": {"score": 1.0, "higher_is_better": True}}, "items": {"doc": [0], "sha256": ["a"], "correct": [1.0]},
    }  # fmt: skip
    raw = {"kind": "eval", "schema": 1, "model": {"name": "gpt-oss-120b-q4"}, "tasks": {"gpqa": task}}
    file = tmp_path / "eval.json"
    for settings, shown in (
        ({"effort": "low"}, ["gpt-oss-120b, low"]),
        ({"effort": None}, ["gpt-oss-120b, medium"]),
        ({"limit": 5}, []),
    ):
        file.write_text(json.dumps(raw | {"settings": settings}))
        (found,) = load_sheets([file])
        assert [model.name for model in with_published(found).models if model.published] == shown


# ---- the files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", published_names())
def test_every_file_can_be_read_and_has_sources(name: str) -> None:
    model = load_published(name)
    assert model.about
    assert model.names
    for figure in model.figures:
        assert figure.source.url.startswith("https://")
        assert figure.source.date.count("-") == 2
        assert figure.place
        assert 0 < figure.score < 1


def test_the_words_that_are_said_to_be_theirs_are_a_tasks() -> None:
    """What gpt-oss's figures are compared by is what our tasks say of themselves."""
    for name in ("aime24", "aime25", "gpqa"):
        assert f"prompts: {OURS}" in task_files()[name].read_text()
        assert {f.prompts for f in load_published("gpt-oss-20b").figures if f.task == name} == {OURS}


def test_the_cards_table() -> None:
    """Table 3 of arXiv 2508.10925."""
    for name, expected in (("gpt-oss-120b", [0.563, 0.804, 0.958]), ("gpt-oss-20b", [0.421, 0.8, 0.921])):
        scores = [figure.score for figure in load_published(name).figures if figure.task == "aime24"]
        assert scores == pytest.approx(expected)


GOOD = {
    "about": "x", "names": ["x*"], "sources": {"s": {"title": "t", "url": "https://x", "date": "2025-01-01"}},
    "figures": [{"task": "gpqa", "percent": 5, "source": "s"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": "x"}, "names: a list of patterns"),
        ({"sources": {"s": {"title": "t"}}}, "sources.s: title, url and date are wanted"),
        ({"figures": []}, "a list of 1 to 1000"),
        ({"more": 1}, "about, names, sources and figures"),
        ({"figures": [{"task": "gpqa", "percent": 5, "source": "z"}]}, "figure 1: source: 'z' is none of s"),
        ({"figures": [{"task": "gpqa", "percent": 120, "source": "s"}]}, "from 0 to 100 is wanted, not '120'"),
        ({"figures": [{"task": "gpqa", "percent": {"huge": 1}, "source": "s"}]}, "'huge' is none of low, medium, high"),
        ({"figures": [{"task": "gpqa", "source": "s"}]}, "the field 'percent' is missing"),
        ({"figures": [{"task": "gpqa", "percent": True, "source": "s"}]}, "not 'True'"),
    ],
)
def test_what_is_wrong_in_a_file_is_told(change: dict, message: str) -> None:
    assert parse(GOOD, "f", "n").figures[0].score == 0.05
    with pytest.raises(BadRecipe, match=message):
        parse({**GOOD, **change}, "f", "n")
