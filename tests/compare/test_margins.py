"""Margins: decisions are found where they are taken, margins are log-odds, shifts are evidence and noise is none."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.compare.margins import ALL, CALL, FUNCTION, OPTION, Question, decisions, measure, summarized
from oss_tools.engine.engine import Engine
from oss_tools.engine.text import Text
from oss_tools.report.comparison import read
from oss_tools.report.gates import judge
from oss_tools.report.rules import load_gate
from oss_tools.report.sheet import sheet_of
from oss_tools.resources import resource

TINY = resource("tiny/checkpoint")
ANALYSIS = "<|channel|>analysis<|message|>So B.<|end|><|start|>assistant"
ASKED = "Which?\nA. one\nB. two\nC. three\nAnswer with the letter."


@pytest.fixture(scope="module")
def engine():
    with Engine.load(TINY, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def text(engine: Engine) -> Text:
    return engine.text


def question(text: Text, transcript: str, asked: str = ASKED, functions: tuple[str, ...] = ()) -> Question:
    prompt = f"<|start|>user<|message|>{asked}<|end|><|start|>assistant"
    return Question(tuple(text.encode(prompt, special=False)), asked, functions, transcript)


def spelt(text: Text, tokens) -> str:
    return text.decode(list(tokens), skip_special=False)


@pytest.mark.parametrize(
    ("final", "before"),
    [
        ("B", ""),
        ("B.", ""),
        ("I think so.\nAnswer: B", "I think so.\nAnswer:"),
        ("Answer: **B**", "Answer: **"),
        ("Answer: A. No. Answer: B", "Answer: A. No. Answer:"),
    ],
)
def test_the_letter_of_an_option_is_found_where_it_is_chosen(text: Text, final: str, before: str) -> None:
    (found,) = decisions(text, [question(text, f"{ANALYSIS}<|channel|>final<|message|>{final}<|return|>")])
    assert found.kind == OPTION
    assert spelt(text, found.prefix).endswith(f"<|channel|>final<|message|>{before}")
    assert spelt(text, found.taken[0]).strip() == "B"
    assert sorted(spelt(text, rival[0]).strip() for rival in found.rivals) == ["A", "C"]


@pytest.mark.parametrize("final", ["Both", "D", "It is A or B, I cannot say", "b", ""])
def test_answers_without_a_letter_that_was_offered_are_no_decisions(text: Text, final: str) -> None:
    assert not decisions(text, [question(text, f"{ANALYSIS}<|channel|>final<|message|>{final}<|return|>")])


def test_questions_without_options_have_none(text: Text) -> None:
    assert not decisions(text, [question(text, f"{ANALYSIS}<|channel|>final<|message|>B<|return|>", "Say B.")])


def test_a_call_is_two_decisions_whether_and_which(text: Text) -> None:
    header = "<|channel|>commentary to=functions.look <|constrain|>json"
    called = question(text, f'{ANALYSIS}{header}<|message|>{{"at": 1}}<|call|>', "Look.", ("look", "look_up", "wait"))
    whether, which = decisions(text, [called])
    assert (whether.kind, which.kind) == (CALL, FUNCTION)
    assert spelt(text, whether.prefix).endswith(ANALYSIS)
    assert spelt(text, whether.rivals[0][0]) == "<|channel|>final<|message|>"
    assert len(whether.taken) == 3
    assert spelt(text, which.taken[0]) == "<|channel|>commentary to=functions.look <|constrain|>"
    assert spelt(text, which.rivals[0][0]) == "<|channel|>commentary to=functions.look_up <|constrain|>"


def test_an_answer_where_functions_were_offered_is_a_decision_against_all_of_them(text: Text) -> None:
    answered = question(text, f"{ANALYSIS}<|channel|>final<|message|>No.<|return|>", "Look.", ("look", "wait"))
    (found,) = decisions(text, [answered])
    assert found.kind == CALL
    assert spelt(text, found.taken[0]) == "<|channel|>final<|message|>"
    assert len(found.rivals[0]) == 2


def test_the_header_is_written_as_the_model_writes_it(text: Text) -> None:
    """gpt-oss names the recipient before the channel."""
    called = question(
        text,
        f"{ANALYSIS} to=functions.look<|channel|>commentary <|constrain|>json<|message|>{{}}<|call|>",
        "?",
        ("look", "wait"),
    )
    answered = question(text, f"{ANALYSIS}<|channel|>final<|message|>No.<|return|>", "?", ("look", "wait"))
    found = decisions(text, [answered, called])
    assert spelt(text, found[0].rivals[0][0]) == " to=functions.look<|channel|>"
    assert spelt(text, found[2].rivals[0][0]) == " to=functions.wait<|channel|>"


def test_a_function_that_was_not_offered_is_no_decision(text: Text) -> None:
    called = question(
        text, f"{ANALYSIS}<|channel|>commentary to=functions.fly <|constrain|>json<|message|>{{}}<|call|>", "?", ("look",)
    )
    assert not decisions(text, [called])


def test_a_margin_is_the_difference_of_log_probabilities(engine: Engine, text: Text) -> None:
    """Of a single token, from the logits themselves."""
    (found,) = decisions(text, [question(text, f"{ANALYSIS}<|channel|>final<|message|>B<|return|>")])
    logits = engine.logits(list(found.prefix))[-1].astype(np.float64)
    expected = logits[found.taken[0][0]] - max(logits[rival[0][0]] for rival in found.rivals)
    assert measure(engine, [found])[0] == pytest.approx(expected, abs=2e-3)


def test_what_does_not_fit_into_the_context_has_no_margin(text: Text) -> None:
    with Engine.load(TINY, threads=1, context=32) as short:
        found = decisions(text, [question(text, f"{ANALYSIS}<|channel|>final<|message|>B<|return|>")])
        assert np.isnan(measure(short, found)).all()


# ---- what is evidence -----------------------------------------------------------------------------------------------


def drawn(seed: int, n: int = 80) -> tuple[list, np.ndarray]:
    random = np.random.default_rng(seed)
    found = [type("D", (), {"kind": (OPTION, CALL)[i % 2]})() for i in range(n)]
    return found, random.gamma(4.0, 2.0, n)


def test_noise_of_either_sign_is_no_evidence_in_twenty_comparisons() -> None:
    alarms = 0
    for seed in range(20):
        found, base = drawn(seed)
        noisy = base + np.random.default_rng(seed + 100).normal(0, 0.5, len(base))
        alarms += summarized(found, base, {"m": noisy})["m"][0].significant
    assert alarms == 0


def test_a_model_beside_itself_has_moved_nothing() -> None:
    found, base = drawn(3)
    for figures in summarized(found, base, {"m": base})["m"]:
        assert (figures.shift.value, figures.flips.value, figures.ratio.value) == (0.0, 0.0, 1.0)
        assert not figures.significant


def test_a_shift_is_evidence_before_a_flip(text: Text) -> None:
    found, base = drawn(4)
    smaller = base * 0.9 + np.random.default_rng(5).normal(0, 0.1, len(base))
    every, *kinds = summarized(found, base, {"m": smaller})["m"]
    assert (every.kind, [k.kind for k in kinds]) == (ALL, [OPTION, CALL])
    assert every.significant
    assert every.shift.value < 0
    assert every.ratio.value == pytest.approx(0.9, abs=0.03)
    assert every.ratio.low <= 0.9 <= every.ratio.high
    assert every.hanging >= every.base_hanging


def test_flips_are_of_decisions_that_the_base_held() -> None:
    found, base = drawn(6, 10)
    other = base.copy()
    other[:3] = -1.0
    every = summarized(found, base, {"m": other})["m"][0]
    assert every.flips.value == pytest.approx(0.3)
    assert every.flips.low == pytest.approx(0.1078, abs=1e-4)  # Wilson's interval of 3 in 10
    assert every.flips.high == pytest.approx(0.6032, abs=1e-4)


# ---- in a comparison ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_margins_see_what_scores_do_not(tmp_path: Path) -> None:
    """Of q4_0 no score differs with evidence, the margins do; of 8 bits neither."""
    arguments = [
        "tiny",
        "--formats",
        "bf16,q8_0,q4_0",
        "--suites",
        "health,tool_use",
        "--limit",
        60,
        "--chunks",
        2,
        "--repeat",
        0,
    ]
    done = CliRunner().invoke(app, ["compare", *map(str, arguments), "-t", "1", "-q", "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    record = read(tmp_path / "comparison.json")
    base, eight, four = record.candidates
    assert not base.margins
    assert not any(task.difference.significant for task in four.tasks)
    every = four.margins[0]
    print(f"q4_0: {every.n} decisions, margins shift by {every.shift.value:.2f} nats, p {every.p_corrected:.4f}")
    assert every.significant
    assert every.shift.value < 0
    assert not eight.margins[0].significant
    gate = tmp_path / "gate.yaml"
    rules = [
        {"name": "decisions stay", "metric": "margin.flips", "max": 0.08},
        {"name": "margins stay", "metric": "margin.ratio", "min": 0.99},
    ]
    gate.write_text(json.dumps({"about": "margins", "rules": rules}))
    failed = judge(load_gate(str(gate)), sheet_of(record), None).failed
    assert [outcome.rule.name for outcome in failed] == ["margins stay"]
    assert "q4_0" in failed[0].message


@pytest.mark.slow
def test_a_model_beside_itself_raises_no_alarm_in_twenty_draws_of_questions(tmp_path: Path) -> None:
    """The embedded model and its own GGUF file, whose rows and files are ordered otherwise; questions and chunks drawn by the
    seeds 1 … 20. Gates on margins and the default one pass every time."""
    own = tmp_path / "own.gguf"
    done = CliRunner().invoke(app, ["convert", "tiny", str(own)])
    assert done.exit_code == 0, done.output
    margins = tmp_path / "margins.yaml"
    rules = [
        {"name": "at most 2 points of decisions flip", "metric": "margin.flips", "max": 0.02},
        {"name": "margins stay", "metric": "margin.ratio", "min": 0.9},
        {"name": "no margin shifts", "metric": "margin.shift*", "min": -0.01, "strict": True},
    ]
    margins.write_text(json.dumps({"about": "margins", "rules": rules}))
    few = ["--suites", "health,tool_use", "--limit", "8", "--chunks", "1", "--repeat", "0", "-t", "1", "-q"]
    decisions = 0
    for seed in range(1, 21):
        arguments = ["compare", "tiny", str(own), *few, "--seed", str(seed), "-o", str(tmp_path / "out")]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        record = read(tmp_path / "out" / "comparison.json")
        (other,) = record.others
        assert not any(figures.significant for figures in other.margins)
        assert not any(task.difference.significant for task in other.tasks)
        assert not other.findings
        for gate in (str(margins), "default"):
            verdict = judge(load_gate(gate), sheet_of(record), None)
            assert verdict.passed, verdict.failed
        decisions += other.margins[0].n
    print(f"20 comparisons, {decisions} decisions: no alarm")
    assert decisions > 150


@pytest.mark.slow
def test_margins_through_a_server_are_those_of_the_engine(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    command = [sys.executable, "-m", "oss_tools", "serve", "served=tiny", "--port", "0", "-t", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout
            found = next(match for line in process.stdout if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
            few = ["--suites", "health,tool_use", "--limit", "8", "--chunks", "1", "--repeat", "0", "-t", "1", "-q"]
            done = CliRunner().invoke(app, ["compare", "tiny", f"{found[0]}/v1#served", *few, "-o", str(tmp_path)])
        finally:
            process.terminate()
    assert done.exit_code == 0, done.output
    _, served = read(tmp_path / "comparison.json").candidates
    every = served.margins[0]
    assert every.n > 8
    assert every.flips.value == 0
    assert every.shift.value == pytest.approx(0, abs=1e-3)
    assert every.median == pytest.approx(every.base_median, abs=1e-3)


def test_drawn_questions_keep_their_own_prompts(engine: Engine, tmp_path: Path) -> None:
    """Which questions are drawn must not change what is said to have been asked."""
    pytest.importorskip("lm_eval")
    from oss_tools.compare.answers import answer
    from oss_tools.harness.run import Settings
    from oss_tools.harness.subjects import EngineSubject
    from oss_tools.harness.suites import load_suite

    (task,) = load_suite("health").tiers["smoke"]
    found = answer(EngineSubject(engine), task, Settings(limit=6, sample=3, max_tokens=8), tmp_path, "0")
    samples = [json.loads(line) for line in (tmp_path / "samples-health_smoke.jsonl").read_text().splitlines()]
    assert [sample["doc_id"] for sample in samples] != list(range(6))
    for sample, asked in zip(samples, found["asked"], strict=True):
        assert sample["doc"]["question"] in engine.text.decode(asked["tokens"], skip_special=False)
