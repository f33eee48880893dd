"""Sheets as tables for a terminal: sorted by size, the best of each column and what is only noise marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from oss_tools.report.metrics import formatted, metric_of
from oss_tools.report.sheet import Model, Sheet

BEST, NOISE = "*", "~"


def visible(text: str) -> str:
    """The text on one line, control characters (of a hostile record) shown as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def cell(sheet: Sheet, model: Model, metric: str) -> str:
    """A figure as it is written, without marks; "" where there is none."""
    return formatted(metric, model.figures[metric].value) if metric in model.figures else ""


def is_best(sheet: Sheet, model: Model, metric: str) -> bool:
    """Whether a figure is the best of its column, or is written as the best is."""
    best = None if model.published else sheet.best(metric)
    return best is not None and metric in model.figures and cell(sheet, model, metric) == formatted(metric, best)


def is_noise(model: Model, metric: str) -> bool:
    """Whether a figure's difference to the base is no more than noise."""
    return metric in model.figures and model.figures[metric].noise is True


def columns(sheet: Sheet) -> list[str]:
    """The metrics that tables have columns for."""
    return sheet.metrics(shown_only=True)


def names(model: Model) -> str:
    return visible(model.name) + kind_of(model)


def kind_of(model: Model) -> str:
    """What stands behind a name: that it is the base, or that its figures were not measured here."""
    return " (base)" if model.is_base else " (published)" if model.published else ""


def legend(sheet: Sheet, best: str = BEST, noise: str = NOISE, written: Callable[[str], str] = visible) -> str:
    """What the marks mean; only of marks that are there. `written` writes a name."""
    cells = [(model, metric) for model in sheet.models for metric in columns(sheet)]
    parts = []
    if any(is_best(sheet, model, metric) for model, metric in cells):
        parts.append(f"{best} best of its column")
    if any(is_noise(model, metric) for model, metric in cells):
        base = f"{written(sheet.base.name)} (base)" if sheet.base else "the base"
        parts.append(f"{noise} no evidence of a difference from {base} (95 %; scores corrected for the number of tests)")
    return "; ".join(parts)


def blocks(sheet: Sheet, width: int) -> list[list[str]]:
    """The metrics in groups whose tables are no wider than `width` characters, names included."""
    metrics = columns(sheet)
    if not metrics:
        return []
    under_headers = _table(sheet, metrics).splitlines()[1]  # -----  ------  ----
    first, *sizes = map(len, under_headers.split())
    groups: list[list[str]] = []
    used = first
    for metric, size in zip(metrics, sizes, strict=True):
        used += 2 + size
        if used > width or not groups:
            groups.append([])
            used = first + 2 + size
        groups[-1].append(metric)
    return groups


def _marked(sheet: Sheet, model: Model, metric: str) -> str:
    """A cell behind its marks."""
    marks = (NOISE if is_noise(model, metric) else "") + (BEST if is_best(sheet, model, metric) else "")
    return marks + cell(sheet, model, metric)


def rows(sheet: Sheet, metrics: Sequence[str]) -> list[list[str]]:
    return [[names(model), *(_marked(sheet, model, metric) for metric in metrics)] for model in sheet.models]


def _table(sheet: Sheet, metrics: Sequence[str]) -> str:
    from tabulate import tabulate

    headers = ["model", *(visible(metric_of(metric).title) for metric in metrics)]
    return tabulate(rows(sheet, metrics), headers, colalign=["left", *["right"] * len(metrics)], disable_numparse=True)


def text(sheet: Sheet, width: int = 120) -> str:
    """The sheet as text: a title, tables of at most `width` columns below each other, the legend, findings."""
    parts = [visible(sheet.title), *(_table(sheet, metrics) for metrics in blocks(sheet, width))]
    if line := legend(sheet):
        parts.append(line)
    if sheet.case:
        parts.append(visible(sheet.case.sentence))
    if lines := findings(sheet):
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def findings(sheet: Sheet) -> list[str]:
    """What is wrong with which candidate, and what its figures are to be read with, a line each."""
    wrong = [
        f"! {visible(model.name)}: {visible(finding.message)}"
        for model in sheet.models
        if model.candidate
        for finding in model.candidate.findings
    ]
    return [*wrong, *(f"· {visible(name)}: {visible(text)}" for name, text in sheet.remarks)]
