"""What the evidence says of a candidate: near the base, moved, far, harmed or broken, and how sure that is.

The strongest evidence speaks first. Thousands of positions have a divergence, some hundred decisions a margin, and a hundred
questions only a score: the divergence shows what moves predictions long before a score can. A score that does not differ is
therefore never a proof that nothing was lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from oss_tools.report.comparison import Candidate
from oss_tools.report.fidelity import Fidelity
from oss_tools.report.metrics import format_number

NEAR = 0.01  # nats of mean divergence: about twice what 8 bits cost a small model (configs/gates/default.yaml)
FAR = 0.1  # nats: between what 4 bits cost a large model and what they cost a small one (docs/quality.md)
LESS_SURE = 0.1  # nats by which margins shrink in the mean
FLIPS = 0.02  # share of decisions
LEVELS = ("near", "open", "moved", "far", "harmed", "broken")  # the best first
TITLES = {
    "near": "near the base",
    "open": "not decided",
    "moved": "predictions moved",
    "far": "far from the base",
    "harmed": "worse than the base",
    "broken": "something is wrong",
}


@dataclass(frozen=True)
class Judgement:
    """What is known of a candidate.

    Attributes:
        name: the candidate's.
        level: of LEVELS. "near": its divergence is below NEAR, and nothing speaks against it. "moved": it lies above NEAR; "far":
            above FAR. "harmed": margins or scores fell. "broken": it has findings beside scores. "open": there is no evidence
            for any of these. Each counts only where the whole 95 % interval says so.
        reasons: the evidence, the strongest first, a clause each; deciding: those that made the level.
        sure: how far it carries, in a sentence.
    """

    name: str
    level: str
    reasons: tuple[str, ...]
    deciding: tuple[str, ...]
    sure: str

    @property
    def title(self) -> str:
        return TITLES[self.level]

    @property
    def sentence(self) -> str:
        """The reasons as sentences."""
        return sentences(self.reasons)

    @property
    def harmed(self) -> bool:
        return self.level in ("far", "harmed", "broken")


def sentences(clauses: Sequence[str]) -> str:
    """Each clause with a capital and a full stop."""
    return " ".join(f"{clause[:1].upper()}{clause[1:]}." for clause in clauses)


def judgement(candidate: Candidate) -> Judgement:
    """The judgement of a candidate that is not the base."""
    found = [*_findings(candidate), *_divergences(candidate.fidelity), *_margins(candidate), *_scores(candidate)]
    decided = level = max((level for level, _ in found), key=LEVELS.index, default="open")
    if level == "near" and not any(f.kld for f in candidate.fidelity):
        level = "open"  # scores and margins alone prove no nearness
    deciding = tuple(words for one, words in found if one == decided)
    return Judgement(candidate.name, level, tuple(words for _, words in found), deciding, _sure(candidate))


def harmed(candidate: Candidate) -> bool:
    """Whether there is evidence that a candidate is worse than the base, or something is wrong with it."""
    return judgement(candidate).harmed


def _findings(c: Candidate) -> Iterator[tuple[str, str]]:
    for finding in c.findings:
        if finding.kind != "task":  # scores that fell are told below
            yield "broken", finding.message


def _divergences(texts: Sequence[Fidelity]) -> Iterator[tuple[str, str]]:
    for place, f in enumerate(texts):
        if not f.kld:
            continue
        low, high = f.kld.low, f.kld.high
        if low is None or high is None:
            low, high = f.kld.mean, f.kld.mean
            level = "open"
        else:
            spare = f.kld_bound or 0.0
            low, high = max(0.0, low - spare), high + spare
            level = "near" if high < NEAR else "far" if low > FAR else "moved" if low > NEAR else "open"
        on = f" on {f.text}" if place else ""
        words = f"KL divergence {format_number(f.kld.mean)} nats{on}"
        if low < high:
            words += f" (95 %: {format_number(low)} to {format_number(high)})"
        if not place and f.same_top:
            words += f"; another likeliest token at {100 * (1 - f.same_top.value):.1f} % of positions"
        yield level, words


def _margins(c: Candidate) -> Iterator[tuple[str, str]]:
    for m in c.margins[:1]:
        shrunk = m.significant and m.shift.high is not None and m.shift.high < -LESS_SURE
        flips = m.flips.low is not None and m.flips.low > FLIPS
        words = f"{100 * m.flips.value:.1f} % of {m.n} decisions would be taken otherwise"
        if m.significant:
            words += f", margins moved by {m.shift.value:+.2f} nats in the mean".replace("-", "−")
        yield ("harmed" if shrunk or flips else "near"), words


def _scores(c: Candidate) -> Iterator[tuple[str, str]]:
    fell = [
        t for t in c.tasks if t.difference and t.difference.significant and (t.difference.value < 0) == t.higher_is_better
    ]
    for t in fell:
        assert t.difference
        points = f"{100 * abs(t.difference.value):.1f} points"
        yield "harmed", f"{t.task} is {points} worse than the base's (corrected p {t.difference.p_corrected:.2g})"
    if c.tasks and not fell:
        yield "near", "no score fell by evidence"


def _sure(c: Candidate) -> str:
    """On how much the judgement rests, and what would have been missed."""
    parts = [f"{f.positions:,} positions" for f in c.fidelity[:1] if f.kld]
    parts += [f"{m.n} decisions" for m in c.margins[:1]]
    paired = [t for t in c.tasks if t.difference and t.higher_is_better]
    if paired:
        parts.append(f"{sum(t.n for t in paired)} questions")
    if not parts:
        return "Nothing was compared that could tell."
    said = f"Rests on {', '.join(parts)}."
    unseen = [-t.difference.low for t in paired if t.difference and not t.difference.significant]
    if unseen and max(unseen) > 0:
        said += f" A score could be up to {100 * max(unseen):.1f} points lower without being seen."
    if not any(f.kld for f in c.fidelity):
        said += " Predictions were not compared, so a loss may be hidden."
    return said
