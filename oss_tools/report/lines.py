"""Lines over depths or commits as SVG: a series a line, its name at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from oss_tools.report.axes import BOTTOM, HEIGHT, LEFT, TOP, Axis, Scale, scale_of
from oss_tools.report.metrics import Interval
from oss_tools.report.svg import FONT, LETTER, WIDTH, line, svg, text
from oss_tools.tables import cut_in_the_middle

LONGEST = 18  # characters of a series' name, which stands at the right
BOLD = 8.4  # width of a letter of it, about
COLOURS = 6  # classes s0 … s5 of the page's style


@dataclass(frozen=True)
class Series:
    """A line: a value for each place, None where there is none. colour: its number, by default its place's."""

    name: str
    values: tuple[Interval | None, ...]
    colour: int | None = None


def lines(
    places: Sequence[str], series: Sequence[Series], x: str, y: Axis, title: str, breaks: Sequence[int] = ()
) -> Markup:
    """Series over places at equal distances; "" if nothing can be drawn. A logarithmic axis has no place for 0 and below.

    breaks: places at which lines are cut, since what stands there is not comparable with what stands before.
    """
    known = [v for one in series for v in one.values if v is not None and (v.value > 0 or not y.log)]
    if not known or not places:
        return Markup()
    up = scale_of(y, [_positive(v) if y.log else v for v in known], HEIGHT - BOTTOM, TOP)
    end = WIDTH - 10 - BOLD * max(min(len(one.name), LONGEST) for one in series)
    across = [LEFT + (end - LEFT) * (number + 0.5) / len(places) for number in range(len(places))]
    parts = [_frame(places, across, up, x, y, end)]
    ends: list[tuple[float, str, int]] = []
    for number, one in enumerate(series):
        number = number if one.colour is None else one.colour
        shown = [i for i, v in enumerate(one.values) if v is not None and (v.value > 0 or not y.log)]
        for begin, after in pairwise([0, *breaks, len(places)]):
            points = [(across[i], v) for i in shown if begin <= i < after and (v := one.values[i])]
            parts.append(_series(points, up, y, number, one.name))
        if shown and (last := one.values[shown[-1]]):
            ends.append((up(last.value), one.name, number))
    for i in breaks:
        middle = (across[i - 1] + across[i]) / 2 if i else LEFT
        parts.append(line(middle, TOP, middle, HEIGHT - BOTTOM, "cut"))
    parts += _names(ends, end)
    words = "; ".join(
        f"{one.name} " + ", ".join(f"{place}: {y.write(v.value)}" for place, v in zip(places, one.values, strict=True) if v)
        for one in series
    )
    return svg(HEIGHT, title, f"{y.title} over {x}. {words}.", parts)


def _positive(v: Interval) -> Interval:
    """An interval as a logarithmic axis can hold it: a bound at 0 or below is left open."""
    return v if v.low is None or v.low > 0 else Interval(v.value, None, v.high)


def _frame(places: Sequence[str], across: Sequence[float], up: Scale, x: str, y: Axis, end: float) -> Markup:
    parts = []
    for value in up.ticks():
        parts += [
            line(LEFT, up(value), end, up(value), "grid"),
            text(LEFT - 7, up(value) + 4, y.write(value), "end", "tick"),
        ]
    taken = -math.inf
    for place, at in zip(places, across, strict=True):
        half = LETTER * len(place) / 2 + 3
        parts.append(line(at, HEIGHT - BOTTOM, at, HEIGHT - BOTTOM + 4, "axis"))
        if at - half > taken:
            parts.append(text(at, HEIGHT - BOTTOM + 18, place, "middle", "tick"))
            taken = at + half
    parts.append(line(LEFT, HEIGHT - BOTTOM, end, HEIGHT - BOTTOM, "axis"))
    parts.append(text((LEFT + end) / 2, HEIGHT - 8, x, "middle", "title"))
    return Markup("").join(parts)


def _series(points: Sequence[tuple[float, Interval]], up: Scale, y: Axis, number: int, name: str) -> Markup:
    """Whiskers, the line, and a mark at each value. Lines stand a little beside each other, so that whiskers do not cover."""
    kind = f"s{number % COLOURS}"
    shift = 3.0 * (number % COLOURS - 1)
    parts: list[Markup] = []
    if not points:
        return Markup()
    for x, v in points:
        if v.known:
            low, high = (up(max(bound, up.low)) for bound in v.bounds)
            parts.append(line(x + shift, low, x + shift, high, f"bar {kind}"))
    path = " ".join(f"{'M' if i == 0 else 'L'}{x + shift:.1f} {up(v.value):.1f}" for i, (x, v) in enumerate(points))
    parts.append(Markup('<path d="{}" class="series {}"/>').format(path, kind))
    for x, v in points:
        hint = f"{name}: {y.write(v.value)}" + (
            f" (95 %: {y.write(v.bounds[0])} to {y.write(v.bounds[1])})" if v.known else ""
        )
        shape = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3.5" class="dot {}"><title>{}</title></circle>')
        parts.append(shape.format(x + shift, up(v.value), kind, hint))
    return Markup("").join(parts)


def _names(ends: Sequence[tuple[float, str, int]], end: float) -> list[Markup]:
    """The names at the lines' ends, from the top, each far enough below the last."""
    parts, lowest = [], TOP - FONT
    room = (HEIGHT - BOTTOM - TOP) / max(len(ends), 1)
    for y, name, number in sorted(ends):
        place = max(y + 4, lowest + min(FONT + 2, room))
        lowest = place
        shown = cut_in_the_middle(name, LONGEST)
        parts.append(text(end + 4, place, shown, "start", f"label s{number % COLOURS}"))
    return parts
