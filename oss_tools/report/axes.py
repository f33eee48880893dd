"""Axes of plots: scales that map values to positions, their ticks, and the area between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from oss_tools.report.metrics import Interval

LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 16.0, 46.0  # around the area of a plot with two axes
HEIGHT = 290.0  # of such a plot


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
