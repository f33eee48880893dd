"""What a comparison comes to: which candidate to look at, its figures, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from oss_tools.report.evidence import Judgement, judgement, sentences
from oss_tools.report.metrics import format_number
from oss_tools.report.sheet import Model, Sheet

SMALLEST = (("near", "smallest that predicts as the base does"), ("moved", "smaller, at a price"))


@dataclass(frozen=True)
class Answer:
    """One line of the verdict.

    Attributes:
        question: what it answers ("smallest that predicts as the base does"); name: of a candidate.
        figures: its size and speed beside the base's; reasons: the strongest evidence; sure: on how much that rests.
    """

    question: str
    name: str
    figures: str
    reasons: str = ""
    sure: str = ""


def judgements(sheet: Sheet) -> list[tuple[Model, Judgement]]:
    """What the evidence says of each candidate but the base, in the order of the rows."""
    return [(m, judgement(m.candidate)) for m in sheet.models if m.candidate and not m.is_base]


def summary(sheet: Sheet) -> list[Answer]:
    """The verdict of a comparison, in a few answers; none of other records.

    The smallest candidate near the base; the smallest that moved, where that is smaller still; the nearest, where none is near;
    and the fastest.
    """
    base, judged = sheet.base, judgements(sheet)
    if not base:
        return []
    answers: list[Answer] = []
    least = math.inf
    for level, question in SMALLEST:
        fitting = [(model, j) for model, j in judged if j.level == level]
        model, j = min(fitting, key=lambda pair: _size(pair[0]), default=(base, None))
        if j and _size(model) < least:
            least = _size(model)
            answers.append(Answer(question, model.name, _against(model, base), sentences(j.deciding[:1]), j.sure))
    if not any(j.level == "near" for _, j in judged):
        answers += _nearest(judged, base)
    having = [model for model, _ in judged if "tokens_per_second" in model.figures]
    if having:
        model = max(having, key=lambda model: model.figures["tokens_per_second"].value)
        found = next(j for one, j in judged if one is model)
        answers.append(Answer("fastest", model.name, _against(model, base), sentences([found.title])))
    return answers


def _nearest(judged: Sequence[tuple[Model, Judgement]], base: Model) -> list[Answer]:
    """The candidate of the least divergence."""
    having = [(model, j) for model, j in judged if "kld.mean" in model.figures]
    if not having:
        return []
    model, j = min(having, key=lambda pair: pair[0].figures["kld.mean"].value)
    question = "nearest to the base; there is no evidence that any is near"
    return [Answer(question, model.name, _against(model, base), sentences(j.deciding[:1]), j.sure)]


def _size(model: Model) -> float:
    return model.figures["size"].value if "size" in model.figures else math.inf


def _against(model: Model, base: Model) -> str:
    """Size and speed beside the base's."""
    parts = []
    if "size" in model.figures and "size" in base.figures:
        parts.append(f"{format_number(100 * _size(model) / _size(base))} % of the size")
    speed = model.figures.get("tokens_per_second")
    if speed and speed.ratio:
        parts.append(f"{format_number(speed.ratio.value)} × the speed")
    return ", ".join(parts)
