"""Scatter plots: points with error bars and names, which are placed where they cover least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from oss_tools.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, Axis, Scale, scale_of
from oss_tools.report.metrics import Interval
from oss_tools.report.svg import LETTER, WIDTH, line, svg, text
from oss_tools.tables import cut_in_the_middle

FARTHER = 25.0  # what a step of a name away from its point costs, in what it would cover there
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """A labelled point with error bars. kind: "base", "plain" or "bad"."""

    label: str
    x: Interval
    y: Interval
    kind: str = "plain"


def scatter(points: Sequence[Point], x: Axis, y: Axis, title: str) -> Markup:
    """Points with error bars and labels. Points that a logarithmic axis cannot hold are left out."""
    shown = [p for p in points if (p.x.value > 0 or not x.log) and (p.y.value > 0 or not y.log)]
    if not shown:
        return Markup()
    across = scale_of(x, [p.x for p in shown], LEFT, WIDTH - RIGHT)
    up = scale_of(y, [p.y for p in shown], HEIGHT - BOTTOM, TOP)
    parts = [_grid(across, up, x, y)]
    parts += [_bars(point, across, up) for point in shown]
    parts += [
        _mark(across(p.x.value), up(p.y.value), p.kind, f"{p.label}: {x.write(p.x.value)}, {y.write(p.y.value)}")
        for p in shown
    ]
    parts += _labels([(p.label, across(p.x.value), up(p.y.value)) for p in shown], [_whiskers(p, across, up) for p in shown])
    figures = "; ".join(f"{p.label} {x.write(p.x.value)}, {y.write(p.y.value)}" for p in shown)
    return svg(HEIGHT, title, f"{y.title} over {x.title}. {figures}.", parts)


def _grid(across: Scale, up: Scale, x: Axis, y: Axis) -> Markup:
    parts = []
    for value in up.ticks():
        place = up(value)
        parts += [line(LEFT, place, WIDTH - RIGHT, place, "grid"), text(LEFT - 7, place + 4, y.write(value), "end", "tick")]
    for value in _thinned(across, x):
        place = across(value)
        parts += [line(place, HEIGHT - BOTTOM, place, HEIGHT - BOTTOM + 4, "axis")]
        parts += [text(place, HEIGHT - BOTTOM + 18, x.write(value), "middle", "tick")]
    parts.append(line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x.title, "middle", "title"))
    return Markup("").join(parts)


def _thinned(scale: Scale, axis: Axis) -> list[float]:
    """Ticks whose texts do not touch, the last of them within the plot."""
    chosen: list[float] = []
    taken = -math.inf
    for value in scale.ticks():
        half = LETTER * len(axis.write(value)) / 2 + 4
        if scale(value) - half > taken and scale(value) + half <= WIDTH + 2:
            chosen.append(value)
            taken = scale(value) + half
    return chosen


def _bars(point: Point, across: Scale, up: Scale) -> Markup:
    """Whiskers of a point."""
    x, y = across(point.x.value), up(point.y.value)
    parts = []
    if point.x.known:
        low, high = (across(bound) for bound in point.x.bounds)
        parts += [line(low, y, high, y, "bar"), *(line(end, y - 4, end, y + 4, "bar") for end in (low, high))]
    if point.y.known:
        low, high = (up(bound) for bound in point.y.bounds)
        parts += [line(x, low, x, high, "bar"), *(line(x - 4, end, x + 4, end, "bar") for end in (low, high))]
    return Markup("").join(parts)


def _whiskers(point: Point, across: Scale, up: Scale) -> tuple[Box, Box]:
    """What a point's horizontal and vertical whisker cover."""
    x, y = across(point.x.value), up(point.y.value)
    (left, right), (low, high) = map(across, point.x.bounds), map(up, point.y.bounds)
    return (left, y - 1, right, y + 1), (x - 1, high, x + 1, low)


def _mark(x: float, y: float, kind: str, hint: str) -> Markup:
    """A circle, hollow for the base; a diamond where something is wrong."""
    if kind == "bad":
        shape = Markup('<path d="M{:.1f} {:.1f}l7 7l-7 7l-7 -7z" class="mark bad"><title>{}</title></path>')
        return shape.format(x, y - 7, hint)
    shape = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5" class="mark {}"><title>{}</title></circle>')
    return shape.format(x, y, kind, hint)


def _labels(points: Sequence[tuple[str, float, float]], whiskers: Sequence[tuple[Box, Box]]) -> list[Markup]:
    """Names beside their points or at their whiskers' ends, where they cover least of other names, points and whiskers."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for _, x, y in points]
    parts = []
    for number, (name, x, y) in enumerate(points):
        shown = cut_in_the_middle(name, 24)
        width = LETTER * len(shown)
        others = [*taken[:number], *taken[number + 1 :], *(box for both in whiskers for box in both)]
        _, top, _, bottom = whiskers[number][1]
        ends = [(0.0, top - y - 6, "middle"), (0.0, bottom - y + 14, "middle")]
        places = [(place, FARTHER * reach) for reach in (1, 2, 3) for place in _around(reach)]
        places += [(place, 1.5 * FARTHER) for place in ends]
        (dx, dy, anchor), _ = min(places, key=lambda place: place[1] + _cost(_box(x, y, width, *place[0]), others))
        if max(abs(dx), abs(dy)) > 20 and (dx, dy, anchor) not in ends:
            parts.append(line(x, y, x + dx, y + dy - 4, "leader"))
        parts.append(text(x + dx, y + dy, shown, anchor, "label"))
        taken.append(_box(x, y, width, dx, dy, anchor))
    return parts


def _around(reach: int) -> list[tuple[float, float, str]]:
    side, above, below = 4 + 6 * reach, -4 - 8 * reach, 8 + 12 * reach
    middle = 4.0 if reach == 1 else 4 + 10.0 * reach
    return [(side, middle, "start"), (-side, middle, "end"), (0, above, "middle"), (0, below, "middle"), (side, above, "start"),
            (-side, above, "end"), (side, below, "start"), (-side, below, "end")]  # fmt: skip


def _box(x: float, y: float, width: float, dx: float, dy: float, anchor: str) -> Box:
    left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left, y + dy - 11, left + width, y + dy + 3


def _cost(box: Box, others: Sequence[Box]) -> float:
    """What a label covers, and how far it is outside the plot."""
    covered = sum(
        max(0.0, min(box[2], o[2]) - max(box[0], o[0])) * max(0.0, min(box[3], o[3]) - max(box[1], o[1])) for o in others
    )
    outside = max(0.0, LEFT - box[0]) + max(0.0, box[2] - WIDTH) + max(0.0, -box[1]) + max(0.0, box[3] - HEIGHT + BOTTOM)
    return covered + 50 * outside
