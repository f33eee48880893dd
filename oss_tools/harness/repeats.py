"""Questions that are asked several times: sampled answers, of which the mean outcome counts.

Few questions (AIME has 30) tell little when each is answered once. Published figures of such sets are means over repeats, sampled
with temperature 1. An outcome of such a question is a `Repeated`: the mean, which remembers what it is the mean of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

TEMPERATURE = 1.0  # of answers that are sampled because a question is repeated


class Repeated(float):
    """The mean of one question's outcomes.

    Attributes:
        outcomes: of every repeat at which the metric applied.
    """

    outcomes: tuple[float, ...]

    def __new__(cls, outcomes: Sequence[float]) -> Repeated:
        mean = super().__new__(cls, math.fsum(outcomes) / len(outcomes))
        mean.outcomes = tuple(outcomes)
        return mean


def ask_repeatedly(task: Any, repeats: int | None) -> int:
    """Prepares a task of lm-eval so that every question is asked so many times; returns how many.

    Args:
        repeats: None takes the task's own number. Asked once, a question is answered greedily unless the task samples.

    Likelihoods are the same every time, so tasks that compare them ask once.
    """
    if task.OUTPUT_TYPE != "generate_until":
        return 1
    own = task.config.generation_kwargs or {}
    count = repeats or task.config.repeats or 1
    task.set_config("repeats", count)
    score = getattr(task.process_results, "of_one", task.process_results)
    if count == 1:
        task.process_results = score
        return 1
    if not own.get("temperature"):
        task.set_config("generation_kwargs", {**own, "do_sample": True, "temperature": TEMPERATURE})
    from lm_eval.filters import build_filter_ensemble

    task._filters = [build_filter_ensemble("none", [["take_first_k", {"k": count}]])]
    task.process_results = _averaged(score)
    return count


def _averaged(score: Callable[[Any, Sequence[Any]], Mapping[str, Any]]) -> Callable[[Any, Sequence[Any]], dict[str, Any]]:
    """The scoring of one answer, made that of several: `results` is [[answer, …]]."""

    def scored(doc: Any, results: Sequence[Any]) -> dict[str, Any]:
        each = [score(doc, [answer]) for answer in results[0]]
        found: dict[str, Any] = {}
        for name in dict.fromkeys(name for outcome in each for name in outcome):
            values = [outcome[name] for outcome in each if outcome.get(name) is not None]
            numbers = values and all(isinstance(value, int | float) for value in values)
            found[name] = Repeated([float(value) for value in values]) if numbers else values[0] if values else None
        return found

    scored.of_one = score  # type: ignore[attr-defined]
    return scored


def error_of_repeats(values: Sequence[Repeated]) -> float | None:
    """The standard error that the mean over these questions has from their repeats alone: how far it would move if the same
    questions were asked again. None where no question has two outcomes."""
    if not any(len(value.outcomes) > 1 for value in values):
        return None
    spread = math.fsum(_variance(value.outcomes) / len(value.outcomes) for value in values if len(value.outcomes) > 1)
    return math.sqrt(spread) / len(values)


def _variance(outcomes: Sequence[float]) -> float:
    mean = math.fsum(outcomes) / len(outcomes)
    return math.fsum((x - mean) ** 2 for x in outcomes) / (len(outcomes) - 1)
