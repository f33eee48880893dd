"""Repeated measurements and means of dependent values: medians, ratios and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from oss_tools.statistics.distributions import LEVEL, Z, stats
from oss_tools.statistics.figures import Estimate, Ratio, Timing

RESAMPLES = 2000


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The interval between two of the ordered values that holds the median with at least 95 %, whatever the distribution
    (Thompson 1936, https://doi.org/10.1214/aoms/1177732502); None of fewer than six values, which cannot say so much."""
    n = len(values)
    below = int(stats.binom.ppf((1 - LEVEL) / 2, n, 0.5))  # the first count whose tail is larger
    if below < 1:
        return None
    ordered = sorted(values)
    return ordered[below - 1], ordered[n - below]


def timing(values: Sequence[float]) -> Timing:
    """The median of repeats, and its interval."""
    low, high = median_interval(values) or (None, None)
    return Timing(float(np.median(values)), low, high, [float(v) for v in values])


def paired_ratio(base: Sequence[float], other: Sequence[float]) -> Ratio:
    """How many times the base's time the other takes: the median over rounds in which both took their turn, so that what
    slowed a whole round cancels out."""
    ratios = [b / a for a, b in zip(base, other, strict=True)]
    low, high = median_interval(ratios) or (None, None)
    return Ratio(float(np.median(ratios)), low, high)


def estimate(value: float, stderr: float | None, chunks: int, shown: Callable[[float], float] = lambda v: v) -> Estimate:
    """A mean over so many independent chunks with Student's interval; `shown` maps value and interval alike (exp of the mean
    log-probability), the standard error to first order."""
    if stderr is None or chunks < 2:
        return Estimate(shown(value))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, chunks - 1)) * stderr
    low, high = sorted((shown(value - half), shown(value + half)))
    slope = (shown(value + stderr) - shown(value - stderr)) / 2
    return Estimate(shown(value), abs(slope), low, high)


def median_ratio(base: np.ndarray, other: np.ndarray, seed: int = 0) -> Estimate:
    """The median of one over that of the other, of paired values, with the percentile interval of a paired bootstrap (Efron 1979,
    https://doi.org/10.1214/aos/1176344552); without an interval where the base's median is not above 0."""
    median = float(np.median(base))
    if median <= 0:
        return Estimate(float("nan") if median == 0 else float(np.median(other)) / median)
    drawn = np.random.default_rng(seed).integers(0, len(base), (RESAMPLES, len(base)))
    ratios = np.median(other[drawn], axis=1) / np.maximum(np.median(base[drawn], axis=1), 1e-9)
    low, high = np.percentile(ratios, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return Estimate(float(np.median(other)) / median, None, float(low), float(high))


def share_interval(count: int, n: int) -> Estimate:
    """A share with Wilson's interval (https://doi.org/10.1080/01621459.1927.10502953)."""
    share = count / n
    middle, spread = share + Z * Z / (2 * n), Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return Estimate(share, None, max((middle - spread) / scale, 0.0), min((middle + spread) / scale, 1.0))
