"""How speeds are measured: medians of replays, held against the ceilings of the same run."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from numba_kernels.cpu.team import Program, Team


@dataclass
class Result:
    """One measurement: `value` in `unit`, the ceiling that it is held against, and the spread of the times."""

    name: str
    value: float
    unit: str
    ceiling: str = ""
    share: float | None = None
    microseconds: float = 0.0
    spread: float = 0.0


class Timer:
    """Runs programs on a team. `ceilings` are the values that others are held against, by name."""

    def __init__(self, threads: int, quick: bool) -> None:
        self.team, self.quick = Team(threads), quick
        self.ceilings: dict[str, float] = {}

    def seconds(self, program: Program, each: int = 1) -> tuple[float, float]:
        """Median seconds of a replay (of one of `each` operations), and the interquartile range as a share of it."""
        times: list[float] = []
        settle = time.perf_counter() + (0.05 if self.quick else 0.3)  # the threads find their cores
        self.team.run(program)
        while time.perf_counter() < settle:
            self.team.run(program)
        budget = time.perf_counter() + (0.2 if self.quick else 1.0)
        while len(times) < 5 or (time.perf_counter() < budget and len(times) < 200):
            began = time.perf_counter()
            self.team.run(program)
            times.append((time.perf_counter() - began) / each)
        low, middle, high = statistics.quantiles(times, n=4)
        return middle, (high - low) / middle

    def measure(self, name: str, program: Program, amount: float, unit: str, ceiling: str = "", each: int = 1) -> Result:
        """The amount (bytes or operations) per second, in billions; microseconds where the unit is µs."""
        median, spread = self.seconds(program, each)
        value = median * 1e6 if unit == "µs" else amount / median / 1e9
        share = value / self.ceilings[ceiling] if ceiling else None
        return Result(name, value, unit, ceiling, share, median * 1e6, spread)
