"""HealthBench against a scripted grader on loopback: scores, failures of every kind, grades that are kept."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from healthbench_examples import EXAMPLES, SCORES, write_examples
from scripted_grader import ScriptedGrader, serving

from oss_tools.errors import BadRecipe, BadSource, Unreachable
from oss_tools.harness.answers import Answer, Details
from oss_tools.harness.grader import Grade, GradeCache, Grader, GraderSettings, grading_with, read_grade
from oss_tools.harness.healthbench import (
    FILES,
    Graded,
    HealthBenchSplits,
    bootstrap_error,
    clipped_mean,
    cost,
    example_score,
    grade_answers,
    grader_prompts,
    score,
)
from oss_tools.harness.tasks import load_tasks

SETTINGS = GraderSettings("http://127.0.0.1:9/v1", "grader-1", timeout=60.0, concurrency=4)
ANSWERS = [f"Drink no coffee at night, number {number}." for number in range(4)]


def grade_all(server: ScriptedGrader, cache: Path | None = None, **settings: Any) -> tuple[list[Graded], Grader]:
    with Grader(
        replace(SETTINGS, url=server.url, **settings),
        GradeCache(cache),
        sleep=lambda seconds: time.sleep(min(seconds, 0.02)),
    ) as grader:
        return grade_answers(ANSWERS, EXAMPLES, grader), grader


def scores_of(answers: list[Graded]) -> list[float | None]:
    return [score(doc, [answer]).get("score") for doc, answer in zip(EXAMPLES, answers, strict=True)]


# ---- the rule -------------------------------------------------------------------------------------------------------


def test_scores_and_requests() -> None:
    with serving(ScriptedGrader()) as server:
        answers, grader = grade_all(server)
    assert scores_of(answers) == SCORES
    assert len(server.requests) == grader.tally.graded == 9
    assert (grader.tally.prompt_tokens, grader.tally.tokens) == (900, 90)
    assert server.most_at_once <= 4
    request = next(body for body in server.requests if "says stop" in body["messages"][0]["content"])
    assert request["model"] == "grader-1"
    prompt = request["messages"][0]["content"]
    assert "user: Question 2: I slept badly" in prompt
    assert "assistant: Drink no coffee at night, number 1." in prompt
    assert "[8] [+] says stop" in prompt
    assert not any("Authorization" in headers for headers in server.headers)


def test_the_published_rule() -> None:
    """Points met over positive points; means are clipped, examples are not."""
    rubrics = [{"points": 5}, {"points": 10}, {"points": -7}]
    assert example_score(rubrics, [True, False, True]) == pytest.approx(-2 / 15)
    assert example_score(rubrics, [True, True, False]) == 1.0
    assert example_score([{"points": -7}], [True]) is None
    assert clipped_mean(SCORES) == pytest.approx(0.0625)
    assert clipped_mean([-1.5, 0.5]) == 0.0
    assert clipped_mean([]) == 0.0


def test_bootstrap_error_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).uniform(0, 1, 400)
    assert bootstrap_error(values) == pytest.approx(values.std() / 20, rel=0.1)
    assert bootstrap_error(values) == bootstrap_error(values)
    assert bootstrap_error([-3.0, -2.0]) == 0.0, "every sample's mean is clipped to 0"


def test_axes() -> None:
    """The criteria of each axis have a score of their own, if any of them has positive points."""
    with serving(ScriptedGrader()) as server:
        answers, _ = grade_all(server)
    found = [score(doc, [answer]) for doc, answer in zip(EXAMPLES, answers, strict=True)]
    assert [row.get("accuracy") for row in found] == [1.0, 0.25, None, 1.0]
    assert [row.get("completeness") for row in found] == [0.0, None, 0.0, 1.0]
    assert not any("context_awareness" in row for row in found)


def test_an_answer_that_is_not_there_scores_nothing_and_costs_nothing() -> None:
    with serving(ScriptedGrader()) as server, Grader(replace(SETTINGS, url=server.url)) as grader:
        empty = Answer("", Details(problems=("no_final",)))
        (answer,) = grade_answers([empty], EXAMPLES[:1], grader)
    assert score(EXAMPLES[0], [answer]) == {"score": 0.0, "ungraded": 0.0, "accuracy": 0.0, "completeness": 0.0}
    assert answer.details.problems == ("no_final",)
    assert not server.requests


# ---- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        "timeout",
        "drop",
        "trickle",
        "no completion",
        500,
        502,
        503,
        429,
        (429, {"Retry-After": "1"}),
        (503, {"Retry-After": "0"}),
        408,
    ],
    ids=str,
)
def test_failures_that_pass(failure: Any) -> None:
    late = failure in ("timeout", "trickle")
    with serving(ScriptedGrader({"says stop": [failure, failure], "names coffee": [failure]})) as server:
        answers, grader = grade_all(server, timeout=1.0 if late else SETTINGS.timeout)
    assert scores_of(answers) == SCORES
    assert grader.tally.retries == 3 or (late and grader.tally.retries > 3)  # on a busy machine others are late as well
    assert (grader.tally.ungraded, grader.tally.malformed) == (0, 0)


def test_retry_after_holds_for_all_requests() -> None:
    grader = ScriptedGrader({"names coffee": [(429, {"Retry-After": "1"})]})
    with serving(grader) as server, Grader(replace(SETTINGS, url=server.url, concurrency=1)) as asking:
        grade_answers(ANSWERS, EXAMPLES, asking)
    gaps = np.diff(server.times)
    assert gaps.max() > 0.9
    assert len(server.times) == 10


def test_a_server_that_asks_for_too_long_a_wait_is_left() -> None:
    with (
        serving(ScriptedGrader({"names coffee": [(429, {"Retry-After": "4000"})]})) as server,
        pytest.raises(Unreachable, match="asks to wait 4000 s"),
    ):
        grade_all(server)


def test_giving_up_keeps_what_there_is(tmp_path: Path) -> None:
    with (
        serving(ScriptedGrader({"ends well": [500] * 3})) as server,
        pytest.raises(Unreachable, match=r"500, 3 times in a row; \d grades are kept"),
    ):
        grade_all(server, tmp_path / "grades.jsonl", tries=3, concurrency=1)
    assert len(GradeCache(tmp_path / "grades.jsonl")) == 8


def test_nobody_there() -> None:
    nobody = ScriptedGrader()
    nobody.url = "http://127.0.0.1:9/v1"
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        grade_all(nobody, tries=2)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_refusals_are_not_tried_again(status: int) -> None:
    with (
        serving(ScriptedGrader({"names coffee": [status]})) as server,
        pytest.raises(BadSource, match=f"the grader answers {status}"),
    ):
        grade_all(server, concurrency=1)
    assert len(server.requests) == 1


def test_malformed_grades_are_asked_for_again_and_then_counted_apart() -> None:
    script = {
        "says stop": ["malformed", "half", "not a boolean", "met"],
        "names coffee": ["malformed"] * 9,
        "ends well": ["fenced"],
    }
    with serving(ScriptedGrader(script)) as server:
        answers, grader = grade_all(server)
    assert scores_of(answers) == [None, 0.25, -1.5, 1.0]
    assert score(EXAMPLES[0], [answers[0]]) == {"ungraded": 1.0}
    assert (grader.tally.ungraded, grader.tally.malformed, grader.tally.graded) == (1, 3 + 4, 8)
    again = [body["temperature"] for body in server.requests if "says stop" in body["messages"][0]["content"]]
    assert again == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("refuses", [("max_tokens",), ("temperature",), ("max_tokens", "temperature")])
def test_servers_that_want_other_fields(refuses: tuple[str, ...]) -> None:
    with serving(ScriptedGrader(refuses=refuses)) as server:
        answers, _ = grade_all(server)
    assert scores_of(answers) == SCORES
    assert len(server.requests) <= 9 + 2 * 4, "learnt once, by each of the requests that were under way"


def test_a_grade_in_parts_is_read_and_a_refusal_is_none() -> None:
    scripted = ScriptedGrader({"says stop": ["parts"], "names coffee": ["refusal"] * 9})
    with serving(scripted) as server:
        found, grader = grade_all(server)
    assert Grade(True, "in parts") in [grade for graded in found for grade in graded.grades]
    assert (grader.tally.ungraded, grader.tally.malformed) == (1, 4)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ('{"explanation": "a", "criteria_met": true}', Grade(True, "a")),
        ('```json\n{"explanation": "a {b}", "criteria_met": false}\n```', Grade(False, "a {b}")),
        ('first {"criteria_met": true} then {"criteria_met": false, "explanation": "b"}.', Grade(False, "b")),
        ('{"criteria_met": true}', Grade(True, "")),
        ('{"criteria_met": 1}', None),
        ('{"criteria_met": null}', None),
        ("true", None),
        ("[]", None),
        ("{" * 5000, None),
        ("", None),
    ],
)
def test_grades_are_read(text: str, grade: Grade | None) -> None:
    assert read_grade(text) == grade


# ---- settings -------------------------------------------------------------------------------------------------------


def test_keys_come_from_the_environment_and_go_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-default")
    monkeypatch.setenv("MY_KEY", "sk-mine")
    assert SETTINGS.endpoint().key() is None, "a key that nobody named is not sent without encryption"
    assert replace(SETTINGS, url="https://api.example/v1").endpoint().key() == "sk-default"
    assert replace(SETTINGS, key_variable="MY_KEY").endpoint().key() == "sk-mine"
    with pytest.raises(BadRecipe, match="NOT_SET"):
        replace(SETTINGS, key_variable="NOT_SET").endpoint().key()
    with serving(ScriptedGrader()) as server:
        grade_all(server, key_variable="MY_KEY")
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-mine"}


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "", "http://user:word@host/v1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(BadRecipe, match="--grader-url"):
        Grader(replace(SETTINGS, url=url))


def test_the_address_may_be_whole() -> None:
    assert replace(SETTINGS, url="http://h/v1/").endpoint().address() == "http://h/v1/chat/completions"
    assert replace(SETTINGS, url="http://h/v1/chat/completions").endpoint().address() == "http://h/v1/chat/completions"


# ---- grades that are kept -------------------------------------------------------------------------------------------


def test_grades_are_kept_between_runs(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "grades.jsonl"
    with serving(ScriptedGrader()) as server:
        grade_all(server, file)
        before = file.read_bytes()
        answers, grader = grade_all(server, file)
        assert (len(server.requests), grader.tally.kept, grader.tally.graded) == (9, 9, 0)
        assert scores_of(answers) == SCORES
        assert file.read_bytes() == before
        grade_all(server, file, model="grader-2")
        assert len(server.requests) == 18, "another grader's grades are others"
    assert file.read_bytes().startswith(before)


def test_what_a_grade_depends_on() -> None:
    with Grader(SETTINGS) as grader:
        (doc, other) = EXAMPLES[:2]
        keys = {
            grader.key_of(prompt) for answer in ("a", "b") for row in (doc, other) for prompt in grader_prompts(row, answer)
        }
    assert len(keys) == 2 * (3 + 2)


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "grades.jsonl"
    with serving(ScriptedGrader()) as server:
        grade_all(server, file)
        file.write_bytes(file.read_bytes()[:-20])
        _, grader = grade_all(server, file)
        assert (grader.tally.kept, grader.tally.graded) == (8, 1)
        _, grader = grade_all(server, file)
        assert grader.tally.kept == 9
    file.write_text('nonsense\n{"key": 1}\n[1]\n{"key": "k", "criteria_met": "yes", "explanation": ""}\n')
    assert len(GradeCache(file)) == 0


# ---- tasks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", FILES)
def test_tasks_in_lm_eval(task: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.evaluator import evaluate
    from scripted import Scripted

    from oss_tools.harness.records import task_record
    from oss_tools.harness.tasks import load_tasks

    write_examples(tmp_path, task=task)
    answers = iter(ANSWERS)
    scripted = ScriptedGrader({"names coffee": ["malformed"] * 9})
    with serving(scripted) as server, grading_with(Grader(replace(SETTINGS, url=server.url))) as grader, grader:
        tasks = load_tasks([task], tmp_path)
        found = evaluate(Scripted(lambda doc: next(answers)), tasks, bootstrap_iters=0, log_samples=True)
    assert found["results"][task]["score,none"] == 0.0
    assert found["results"][task]["ungraded,none"] == 0.25
    record = task_record(tasks["tasks"][task], found["samples"][task], found["results"][task])
    row = record["scores"]["score"]
    assert (row["score"], row["n"]) == (0.0, 3)
    assert row["stderr"] > 0
    assert record["items"]["score"] == [None, 0.25, -1.5, 1]
    assert record["by_kind"]["theme:communication"]["score"] == {"score": -0.25, "n": 2}


def test_the_published_files_name_serves_too(tmp_path: Path) -> None:
    (tmp_path / FILES["healthbench_hard"]).write_text(json.dumps(EXAMPLES[0]) + "\n")
    with grading_with(Grader(SETTINGS)):
        (doc,) = HealthBenchSplits("healthbench_hard", folder=tmp_path, data=tmp_path)["test"]
    assert doc["conversation"]["messages"] == EXAMPLES[0]["prompt"]


def test_without_a_grader_it_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="--grader-url"):
        HealthBenchSplits("healthbench", folder=tmp_path, data=write_examples(tmp_path))["test"]


def test_a_missing_set_says_what_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with grading_with(Grader(SETTINGS)):
        for task, file in FILES.items():
            with pytest.raises(BadSource) as error:
                HealthBenchSplits(task, folder=tmp_path, data=tmp_path)["test"]
            for words in (file, "openai/healthbench", f"{task}/test.jsonl", "--data"):
                assert words in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": []},
        {"prompt": "text"},
        {"prompt": [{"role": "user"}]},
        {"rubrics": []},
        {"rubrics": [{"criterion": "x", "points": -1, "tags": []}]},
        {"rubrics": [{"criterion": "x", "points": "5", "tags": []}]},
        {"rubrics": [{"criterion": "x", "points": float("inf"), "tags": []}]},
        {"rubrics": [{"points": 5}]},
    ],
)
def test_damaged_examples_are_named(change: dict[str, Any], tmp_path: Path) -> None:
    write_examples(tmp_path, [{**EXAMPLES[0], **change}])
    with grading_with(Grader(SETTINGS)), pytest.raises(BadSource, match="example-1"):
        HealthBenchSplits("healthbench", folder=tmp_path, data=tmp_path)["test"]


@pytest.mark.parametrize("name", ["healthbench/test.json", "oss_eval.jsonl", "healthbench/2025_oss_eval.jsonl"])
def test_other_names_of_files_and_fields(name: str, tmp_path: Path) -> None:
    """As the task's YAML declares them."""
    rows = [
        {
            "prompt_id": example["prompt_id"],
            "messages": example["prompt"],
            "criteria": [{"text": r["criterion"], "score": r["points"], "tags": r["tags"]} for r in example["rubrics"]],
        }
        for example in EXAMPLES
    ]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)))
    with grading_with(Grader(SETTINGS)):
        docs = load_tasks(["healthbench"], tmp_path)["tasks"]["healthbench"].eval_docs
    assert [doc["conversation"]["messages"] for doc in docs] == [example["prompt"] for example in EXAMPLES]
    for doc, example, right in zip(docs, EXAMPLES, SCORES, strict=True):
        assert example_score(doc["rubrics"], [r["criterion"].startswith("[+]") for r in example["rubrics"]]) == right
    del rows[1]["criteria"][0]["text"]
    (tmp_path / name).write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)))
    with grading_with(Grader(SETTINGS)), pytest.raises(BadSource) as error:
        load_tasks(["healthbench"], tmp_path)
    assert f"{rows[1]['prompt_id']}, criterion 1: the fields are score, tags; wanted: criterion (or text, " in str(
        error.value
    )


def test_cost(tmp_path: Path) -> None:
    with serving(ScriptedGrader()) as server:
        grade_all(server, tmp_path / "grades.jsonl")
        with Grader(replace(SETTINGS, url=server.url), GradeCache(tmp_path / "grades.jsonl")) as grader:
            before = cost(EXAMPLES, grader)
            assert (before.calls, before.kept) == (9, 0)
            assert before.prompt_tokens > 9 * 600
            assert cost(EXAMPLES, grader, ANSWERS).calls == 0
            partly = cost(EXAMPLES, grader, [*ANSWERS[:3], "Another."])
            assert (partly.calls, partly.kept) == (2, 7)
            assert "2 calls (7 grades are kept)" in str(partly)
    assert len(server.requests) == 9, "an estimate asks nobody"
