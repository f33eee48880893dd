"""What a run would ask, before it begins."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from oss_tools.harness import healthbench
from oss_tools.harness.grader import current_grader
from oss_tools.harness.tasks import load_tasks

PER_CHOICE = ("multiple_choice",)  # one request for each choice


@dataclass(frozen=True)
class Planned:
    """What a task would ask.

    Attributes:
        questions: documents.
        requests: to the model that is scored.
        grader_calls, grader_prompt_tokens, grader_tokens: to the grader, if there is one; tokens are estimates.
    """

    task: str
    questions: int
    requests: int
    grader_calls: int = 0
    grader_prompt_tokens: int = 0
    grader_tokens: int = 0

    def grading(self) -> tuple[int, int, int]:
        return self.grader_calls, self.grader_prompt_tokens, self.grader_tokens


def planned(
    names: Sequence[str],
    data: Path | None = None,
    texts: Sequence[Path] = (),
    limit: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    may_miss: Container[str] = (),
) -> list[Planned]:
    """A row for each task. Arguments and errors as in `load_tasks`; `limit` documents of each."""
    rows = []
    for name, task in load_tasks(names, data, texts, say, may_miss)["tasks"].items():
        docs = list(task.eval_docs)[:limit]
        choices = sum(len(task.doc_to_choice(doc)) for doc in docs) if task.OUTPUT_TYPE in PER_CHOICE else len(docs)
        row = Planned(name, len(docs), choices * (task.config.repeats or 1))
        if name in healthbench.FILES:
            cost = healthbench.cost(docs, current_grader())
            row = Planned(name, len(docs), len(docs), cost.calls, cost.prompt_tokens, cost.tokens)
        rows.append(row)
    return rows
