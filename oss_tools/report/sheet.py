"""The figures of records by model and metric: what tables, plots and gates read, whichever verb made the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from oss_tools.report.comparison import Candidate, Comparison
from oss_tools.report.figures import Figure, How, candidate_figures, task_metric
from oss_tools.report.metrics import METRICS, metric_of

if TYPE_CHECKING:
    from oss_tools.report.side_by_side import Case


@dataclass(frozen=True)
class Model:
    """A model's row.

    Attributes:
        name: as shown; recipe: the format or recipe that made it, "" if unknown.
        candidate: where the record is a comparison's.
        published: its figures were not measured here but are what its makers say.
    """

    name: str
    figures: dict[str, Figure]
    recipe: str = ""
    is_base: bool = False
    candidate: Candidate | None = None
    published: bool = False


@dataclass(frozen=True)
class Sheet:
    """The figures of one comparison, or of the `bench` and `eval` records that were given together.

    Attributes:
        title: what was measured.
        models: sorted by size, the largest first; those of unknown size last.
        environment: sections of names and values.
        comparison: the record, where it is one.
        case: two answers side by side, where it is that.
        notes: (whom they are of, sentence), beside what candidates' records say.
    """

    title: str
    models: list[Model]
    environment: dict[str, dict[str, Any]] = field(default_factory=dict)
    comparison: Comparison | None = None
    case: Case | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def base(self) -> Model | None:
        return next((model for model in self.models if model.is_base), None)

    @property
    def remarks(self) -> list[tuple[str, str]]:
        """(model, sentence): what figures are to be read with."""
        return [*((m.name, text) for m in self.models if m.candidate for text in m.candidate.remarks), *self.notes]

    def metrics(self, shown_only: bool = False) -> list[str]:
        """Names of the metrics that any model has, in the order of METRICS; tasks among themselves as the record has them."""
        names = dict.fromkeys(name for model in self.models for name in model.figures)
        order = {name: place for place, name in enumerate(METRICS)}
        chosen = [name for name in names if not shown_only or metric_of(name).shown]
        return sorted(chosen, key=lambda name: _place(name, order))

    def model(self, name: str) -> Model | None:
        return next((model for model in self.models if model.name == name), None)

    def best(self, metric: str) -> list[Model]:
        """The models whose figure is the best of a metric, by evidence: all whose intervals reach the best one's.

        None where that is all who have it, where no direction is better, where a sample's figure has no interval, where nothing
        shows a difference from the base, or for a perplexity beside a base's: one below it is no better model.
        """
        lower, exact = metric_of(metric).lower, metric_of(metric).exact
        if lower is None or (self.base and metric.startswith("perplexity")):
            return []
        having = [model for model in self.models if not model.published and metric in model.figures]
        sign = 1 if lower else -1
        first = min(having, key=lambda model: sign * model.figures[metric].value, default=None)
        if first is None:
            return []
        ties = [model for model in having if _reaches(model.figures[metric], first.figures[metric], exact)]
        if len(ties) == len(having) or any(model.figures[metric].noise for model in ties):
            return []
        return ties


def _reaches(figure: Figure, best: Figure, exact: bool) -> bool:
    """Whether nothing says that a figure is worse than the best."""
    if exact or figure.value == best.value:
        return figure.value == best.value
    if not (figure.interval.known and best.interval.known):
        return True
    (low, high), (best_low, best_high) = figure.interval.bounds, best.interval.bounds
    return low <= best_high and best_low <= high


def _place(name: str, order: Mapping[str, int]) -> float:
    plain = name.partition("@")[0]
    return order.get(plain, order.get(plain.partition(".")[0], len(order))) + 0.5 * ("@" in name)


def by_size(models: list[Model]) -> list[Model]:
    """The largest first; ties by name."""
    return sorted(models, key=lambda m: (-m.figures["size"].value if "size" in m.figures else 1.0, m.name))


def sheet_of(comparison: Comparison) -> Sheet:
    """The figures of a comparison's record."""
    environment = comparison.environment
    machine = str(environment.machine.get("cpu", ""))
    models = [
        Model(
            c.name,
            _told(c, dict(candidate_figures(c, machine, environment.reference_kernel)), environment.settings),
            c.recipe,
            c.name == comparison.base,
            c,
        )
        for c in comparison.candidates
    ]
    sections = {
        "run": {
            "created": environment.created.replace("T", " ").replace("+00:00", " UTC"),
            "seconds": round(environment.seconds, 1),
        },
        "machine": environment.machine,
        "settings": environment.settings,
        "versions": environment.versions,
    }
    if environment.reference_kernel:
        sections["run"]["reference kernel"] = environment.reference_kernel
    return Sheet(f"{comparison.model}: {len(models)} quantizations", by_size(models), sections, comparison)


def _told(c: Candidate, figures: dict[str, Figure], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures, with how the tasks' questions were asked."""
    effort, whole = str(settings.get("reasoning") or ""), settings.get("limit") is None
    for task in c.tasks:
        how = How(effort, task.prompts, task.repeats, task.n, whole)
        name = task_metric(task.task, task.higher_is_better)
        figures[name] = replace(figures[name], how=how)
    return figures
