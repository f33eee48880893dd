"""A page of one file, which needs neither network nor scripts: tables, plots, changed answers, checks, the environment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from oss_tools.report import table
from oss_tools.report.axes import Axis
from oss_tools.report.drift import drift_plots
from oss_tools.report.evidence import FAR, NEAR, harmed
from oss_tools.report.fidelity import Fidelity
from oss_tools.report.figures import mean_figure
from oss_tools.report.forest import Change, forest, points_written
from oss_tools.report.gates import Verdict
from oss_tools.report.heat_map import heat_map, heat_scale, legend_bar
from oss_tools.report.metrics import Interval, format_number, formatted, metric_of
from oss_tools.report.scatter import Point, scatter
from oss_tools.report.sheet import Model, Sheet
from oss_tools.report.side_by_side import STEPS
from oss_tools.report.verdict import judgements, summary
from oss_tools.sizes import format_size
from oss_tools.tables import cut_in_the_middle

TEMPLATES = Path(__file__).with_name("templates")
MAX_CHANGES = 20  # shown for a candidate
MOST_COLUMNS = 9  # of figures in a table
MAX_TEXT = 4000  # characters of a prompt or answer


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, and its marks."""

    text: str
    best: bool = False
    noise: bool = False
    hint: str = ""


def page(sheets: Sequence[Sheet], verdicts: Sequence[Verdict] = ()) -> str:
    """The page. Whatever the records hold stays text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cut"] = cut
    environment.filters["short"] = short
    sections = [section(sheet, verdicts[number] if verdicts else None) for number, sheet in enumerate(sheets)]
    title = ", ".join(sheet.comparison.model if sheet.comparison else sheet.title for sheet in sheets)
    return environment.get_template("page.html").render(title=title, sections=sections)


def history_page(title: str, note: str, drawn: Sequence[tuple[str, Markup]]) -> str:
    """A page of plots alone, in the page's style."""
    css = Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))  # noqa: S704 (our own file)
    head = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<title>{}</title><style>{}</style></head><body><header><h1>{}</h1><p class="lead">{}</p></header>'
        '<main><section><div class="grid">'
    ).format(title, css, title, note)
    figure = Markup("<figure><figcaption>{}</figcaption>{}</figure>")
    figures = Markup("\n").join(figure.format(name, plot) for name, plot in drawn)
    return str(head + figures + Markup("</div></section></main></body></html>\n"))


def is_wide(figures: int, models: int) -> bool:
    """Whether the table of all figures fits a page of 1,280 pixels better with models across."""
    return figures > MOST_COLUMNS and models < figures and models <= MOST_COLUMNS


def short(name: str) -> str:
    """A model's name in a table: its beginning and its end."""
    return cut_in_the_middle(name, table.LONGEST_NAME)


def cut(text: str) -> str:
    """A text that a page has room for."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"


def section(sheet: Sheet, verdict: Verdict | None) -> dict[str, Any]:
    """What the template wants of a sheet."""
    metrics = table.columns(sheet)
    return {
        "sheet": sheet,
        "comparison": sheet.comparison,
        "verdict": verdict,
        "summary": summary(sheet),
        "near": NEAR,
        "far": FAR,
        "judgements": [(model.name, j) for model, j in judgements(sheet)],
        "remarks": sheet.remarks,
        "findings": [(m.name, f.message) for m in sheet.models if m.candidate for f in m.candidate.findings],
        "columns": [metric_of(metric) for metric in metrics],
        "rows": [(model, [_cell(sheet, model, metric) for metric in metrics]) for model in sheet.models],
        "turned": is_wide(len(metrics), len(sheet.models)),
        "legend": table.legend(sheet, "★", "≈"),
        "plots": list(scatter_plots(sheet)),
        "forest": forest_plot(sheet),
        "drifts": list(drift_plots(sheet)),
        "divergences": divergences(sheet),
        "heat": heat_maps(sheet),
        "changes": changes(sheet),
        "steps": (0, *STEPS),
        "environment": {name: list(flat(values)) for name, values in sheet.environment.items()},
    }


def _cell(sheet: Sheet, model: Model, metric: str) -> Cell:
    figure = model.figures.get(metric)
    if figure is None:
        return Cell("")
    hint = ""
    if figure.interval.known:
        low, high = (formatted(metric, bound) for bound in figure.interval.bounds)
        hint = f"95 %: {low} to {high}"
    return Cell(table.cell(sheet, model, metric), table.is_best(sheet, model, metric), table.is_noise(model, metric), hint)


def flat(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values as text, those of groups one by one."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{name} {inner}", text) for inner, text in flat(value))
        elif name.endswith("_bytes") and isinstance(value, int | float):
            yield name.removesuffix("_bytes"), format_size(value)
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value))
        elif value is not None:
            yield name.replace("_", " "), str(value)


# --- plots


def scatter_plots(sheet: Sheet) -> Iterator[tuple[str, Markup]]:
    """Quality over size and over speed; quality is the divergence and the mean score, as far as they are there."""
    if not sheet.comparison:
        return
    xs = [("size", Axis("size", format_size, from_zero=True), "Size")]
    xs += [("tokens_per_second", Axis("tokens per second", "{:,.0f}".format, from_zero=True), "Speed")]
    ys = [("kld.mean", Axis("KL divergence, nats", tick, log=True), "divergence (less is better)")]
    ys += [("score", Axis("mean score", lambda v: f"{100 * v:.3g} %"), "mean score (more is better)")]
    for x_name, x, x_title in xs:
        for y_name, y, y_title in ys:
            points = [p for model in sheet.models if (p := _point(model, x_name, y_name))]
            if len(points) > 1:
                title = f"{x_title} and {y_title}"
                if drawn := scatter(points, x, y, title):
                    yield title, drawn


def tick(value: float) -> str:
    """A number at an axis: no zeros behind the last digit."""
    return f"{value:.3g}".replace("e-0", "e−")


def _point(model: Model, x: str, y: str) -> Point | None:
    horizontal, vertical = _interval(model, x), _interval(model, y)
    if horizontal is None or vertical is None:
        return None
    kind = "base" if model.is_base else "bad" if model.candidate and harmed(model.candidate) else "plain"
    return Point(table.visible(model.name), horizontal, vertical, kind)


def _interval(model: Model, metric: str) -> Interval | None:
    if metric != "score":
        return model.figures[metric].interval if metric in model.figures else None
    scores = [figure for name, figure in model.figures.items() if name.startswith("task.")]
    return mean_figure(scores).interval if scores else None


def forest_plot(sheet: Sheet) -> Markup:
    """Differences of scores to the base, task by task."""
    groups: dict[str, list[Change]] = {}
    for model in sheet.models:
        for task in model.candidate.tasks if model.candidate else []:
            if d := task.difference:
                low, high = points_written(d.low), points_written(d.high)
                hint = f"{model.name}: {points_written(d.value)} points (95 %: {low} to {high}), "
                hint += f"{d.gained} gained, {d.lost} lost, corrected p {d.p_corrected:.3g}"
                change = Change(table.visible(model.name), Interval(d.value, d.low, d.high), not d.significant, hint)
                groups.setdefault(task.task, []).append(change)
    return forest(list(groups.items()), "Scores against the base") if groups else Markup()


def heat_maps(sheet: Sheet) -> dict[str, Any]:
    """A map for each candidate, on one scale."""
    found = [(m.name, m.candidate.weight_error) for m in sheet.models if m.candidate and m.candidate.weight_error]
    maps = [(name, error) for name, error in found if error and error.cells]
    scale = heat_scale([cell for _, error in maps for cell in error.cells])
    drawn = [
        (name, 100 * error.relative_error, heat_map(error.cells, scale, f"Weight error of {name}")) for name, error in maps
    ]
    return {"maps": drawn, "legend": legend_bar(scale) if scale and drawn else Markup()}


# --- tables


DIVERGENCE = ("mean", "± SE", "median", "90 %", "95 %", "99 %", "99.9 %", "max", "top-1", "Δp mean", "Δp RMS", "ppl ratio")


def divergences(sheet: Sheet) -> list[dict[str, Any]]:
    """A table for each text: the divergence of every candidate in detail."""
    texts: dict[str, list[tuple[str, list[str]]]] = {}
    about: dict[str, Fidelity] = {}
    for model in sheet.models:
        for f in model.candidate.fidelity if model.candidate else []:
            if f.kld:
                texts.setdefault(f.text, []).append((model.name, list(_divergence(f))))
                about[f.text] = f
    return [{"text": text, "about": about[text], "columns": DIVERGENCE, "rows": rows} for text, rows in texts.items()]


def _divergence(f: Fidelity) -> Iterator[str]:
    assert f.kld
    k = f.kld
    for value in (k.mean, k.stderr, k.median, k.p90, k.p95, k.p99, k.p99_9, k.max):
        yield "" if value is None else format_number(value)
    yield formatted("same_top", f.same_top.value) if f.same_top else ""
    yield formatted("delta_p.mean", f.delta_p.mean) if f.delta_p else ""
    yield formatted("delta_p.rms", f.delta_p.rms) if f.delta_p else ""
    yield formatted("perplexity_ratio", math.exp(min(f.log_perplexity_ratio.value, 700.0))) if f.log_perplexity_ratio else ""


def changes(sheet: Sheet) -> list[dict[str, Any]]:
    """Answers that changed, those that became worse first."""
    found = []
    for model in sheet.models:
        if model.candidate and model.candidate.changes:
            ordered = sorted(model.candidate.changes, key=lambda c: c.score - c.base_score)
            lost = sum(c.score < c.base_score for c in ordered)
            found.append({"name": model.name, "all": len(ordered), "lost": lost, "shown": ordered[:MAX_CHANGES]})
    return found
