"""One chunk of a tensor on its way into another format: what may not be rounded, and what rounding cost."""

from __future__ import annotations

import numpy as np

from oss_tools.convert.manifest import TensorError
from oss_tools.convert.steps import Step
from oss_tools.errors import BadTensor
from oss_tools.formats import QTensor, get_format
from oss_tools.formats.base import RoundingError


def updated(step: Step, rows: QTensor, matrix: int, start: int) -> QTensor:
    """Rows [start, start + n) of a matrix with the step's update, in float32; the rows themselves if there is none.

    Raises BadTensor if the update takes values out of float32's range.
    """
    if step.update is None:
        return rows
    from numba_kernels.codec import finite

    values = np.array(rows.dequantize())
    before = finite.nonfinite_count(values)
    step.update.apply(values, matrix, start)
    if finite.nonfinite_count(values) > before:
        raise BadTensor(f"{step.name}: with {step.update.source} its values are beyond float32; is the adapter damaged?")
    return QTensor(get_format("f32"), rows.shape, {"values": values})


def round_rows(
    step: Step, rows: QTensor, importance: np.ndarray | None, amax: float | None, on_nonfinite: str, sums: ErrorSums
) -> QTensor:
    """Rows in the step's target format; adds what that cost to `sums`.

    Args:
        importance: float32 weights [K] of the squared error, or None.
        amax: the whole tensor's largest magnitude, for formats that need it.
        on_nonfinite: `refuse` or `clamp` NaN and infinity. Raises BadTensor where they are refused.
    """
    values, format = rows.dequantize(), step.target.format
    if not step.rounds:
        return format.quantize(values, rule=step.quantization, importance=importance, amax=amax)
    values = finite_values(values, step.name, on_nonfinite)
    result, cost = format.quantize_measured(values, rule=step.quantization, importance=importance, amax=amax)
    if not np.isfinite(cost.squared_error):
        largest = np.abs(values).max()
        raise BadTensor(f"{step.name}: values up to {largest:.3g} overflow {format.name}; choose another format")
    sums.add(cost, values.size)
    return result


def rounded_before(step: Step, rows: QTensor, result: QTensor, on_nonfinite: str, sums: ErrorSums) -> QTensor:
    """A result that was found beforehand; adds what it lacks of the rows to `sums`."""
    values = finite_values(rows.dequantize(), step.name, on_nonfinite)
    sums.add(result.format.rounding_error(values, result), values.size)
    return result


def finite_values(values: np.ndarray, name: str, on_nonfinite: str) -> np.ndarray:
    """The values if all are finite; else, where asked for, with NaN as 0 and infinity as the largest finite magnitude."""
    from numba_kernels.codec import finite

    if not finite.nonfinite_count(values):
        return values
    if on_nonfinite == "refuse":
        raise BadTensor(f"{name}: holds NaN or infinity; mend the source, or --on-nonfinite clamp")
    return finite.clamp_nonfinite(values, np.abs(values[np.isfinite(values)]).max(initial=0))


class ErrorSums:
    """Sums of a tensor's rounding error over its chunks."""

    def __init__(self) -> None:
        self.squared_error = self.squared_norm = self.max_error = 0.0
        self.clipped = self.values = 0

    def add(self, cost: RoundingError, values: int) -> None:
        """Adds what rounding so many values cost."""
        self.squared_error += cost.squared_error
        self.squared_norm += cost.squared_norm
        self.max_error = max(self.max_error, cost.max_error)
        self.clipped += cost.clipped
        self.values += values

    def include(self, other: ErrorSums) -> None:
        """Adds the sums of further values."""
        self.squared_error += other.squared_error
        self.squared_norm += other.squared_norm
        self.max_error = max(self.max_error, other.max_error)
        self.clipped += other.clipped
        self.values += other.values

    def error(self) -> TensorError:
        return TensorError.of(self.squared_error, self.squared_norm, self.max_error, self.clipped, self.values)
