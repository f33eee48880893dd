"""Questions that are asked several times: the mean counts, errors are of questions and repeats, a broken-off run goes on."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from oss_tools.engine.engine import Engine
from oss_tools.harness.plan import planned
from oss_tools.harness.records import repeated_score, share_score
from oss_tools.harness.repeats import Repeated, ask_repeatedly, error_of_repeats
from oss_tools.harness.run import Settings, evaluate
from oss_tools.harness.subjects import EngineSubject
from oss_tools.harness.tasks import load_tasks
from oss_tools.resources import resource

MODEL = {"name": "m", "sha256": "0"}


@pytest.fixture(scope="module")
def engine() -> Any:
    with Engine.load(resource("tiny/checkpoint"), threads=1) as loaded:
        yield loaded


def run(engine: Engine, repeats: int | None, output: Path | None = None, resume: bool = False) -> dict[str, Any]:
    settings = Settings(limit=4, max_tokens=200, batch=4, repeats=repeats)
    return evaluate(EngineSubject(engine), ["health_smoke"], settings, model=MODEL, output=output, resume=resume)


def test_every_question_is_answered_so_many_times(engine: Engine, tmp_path: Path) -> None:
    record = run(engine, 3, tmp_path)
    task = record["tasks"]["health_smoke"]
    assert (task["repeats"], task["n"], task["usage"]["answers"]) == (3, 4, 12)
    samples = [json.loads(line) for line in (tmp_path / "samples-health_smoke.jsonl").read_text().splitlines()]
    for sample, outcome in zip(samples, task["items"]["correct"], strict=True):
        assert len(sample["answers"]) == 3
        assert 3 * outcome == pytest.approx(round(3 * outcome))
    assert any(len({answer["transcript"] for answer in sample["answers"]}) > 1 for sample in samples), "they are drawn anew"
    assert task["scores"]["correct"]["score"] == pytest.approx(np.mean(task["items"]["correct"]))


def test_more_repeats_keep_those_that_are_there(engine: Engine, tmp_path: Path) -> None:
    run(engine, 2, tmp_path)
    before = (tmp_path / "answers.jsonl").read_text()
    more = run(engine, 3, tmp_path, resume=True)["tasks"]["health_smoke"]
    after = (tmp_path / "answers.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == len(before.splitlines()) + 4
    assert more["items"] == run(engine, 3)["tasks"]["health_smoke"]["items"]


def test_once_is_greedy_as_ever(engine: Engine) -> None:
    assert run(engine, 1)["tasks"]["health_smoke"]["items"] == run(engine, None)["tasks"]["health_smoke"]["items"]


def test_likelihoods_are_asked_once() -> None:
    task = load_tasks(["text_smoke"])["tasks"]["text_smoke"]
    assert ask_repeatedly(task, 5) == 1


def test_a_task_can_be_prepared_again() -> None:
    task = load_tasks(["math_smoke"])["tasks"]["math_smoke"]
    doc = task.eval_docs[0]
    right = task.doc_to_target(doc)
    for repeats in (2, 3, 3):
        ask_repeatedly(task, repeats)
        outcomes = task.process_results(doc, [[right, "x", right][:repeats]])
        assert outcomes["correct"].outcomes == (1.0, 0.0, 1.0)[:repeats]
    ask_repeatedly(task, 1)
    assert task.process_results(doc, [right])["correct"] == 1.0


def test_a_dry_run_counts_repeats() -> None:
    (once,), (thrice,) = (planned(["math_smoke"], limit=5, repeats=n) for n in (1, 3))
    assert (once.requests, thrice.requests) == (5, 15)
    assert thrice.prompt_tokens == pytest.approx(3 * once.prompt_tokens, rel=0.01)


# ---- figures --------------------------------------------------------------------------------------------------------


def drawn(random: np.random.Generator, questions: int, repeats: int, spread: float) -> list[Repeated]:
    """Outcomes of questions, each with its own chance, a share of 0.6 in the mean."""
    chances = random.beta(0.6 / spread, 0.4 / spread, questions)
    return [Repeated(random.random(repeats) < chance) for chance in chances]


@pytest.mark.parametrize("spread", [0.2, 1.0, 4.0])
def test_intervals_cover_the_share_whatever_questions_have_in_common(spread: float) -> None:
    """Repeats taken for new questions would cover far less: 8 answers to a question that is always right are one fact."""
    random = np.random.default_rng(1)
    hits = naive = 0
    for _ in range(600):
        values = drawn(random, 30, 8, spread)
        score = repeated_score(values)
        hits += score.low <= 0.6 <= score.high
        every = share_score([x for value in values for x in value.outcomes])
        naive += every.low <= 0.6 <= every.high
    assert hits / 600 > 0.91
    if spread >= 1:
        assert naive / 600 < 0.75


def test_the_error_of_repeats_is_how_far_the_same_questions_would_move() -> None:
    random = np.random.default_rng(2)
    chances = random.random(30)
    asked = [[Repeated(random.random(8) < chance) for chance in chances] for _ in range(400)]
    seen = np.std([np.mean([float(v) for v in values]) for values in asked])
    told = np.mean([error_of_repeats(values) for values in asked])
    assert told == pytest.approx(seen, rel=0.1)
    assert told < repeated_score(asked[0]).stderr, "the questions vary as well"


def test_all_right_and_all_alike() -> None:
    right = repeated_score([Repeated([1.0] * 8)] * 30)
    assert (right.score, right.high) == (1.0, pytest.approx(1.0))
    assert right.low == pytest.approx(share_score([1.0] * 30).low), "30 facts, not 240"
    half = repeated_score([Repeated([1.0, 0.0])] * 30)
    assert half.stderr == 0
    assert half.low < 0.5 < half.high
    assert error_of_repeats([Repeated([1.0])]) is None


def test_outcomes_that_are_no_shares_have_the_normal_interval() -> None:
    numbers = random.Random(3)
    values = [Repeated([numbers.gauss(5, 1) for _ in range(4)]) for _ in range(20)]
    score = repeated_score(values)
    means = [float(v) for v in values]
    error = np.std(means, ddof=1) / math.sqrt(20)
    assert score.high - score.score == pytest.approx(1.96 * error, rel=1e-3)
