"""Sheets as tables for a terminal: sorted by size, with marks for the best of each column and for noise, and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from oss_tools.report.evidence import sentences
from oss_tools.report.metrics import formatted, metric_of
from oss_tools.report.sheet import Model, Sheet
from oss_tools.report.verdict import judgements, summary
from oss_tools.tables import cut_in_the_middle, turned, widest

BEST, NOISE = "*", "~"
LONGEST_NAME = 40  # characters of a model's name in a table; longer ones are cut in the middle


def visible(text: str) -> str:
    """The text on one line, control characters (of a hostile record) shown as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def cell(sheet: Sheet, model: Model, metric: str) -> str:
    """A figure as it is written, without marks; "" where there is none."""
    return formatted(metric, model.figures[metric].value) if metric in model.figures else ""


def is_best(sheet: Sheet, model: Model, metric: str) -> bool:
    """Whether a figure is the best of its column by evidence, or is written as an exact best is."""
    best = [] if model.published else sheet.best(metric)
    alike = metric_of(metric).exact and any(cell(sheet, one, metric) == cell(sheet, model, metric) for one in best)
    return metric in model.figures and (model in best or (alike and bool(best)))


def is_noise(model: Model, metric: str) -> bool:
    """Whether a figure's difference to the base is no more than noise."""
    return metric in model.figures and model.figures[metric].noise is True


def columns(sheet: Sheet) -> list[str]:
    """The metrics that tables have columns for."""
    return sheet.metrics(shown_only=True)


def names(model: Model, most: int = LONGEST_NAME) -> str:
    return cut_in_the_middle(visible(model.name), most) + kind_of(model)


def kind_of(model: Model) -> str:
    """What stands behind a name: that it is the base, or that its figures were not measured here."""
    return " (base)" if model.is_base else " (published)" if model.published else ""


def legend(sheet: Sheet, best: str = BEST, noise: str = NOISE, written: Callable[[str], str] = visible) -> str:
    """What the marks mean; only of marks that are there. `written` writes a name."""
    cells = [(model, metric) for model in sheet.models for metric in columns(sheet)]
    parts = []
    if any(is_best(sheet, model, metric) for model, metric in cells):
        parts.append(f"{best} the best, by evidence")
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


def _tables(sheet: Sheet, width: int) -> list[str]:
    """One table if it fits; else one with models across, if that fits; else tables of some columns each, below each other."""
    metrics = columns(sheet)
    parts = blocks(sheet, width)
    if len(parts) < 2:
        return [_table(sheet, metrics) for metrics in parts]
    headers = ["model", *(visible(metric_of(metric).title) for metric in metrics)]
    across = list(turned(rows(sheet, metrics), headers, width))
    if len(across) == 1 and widest(across[0]) <= width:
        return across
    return [_table(sheet, metrics) for metrics in parts]


def text(sheet: Sheet, width: int = 120) -> str:
    """The sheet as text: a title, tables of at most `width` columns, the legend, the verdict, findings."""
    parts = [visible(sheet.title), *_tables(sheet, width)]
    if line := legend(sheet):
        parts.append(_wrapped(line, width))
    if sheet.case:
        parts.append(_wrapped(visible(sheet.case.sentence), width))
    if lines := verdict(sheet):
        parts.append("\n".join(_wrapped(line, width) for line in lines))
    if lines := findings(sheet):
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _wrapped(line: str, width: int) -> str:
    return textwrap.fill(line, max(width, 20), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def verdict(sheet: Sheet) -> list[str]:
    """Which candidate to look at, and what the evidence says of each, a line each."""
    lines = [
        f"{answer.question}: {visible(answer.name)}" + (f" ({answer.figures})" if answer.figures else "")
        for answer in summary(sheet)
    ]
    for model, j in judgements(sheet):
        lines.append(f"{visible(model.name)}: {j.title}. {visible(sentences(j.deciding))} {j.sure}")
    return lines


def findings(sheet: Sheet) -> list[str]:
    """What is wrong with which candidate, and what its figures are to be read with, a line each."""
    wrong = [
        f"! {visible(model.name)}: {visible(finding.message)}"
        for model in sheet.models
        if model.candidate
        for finding in model.candidate.findings
    ]
    return [*wrong, *(f"· {visible(name)}: {visible(text)}" for name, text in sheet.remarks)]
