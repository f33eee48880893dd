"""The importance of each column of each matrix: the mean square of the inputs that it is multiplied with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from oss_tools.calibration.moments import squares
from oss_tools.calibration.visitor import Visitor
from oss_tools.models import Checkpoint

SUMS, COUNTS = "sums:", "counts:"  # before a tensor's name, in `arrays`


class Squares(Visitor):
    """Sums the squares of all inputs.

    Attributes:
        sums: canonical tensor name -> float64 [matrices, K].
        counts: canonical tensor name -> over how many inputs, int64 [matrices].
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._matrices = {name: entry.spec.matrices for name, entry in checkpoint.entries.items()}
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, np.ndarray] = {}

    def multiplies(self, names: tuple[str, ...], matrix: int | None, x: np.ndarray) -> None:
        count, _, columns = self._matrices[names[0]]
        if matrix is None and count > 1:
            return  # each expert is told of what it meets
        found = squares(x)
        for name in names:
            self.sums.setdefault(name, np.zeros((count, columns)))[matrix or 0] += found
            self.counts.setdefault(name, np.zeros(count, np.int64))[matrix or 0] += len(x)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it knows."""
        sums = {SUMS + name: values for name, values in self.sums.items()}
        return sums | {COUNTS + name: values for name, values in self.counts.items()}

    def take(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Goes on with what `arrays` gave."""
        for name, values in arrays.items():
            kind, of_kind = (SUMS, self.sums) if name.startswith(SUMS) else (COUNTS, self.counts)
            of_kind[name.removeprefix(kind)] = values

    def unreached(self) -> dict[str, list[int]]:
        """The matrices that no input met, by tensor."""
        found = {name: np.flatnonzero(counts == 0).tolist() for name, counts in self.counts.items()}
        return {name: matrices for name, matrices in found.items() if matrices}
