"""What rounding to each number format usually costs: a relative error, and slopes.

The slope is ⟨x, y⟩ / ⟨x, x⟩ of values x and their rounded ones y: 1 where errors do not hang on the values, less where a format
draws values towards zero, and 1.1 times that where something had made the values 1.1 times as large before they were rounded.

Formats that this program writes are measured when they are asked for. Those that it only reads are measured with ggml's own
quantizer, without an importance matrix but for the formats that want one (there all weights are 1):

    pytest -m peers -s tests/interop/test_compare_quantizations.py -k usual
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from oss_tools.formats import Format, get_format

PROBE = (64, 1024)


@dataclass(frozen=True)
class Usual:
    """A format's relative error ‖y − x‖ / ‖x‖ on normal values, and the least and largest slope on values of several kinds."""

    error: float
    low: float = 1.0
    high: float = 1.0


READ_ONLY = {
    "iq1_s": Usual(0.487, 0.916, 0.989),
    "iq1_m": Usual(0.454, 0.938, 0.985),
    "iq2_xxs": Usual(0.345, 0.969, 0.987),
    "iq2_xs": Usual(0.301, 0.992, 1.002),
    "iq2_s": Usual(0.266, 1.018, 1.036),
    "iq3_xxs": Usual(0.213, 1.002, 1.015),
    "iq3_s": Usual(0.166, 1.026, 1.031),
    "iq4_xs": Usual(0.077, 0.996, 0.998),
    "tq1_0": Usual(0.809, 0.522, 1.123),
    "tq2_0": Usual(0.809, 0.522, 1.123),
    "ggml_nvfp4": Usual(0.0948, 0.996, 1.003),
}


@cache
def usual(format: Format) -> Usual:
    """What rounding to a format costs, by that of its rules which costs most."""
    if format.name in READ_ONLY:
        return READ_ONLY[format.name]
    each = [measured(partial(_rounded, format, rule)) for rule in format.rules]
    return Usual(max(u.error for u in each), min(u.low for u in each), max(u.high for u in each))


def _rounded(format: Format, rule: str, values: np.ndarray) -> np.ndarray:
    return format.quantize(values, rule=rule).dequantize()


def measured(rounded: Callable[[np.ndarray], np.ndarray]) -> Usual:
    """What a function costs that rounds float32 [rows, columns]."""
    costs = [_cost(values, rounded(values)) for values in probes()]
    slopes = [slope for _, slope in costs]
    return Usual(costs[0][0], min(slopes), max(slopes))


def probes() -> list[np.ndarray]:
    """Values of several kinds, float32 PROBE: normal, Student's t with 5 degrees of freedom, uniform."""
    random = np.random.default_rng(0)
    drawn = (random.standard_normal(PROBE), random.standard_t(5, PROBE), random.uniform(-1, 1, PROBE))
    return [values.astype(np.float32) for values in drawn]


def _cost(values: np.ndarray, rounded: np.ndarray) -> tuple[float, float]:
    x, y = values.astype(np.float64), rounded.astype(np.float64)
    norm = float(np.square(x).sum())
    return math.sqrt(float(np.square(y - x).sum()) / norm), float((x * y).sum()) / norm


def usual_of(formats: tuple[str, str]) -> Usual:
    """Of a candidate's values beside a base's, each in its own format: (base's, candidate's)."""
    base, other = (usual(get_format(name)) for name in formats)
    high = 1.0 if formats[0] == formats[1] else other.high  # a copy's slope is 1
    return Usual(math.hypot(base.error, other.error), other.low, max(high, other.high))
