"""A run: tasks on a model, and the record of it."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oss_tools.chat.messages import Effort
from oss_tools.checkpoints.files import replace_file
from oss_tools.escapes import json_text
from oss_tools.harness.answers import Answer
from oss_tools.harness.jobs import Share, ShareDone
from oss_tools.harness.log import AnswerLog
from oss_tools.harness.records import SCHEMA, task_record
from oss_tools.harness.repeats import ask_repeatedly
from oss_tools.harness.subjects import Subject
from oss_tools.harness.suites import SuiteTask
from oss_tools.harness.tasks import load_tasks, require_lm_eval
from oss_tools.machine.description import machine, versions

if TYPE_CHECKING:
    from oss_tools.harness.answerer import Answerer

ANSWERS = "answers.jsonl"
HASHED_WHOLE = 4 << 30  # bytes of a checkpoint up to which all of them are hashed
END = 1 << 20  # bytes hashed at each end of a larger checkpoint's files
PER_RUN = ("limit", "sample", "num_fewshot", "repeats")  # settings whose change shows in the requests


@dataclass(frozen=True)
class Settings:
    """What is asked, and how.

    Attributes:
        limit: so many documents of each task; None for all.
        sample: seed of their choice at random; None for the first ones.
        seed: of sampled answers and of the choice of few-shot examples.
        num_fewshot: worked examples before each question; None for the task's own number.
        effort: of reasoning; None for the task's own, or medium.
        chat: whether prompts go through the model's chat template; None if it has one.
        batch: requests that share each pass of decoding.
        max_tokens: generated for one answer; None for the task's own number, and room for analysis.
        repeats: answers to each question, see `repeats.ask_repeatedly`; None for the task's own number.
    """

    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    num_fewshot: int | None = None
    effort: Effort | None = None
    chat: bool | None = None
    batch: int = 16
    max_tokens: int | None = None
    repeats: int | None = None


def fingerprint(files: Sequence[Path]) -> dict[str, Any]:
    """What tells checkpoints apart: sha256 of the names, sizes and bytes of the files with tensors; the ends of large ones."""
    whole = sum(file.stat().st_size for file in files) <= HASHED_WHOLE
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if whole or size <= 2 * END:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
            else:
                digest.update(stream.read(END))
                stream.seek(-END, 2)
                digest.update(stream.read())
    return {"sha256": digest.hexdigest(), "of": "all bytes" if whole else "sizes and ends of files"}


def evaluate(
    subject: Subject,
    names: Sequence[str] | Mapping[str, Any],
    settings: Settings,
    *,
    model: dict[str, Any],
    data: Path | None = None,
    texts: Sequence[Path] = (),
    listed: Sequence[SuiteTask] = (),
    output: Path | None = None,
    resume: bool = False,
    report: Callable[[str, int, int], None] = lambda task, done, total: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Runs tasks; returns the record.

    Args:
        subject: what is evaluated.
        names: of tasks, see `load_tasks`; or what that returned.
        model: what the record says of the model: name, sha256, ….
        data: the user's folder of public sets.
        texts: files whose perplexity is wanted.
        listed: what the suites say of the tasks.
        output: a folder for answers.jsonl (as they come), samples-TASK.jsonl and eval.json (at the end).
        resume: take up the answers in that folder.
        report: called as requests are done.
        say: is told what the user should know.

    Raises BadRecipe, BadSource, BadRequest, MissingPackage.
    """
    require_lm_eval()
    began = time.perf_counter()
    by_name = {entry.task: entry for entry in listed}
    tasks = dict(names) if isinstance(names, Mapping) else load_tasks(names, data, texts, say, may_miss=by_name)
    _tell_sizes(tasks["tasks"], by_name, say)
    log = AnswerLog(output / ANSWERS if output else None, log_header(subject, settings, model), resume)
    lm = subject.model(**_how(settings), log=log, report=report)
    chat = lm.has_chat if settings.chat is None else settings.chat
    try:
        found = _asked(lm, tasks, settings, chat)
    finally:
        log.close()
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "eval",
        "model": {**model, **subject.facts()},
        "machine": machine(),
        "versions": versions("lm-eval", "numpy", "numba", "tokenizers"),
        "settings": {**asdict(settings), **subject.settings(), "chat": chat},
        "tasks": {},
    }
    for name, task in tasks["tasks"].items():
        samples = found["samples"][name]
        entry = by_name.get(name)
        record["tasks"][name] = {
            "metric": entry.metric if entry else next(iter(task.aggregation())),
            **task_record(task, samples, found["results"][name]),
            "usage": lm.usage[name].to_json(),
        }
        if output:
            _write_samples(output / f"samples-{name.replace('/', '_')}.jsonl", samples)
    record["seconds"] = time.perf_counter() - began
    if output:
        write_record(output, record)
    return record


def answer_share(
    subject: Subject,
    task: str,
    settings: Settings,
    share: Share,
    output: Path,
    *,
    model: dict[str, Any],
    data: Path | None = None,
    known: Sequence[str] = (),
) -> None:
    """Answers some of a task's requests but those whose keys are `known`. All are made first, so that each is what it is in a
    whole run. The answers go to `output`, in a file as `evaluate` keeps it. Arguments and errors as there."""
    tasks = load_tasks([task], data)
    log = AnswerLog(output / ANSWERS, log_header(subject, settings, model), known=known)
    lm = subject.model(**_how(settings), log=log, share=share)
    try:
        _asked(lm, tasks, settings, lm.has_chat if settings.chat is None else settings.chat)
    except ShareDone:
        return
    finally:
        log.close()


def log_header(subject: Subject, settings: Settings, model: Mapping[str, Any]) -> dict[str, Any]:
    """On which all answers of a log depend. What the settings in PER_RUN change is in the requests."""
    about = {"schema": SCHEMA, "model": model.get("sha256"), **subject.settings(), **asdict(settings)}
    return {name: value for name, value in about.items() if name not in PER_RUN}


def _how(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("effort", "batch", "max_tokens", "seed")}


def _asked(lm: Answerer, tasks: dict[str, Any], settings: Settings, chat: bool) -> dict[str, Any]:
    """What lm-eval finds."""
    from lm_eval.evaluator import evaluate as lm_evaluate

    _prepare(tasks["tasks"], settings)
    drawn = _drawn(tasks["tasks"], settings)
    found = dict(
        lm_evaluate(
            lm,
            tasks,
            limit=None if drawn else settings.limit,
            samples=drawn,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    )
    lm.renumber(drawn or {})
    return found


def write_record(output: Path, record: dict[str, Any]) -> Path:
    file = output / "eval.json"
    replace_file(file, json_text(record, indent=1) + "\n")
    return file


def _tell_sizes(tasks: dict[str, Any], listed: Mapping[str, SuiteTask], say: Callable[[str], None]) -> None:
    """Says which sets are not the ones that the suites name: a part of one, two copies, another year."""
    for name, task in tasks.items():
        if name in listed and len(task.eval_docs) != listed[name].size:
            say(f"{name}: {len(task.eval_docs):,} questions, where the published set has {listed[name].size:,}")


def _prepare(tasks: dict[str, Any], settings: Settings) -> None:
    """Few-shot examples and repeats as wanted, and every source of chance set."""
    random.seed(settings.seed)
    np.random.seed(settings.seed)  # noqa: NPY002 (lm-eval's tasks use the global one)
    for task in tasks.values():
        ask_repeatedly(task, settings.repeats)
        own = task.get_config("num_fewshot")
        if own is None or (settings.num_fewshot is not None and own != 0):
            task.set_config("num_fewshot", settings.num_fewshot or 0)
        task.set_fewshot_seed(settings.seed)


def _drawn(tasks: dict[str, Any], settings: Settings) -> dict[str, list[int]] | None:
    """The numbers of the documents that are asked, by task, where they are drawn at random; else None."""
    if settings.limit is None or settings.sample is None:
        return None
    drawn = {}
    for name, task in tasks.items():
        count = len(task.eval_docs)
        drawn[name] = sorted(random.Random(f"{settings.sample} {name}").sample(range(count), min(settings.limit, count)))
    return drawn


def _write_samples(file: Path, samples: Sequence[dict[str, Any]]) -> None:
    """One line for each document: what was asked and answered, the reasoning and the problems beside it, the scores."""
    lines = []
    for sample in samples:
        answers = [response for responses in sample["resps"] for response in responses]
        row = {name: sample[name] for name in ("doc_id", "doc", "target", "filter", *sample["metrics"])}
        row["prompts"] = [arguments[0] for arguments in sample["arguments"]]
        row["answers"] = [_answer_row(answer) for answer in answers]
        lines.append(json_text(row, default=str) + "\n")
    replace_file(file, "".join(lines), private=True)


def _answer_row(answer: Any) -> Any:
    return {"text": str(answer), **answer.details.to_json()} if isinstance(answer, Answer) else answer
