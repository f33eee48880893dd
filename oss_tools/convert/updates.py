"""What is added to a tensor before it is rounded, and how much of it rounding leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Pieces = Callable[[], Iterator[tuple[int, int, np.ndarray]]]  # of the whole tensor: (matrix, first row, float32 [n, K])


class Update(ABC):
    """A change of one tensor's values, made piece by piece. Used by one thread.

    Attributes:
        identity: a hash of what the change is made of, and how: two updates of one identity change values alike.
        source: which files it comes from, in words.
    """

    identity: str
    source: str

    def prepare(self, base: Pieces) -> None:  # noqa: B027 (most need nothing)
        """Looks at the whole tensor, where the change of a piece depends on the others; to be called before `apply`."""

    @abstractmethod
    def apply(self, values: np.ndarray, matrix: int, start: int) -> None:
        """Changes rows [start, start + n) of a matrix in place: float32 [n, K], C-contiguous. Raises BadCheckpoint."""


@dataclass(frozen=True)
class Kept:
    """How much of an update is left when the tensor has been rounded.

    With the update U = merged − base and the change R = rounded − base:

    Attributes:
        share: ‹R, U› / ‹U, U›: the part of U that is in R. 1 where all of it is kept, 0 where values fell back to the base's.
            None where the update is zero.
        residual: ‖R − share · U‖ / ‖U‖: what else rounding changed, in sizes of the update. None where the update is zero.
        update_squared, along, change_squared: ‹U, U›, ‹R, U› and ‹R, R›, for totals.
        base_squared: ‖base‖².
    """

    share: float | None
    residual: float | None
    update_squared: float
    along: float
    change_squared: float
    base_squared: float

    @staticmethod
    def of(update_squared: float, along: float, change_squared: float, base_squared: float) -> Kept:
        """From sums over a tensor's values."""
        sums = (update_squared, along, change_squared, base_squared)
        if not update_squared:
            return Kept(None, None, *sums)
        rest = max(change_squared - along * along / update_squared, 0.0)
        return Kept(along / update_squared, (rest / update_squared) ** 0.5, *sums)

    @staticmethod
    def total(parts: list[Kept]) -> Kept:
        """Over several tensors together."""
        return Kept.of(
            sum(p.update_squared for p in parts),
            sum(p.along for p in parts),
            sum(p.change_squared for p in parts),
            sum(p.base_squared for p in parts),
        )

    @property
    def size(self) -> float | None:
        """‖U‖ / ‖base‖; None where the base is zero."""
        return (self.update_squared / self.base_squared) ** 0.5 if self.base_squared else None


class KeptSums:
    """Sums for `Kept` over a tensor's chunks."""

    def __init__(self) -> None:
        self._sums = np.zeros(4)

    def add(self, base: np.ndarray, merged: np.ndarray, rounded: np.ndarray) -> None:
        """Adds a chunk: float32 values before the update, after it, and as they were rounded."""
        from numba_kernels.codec.low_rank import kept_sums

        self._sums += kept_sums(base, merged, rounded)

    def include(self, other: KeptSums) -> None:
        """Adds the sums of further values."""
        self._sums += other._sums

    def kept(self) -> Kept:
        return Kept.of(*map(float, self._sums))
