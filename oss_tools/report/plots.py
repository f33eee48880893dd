"""Plots as SVG: colours are the page's CSS variables, sizes suit a phone's width, every plot says in words what it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup

from oss_tools.report.fidelity import Cell
from oss_tools.report.metrics import Interval
from oss_tools.tables import cut_in_the_middle

WIDTH = 420.0  # of every plot, in its own units; a page shows it at some 340 to 540 pixels
FONT = 13.0
LETTER = 6.9  # width of a letter of that size, about
LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 16.0, 46.0  # around a scatter plot's area
HEIGHT = 290.0  # of a scatter plot
CELL, LABELS = 24.0, 118.0  # a heat map's rows, and the width of their names
CELL_TEXT = 37.0  # a cell this wide holds its figure
DARK_TEXT = 0.6  # opacity of a cell from which its figure has the other colour
ROW, SIDE, FIGURES = 22.0, 86.0, 62.0  # a forest plot's rows, names and figures

FARTHER = 25.0  # what a step of a name away from its point costs, in what it would cover there
Box = tuple[float, float, float, float]  # left, top, right, bottom

_numbers = count(1)  # of the plots of a page, whose names need ids


@dataclass(frozen=True)
class Point:
    """A labelled point with error bars. kind: "base", "plain" or "bad"."""

    label: str
    x: Interval
    y: Interval
    kind: str = "plain"


@dataclass(frozen=True)
class Axis:
    """Title, how values are written, and whether the scale is logarithmic (all values are then above 0) or begins at 0."""

    title: str
    write: Callable[[float], str]
    log: bool = False
    from_zero: bool = False


@dataclass(frozen=True)
class Scale:
    """Maps values to positions."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        place = math.log(max(value, self.low)) if self.log else value
        share = (place - low) / (high - low) if high > low else 0.5
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the scale."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 6, 8)):
                found = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high * 1.0001]
                if len(found) >= 3:
                    return found[:: math.ceil(len(found) / (about + 1))]
            return [self.low, self.high]
        step = nice_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, first + 3 * about) if n * step <= self.high + 1e-9 * step]


def nice_step(step: float) -> float:
    """The least of 1, 2, 2.5, 5 × 10ⁿ that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step)) if step > 0 else 1.0
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= step * 0.999) if step > 0 else 1.0


def scale_of(axis: Axis, intervals: Sequence[Interval], start: float, end: float) -> Scale:
    """A scale with some room around all intervals."""
    values = [v for i in intervals for v in (i.value, *i.bounds) if math.isfinite(v) and (v > 0 or not axis.log)]
    low, high = min(values), max(values)
    if axis.log:
        room = max((high / low) ** 0.1, 1.15)
        return Scale(low / room, high * room, start, end, True)
    room = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(0.0 if axis.from_zero and low >= 0 else low - room, high + room, start, end, False)


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


def svg(height: float, title: str, description: str, parts: Sequence[Markup]) -> Markup:
    """A plot with its name and description for those who do not see it."""
    number = next(_numbers)
    head = Markup(
        '<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="t{n} d{n}">'
        '<title id="t{n}">{title}</title><desc id="d{n}">{description}</desc>'
    ).format(width=WIDTH, height=height, n=number, title=title, description=description)
    return head + Markup("").join(parts) + Markup("</svg>")


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, kind, content)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)


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


def heat_scale(cells: Sequence[Cell]) -> Scale | None:
    """One logarithmic scale of opacity for all errors above 0; None where there are none."""
    values = [cell.relative_error for cell in cells if cell.relative_error > 0]
    return Scale(min(values), max(values), 0.1, 1.0, True) if values else None


def heat_map(cells: Sequence[Cell], scale: Scale | None, title: str) -> Markup:
    """Weight error by role (rows) and layer (columns); what lies outside the layers has a row of one cell."""
    layers = sorted({cell.layer for cell in cells if cell.layer is not None})
    rows: dict[tuple[str, bool], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.role, cell.layer is None), []).append(cell)
    width = (WIDTH - LABELS) / max(len(layers), 1)
    column = {layer: place for place, layer in enumerate(layers)}
    parts: list[Markup] = []
    for row, ((role, outside), own) in enumerate(rows.items()):
        name = f"last {role}" if outside and (role, False) in rows else role
        name = cut_in_the_middle(name, 17)
        parts.append(text(LABELS - 8, CELL * row + CELL / 2 + 4, name, "end", "tick"))
        for cell in own:
            x = LABELS + (0 if cell.layer is None else width * column[cell.layer])
            parts.append(_cell(cell, scale, x, CELL * row, WIDTH - LABELS if cell.layer is None else width))
    bottom = CELL * len(rows)
    step = max(1, math.ceil(len(layers) * 22 / (WIDTH - LABELS)))
    middles = [(layer, LABELS + width * (column[layer] + 0.5)) for layer in layers[::step]]
    parts += [text(middle, bottom + 16, str(layer), "middle", "tick") for layer, middle in middles]
    if layers:
        parts.append(text(LABELS - 8, bottom + 16, "layer", "end", "title"))
    wrong = [cell.worst_tensor for cell in cells if cell.suspicious]
    words = f"Relative error by role and layer, {len(cells)} cells. " + (f"Suspicious: {', '.join(wrong)}." if wrong else "")
    return svg(bottom + 24, title, words, parts)


def _cell(cell: Cell, scale: Scale | None, x: float, y: float, width: float) -> Markup:
    opacity = scale(cell.relative_error) if scale and cell.relative_error > 0 else 0.0
    where = "" if cell.layer is None else f"layer {cell.layer}, "
    hint = f"{where}{cell.role} in {cell.format}: {100 * cell.relative_error:.3g} %"
    hint += f"; worst {cell.worst_tensor}, {100 * cell.worst_slice:.3g} %" + (", suspicious" if cell.suspicious else "")
    gap = 1.0 if width > 6 else 0.0
    shape = Markup(
        '<g><title>{}</title><rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" fill-opacity="{:.2f}" class="heat{}"/>'
    ).format(hint, x, y, max(width - gap, 0.5), CELL - 1, opacity, " suspicious" if cell.suspicious else "")
    if width >= CELL_TEXT:
        figure = f"{100 * cell.relative_error:.2g} %" if cell.relative_error else "0"
        kind = "cell over" if opacity > DARK_TEXT else "cell"
        shape += text(x + width / 2, y + CELL / 2 + 4, ("! " if cell.suspicious else "") + figure, "middle", kind)
    elif cell.suspicious:
        shape += text(x + width / 2, y + CELL / 2 + 4, "!", "middle", "cell over" if opacity > DARK_TEXT else "cell")
    return shape + Markup("</g>")


def legend_bar(scale: Scale) -> Markup:
    """The heat maps' scale of opacity, with figures."""
    steps = 40
    width = WIDTH - LABELS
    rect = Markup('<rect x="{:.2f}" y="2" width="{:.2f}" height="10" fill-opacity="{:.2f}" class="heat"/>')
    parts = []
    for step in range(steps):
        place = scale.low * (scale.high / scale.low) ** ((step + 0.5) / steps)
        parts.append(rect.format(LABELS + width * step / steps, width / steps + 0.2, scale(place)))
    parts.append(text(LABELS, 28, f"{100 * scale.low:.2g} %", "start", "tick"))
    parts.append(text(WIDTH, 28, f"{100 * scale.high:.2g} %", "end", "tick"))
    parts.append(text(LABELS - 8, 12, "error", "end", "title"))
    return svg(
        34, "Scale of the heat maps", f"From {100 * scale.low:.2g} % to {100 * scale.high:.2g} %, logarithmic.", parts
    )
