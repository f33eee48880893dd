"""Gates: limits on a record's figures, or on their change against its base or a baseline record (configs/gates/*.yaml).

A rule fails on evidence: where the 95 % interval lies wholly beyond the limit, or where a figure that is exact does. With
`strict: true` the figure itself decides. Where the figure lies beyond the limit but its interval reaches back, the rule passes
and says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from oss_tools.errors import BadRequest
from oss_tools.report.figures import Figure
from oss_tools.report.metrics import Interval
from oss_tools.report.rules import DIFFERENCES, Gate, Rule
from oss_tools.report.sheet import Model, Sheet

Status = Literal["pass", "noise", "fail", "skip"]


SAME_MODEL = Rule(DIFFERENCES, max=0.0, name="the model is the base's", missing="skip")  # of gates that say nothing of it


@dataclass(frozen=True)
class Outcome:
    """What came of a rule for one candidate and metric.

    Attributes:
        message: one line with the figures.
        details: lines that point to what is wrong.
    """

    rule: Rule
    candidate: str
    metric: str
    status: Status
    message: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """All outcomes of a gate."""

    gate: Gate
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "fail"]

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def summary(self) -> str:
        """In a line: "gate default: failed, 2 of 31 checks"."""
        count = len(self.outcomes)
        if self.failed:
            return f"gate {self.gate.name}: failed, {len(self.failed)} of {count} checks"
        doubtful = sum(outcome.status == "noise" for outcome in self.outcomes)
        remark = f", {doubtful} beyond the limit by no more than noise" if doubtful else ""
        return f"gate {self.gate.name}: passed, {count} checks{remark}"

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "rule": o.rule.title,
                "candidate": o.candidate,
                "metric": o.metric,
                "status": o.status,
                "message": o.message,
                "details": list(o.details),
            }
            for o in self.outcomes
        ]
        return {"gate": self.gate.name, "passed": self.passed, "outcomes": rows}


# --- reading


# --- judging


def judge(gate: Gate, sheet: Sheet, baseline: Sheet | None = None) -> Verdict:
    """What a gate says of a sheet. Where its rules say nothing of `differences`, there must be none (SAME_MODEL).

    Raises BadRequest where a rule wants a baseline and there is none.
    """
    if gate.wants_baseline and baseline is None:
        rule = next(rule for rule in gate.rules if rule.against == "baseline")
        raise BadRequest(f"gate {gate.name}: the rule {rule.title!r} compares with a baseline; give --baseline FILE")
    rules = gate.rules
    if not any(rule.metric == DIFFERENCES for rule in rules) and any(DIFFERENCES in m.figures for m in sheet.models):
        rules = (SAME_MODEL, *rules)
    return Verdict(gate, tuple(outcome for rule in rules for outcome in _outcomes(rule, sheet, baseline)))


def _outcomes(rule: Rule, sheet: Sheet, baseline: Sheet | None) -> Iterator[Outcome]:
    chosen = [model for model in sheet.models if rule.is_for(model) and not model.published]
    if not chosen:
        names = ", ".join(rule.candidates) or "any but the base"
        yield _absent(rule, "", rule.metric, f"no candidate is {names}")
    for model in chosen:
        metrics = _matching(rule.metric, model.figures)
        if rule.against == "baseline" and baseline and (old := baseline.model(model.name)):
            metrics = list(dict.fromkeys([*metrics, *_matching(rule.metric, old.figures)]))
        if not metrics:
            yield _absent(rule, model.name, rule.metric, "the record has no such figure")
        for metric in metrics:
            yield _outcome(rule, sheet, model, metric, baseline)


def _matching(pattern: str, figures: Mapping[str, Figure]) -> list[str]:
    """Metrics that a pattern means; without "@", figures of the first text only."""
    return [name for name in figures if fnmatchcase(name, pattern) and ("@" in pattern or "@" not in name)]


def _absent(rule: Rule, candidate: str, metric: str, why: str) -> Outcome:
    status: Status = "fail" if rule.missing == "fail" else "skip"
    who = f"{candidate}: " if candidate else ""
    return Outcome(rule, candidate, metric, status, f"{who}{metric}: {why}")


def _outcome(rule: Rule, sheet: Sheet, model: Model, metric: str, baseline: Sheet | None) -> Outcome:
    figure = model.figures.get(metric)
    if figure is None:
        return _absent(rule, model.name, metric, "in the baseline, but not measured now")
    if rule.wanted:
        figure = _unexplained(figure, rule.wanted)
    if rule.same_processor and baseline and (there := _processor(baseline)) != (here := _processor(sheet)):
        return Outcome(
            rule, model.name, metric, "skip", f"{model.name}: {metric}: the baseline is of {there}, this of {here}"
        )
    found: Interval | str = figure.interval
    if rule.against == "base":
        found = _against(rule, figure, sheet.base, metric, paired_with_base=True)
    elif rule.against == "baseline" and baseline:
        found = _against(rule, figure, baseline.model(model.name), metric, paired_with_base=False)
    if isinstance(found, str):
        return _absent(rule, model.name, metric, found)
    status = judged(rule, found)
    return Outcome(rule, model.name, metric, status, _message(rule, model.name, metric, found, status), figure.notes)


def _unexplained(figure: Figure, wanted: Sequence[str]) -> Figure:
    """The figure `differences` without those that are meant."""
    pairs = zip(figure.ids, figure.notes, strict=True)
    left = [pair for pair in pairs if not any(fnmatchcase(pair[0], pattern) for pattern in wanted)]
    return replace(figure, interval=Interval(float(len(left))), notes=tuple(note for _, note in left))


def judged(rule: Rule, found: Interval) -> Status:
    """Whether an interval's value keeps the limits, breaks them by what may be noise, or breaks them."""
    low, high = found.bounds
    beyond = (rule.max is not None and found.value > rule.max) or (rule.min is not None and found.value < rule.min)
    evident = (rule.max is not None and low > rule.max) or (rule.min is not None and high < rule.min)
    if not beyond:
        return "pass"
    return "fail" if evident or rule.strict else "noise"


def _message(rule: Rule, candidate: str, metric: str, found: Interval, status: Status) -> str:
    named = Rule(**{entry.name: getattr(rule, entry.name) for entry in fields(Rule)} | {"metric": metric, "name": ""})
    figures = named.written(found.value)
    if found.known:
        low, high = found.bounds
        figures += f" (95 %: {named.written(low, False)} to {named.written(high, False)})"
    remark = ", beyond the limit by no more than noise" if status == "noise" else ""
    strict = ", strict" if rule.strict else ""
    return f"{candidate}: {named.subject} is {figures}; allowed is {named.limits}{strict}{remark}"


def _processor(sheet: Sheet) -> str:
    return str(sheet.environment.get("machine", {}).get("cpu", "an unknown processor"))


def _against(rule: Rule, figure: Figure, other: Model | None, metric: str, paired_with_base: bool) -> Interval | str:
    """The change against another model's figure, or why there is none."""
    old = other.figures.get(metric) if other else None
    whose = "base" if paired_with_base else "baseline"
    if paired_with_base:
        paired = figure.difference if rule.difference else figure.ratio
        if paired:
            return paired
    if other is None:
        return f"the {whose} has no candidate of this name" if not paired_with_base else "the record has no base"
    if old is None:
        return f"the {whose} has no such figure"
    if figure.on != old.on:
        return f"the {whose}'s was measured on something else ({_short(old.on)}, now {_short(figure.on)})"
    if rule.difference:
        return difference(figure, old)
    if old.value == 0:
        return f"the {whose}'s is 0, over which there is no ratio"
    return ratio(figure.interval, old.interval)


def _short(text: str) -> str:
    return (text if len(text) <= 60 else text[:12] + "…") or "unnamed"


def difference(new: Figure, old: Figure) -> Interval:
    """New less old: by item where both have the same items (paired), else from the two intervals by the square-and-add
    method (Zou and Donner 2008, https://doi.org/10.1002/sim.3095), which takes them for independent."""
    if new.items and new.ids == old.ids and len(new.items) == len(old.items):
        from oss_tools.statistics.paired import paired_difference

        paired = paired_difference(old.items, new.items)
        return Interval(paired.value, paired.low, paired.high)
    return square_and_add(new.interval, old.interval)


def square_and_add(new: Interval, old: Interval) -> Interval:
    """The interval of a difference from the intervals of its terms, taken for independent."""
    value = new.value - old.value
    if not new.known and not old.known:
        return Interval(value)
    (new_low, new_high), (old_low, old_high) = new.bounds, old.bounds
    below = math.hypot(new.value - new_low, old_high - old.value)
    above = math.hypot(new_high - new.value, old.value - old_low)
    return Interval(value, value - below, value + above)


def ratio(new: Interval, old: Interval) -> Interval:
    """New over old, the same on logarithms; where a bound is not above 0, the interval is open there."""
    value = new.value / old.value
    if not new.known and not old.known:
        return Interval(value)
    if new.value <= 0 or old.value <= 0:
        return Interval(value, -math.inf, math.inf)
    logs = square_and_add(_log(new), _log(old))
    return Interval(value, math.exp(logs.bounds[0]), math.exp(min(logs.bounds[1], 700.0)))


def _log(interval: Interval) -> Interval:
    low, high = (math.log(bound) if bound > 0 else -math.inf for bound in interval.bounds)
    return Interval(math.log(interval.value), low, high)


def judge_all(gate: Gate, sheets: Sequence[Sheet], baselines: Sequence[Sheet]) -> list[Verdict]:
    """A verdict for each sheet; the baseline of a comparison is a comparison, that of other records another."""
    verdicts = []
    for sheet in sheets:
        same = [b for b in baselines if (b.comparison is None) == (sheet.comparison is None)]
        if baselines and not same:
            raise BadRequest("the baseline is a record of another kind than the one to judge")
        verdicts.append(judge(gate, sheet, same[0] if same else None))
    return verdicts
