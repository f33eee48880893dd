"""A comparison as a card for a model's page: a picture, and a Markdown block that says the same in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from oss_tools.errors import BadRequest
from oss_tools.report.evidence import harmed
from oss_tools.report.html import scatter_plots
from oss_tools.report.markdown import escaped
from oss_tools.report.metrics import formatted, formatted_interval, metric_of
from oss_tools.report.pictures import picture, placed, size_of
from oss_tools.report.sheet import Model, Sheet
from oss_tools.report.svg import LETTER, line, text
from oss_tools.report.table import cell, kind_of, visible
from oss_tools.tables import cut_in_the_middle

COLUMNS = ("size", "bits_per_weight", "kld.mean", "same_top", "margin.ratio", "tokens_per_second", "peak_memory")
MOST_ROWS = 12
MOST_COLUMNS = 9
PADDING, ROW, TOP = 26.0, 26.0, 96.0
BEGIN, END = "<!-- oss-tools: figures -->", "<!-- oss-tools: end of figures -->"


@dataclass(frozen=True)
class Card:
    """The picture (SVG) and the block."""

    svg: str
    markdown: str


def card(sheet: Sheet, image: str) -> Card:
    """The card of a comparison; `image`: how the block names the picture. Raises BadRequest for another record."""
    if sheet.comparison is None:
        raise BadRequest("a card is made of a comparison; `oss-tools compare` writes one")
    models = sheet.models[:MOST_ROWS]
    metrics = _columns(sheet)
    return Card(_picture(sheet, models, metrics), _block(sheet, models, metrics, image))


def _columns(sheet: Sheet) -> list[str]:
    """The figures that a reader of a model's page asks for, and the scores, as far as they are there."""
    there = sheet.metrics()
    scores = [metric for metric in there if metric.startswith("task.")]
    return [*(metric for metric in COLUMNS if metric in there), *scores][:MOST_COLUMNS]


def _about(sheet: Sheet) -> list[str]:
    """What was measured, and where."""
    assert sheet.comparison is not None
    base, environment = sheet.comparison.reference, sheet.comparison.environment
    lines = []
    if base.fidelity:
        lines.append(f"predictions over {base.fidelity[0].positions:,} tokens of {base.fidelity[0].text}")
    if base.tasks:
        lines.append("questions: " + ", ".join(f"{task.n} of {task.task}" for task in base.tasks))
    machine = environment.machine
    if "cpu" in machine:
        lines.append(f"{machine['cpu']}, {machine.get('cores', '?')} cores")
    program = environment.versions.get("oss-tools")
    made = f"{environment.created[:10]}, oss-tools" + (f" {program}" if program else "")
    return [*lines, made]


# ---- the picture -----------------------------------------------------------------------------------------------------


def _picture(sheet: Sheet, models: list[Model], metrics: list[str]) -> str:
    assert sheet.comparison is not None
    titles = ["model", *(visible(metric_of(metric).title) for metric in metrics)]
    rows = [[_short(visible(m.name) + kind_of(m)), *(cell(sheet, m, metric) for metric in metrics)] for m in models]
    widths = [max(len(row[i]) for row in [titles, *rows]) * LETTER + 18 for i in range(len(titles))]
    drawn = list(scatter_plots(sheet))[:2]
    sizes = [size_of(plot) for _, plot in drawn]
    across = max(sum(widths), sum(width + 24 for width, _ in sizes), 420.0)
    parts = [_heading(sheet.comparison.model, sheet.comparison.base, len(models))]
    y, rights = TOP, _rights(widths, across)
    parts += [
        text(right, y, title, anchor, "tick") for title, right, anchor in zip(titles, rights, _anchors(titles), strict=True)
    ]
    parts.append(line(PADDING, y + 8, PADDING + across, y + 8, "axis"))
    for model, row in zip(models, rows, strict=True):
        y += ROW
        kind = "bad" if model.candidate and harmed(model.candidate) else "label" if model.is_base else ""
        parts += [
            text(right, y + 4, said, anchor, kind if i == 0 else "")
            for i, (said, right, anchor) in enumerate(zip(row, rights, _anchors(row), strict=True))
        ]
        parts.append(line(PADDING, y + 12, PADDING + across, y + 12, "grid"))
    y += 34
    x = PADDING
    for (title, plot), (width, _) in zip(drawn, sizes, strict=True):
        parts += [text(x, y + 4, title, "start", "group"), placed(plot, x, y + 12)]
        x += width + 24
    y += 12 + max((height for _, height in sizes), default=0.0) + 14
    for said in _about(sheet):
        parts.append(text(PADDING, y, visible(said), "start", "tick"))
        y += 17
    named = f"{visible(sheet.comparison.model)}: size, divergence, scores and speed of {len(models)} quantizations"
    return picture(across + 2 * PADDING, y + 8, named, parts)


def _heading(model: str, base: str, count: int) -> Markup:
    return Markup(
        '<text x="{x:g}" y="40" style="font-size: 22px; font-weight: 700">{model}</text>'
        '<text x="{x:g}" y="62" class="tick">{said}</text>'
    ).format(
        x=PADDING,
        model=_short(visible(model), 60),
        said=f"{count} quantizations; differences are to {_short(visible(base))}",
    )


def _short(name: str, longest: int = 30) -> str:
    return cut_in_the_middle(name, longest)


def _anchors(row: list[str]) -> list[str]:
    return ["start", *["end"] * (len(row) - 1)]


def _rights(widths: list[float], across: float) -> list[float]:
    """Where the columns' texts begin (the first) or end; room that is left goes between them."""
    spare = (across - sum(widths)) / max(len(widths) - 1, 1)
    places, at = [PADDING], PADDING + widths[0]
    for width in widths[1:]:
        at += width + spare
        places.append(at)
    return places


# ---- the block -------------------------------------------------------------------------------------------------------


def _block(sheet: Sheet, models: list[Model], metrics: list[str], image: str) -> str:
    """Between two comments, so that a script can put a new one in its place."""
    assert sheet.comparison is not None
    name = sheet.comparison.model
    words = [
        BEGIN,
        f"## Quantizations of {escaped(name)}",
        f"![Size, divergence, scores and speed of {escaped(name)}'s quantizations]({_address(image)})",
        _sentences(sheet),
        _table(sheet, models, metrics),
        "Measured with `oss-tools compare`: " + escaped("; ".join(_about(sheet))) + ". Intervals are of 95 %.",
        END,
    ]
    return "\n\n".join(part for part in words if part) + "\n"


def _address(image: str) -> str:
    """A file's name as a Markdown link takes it."""
    from urllib.parse import quote

    return quote(image, safe="/:._-~")


def _sentences(sheet: Sheet) -> str:
    """What each candidate costs, a line each."""
    lines = []
    for model in sheet.models:
        if model.is_base or not model.candidate:
            continue
        said: list[str] = []
        if kld := model.figures.get("kld.mean"):
            said.append(f"KL divergence {formatted_interval('kld.mean', kld.interval)} nats a token")
        fell = [t for t in model.candidate.tasks if t.difference and t.difference.significant]
        if model.candidate.tasks:
            words = [f"{t.task} {100 * t.difference.value:+.1f} points" for t in fell if t.difference]
            said.append(", ".join(words).replace("-", "−") if words else "no score differs by evidence")
        if margins := model.candidate.margins[:1]:
            share = formatted("margin.flips", margins[0].flips.value)
            said.append(f"{share} of {margins[0].n} decisions would be taken otherwise")
        said += [finding.message for finding in model.candidate.findings if finding.kind != "task"]
        if said:
            lines.append(f"- **{escaped(model.name)}**: {escaped('; '.join(said))}")
    return "\n".join(lines)


def _table(sheet: Sheet, models: list[Model], metrics: list[str]) -> str:
    head = "| model | " + " | ".join(escaped(metric_of(metric).title) for metric in metrics) + " |"
    lines = [head, "|---|" + "---:|" * len(metrics)]
    for m in models:
        cells: list[Any] = [cell(sheet, m, metric) for metric in metrics]
        lines.append(f"| {escaped(m.name)}{kind_of(m)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
