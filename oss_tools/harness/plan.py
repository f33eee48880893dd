"""What a run would ask, before it begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oss_tools.harness import healthbench
from oss_tools.harness.grader import about_tokens, current_grader
from oss_tools.harness.jobs import ANALYSIS_TOKENS, LENGTHS, MAX_TOKENS
from oss_tools.harness.prompts import FIELD
from oss_tools.harness.repeats import ask_repeatedly
from oss_tools.harness.tasks import load_tasks
from oss_tools.harness.tau2.cost import cost as talk_cost

PLAYED = "tau2_"  # tasks with a simulated user
PER_CHOICE = ("multiple_choice",)  # one request for each choice


@dataclass(frozen=True)
class Planned:
    """What a task would ask.

    Attributes:
        questions: documents.
        requests: to the model that is scored.
        prompt_tokens: that it would read, an estimate; most_tokens: that it may write, reasoning included.
        grader_calls, grader_prompt_tokens, grader_tokens: to the grader, if there is one; tokens are estimates.
        user_calls, user_prompt_tokens, user_tokens: to the model that plays the user, if there is one; all are estimates.
    """

    task: str
    questions: int
    requests: int
    prompt_tokens: int = 0
    most_tokens: int = 0
    grader_calls: int = 0
    grader_prompt_tokens: int = 0
    grader_tokens: int = 0
    user_calls: int = 0
    user_prompt_tokens: int = 0
    user_tokens: int = 0

    def grading(self) -> tuple[int, int, int]:
        return self.grader_calls, self.grader_prompt_tokens, self.grader_tokens


def planned(
    names: Sequence[str],
    data: Path | None = None,
    texts: Sequence[Path] = (),
    limit: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    may_miss: Container[str] = (),
    repeats: int | None = None,
) -> list[Planned]:
    """A row for each task. Arguments and errors as in `load_tasks`; `limit` documents of each, asked `repeats` times."""
    rows = []
    for name, task in load_tasks(names, data, texts, say, may_miss)["tasks"].items():
        docs = list(task.eval_docs)[:limit]
        choices = sum(len(task.doc_to_choice(doc)) for doc in docs) if task.OUTPUT_TYPE in PER_CHOICE else len(docs)
        times = ask_repeatedly(task, repeats)
        requests = choices * times
        prompt = sum(about_tokens(_prompt(task, doc)) for doc in docs) * requests // max(len(docs), 1)
        row = Planned(name, len(docs), requests, prompt, requests * _most_tokens(task))
        if name in healthbench.FILES:
            graded = healthbench.cost(docs, current_grader())
            grading = graded.calls, graded.prompt_tokens, graded.tokens
            row = Planned(name, len(docs), requests, prompt, requests * _most_tokens(task), *(times * n for n in grading))
        if data is not None and name.startswith(PLAYED):
            talk = talk_cost(docs, data)
            most = talk.requests * _most_tokens(task)
            told = {"user_calls": talk.user_requests, "user_prompt_tokens": talk.user_prompt_tokens}
            row = Planned(name, len(docs), talk.requests, talk.prompt_tokens, most, **told, user_tokens=talk.user_tokens)
        rows.append(row)
    return rows


def _prompt(task: Any, doc: Any) -> str:
    """A document's question as text: its conversation, tools and earlier turns included, where it has one."""
    if isinstance(doc, Mapping) and doc.get(FIELD):
        return json.dumps(doc[FIELD], ensure_ascii=False, default=str)
    return str(task.doc_to_text(doc))


def _most_tokens(task: Any) -> int:
    """Of one answer: what the task allows, and room for reasoning; 1 where answers are scored, not written."""
    if task.OUTPUT_TYPE != "generate_until":
        return 1
    settings = task.config.generation_kwargs or {}
    allowed = next((int(settings[name]) for name in LENGTHS if settings.get(name)), MAX_TOKENS)
    return allowed + ANALYSIS_TOKENS["medium"]
