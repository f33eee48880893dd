"""The drift of a comparison as plots: divergence by depth, by the KV cache's format, by backend."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from oss_tools.report.axes import Axis
from oss_tools.report.fidelity import Drift
from oss_tools.report.lines import Series, lines
from oss_tools.report.metrics import Interval
from oss_tools.report.sheet import Sheet
from oss_tools.report.table import visible

TITLES = {
    "depth": "Divergence from the base by depth",
    "cache": "A bfloat16 KV cache against a float32 one",
    "cache-q8": "An 8-bit KV cache against a float32 one",
    "backends": "Other programs against this one",
}


def written(depth: int) -> str:
    """0, 512, 1k, 32k."""
    return f"{depth // 1024}k" if depth and depth % 1024 == 0 else str(depth)


def drift_plots(sheet: Sheet) -> Iterator[tuple[str, Markup]]:
    """(title, plot) for each kind of drift that the record has."""
    found = [(m.name, drift) for m in sheet.models if m.candidate for drift in m.candidate.drift]
    y = Axis("KL divergence, nats", lambda v: f"{v:.3g}".replace("e-0", "e−"), log=True)
    for kind, title in TITLES.items():
        chosen = [(name, drift) for name, drift in found if drift.kind == kind]
        depths = sorted({point.depth for _, drift in chosen for point in drift.points})
        models = [model.name for model in sheet.models]
        series = [_series(name, drift, depths, models.index(name)) for name, drift in chosen]
        if drawn := lines([written(depth) for depth in depths], series, "tokens of context", y, title):
            yield title, drawn


def _series(name: str, drift: Drift, depths: list[int], number: int) -> Series:
    at = {point.depth: Interval(point.kld.value, point.kld.low, point.kld.high) for point in drift.points}
    label = f"{name}, {drift.subject}" if drift.kind == "backends" else name
    return Series(visible(label), tuple(at.get(depth) for depth in depths), None if drift.kind == "backends" else number)
