"""A model's figures by metric, with what they are measured on, and those that a comparison's record has of a candidate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from oss_tools.report.comparison import Candidate
from oss_tools.report.fidelity import Divergence, Drift, Fidelity
from oss_tools.report.metrics import Interval
from oss_tools.report.scores import Margins, TaskScore
from oss_tools.statistics.figures import Estimate, Ratio, Timing


@dataclass(frozen=True)
class How:
    """How a task's questions were asked.

    Attributes:
        effort: of reasoning; "" if that is not known.
        prompts: whose wording they have, "" for ours.
        repeats: answers to each; questions: how many; whole: whether all of the set.
    """

    effort: str
    prompts: str
    repeats: int
    questions: int
    whole: bool


@dataclass(frozen=True)
class Figure:
    """A model's figure.

    Attributes:
        interval: the figure with its bounds.
        on: what it was measured on (a text's, a data set's hash; a machine); figures of different records are comparable
            where this is equal.
        items: outcomes by item, where the figure is their mean, and `ids`, whose they are; of `differences` their names.
        difference, ratio: to the record's base, from paired measurements; None where there is no paired test.
        noise: whether the difference to the base is no more than noise; None where nothing says so.
        notes: lines that belong to it.
        how: a task's questions were asked, as far as the record says.
    """

    interval: Interval
    on: str = ""
    items: tuple[float, ...] = ()
    ids: tuple[str, ...] = ()
    difference: Interval | None = None
    ratio: Interval | None = None
    noise: bool | None = None
    notes: tuple[str, ...] = ()
    how: How | None = None

    @property
    def value(self) -> float:
        return self.interval.value


def candidate_figures(c: Candidate, machine: str, kernel: str) -> Iterator[tuple[str, Figure]]:
    """A candidate's figures by metric; `machine` and `kernel` are what its times depend on."""
    if c.size:
        yield "size", _exact(c.size)
        yield "bits_per_weight", _exact(c.bits_per_weight)
    if c.wire:
        yield "wire.seconds", _timing(c.wire.seconds, c.path)
        if c.wire.tokens_per_second:
            yield "wire.tokens_per_second", _timing(c.wire.tokens_per_second, c.path)
        if c.wire.dollars is not None:
            yield "wire.dollars", _exact(c.wire.dollars)
    if c.weight_error:
        yield "weight_error", _exact(c.weight_error.relative_error)
        if c.weight_error.cells:
            worst = max(c.weight_error.cells, key=lambda cell: cell.worst_slice)
            yield "weight_error.worst", _exact(worst.worst_slice, worst.worst_tensor)
    for place, fidelity in enumerate(c.fidelity):
        yield from _fidelity(fidelity, f"@{fidelity.text}" if place else "")
    yield from _margins(c.margins)
    yield from _drifts(c.drift)
    yield from _tasks(c.tasks)
    yield from _latency(c, machine, kernel)
    if c.load_seconds:
        yield "load_seconds", _timing(c.load_seconds, machine)
    if c.peak_bytes is not None:
        yield "peak_memory", _exact(c.peak_bytes)
        if c.library_bytes is not None:
            yield "own_memory", _exact(c.peak_bytes - c.library_bytes)
    if c.weight_bytes is not None:
        yield "weight_memory", _exact(c.weight_bytes)
    if c.differences is not None:
        names, lines = tuple(d.name for d in c.differences), tuple(d.message for d in c.differences)
        yield "differences", Figure(Interval(float(len(names))), ids=names, notes=lines)
    if c.weight_error or c.findings:
        yield "findings", _exact(len(c.findings), *(f.message for f in c.findings))
        for kind in sorted({"weights", "task", *(f.kind for f in c.findings)}):
            messages = [f.message for f in c.findings if f.kind == kind]
            yield f"findings.{kind}", _exact(len(messages), *messages)


def _exact(value: float, *notes: str) -> Figure:
    return Figure(Interval(float(value)), notes=notes)


def _estimate(e: Estimate) -> Interval:
    return Interval(e.value, e.low, e.high)


def _ratio(ratio: Ratio | None) -> Interval | None:
    return Interval(ratio.median, ratio.low, ratio.high) if ratio else None


def _timing(timing: Timing, on: str, ratio: Ratio | None = None) -> Figure:
    interval = Interval(timing.median, timing.low, timing.high)
    return Figure(interval, on, ratio=_ratio(ratio), noise=ratio.noise if ratio else None)


def _fidelity(f: Fidelity, suffix: str) -> Iterator[tuple[str, Figure]]:
    ratio, noise = None, None
    if f.log_perplexity_ratio:
        log = f.log_perplexity_ratio
        ratio = Interval(*(None if v is None else math.exp(min(v, 700.0)) for v in (log.value, log.low, log.high)))  # type: ignore[arg-type]
        noise = None if log.low is None or log.high is None else log.low <= 0 <= log.high
        yield f"perplexity_ratio{suffix}", Figure(ratio, f.sha256, noise=noise)
    yield f"perplexity{suffix}", Figure(_estimate(f.perplexity), f.sha256, ratio=ratio, noise=noise)
    if f.kld:
        yield from _divergence(f.kld, f.sha256, suffix)
    if f.same_top:
        yield f"same_top{suffix}", Figure(_estimate(f.same_top), f.sha256)
    if f.delta_p:
        yield f"delta_p.mean{suffix}", Figure(_spread(f.delta_p.mean, f.delta_p.stderr), f.sha256)
        yield f"delta_p.rms{suffix}", Figure(_spread(f.delta_p.rms, f.delta_p.rms_stderr), f.sha256)


def _spread(value: float, stderr: float | None) -> Interval:
    return Interval(value) if stderr is None else Interval(value, value - 1.96 * stderr, value + 1.96 * stderr)


def _divergence(kld: Divergence, on: str, suffix: str) -> Iterator[tuple[str, Figure]]:
    yield f"kld.mean{suffix}", Figure(Interval(kld.mean, kld.low, kld.high), on)
    for name in ("median", "p90", "p95", "p99", "p99_9", "max"):
        yield f"kld.{name}{suffix}", Figure(Interval(getattr(kld, name)), on)


def _margins(margins: list[Margins]) -> Iterator[tuple[str, Figure]]:
    """Of all decisions `margin.ratio` and so on, of a kind `margin.ratio@option`."""
    for m in margins:
        suffix, on = ("" if m.kind == "all" else f"@{m.kind}"), f"{m.n} decisions"
        if math.isfinite(m.ratio.value):
            yield f"margin.ratio{suffix}", Figure(_estimate(m.ratio), on, noise=not m.significant)
        yield f"margin.flips{suffix}", Figure(_estimate(m.flips), on)
        yield f"margin.shift{suffix}", Figure(_estimate(m.shift), on, noise=not m.significant)
        yield f"margin.hanging{suffix}", _exact(m.hanging, f"{m.base_hanging} of the base's")


def _drifts(drifts: list[Drift]) -> Iterator[tuple[str, Figure]]:
    """Of the deepest context `drift.KIND`, of others `drift.KIND@DEPTH`; of backends `drift.backends@NAME`, `…@NAME, DEPTH`."""
    for drift in drifts:
        whose = [drift.subject] if drift.kind == "backends" else []
        for point in drift.points:
            behind = [*whose, *([] if point is drift.points[-1] else [str(point.depth)])]
            suffix = f"@{', '.join(behind)}" if behind else ""
            on = f"{point.positions} positions behind {point.depth} tokens, {drift.reference}"
            yield f"drift.{drift.kind}{suffix}", Figure(_estimate(point.kld), on)


def _tasks(tasks: list[TaskScore]) -> Iterator[tuple[str, Figure]]:
    suites: dict[str, list[Figure]] = {}
    for task in tasks:
        figure = _task(task)
        yield task_metric(task.task, task.higher_is_better), figure
        if task.suite and task.higher_is_better:
            suites.setdefault(task.suite, []).append(figure)
    for suite, figures in suites.items():
        yield f"suite.{suite}", mean_figure(figures)


def task_metric(task: str, higher_is_better: bool) -> str:
    """The metric of a task's score: a share, or (less is better) a perplexity or the like."""
    return f"task.{task}" if higher_is_better else f"perplexity.{task}"


def _task(task: TaskScore) -> Figure:
    d = task.difference
    return Figure(
        _estimate(task.score),
        task.data_sha256,
        tuple(task.items),
        tuple(task.item_ids),
        difference=Interval(d.value, d.low, d.high) if d else None,
        noise=None if d is None else not d.significant,
    )


def mean_figure(figures: list[Figure]) -> Figure:
    """The mean of independent figures; its interval from theirs, as far as each has one."""
    if len(figures) == 1:
        return figures[0]
    differences = [f.difference for f in figures if f.difference]
    return Figure(
        _mean([f.interval for f in figures]),
        "+".join(f.on for f in figures),
        difference=_mean(differences) if len(differences) == len(figures) else None,
    )


def _mean(intervals: list[Interval]) -> Interval:
    n = len(intervals)
    value = math.fsum(i.value for i in intervals) / n
    if not all(i.known for i in intervals):
        return Interval(value)
    below = math.hypot(*(i.value - i.bounds[0] for i in intervals)) / n
    above = math.hypot(*(i.bounds[1] - i.value for i in intervals)) / n
    return Interval(value, value - below, value + above)


def _latency(c: Candidate, machine: str, kernel: str) -> Iterator[tuple[str, Figure]]:
    if not c.latency:
        return
    t = c.latency
    on = f"{machine}, {t.prompt_tokens} + {t.generated_tokens} tokens"
    per_token = t.ratio_time_per_token
    yield "time_to_first_token", _timing(t.time_to_first_token, on, t.ratio_time_to_first_token)
    yield "time_per_token", _timing(t.time_per_token, on, per_token)
    yield "tokens_per_second", replace(_timing(t.tokens_per_second, on, per_token), ratio=_inverse(_ratio(per_token)))
    yield "prompt_tokens_per_second", _timing(t.prompt_tokens_per_second, on)
    if t.per_reference:
        on = f"{kernel}, {t.prompt_tokens} + {t.generated_tokens} tokens"
        yield "time_per_token_per_reference", _timing(t.per_reference, on)


def _inverse(ratio: Interval | None) -> Interval | None:
    if ratio is None or ratio.value <= 0 or min(ratio.bounds) <= 0:
        return None
    return Interval(1 / ratio.value, *(None if v is None else 1 / v for v in (ratio.high, ratio.low)))
