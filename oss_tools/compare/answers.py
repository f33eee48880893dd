"""Answers of a candidate to the suites' questions, and what changed against the base's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oss_tools.errors import BadRequest
from oss_tools.harness.prompts import FIELD
from oss_tools.harness.run import Settings, evaluate
from oss_tools.harness.subjects import EndpointSubject, Subject
from oss_tools.harness.suites import SuiteTask
from oss_tools.report.comparison import Finding
from oss_tools.report.scores import Change, Difference, TaskScore
from oss_tools.statistics.figures import Estimate
from oss_tools.statistics.paired import holm, paired_difference

MOST_CHANGES = 8  # examples of each task
LONGEST = 4000  # characters of a prompt or an answer in the record


def answer(
    subject: Subject,
    task: SuiteTask,
    settings: Settings,
    folder: Path,
    sha256: str,
    data: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """A task's scores and answers, as plain values. What a broken-off run left in the folder is taken up.

    Raises BadRecipe, BadSource, MissingPackage, BadRequest if an outcome is no number.
    """
    record = evaluate(
        subject,
        [task.task],
        settings,
        model={"sha256": sha256},
        data=data,
        listed=[task],
        output=folder,
        resume=True,
        report=lambda name, done, total: progress(done, total),
        say=say,
    )
    (name, found), *more = record["tasks"].items()
    if more:
        raise BadRequest(f"{task.task} is a group of tasks; name single ones in a suite")
    metric, columns = found["metric"], found["items"]
    outcomes = [_number(value, name, metric) for value in columns[metric]]
    with (folder / f"samples-{name.replace('/', '_')}.jsonl").open(encoding="utf-8") as lines:
        samples = [json.loads(line) for line in lines]
    rows = [_row(sample) for sample in samples]
    asked = [_asked(sample, subject.prompt(name, sample["doc_id"])) for sample in samples]
    score = found["scores"][metric]
    return {
        "metric": metric,
        "higher_is_better": score["higher_is_better"],
        "estimate": [score["score"], score["stderr"], score["low"], score["high"]],
        "items": outcomes,
        "item_ids": columns["sha256"],
        "data_sha256": found["data_sha256"],
        "repeats": found["repeats"],
        "prompts": found["prompts"],
        "said": rows,
        "asked": asked,
        "wire": subject.measured() if isinstance(subject, EndpointSubject) else None,
    }


def _number(value: Any, task: str, metric: str) -> float:
    """An outcome; of (log-probability, units) the log-probability of each."""
    if isinstance(value, list) and len(value) == 2:
        return float(value[0]) / max(float(value[1]), 1.0)
    if isinstance(value, int | float):
        return float(value)
    raise BadRequest(f"{task}: {metric} of one question is {value!r}; only numbers can be compared")


def _row(sample: Mapping[str, Any]) -> dict[str, str]:
    said = sample["answers"][0] if sample["answers"] else ""
    text = said["text"] if isinstance(said, dict) else str(said)
    calls = said.get("calls") or [] if isinstance(said, dict) else []
    called = "; ".join(f"{call['name']}({call['text']})" for call in calls)
    return {"prompt": str(sample["prompts"][0])[:LONGEST], "answer": f"{called} {text}".strip()[:LONGEST]}


def _asked(sample: Mapping[str, Any], prompt: Sequence[int] | None) -> dict[str, Any] | None:
    """The prompt's tokens, the functions on offer and the whole of what was written; None where these are not known."""
    said = sample["answers"][0] if sample["answers"] else None
    if prompt is None or not isinstance(said, dict) or said.get("turns"):
        return None
    extra = sample["doc"].get(FIELD) if isinstance(sample["doc"], Mapping) else None
    tools = extra.get("tools") or () if isinstance(extra, Mapping) else ()
    return {"tokens": list(prompt), "functions": [tool["name"] for tool in tools], "transcript": said["transcript"]}


def task_score(task: SuiteTask, suite: str, found: Mapping[str, Any], difference: Difference | None) -> TaskScore:
    return TaskScore(
        task.task,
        suite,
        found["metric"],
        found["higher_is_better"],
        len(found["items"]),
        Estimate(*found["estimate"]),
        found["items"],
        found["item_ids"],
        found["data_sha256"],
        difference,
        found.get("repeats", 1),
        found.get("prompts", ""),
    )


def differences(
    base: Mapping[str, Mapping[str, Any]], others: Mapping[str, Mapping[str, Mapping[str, Any]]], seed: int = 0
) -> dict[str, dict[str, Difference]]:
    """By candidate and task: the paired difference to the base, corrected for the number of all of them (Holm).

    Args:
        base: `answer`'s results by task; others: the same by candidate.
    """
    keys = [(name, task) for name, tasks in others.items() for task in tasks]
    tests = []
    for name, task in keys:
        one, two = base[task], others[name][task]
        if one["item_ids"] != two["item_ids"]:
            raise BadRequest(f"{task}: {name} and the base were asked different questions; run with --fresh")
        tests.append(paired_difference(one["items"], two["items"], one["higher_is_better"], seed))
    corrected = holm([test.p for test in tests])
    found: dict[str, dict[str, Difference]] = {}
    for (name, task), test, p in zip(keys, tests, corrected, strict=True):
        found.setdefault(name, {})[task] = Difference(
            test.value, test.low, test.high, test.p, p, test.method, test.gained, test.lost
        )
    return found


def changes(base: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    """Questions that were answered differently, those whose score changed first; of each task some."""
    found = []
    for task, one in base.items():
        two = other[task]
        rows = zip(one["item_ids"], one["said"], two["said"], one["items"], two["items"], strict=True)
        different = [row for row in rows if row[1]["answer"] != row[2]["answer"]]
        different.sort(key=lambda row: row[3] == row[4])
        found += [
            Change(task, number, ours["prompt"], ours["answer"], theirs["answer"], before, after)
            for number, ours, theirs, before, after in different[:MOST_CHANGES]
        ]
    return found


def task_findings(scores: Sequence[TaskScore], base: str) -> list[Finding]:
    """Tasks that the candidate does worse on, with evidence."""
    found = []
    for score in scores:
        d = score.difference
        worse = d is not None and (d.value < 0) == score.higher_is_better and d.value != 0
        if d is not None and worse and d.significant:
            worse_by = f"{score.metric} {score.score.value:.3f}, {abs(d.value):.3f} worse than {base}"
            figures = f"95 %: {d.low:+.3f} to {d.high:+.3f}, corrected p {d.p_corrected:.2g}"
            counts = f"{d.lost} lost, {d.gained} gained of {score.n}"
            found.append(Finding("task", score.task, f"{score.task}: {worse_by} ({figures}; {counts})"))
    return found
