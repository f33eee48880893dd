"""Records over commits: how figures of the same model moved from record to record, drawn and as a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from markupsafe import Markup

from oss_tools.errors import BadRequest
from oss_tools.report.axes import Axis
from oss_tools.report.lines import Series, lines
from oss_tools.report.metrics import METRICS, Interval, formatted, metric_of
from oss_tools.report.pictures import picture, placed, size_of
from oss_tools.report.reading import load_sheets
from oss_tools.report.sheet import Sheet
from oss_tools.report.svg import text
from oss_tools.report.table import visible

MAX_RECORDS = 500
DRAWN = (
    "kld.mean",
    "same_top",
    "margin.ratio",
    "task.",
    "time_per_token_per_reference",
    "tokens_per_second",
    "peak_memory",
    "size",
)
MOST_PLOTS = 16
MOST_LINES = 8  # models of a plot
COMMIT = re.compile(r"(?:^|[-_.])([0-9a-f]{7,40})(?=[-_.]|$)")
CUT = "lines are cut where something else was measured (other questions, another text, another machine)"
PADDING, TOP, GAP = 26.0, 74.0, 24.0


@dataclass(frozen=True)
class Entry:
    """A record: `label` (a commit, or month and day), `created` (ISO 8601, by which they are ordered), its file and sheet."""

    label: str
    created: str
    file: Path
    sheet: Sheet


def load_history(folder: Path) -> list[Entry]:
    """The comparisons in a folder and its folders, the oldest first. Files of other kinds, and records that cannot be read, are
    an error: a history with holes says nothing.

    Raises BadRequest, OSError.
    """
    if not folder.is_dir():
        raise BadRequest(f"{folder}: a folder of records is wanted")
    files = sorted(file for file in folder.rglob("*.json") if "parts" not in file.relative_to(folder).parts)
    if not files:
        raise BadRequest(f"{folder}: no records (*.json) in it")
    if len(files) > MAX_RECORDS:
        raise BadRequest(f"{folder}: {len(files)} records are too many; at most {MAX_RECORDS}")
    entries = [entry for file in files for entry in _entries(file, folder)]
    if len(entries) < 2:
        raise BadRequest(f"{folder}: a history needs two comparisons at least")
    return sorted(entries, key=lambda entry: (entry.created, str(entry.file)))


def _entries(file: Path, folder: Path) -> Iterator[Entry]:
    for sheet in load_sheets([file]):
        if sheet.comparison is None:
            raise BadRequest(f"{file}: no comparison; keep records of other kinds elsewhere")
        created = sheet.comparison.environment.created
        yield Entry(_label(file.relative_to(folder), created), created, file, sheet)


def _label(file: Path, created: str) -> str:
    """A commit that stands in the file's or its folder's name, short; else month and day."""
    for name in (file.stem, *reversed(file.parts[:-1])):
        if found := COMMIT.search(name):
            return found[1][:7]
    return created[5:10] or file.stem


# ---- figures over records ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """A metric over the records: for each model a value for each record. `breaks`: records from which on it was measured on
    something else (other questions, another machine), so that the line is cut."""

    metric: str
    series: tuple[Series, ...]
    breaks: tuple[int, ...]


def courses(entries: Sequence[Entry]) -> list[Course]:
    """Of the metrics that at least two records have, in the order of tables."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.sheet.metrics()))
    chosen = [
        name for name in names if any(name == known or (known[-1] == "." and name.startswith(known)) for known in DRAWN)
    ]
    order = {name: place for place, name in enumerate(METRICS)}
    chosen.sort(key=lambda name: order.get(name, order.get(name.partition(".")[0], len(order))))
    return [found for name in chosen if (found := _course(name, entries))]


def _course(metric: str, entries: Sequence[Entry]) -> Course | None:
    everyone = list(dict.fromkeys(m.name for entry in entries for m in entry.sheet.models))
    models = list(dict.fromkeys(m.name for entry in entries for m in entry.sheet.models if metric in m.figures))[:MOST_LINES]
    rows = [[entry.sheet.model(name) for entry in entries] for name in models]
    if sum(any(row[i] and metric in row[i].figures for row in rows) for i in range(len(entries))) < 2:  # type: ignore[union-attr]
        return None
    series = []
    breaks: set[int] = set()
    for name, row in zip(models, rows, strict=True):
        values: list[Interval | None] = []
        on: str | None = None
        for i, model in enumerate(row):
            figure = model.figures.get(metric) if model else None
            values.append(figure.interval if figure else None)
            if figure:
                if on is not None and figure.on != on:
                    breaks.add(i)
                on = figure.on
        series.append(Series(visible(name), tuple(values), everyone.index(name)))
    return Course(metric, tuple(series), tuple(sorted(breaks)))


def plots_of(entries: Sequence[Entry]) -> list[tuple[str, Markup]]:
    """(title, plot) of each course."""
    labels = [visible(entry.label) for entry in entries]
    found = []
    for course in courses(entries)[:MOST_PLOTS]:
        about = metric_of(course.metric)
        y = Axis(about.title, partial(formatted, course.metric), log=course.metric == "kld.mean")
        title = visible(about.title)
        if drawn := lines(labels, course.series, "", y, title, course.breaks):
            found.append((title, drawn))
    return found


def picture_of(entries: Sequence[Entry]) -> str:
    """An SVG file, two plots a row. Raises BadRequest where nothing can be drawn."""
    drawn = plots_of(entries)
    if not drawn:
        raise BadRequest("no figure is in two of the records")
    width, height = size_of(drawn[0][1])
    columns = min(2, len(drawn))
    parts = [_heading(entries)]
    for number, (title, plot) in enumerate(drawn):
        x, y = PADDING + (number % columns) * (width + GAP), TOP + (number // columns) * (height + 40)
        parts += [text(x, y + 8, title, "start", "group"), placed(plot, x, y + 16)]
    rows = -(-len(drawn) // columns)
    return picture(2 * PADDING + columns * (width + GAP) - GAP, TOP + rows * (height + 40) + 8, "history", parts)


def _heading(entries: Sequence[Entry]) -> Markup:
    models = ", ".join(dict.fromkeys(visible(e.sheet.comparison.model) for e in entries if e.sheet.comparison))
    said = f"{len(entries)} records, {entries[0].created[:10]} to {entries[-1].created[:10]}; {CUT}"
    return Markup(
        '<text x="{x:g}" y="38" style="font-size: 20px; font-weight: 700">{models}</text>'
        '<text x="{x:g}" y="58" class="tick">{said}</text>'
    ).format(x=PADDING, models=models[:80], said=said)


def history_text(entries: Sequence[Entry]) -> str:
    """A table for each metric: models down, records across; where something else was measured, a | stands before the figure."""
    from tabulate import tabulate

    labels = [visible(entry.label) for entry in entries]
    parts = []
    for course in courses(entries):
        rows = []
        for one in course.series:
            cells = [formatted(course.metric, v.value) if v else "" for v in one.values]
            rows.append([one.name, *(f"| {c}" if i in course.breaks and c else c for i, c in enumerate(cells))])
        title = f"{visible(metric_of(course.metric).title)}: {metric_of(course.metric).about}"
        parts.append(f"{title}\n{tabulate(rows, ['model', *labels], disable_numparse=True)}")
    return "\n\n".join(parts)
