"""Two checkpoints value by value, and all that they say beside: the same model, or where not."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

from oss_tools.errors import VerificationFailed
from oss_tools.models import Checkpoint
from oss_tools.models.entries import chunks
from oss_tools.verify.differences import PARTS, Difference
from oss_tools.verify.said import compare_said

TENSORS = "tensors"


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor differs.

    Attributes:
        reason: in words; empty if only the values differ.
        differing, values: how many values differ, of how many.
        relative_error: ||b - a|| / ||a||, Frobenius norms.
        max_difference: largest |b - a|.
        first: index of the first value that differs, in the canonical shape, with both values.
    """

    name: str
    reason: str = ""
    differing: int = 0
    values: int = 0
    relative_error: float = 0.0
    max_difference: float = 0.0
    first: tuple[tuple[int, ...], float, float] | None = None


@dataclass
class Verification:
    """The outcome: equal if there are no differences beyond the tolerance.

    Attributes:
        compared: tensors compared.
        identical: tensors whose values are all equal.
        differences: tensors beyond the tolerance, the largest relative error first.
        said: what differs beside tensors.
        remarks: what was passed over because a container cannot say it, a sentence each.
    """

    tolerance: float
    compared: int = 0
    identical: int = 0
    largest_relative_error: float = 0.0
    differences: list[TensorDifference] = field(default_factory=list)
    said: tuple[Difference, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return not (self.differences or self.said)


def verify(
    a: Checkpoint,
    b: Checkpoint,
    tolerance: float = 0.0,
    progress: Callable[[str, int], None] = lambda *_: None,
    only: Collection[str] = (TENSORS, *PARTS),
) -> Verification:
    """Compares two checkpoints: what their configurations compute, tokenizers, chat templates, and tensors value by value.

    Models of two architectures are told apart by that alone.

    Args:
        a: the reference.
        b: the checkpoint under test.
        tolerance: largest allowed ||b - a|| / ||a|| of a tensor; 0 asks for equal values. -0 equals 0, NaN equals NaN.
        progress: called with a tensor's name and the number of its values just compared.
        only: what is compared, of "tensors" and PARTS.

    Raises BadCheckpoint, MissingPackage, VerificationFailed where a file that holds hashes of itself is damaged.
    """
    result = Verification(tolerance)
    types = a.architecture.model_type, b.architecture.model_type
    if types[0] != types[1]:
        result.said = (Difference("config", "model_type", *types),)
        return result
    for one in (a, b) if TENSORS in only else ():
        if damaged := one.reader.damage():
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise VerificationFailed(f"{one.path}: damaged: {damaged[0]}{more} is not what was written; make it anew")
    said = compare_said(a, b, only)
    result.said, result.remarks = said.differences, said.remarks
    for name in dict.fromkeys([*a.entries, *b.entries]) if TENSORS in only else ():
        difference = _compare(a, b, name, progress)
        result.compared += 1
        result.identical += difference is None
        if difference is None:
            continue
        result.largest_relative_error = max(result.largest_relative_error, difference.relative_error)
        if difference.reason or not difference.relative_error <= tolerance or tolerance == 0:
            result.differences.append(difference)
    result.differences.sort(key=lambda d: -d.relative_error if not d.reason else -np.inf)
    return result


def _compare(a: Checkpoint, b: Checkpoint, name: str, progress: Callable[[str, int], None]) -> TensorDifference | None:
    for one, other in ((a, b), (b, a)):
        if name not in one.entries:
            return TensorDifference(name, f"missing in {one.path}, present in {other.path}")
    ours, theirs = a.entries[name], b.entries[name]
    if ours.spec.shape != theirs.spec.shape:
        return TensorDifference(name, f"shape {list(ours.spec.shape)} against {list(theirs.spec.shape)}")
    differing, squared, largest, first = 0, 0.0, 0.0, None
    for matrix, start, stop in chunks([ours, theirs]):
        x, y = a.read(name, matrix, start, stop), b.read(name, matrix, start, stop)
        progress(name, (stop - start) * x.columns)
        if x.format == y.format and all(np.array_equal(x.planes[p], y.planes[p]) for p in x.planes):
            continue
        left, right = x.dequantize().astype(np.float64), y.dequantize().astype(np.float64)
        unequal = (left != right) & ~(np.isnan(left) & np.isnan(right))
        if not unequal.any():
            continue
        if first is None:
            row, column = (int(i) for i in np.argwhere(unequal)[0])
            first = (
                _index(ours.spec.shape, ours.spec.is_vector, matrix, start + row, column),
                left[row, column],
                right[row, column],
            )
        delta = np.where(unequal, np.nan_to_num(np.abs(left - right), nan=np.inf), 0)
        differing += int(unequal.sum())
        squared += float(np.square(delta).sum())
        largest = max(largest, float(delta.max()))
    if not differing:
        return None
    norm = sum(float(np.square(a.read(name, *c).dequantize(), dtype=np.float64).sum()) for c in chunks([ours]))
    relative = float(np.sqrt(squared / norm)) if norm else float("inf")
    return TensorDifference(name, "", differing, ours.spec.size, relative, largest, first)


def _index(shape: tuple[int, ...], is_vector: bool, matrix: int, row: int, column: int) -> tuple[int, ...]:
    index = (row,) if is_vector else (row, column)
    leading = len(shape) - len(index)
    return (*(int(i) for i in np.unravel_index(matrix, shape[:leading])), *index) if leading else index
