"""Figures with their uncertainty, as records keep them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error and 95 % interval; None where there is none (a single chunk, a single item)."""

    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Timing:
    """Of repeats: the median, its 95 % interval, which lies between two of the ordered values (None with fewer than six), and
    the values in the order in which they were measured."""

    median: float
    low: float | None = None
    high: float | None = None
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Ratio:
    """A median ratio to the base over rounds in which both took their turn, with its 95 % interval, made as `Timing`'s."""

    median: float
    low: float | None
    high: float | None

    @property
    def noise(self) -> bool:
        """Whether the interval holds 1, or there is none."""
        return self.low is None or self.high is None or self.low <= 1.0 <= self.high
