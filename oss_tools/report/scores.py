"""Answers to questions, as a candidate's record has them: scores, changed answers, and by how much decisions were taken."""

from __future__ import annotations

from dataclasses import dataclass

from oss_tools.statistics.figures import Estimate

SIGNIFICANT = 0.05  # a corrected p value below this is evidence


@dataclass(frozen=True)
class Difference:
    """Candidate's score less the base's, on the same items.

    Attributes:
        p: two-sided; p_corrected: the same after correction for all task differences in this record (Holm).
        method: the test and the interval, in words.
        gained, lost: items that the candidate does better and worse on.
    """

    value: float
    low: float
    high: float
    p: float
    p_corrected: float
    method: str
    gained: int
    lost: int

    @property
    def significant(self) -> bool:
        """Whether this is evidence of a difference, and not only noise."""
        return self.p_corrected < SIGNIFICANT


@dataclass(frozen=True)
class TaskScore:
    """A task's score.

    Attributes:
        suite: "" for a task named by hand.
        metric: the one that stands for the task.
        items: outcomes in the documents' order (0 or 1 for right or wrong).
        item_ids: the documents' hashes, in that order.
        data_sha256: of all documents.
        difference: to the base; None for the base itself.
        repeats: answers to each item, of which an outcome is the mean.
        prompts: whose wording the questions have, where that is somebody else's ("gpt_oss/evals").
    """

    task: str
    suite: str
    metric: str
    higher_is_better: bool
    n: int
    score: Estimate
    items: list[float]
    item_ids: list[str]
    data_sha256: str
    difference: Difference | None = None
    repeats: int = 1
    prompts: str = ""


@dataclass(frozen=True)
class Change:
    """An item whose answer the candidate changed.

    Attributes:
        prompt: as the model saw it; answer, base_answer: the text that was scored, or the call.
        score, base_score: of the task's metric.
    """

    task: str
    item_id: str
    prompt: str
    base_answer: str
    answer: str
    base_score: float
    score: float


@dataclass(frozen=True)
class Margins:
    """By how much decisions were taken: the logarithm of the probability of what the base chose less that of the likeliest rival,
    in nats, after the prompt and what the base had written until then.

    Attributes:
        kind: "all", "option" (a letter), "call" (a call or a final answer), "function" (which one).
        n: decisions.
        base_median, median: margins of the base and of the candidate.
        ratio: of these medians, the candidate's over the base's.
        flips: share of decisions that the candidate would take otherwise.
        base_hanging, hanging: decisions that hang by less than a nat.
        shift: mean of candidate's margin less base's, paired; p: two-sided, corrected for the number of tests in p_corrected.
    """

    kind: str
    n: int
    base_median: float
    median: float
    ratio: Estimate
    flips: Estimate
    base_hanging: int
    hanging: int
    shift: Estimate
    p: float
    p_corrected: float

    @property
    def significant(self) -> bool:
        """Whether margins moved, by evidence."""
        return self.p_corrected < SIGNIFICANT
