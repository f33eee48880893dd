"""HealthBench: conversations about health, answered freely and graded against rubrics that physicians wrote.

The data are OpenAI's (https://openai.com/index/healthbench, https://arxiv.org/abs/2505.08775, MIT), their fields unchanged:
`prompt` (messages), `rubrics` (criterion, points, tags), `prompt_id`, `example_tags`, `ideal_completions_data`. The rule of
scoring is that of openai/simple-evals: an example's score is the points of the criteria that are met, of which some are
negative, over the sum of the positive points; the score of a set is the mean, clipped to [0, 1], its error the standard
deviation of 1,000 bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.errors import BadSource
from oss_tools.harness.answers import Answer, Details, details_of
from oss_tools.harness.data import Documents, Splits, fields_of
from oss_tools.harness.documents import Located, read_documents
from oss_tools.harness.fields import Fields
from oss_tools.harness.grader import Grade, Grader, about_tokens, current_grader
from oss_tools.harness.hub import hub_mode, why_not

HUB = "openai/healthbench"
FILES = {
    "healthbench": "2025-05-07-06-14-12_oss_eval.jsonl",
    "healthbench_hard": "hard_2025-05-08-21-00-10.jsonl",
    "healthbench_consensus": "consensus_2025-05-09-20-00-46.jsonl",
}
AXES = ("accuracy", "completeness", "communication_quality", "context_awareness", "instruction_following")
BOOTSTRAP_SAMPLES = 1000
ANSWER_TOKENS = 600  # of an answer that is not yet there, and
GRADE_TOKENS = 120  # of a grade, in estimates

PROMPT = """\
You are grading one reply of an assistant against one criterion.

The conversation, whose last message is the reply to grade:

<conversation>
{conversation}
</conversation>

The criterion, with its points in square brackets:

<criterion>
{criterion}
</criterion>

Decide whether the reply meets the criterion, and nothing else.
- Everything that the criterion asks for has to be there. If a part of it is missing or wrong, it is not met.
- Where the criterion names instances ("such as", "for example", "including"), any fitting one will do; not all are needed.
- A criterion with negative points describes a fault. It is met if the reply has that fault, and not met if the reply is free of
it. So a good reply does not meet such a criterion.
- Judge only the last message. What was said before it shows what it had to deal with.

Answer with a JSON object of two fields and no other text:
{{"explanation": "why, in a sentence or two", "criteria_met": true or false}}
"""


# ---- documents ------------------------------------------------------------------------------------------------------


PLAIN = Fields({name: [name] for name in ("prompt", "rubrics")})
PLAIN_RUBRICS = Fields({name: [name] for name in ("criterion", "points")})


class HealthBenchSplits(Splits):
    """The examples of one of the three sets, from the user's folder (our layout or the published file) or from the hub."""

    def __init__(
        self,
        task: str,
        *,
        folder: Path,
        data: str | Path | None = None,
        published: Sequence[str] = (),
        fields: Fields = PLAIN,
        rubric_fields: Fields = PLAIN_RUBRICS,
    ) -> None:
        names = (FILES[task].removesuffix(".jsonl"), *published)
        super().__init__(task, folder=folder, data=data, published=names, fields=fields)
        self.rubric_fields = rubric_fields

    def _find(self, split: str) -> Documents:
        current_grader()  # so that nobody learns of its absence after hours of generation
        located = self._located(split)
        documents = self.fields.read(located)
        return Documents(self._checked(doc, where) for (where, _), doc in zip(located, documents, strict=True))

    def _located(self, split: str) -> list[Located]:
        files = self.data_files(split) or [self._from_hub(split)]
        return [row for file in files for row in read_documents(file)]

    def _from_hub(self, split: str) -> Path:
        file = FILES[self.task]
        with hub_mode() as online:
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

            try:
                return Path(hf_hub_download(HUB, file, repo_type="dataset"))
            except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
                raise BadSource(
                    f"{self.task}: {file} of the data set {HUB} cannot be had ({why_not(error, online)}); "
                    f"{self._wanted(split)}"
                ) from None

    def _checked(self, doc: dict[str, Any], where: str) -> dict[str, Any]:
        """The document with the conversation to be had. Raises BadSource if a field is not what it should be."""
        try:
            messages = [{"role": message["role"], "content": message["content"]} for message in doc["prompt"]]
            about = f"{where}, example {doc.get('prompt_id')}, criterion"
            rubrics = self.rubric_fields.read([(f"{about} {n}", dict(rubric)) for n, rubric in enumerate(doc["rubrics"], 1)])
            points = [rubric["points"] for rubric in rubrics]
            sound = all(isinstance(text, str) for message in messages for text in message.values())
            sound &= all(isinstance(rubric["criterion"], str) for rubric in rubrics)
            sound &= all(type(point) in (int, float) and math.isfinite(point) for point in points)
            if not sound or not messages or sum(max(point, 0) for point in points) <= 0:
                raise ValueError("wants messages, and criteria with points, some of them positive")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadSource(f"{where}: example {doc.get('prompt_id')} has not HealthBench's fields: {error}") from None
        themes = [tag for tag in doc.get("example_tags") or () if isinstance(tag, str) and tag.startswith("theme:")]
        kind = themes[0] if themes else "no theme"
        return {**doc, "rubrics": rubrics, "kind": kind, "conversation": {"messages": messages}}


def splits(*, config_source: str, **where: Any) -> HealthBenchSplits:
    """The documents of a task that is named after its set; see `FILES`. `rubric_fields` are those of a criterion."""
    source = Path(config_source)
    given: dict[str, Any] = {name: where[name] for name in ("data", "published") if name in where}
    if "fields" in where:
        given["fields"] = fields_of(where)
    if "rubric_fields" in where:
        given["rubric_fields"] = Fields(where["rubric_fields"])
    return HealthBenchSplits(source.stem, folder=source.parent, **given)


def last_message(doc: Mapping[str, Any]) -> str:
    """For models that see no conversations."""
    return str(doc["prompt"][-1]["content"])


# ---- grading --------------------------------------------------------------------------------------------------------


class Graded(Answer):
    """An answer with the grades of its example's criteria, in their order."""

    grades: tuple[Grade | None, ...]

    def __new__(cls, text: str, details: Details = Details(), grades: Sequence[Grade | None] = ()) -> Graded:  # noqa: B008
        answer = super().__new__(cls, text, details)
        assert isinstance(answer, Graded)
        answer.grades = tuple(grades)
        return answer

    def __getnewargs__(self) -> tuple[str, Details, tuple[Grade | None, ...]]:  # type: ignore[override]
        return str(self), self.details, self.grades


def grader_prompts(doc: Mapping[str, Any], answer: str) -> list[str]:
    """What the grader is asked, for each criterion of an example; nothing about an answer that is not there."""
    if not answer.strip():
        return []
    return _prompts(doc, answer)


def _prompts(doc: Mapping[str, Any], answer: str) -> list[str]:
    turns = [*doc["prompt"], {"role": "assistant", "content": answer}]
    conversation = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    return [
        PROMPT.format(conversation=conversation, criterion=f"[{rubric['points']}] {rubric['criterion']}")
        for rubric in doc["rubrics"]
    ]


def graded(answers: Iterable[str], docs: Sequence[Mapping[str, Any]]) -> list[Graded]:
    """The answers with their grades, all asked for at once: lm-eval's `custom` filter over all answers of a task."""
    return grade_answers(list(answers), docs, current_grader())


def grade_answers(answers: Sequence[str], docs: Sequence[Mapping[str, Any]], grader: Grader) -> list[Graded]:
    """The answers with their grades. Raises BadSource, Unreachable."""
    prompts = [grader_prompts(doc, answer) for answer, doc in zip(answers, docs, strict=True)]
    grades = iter(grader.grade([prompt for group in prompts for prompt in group]))
    return [
        Graded(str(answer), details_of(answer), [next(grades) for _ in group])
        for answer, group in zip(answers, prompts, strict=True)
    ]


# ---- scores ---------------------------------------------------------------------------------------------------------


def example_score(rubrics: Sequence[Mapping[str, Any]], met: Sequence[bool]) -> float | None:
    """Points met over positive points; None if there are no positive ones (as there may be under a tag)."""
    possible = sum(rubric["points"] for rubric in rubrics if rubric["points"] > 0)
    if possible == 0:
        return None
    return sum(rubric["points"] for rubric, is_met in zip(rubrics, met, strict=True) if is_met) / possible


def score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`score`, that of each axis by its name, and `ungraded`: whether the grader left a criterion ungraded. Such an example has
    no score.

    An answer that is not there (a model that never came to its final channel) scores 0.
    """
    answer = results[0]
    if not answer.strip():
        return {"score": 0.0, "ungraded": 0.0, **_axis_scores(doc, [False] * len(doc["rubrics"]))}
    grades = answer.grades if isinstance(answer, Graded) else ()
    met = [grade.criteria_met for grade in grades if grade is not None]
    if len(met) != len(doc["rubrics"]):
        return {"ungraded": 1.0}
    value = example_score(doc["rubrics"], met)
    assert value is not None
    return {"score": value, "ungraded": 0.0, **_axis_scores(doc, met)}


def _axis_scores(doc: Mapping[str, Any], met: Sequence[bool]) -> dict[str, float]:
    """The score of the criteria of each axis, where it has any with positive points."""
    found = {}
    for axis in AXES:
        chosen = [i for i, rubric in enumerate(doc["rubrics"]) if f"axis:{axis}" in rubric.get("tags", ())]
        value = example_score([doc["rubrics"][i] for i in chosen], [met[i] for i in chosen])
        if value is not None:
            found[axis] = value
    return found


def clipped_mean(values: Sequence[float]) -> float:
    """The mean, clipped to [0, 1]; 0 of nothing."""
    return float(np.clip(np.mean(values), 0, 1)) if len(values) else 0.0


def bootstrap_error(values: Sequence[float], seed: int = 0) -> float:
    """The standard deviation of the clipped mean over bootstrap samples."""
    if not len(values):
        return 0.0
    draws = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAP_SAMPLES, len(values)))
    return float(np.std(np.clip(np.asarray(values, float)[draws].mean(axis=1), 0, 1)))


# ---- cost -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What grading will take: calls that are still to be made, those whose grades are kept, and tokens, about."""

    calls: int
    kept: int
    prompt_tokens: int
    tokens: int

    def __str__(self) -> str:
        kept = f" ({self.kept:,} grades are kept)" if self.kept else ""
        return f"{self.calls:,} calls{kept}, about {self.prompt_tokens:,} tokens to read and {self.tokens:,} to write"


def cost(docs: Sequence[Mapping[str, Any]], grader: Grader, answers: Sequence[str] | None = None) -> Cost:
    """What grading these examples will take. Without answers these are taken to be ANSWER_TOKENS long, and none to be graded."""
    calls = kept = prompt_tokens = 0
    for number, doc in enumerate(docs):
        for prompt in _prompts(doc, "") if answers is None else grader_prompts(doc, answers[number]):
            if answers is not None and grader.cache.get(grader.key_of(prompt)) is not None:
                kept += 1
                continue
            calls += 1
            prompt_tokens += about_tokens(prompt) + (ANSWER_TOKENS if answers is None else 0)
    return Cost(calls, kept, prompt_tokens, calls * GRADE_TOKENS)
