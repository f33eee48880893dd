"""Which of the compared checkpoints to take, with so much memory: the best that fits, by evidence, and what speaks against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oss_tools.fit.estimate import stored_row
from oss_tools.fit.memory import Use
from oss_tools.models import open_checkpoint
from oss_tools.report.comparison import Candidate, Comparison
from oss_tools.report.fidelity import Divergence
from oss_tools.sizes import format_size


@dataclass(frozen=True)
class Advice:
    """A recommendation.

    Attributes:
        chosen: a candidate's name; None where nothing fits.
        reasons: why it, a sentence each; against: what speaks against it.
        passed_over: (name, why not) of the others.
    """

    chosen: str | None
    reasons: tuple[str, ...]
    against: tuple[str, ...]
    passed_over: tuple[tuple[str, str], ...]


def memory_of(path: Path, context: int, threads: int) -> int:
    """Bytes that the engine takes for a checkpoint and a context."""
    with open_checkpoint(path) as checkpoint:
        most = min(context, checkpoint.architecture.context)
        return stored_row(checkpoint, Use(most, threads=max(threads, 1))).memory.total


def advise(record: Comparison, needed: Mapping[str, int], budget: int, context: int) -> Advice:
    """The candidate nearest to the base among those that fit into `budget` bytes with `context` positions.

    Nearest by mean KL divergence; of those whose intervals overlap, so that there is no evidence between them, the one that needs
    least memory. needed: bytes by candidate's name; candidates without are behind addresses, or not here, and are passed over.
    """
    there = [c for c in record.candidates if c.name in needed]
    fitting = [c for c in there if needed[c.name] <= budget]
    passed = [(c.name, f"needs {format_size(needed[c.name])}") for c in there if c not in fitting]
    if not fitting:
        return Advice(None, (), (), tuple(passed))
    nearest = min(fitting, key=_distance)
    equals = [c for c in fitting if _overlap(c, nearest)]
    chosen = min(equals, key=lambda c: (needed[c.name], _distance(c)))
    for c in fitting:
        if c is chosen:
            continue
        if c in equals:
            passed.append((c.name, f"is no nearer to the base by evidence, and needs {format_size(needed[c.name])}"))
        else:
            passed.append((c.name, f"is further from the base: {_divergence_in_words(c)}"))
    fits = f"needs {format_size(needed[chosen.name])} of {format_size(budget)} with {context:,} positions"
    if chosen.name == record.base:
        return Advice(chosen.name, (fits, "it is the base itself"), (), tuple(passed))
    reasons = [fits, _divergence_in_words(chosen)]
    if not any(task.difference and task.difference.significant for task in chosen.tasks) and chosen.tasks:
        reasons.append("no score differs from the base's by evidence")
    return Advice(chosen.name, tuple(reasons), tuple(_against(chosen)), tuple(passed))


def _kld(c: Candidate) -> Divergence | None:
    return c.fidelity[0].kld if c.fidelity else None


def _distance(c: Candidate) -> float:
    """Mean divergence from the base; 0 of the base. Where predictions were not compared, the weights' error."""
    if kld := _kld(c):
        return kld.mean
    return c.weight_error.relative_error if c.weight_error else 0.0


def _overlap(one: Candidate, two: Candidate) -> bool:
    """Whether there is no evidence that one is nearer to the base."""
    if one is two:
        return True
    a, b = _kld(one), _kld(two)
    if a is None or b is None or None in (a.low, a.high, b.low, b.high):
        return _distance(one) == _distance(two)
    return bool(a.low <= b.high and b.low <= a.high)  # type: ignore[operator]


def _divergence_in_words(c: Candidate) -> str:
    if kld := _kld(c):
        return f"mean KL divergence {kld.mean:.3g} nats a token" + (
            f" ({kld.low:.3g} to {kld.high:.3g})" if kld.low is not None and kld.high is not None else ""
        )
    return "predictions were not compared"


def _against(c: Candidate) -> list[str]:
    """What evidence says against a candidate."""
    said = [finding.message for finding in c.findings]
    for margins in c.margins[:1]:
        if margins.significant and margins.shift.value < 0:
            said.append(f"decisions are less sure: margins are {-margins.shift.value:.2f} nats smaller in the mean")
        if margins.flips.value > 0:
            said.append(f"{100 * margins.flips.value:.1f} % of {margins.n} decisions would be taken otherwise")
    if c.fidelity and (top := c.fidelity[0].same_top):
        said.append(f"at {100 * (1 - top.value):.1f} % of positions another token is the likeliest")
    return said
