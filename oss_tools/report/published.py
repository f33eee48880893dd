"""Published figures (configs/published/*.yaml): what makers say of their models, shown beside what was measured here.

A published figure stands in a row of its own kind where the same task was asked here with the same effort, the same wording and
in whole. Where it was not, the figure is named with the reason: two numbers that were made in different ways tell nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from oss_tools.errors import BadRecipe
from oss_tools.report.figures import Figure, How
from oss_tools.report.metrics import Interval, formatted
from oss_tools.report.sheet import Model, Sheet
from oss_tools.resources import resource

MAX_BYTES = 1 << 20  # of a file
MAX_FIGURES = 1000
EFFORTS = ("low", "medium", "high")
FIELDS = ("task", "title", "percent", "prompts", "source", "place")


@dataclass(frozen=True)
class Source:
    """Where figures stand."""

    title: str
    url: str
    date: str

    def __str__(self) -> str:
        return f"{self.title}, {self.date}, {self.url}"


@dataclass(frozen=True)
class PublishedFigure:
    """One figure.

    Attributes:
        task: ours, whose questions these are; or a name that no task of ours has.
        title: as it is called where it stands.
        effort: low, medium or high; "" where the model has no efforts.
        score: a share.
        prompts: whose wording, how many examples, repeats: as tasks say it in their metadata; "" where nothing is said of it.
        source, place: where it stands.
    """

    task: str
    title: str
    effort: str
    score: float
    prompts: str
    source: Source
    place: str

    @property
    def written(self) -> str:
        return formatted("task.", self.score) + (f" ({self.effort})" if self.effort else "")


@dataclass(frozen=True)
class PublishedModel:
    """What is published of a model. `names` are patterns on the names of those that it is shown beside by itself."""

    name: str
    about: str
    names: tuple[str, ...]
    figures: tuple[PublishedFigure, ...]


def published_names() -> list[str]:
    """Of the files that travel with the program."""
    return sorted(path.stem for path in resource("configs/published").glob("*.yaml"))


def load_published(name: str) -> PublishedModel:
    """By a name of `published_names`, or a .yaml file of the same form. Raises BadRecipe, which names file and field."""
    from oss_tools.checkpoints.yaml_files import read_yaml

    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in published_names():
            raise BadRecipe(
                f"no published figures named {name[:60]!r}; there are {', '.join(published_names())}, or a .yaml file"
            )
        path = resource("configs/published") / f"{name}.yaml"
    return parse(read_yaml(path, BadRecipe, MAX_BYTES), str(path), path.stem)


def parse(content: Any, where: str, name: str) -> PublishedModel:
    """A model from what YAML gave. Raises BadRecipe."""
    if not isinstance(content, dict) or unknown_of(content, ("about", "names", "sources", "figures")):
        raise BadRecipe(f"{where}: a mapping with about, names, sources and figures is wanted")
    names, sources, figures = (content.get(key) for key in ("names", "sources", "figures"))
    if not isinstance(names, list) or not all(isinstance(pattern, str) for pattern in names):
        raise BadRecipe(f"{where}: names: a list of patterns is wanted")
    if not isinstance(sources, dict) or not sources:
        raise BadRecipe(f"{where}: sources: a mapping of names to title, url and date is wanted")
    if not isinstance(figures, list) or not 0 < len(figures) <= MAX_FIGURES:
        raise BadRecipe(f"{where}: figures: a list of 1 to {MAX_FIGURES} is wanted")
    known = {str(key): _source(value, f"{where}: sources.{key}") for key, value in sources.items()}
    found = [f for number, row in enumerate(figures, 1) for f in _figures(row, known, f"{where}: figure {number}")]
    return PublishedModel(name, str(content.get("about") or ""), tuple(names), tuple(found))


def unknown_of(content: Mapping[Any, Any], known: Sequence[str]) -> list[str]:
    return sorted(set(map(str, content)) - set(known))


def _source(content: Any, where: str) -> Source:
    if not isinstance(content, dict) or set(content) != {"title", "url", "date"}:
        raise BadRecipe(f"{where}: title, url and date are wanted")
    return Source(*(str(content[key]) for key in ("title", "url", "date")))


def _figures(row: Any, sources: Mapping[str, Source], where: str) -> Iterator[PublishedFigure]:
    """The figures of a row: one, or one of each effort."""
    if not isinstance(row, dict):
        raise BadRecipe(f"{where}: a mapping of {', '.join(FIELDS)} is wanted")
    if unknown := unknown_of(row, FIELDS):
        raise BadRecipe(f"{where}: unknown field {unknown[0]!r}; known: {', '.join(FIELDS)}")
    if missing := [key for key in ("task", "percent", "source") if key not in row]:
        raise BadRecipe(f"{where}: the field {missing[0]!r} is missing")
    if row["source"] not in sources:
        raise BadRecipe(f"{where}: source: {str(row['source'])[:40]!r} is none of {', '.join(sources)}")
    each = row["percent"] if isinstance(row["percent"], dict) else {"": row["percent"]}
    for effort, value in each.items():
        if effort not in ("", *EFFORTS):
            raise BadRecipe(f"{where}: percent: {str(effort)[:40]!r} is none of {', '.join(EFFORTS)}")
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not 0 <= value <= 100:
            raise BadRecipe(f"{where}: percent: a number from 0 to 100 is wanted, not {str(value)[:40]!r}")
        text = [str(row.get(key) or "") for key in ("task", "title", "prompts", "place")]
        task, title, prompts, place = text
        yield PublishedFigure(task, title or task, effort, value / 100, prompts, sources[row["source"]], place)


# ---- beside what was measured -----------------------------------------------------------------------------------------


def with_published(sheet: Sheet, named: Sequence[str] = ()) -> Sheet:
    """The sheet with rows of published figures, and remarks on those that are not comparable.

    Args:
        named: names or files of published figures; "none" for none at all. Models whose patterns match the sheet's are added
            by themselves.

    Raises BadRecipe.
    """
    if "none" in named:
        return sheet
    chosen = {model.name: model for model in map(load_published, named)}
    subjects = [sheet.title.partition(":")[0], *(model.name for model in sheet.models)]
    for name in published_names():
        known = chosen.get(name) or load_published(name)
        if any(fnmatchcase(subject, pattern) for subject in subjects for pattern in known.names):
            chosen[name] = known
    rows: list[Model] = []
    notes: list[tuple[str, str]] = []
    for known in chosen.values():
        asked_for = known.name in named or any(Path(name).stem == known.name for name in named)
        more_rows, more_notes = _beside(sheet, known, asked_for)
        rows += more_rows
        notes += more_notes
    return replace(sheet, models=[*sheet.models, *rows], notes=[*sheet.notes, *notes])


def _beside(sheet: Sheet, known: PublishedModel, asked_for: bool) -> tuple[list[Model], list[tuple[str, str]]]:
    """Rows by effort, and what is not comparable, a sentence for each task that was asked; of others only where they were asked
    for by name."""
    by_effort: dict[str, dict[str, Figure]] = {}
    sources: dict[str, Source] = {}
    reasons: dict[str, list[tuple[PublishedFigure, str]]] = {}
    elsewhere: list[str] = []
    for figure in known.figures:
        metric = f"task.{figure.task}"
        ways = [m.figures[metric].how for m in sheet.models if metric in m.figures]
        if not ways:
            elsewhere.append(figure.title)
            continue
        whys = [why_not(figure, how) for how in ways]
        if "" in whys:
            by_effort.setdefault(figure.effort, {})[metric] = Figure(
                Interval(figure.score), notes=(str(figure.source), figure.place)
            )
            sources[figure.source.title] = figure.source
        else:
            reasons.setdefault(figure.task, []).append((figure, whys[0]))
    rows = [
        Model(", ".join(filter(None, (known.name, effort))), figures, published=True)
        for effort, figures in by_effort.items()
    ]
    label = f"{known.name} (published)"
    notes = [(label, f"figures from {source}") for source in sources.values()]
    beside = {metric for figures in by_effort.values() for metric in figures}
    for task, group in reasons.items():
        if f"task.{task}" not in beside:
            said, (first, _) = " / ".join(figure.written for figure, _ in group), group[0]
            why = nearest([why for _, why in group])
            notes.append((label, f"{first.title} {said}, in {first.source}: not shown beside, as {why}"))
    if elsewhere and (asked_for and not rows and not reasons):
        titles = ", ".join(dict.fromkeys(elsewhere))
        notes.append((label, f"none of its figures ({titles}) is of a task that was asked"))
    return rows, notes


def why_not(figure: PublishedFigure, how: How | None) -> str:
    """Why a published figure is not comparable with one that was measured so; "" if it is."""
    if how is None:
        return "the record does not say how its questions were asked"
    if not figure.prompts:
        return "nothing is published of how its questions were worded"
    if figure.prompts != how.prompts:
        return f"its questions were worded otherwise ({figure.prompts}; here: {how.prompts or 'our own words'})"
    if not how.whole:
        return f"only {how.questions} questions were asked here"
    if figure.effort and figure.effort != how.effort:
        return f"{how.effort or 'no'} effort was asked for here"
    return ""


def nearest(reasons: Sequence[str]) -> str:
    """The reason of the figure that is comparable but for the effort, if there is one; else the first."""
    return next((reason for reason in reasons if reason.endswith("asked for here")), reasons[0])
