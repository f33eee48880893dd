"""Two models' outcomes on the same items: tests and intervals of their difference. What is drawn at random has a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oss_tools.statistics.distributions import LEVEL, Z, optimize, stats

RESAMPLES = 9999


@dataclass(frozen=True)
class Paired:
    """The difference of two models' outcomes on the same items: second less first.

    Attributes:
        value, low, high: mean difference and its interval.
        p: two-sided.
        method: the test and the interval, in words.
        gained, lost: items on which the second does better and worse.
    """

    value: float
    low: float
    high: float
    p: float
    method: str
    gained: int
    lost: int


def paired_difference(
    first: Sequence[float], second: Sequence[float], higher_is_better: bool = True, seed: int = 0
) -> Paired:
    """The test for outcomes of this kind: `mcnemar` with Tango's interval for rights and wrongs, else `resampled`.

    Raises ValueError unless both have the same number of items, at least one.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"paired outcomes are wanted, not {len(first)} and {len(second)}")
    delta = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    up, down = int((delta > 0).sum()), int((delta < 0).sum())
    gained, lost = (up, down) if higher_is_better else (down, up)
    if set(first) | set(second) <= {0.0, 1.0}:
        low, high = tango_interval(up, down, len(delta))
        value, p = (up - down) / len(delta), mcnemar(up, down)
        return Paired(value, low, high, p, "exact McNemar test, Tango's score interval", gained, lost)
    low, high, p = resampled(delta, seed)
    return Paired(float(delta.mean()), low, high, p, "paired permutation test, BCa bootstrap interval", gained, lost)


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p value of McNemar's test: under the null hypothesis an item on which two models differ is as
    likely gained as lost, so the smaller count is binomial (McNemar 1947, https://doi.org/10.1007/BF02295996)."""
    n = gained + lost
    return float(stats.binomtest(min(gained, lost), n, 0.5).pvalue) if n else 1.0


def tango_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """The score interval for the difference of paired shares, (gained − lost) / n (Tango 1998,
    https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B).

    Unlike the interval of a bootstrap it keeps a width where no item differs: of n items without a difference, the true
    difference may still be some z² / (n + z²).
    """

    def score(delta: float) -> float:
        linear = -gained - lost + (2 * n - gained + lost) * delta
        discriminant = max(linear * linear - 8 * n * (-lost * delta * (1 - delta)), 0.0)
        q = (math.sqrt(discriminant) - linear) / (4 * n)  # the share lost, where the difference is delta
        variance = n * (2 * q + delta * (1 - delta))
        return (gained - lost - n * delta) / math.sqrt(max(variance, 1e-300))

    found = (gained - lost) / n
    edge = 1 - 1e-9

    def bound(end: float, target: float) -> float:
        if (score(end) - target) * (score(found + 1e-12 * (end - found)) - target) >= 0:
            return math.copysign(1.0, end)
        return float(optimize.brentq(lambda delta: score(delta) - target, found, end, xtol=1e-10))

    low = -1.0 if found <= -edge else bound(-edge, Z)
    high = 1.0 if found >= edge else bound(edge, -Z)
    return low, high


def resampled(delta: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """(low, high, p) of the mean of paired differences: bias-corrected and accelerated bootstrap (Efron 1987,
    https://doi.org/10.1080/01621459.1987.10478410) and the test that flips signs (Fisher's permutation test for pairs)."""
    if len(delta) < 2 or np.ptp(delta) == 0:
        same = float(delta.mean())
        return same, same, 1.0 if same == 0 or len(delta) < 2 else float(0.5 ** (len(delta) - 1))
    interval = stats.bootstrap(
        (delta,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    test = stats.permutation_test(
        (delta,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=np.random.default_rng(seed)
    )
    return float(interval.low), float(interval.high), float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number: the chance of one false alarm among all stays below the level, whatever
    their dependence (Holm 1979, https://www.jstor.org/stable/4615733)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = least
    return corrected
