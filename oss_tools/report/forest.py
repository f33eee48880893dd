"""Forest plots: differences from the base with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from oss_tools.report.axes import Scale
from oss_tools.report.metrics import Interval
from oss_tools.report.svg import WIDTH, line, svg, text
from oss_tools.tables import cut_in_the_middle

ROW, SIDE, FIGURES = 22.0, 86.0, 62.0  # rows, names and figures


@dataclass(frozen=True)
class Change:
    """A row of a forest plot: a difference in points; `noise`, unless it is evidence."""

    label: str
    interval: Interval
    noise: bool
    hint: str


def forest(groups: Sequence[tuple[str, Sequence[Change]]], title: str) -> Markup:
    """Differences with intervals around 0, by group (a task): hollow circles are noise, diamonds are evidence."""
    intervals = [change.interval for _, changes in groups for change in changes]
    reach = max([0.01, *(abs(v) for i in intervals for v in (i.value, *i.bounds))]) * 1.08
    scale = Scale(-reach, reach, SIDE, WIDTH - FIGURES, False)
    height = sum(ROW * len(changes) + 30 for _, changes in groups) + 40
    bottom = height - 36
    parts = [line(scale(0), 6, scale(0), bottom, "axis")]
    for value in scale.ticks(4):
        if value:
            parts.append(line(scale(value), 6, scale(value), bottom, "grid"))
        parts.append(text(scale(value), bottom + 15, points_written(value), "middle", "tick"))
    parts.append(text((SIDE + WIDTH - FIGURES) / 2, height - 4, "points more or less than the base", "middle", "title"))
    y = 0.0
    for name, changes in groups:
        y += 22
        parts.append(text(0, y, cut_in_the_middle(name, 48), "start", "group"))
        y += 8
        for change in changes:
            parts.append(_change(change, scale, y + ROW / 2))
            y += ROW
    words = "; ".join(f"{name}, {c.hint}" for name, changes in groups for c in changes)
    return svg(height, title, words, parts)


def points_written(value: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * value:+.3g}".replace("-", "−") if abs(value) > 1e-9 else "0"


def _change(change: Change, scale: Scale, y: float) -> Markup:
    value, (low, high) = change.interval.value, change.interval.bounds
    kind = "noise" if change.noise else "bad" if value < 0 else "good"
    name = cut_in_the_middle(change.label, 11)
    parts = [text(SIDE - 8, y + 4, name, "end", "tick")]
    if change.interval.known:
        parts += [line(scale(low), y, scale(high), y, f"bar {kind}")]
        parts += [line(scale(end), y - 4, scale(end), y + 4, f"bar {kind}") for end in (low, high)]
    x = scale(value)
    if change.noise:
        shape = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4.5" class="mark noise"><title>{}</title></circle>')
        parts.append(shape.format(x, y, change.hint))
    else:
        shape = Markup('<path d="M{:.1f} {:.1f}l6 6l-6 6l-6 -6z" class="mark {}"><title>{}</title></path>')
        parts.append(shape.format(x, y - 6, kind, change.hint))
    parts.append(text(WIDTH - 2, y + 4, points_written(value), "end", f"figure {kind}"))
    return Markup("").join(parts)
