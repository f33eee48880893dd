"""The weights that a pass needs, each read when its turn comes, after a visitor has been told of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oss_tools.calibration.visitor import Visitor
from oss_tools.models import Checkpoint

OUTPUT_ROWS = 1 << 14  # of the output or the embedding that are in memory at a time


class VisitedWeights:
    """A checkpoint's tensors by the names of layers; `visitor` may change its matrices."""

    def __init__(self, checkpoint: Checkpoint, visitor: Visitor | None) -> None:
        self._checkpoint, self._visitor = checkpoint, visitor
        self._embedding = next(name for name, entry in checkpoint.entries.items() if entry.spec.role == "embedding")

    @property
    def is_visited(self) -> bool:
        return self._visitor is not None

    def tell(self, names: tuple[str, ...], x: np.ndarray) -> None:
        """Tells the visitor what all tokens bring to the experts' matrices before their gate."""
        if self._visitor is not None:
            self._visitor.multiplies(names, None, x)

    def name_of(self, layer: str) -> str:
        """The tensor of a layer: `LAYER.weight`, `LAYER` itself (stacked experts), or the embedding for a tied output."""
        entries = self._checkpoint.entries
        return next((n for n in (f"{layer}.weight", layer) if n in entries), self._embedding)

    def vector(self, name: str, matrix: int | None = None) -> np.ndarray | None:
        """A tensor of few values, float32, or an expert's row of it; None if there is none of this name."""
        entry = self._checkpoint.entries.get(name)
        if entry is None:
            return None
        _, rows, _ = entry.spec.matrices
        if matrix is not None:
            return self._checkpoint.read(name, matrix, 0, rows).dequantize().reshape(-1)
        return self._checkpoint.read_tensor(name).dequantize().reshape(entry.spec.shape)

    def matrices(self, names: tuple[str, ...], matrix: int | None, x: np.ndarray) -> list[Callable[[], np.ndarray]]:
        """What gives the matrices, float32 [out, K], after the visitor has been told of them."""
        tensors = tuple(self.name_of(name) for name in names)
        reads = [self._reader(tensor, matrix or 0) for tensor in tensors]
        if self._visitor is None:
            return reads
        self._visitor.multiplies(tensors, matrix, x)
        changed = [self._visitor.linear(t, matrix, x, read) for t, read in zip(tensors, reads, strict=True)]
        return [read if new is None else _given(new) for read, new in zip(reads, changed, strict=True)]

    def _reader(self, tensor: str, matrix: int) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            _, rows, _ = self._checkpoint.entries[tensor].spec.matrices
            return self._checkpoint.read(tensor, matrix, 0, rows).dequantize()

        return read

    def unmet(self, names: tuple[str, ...], expert: int, x: np.ndarray) -> list[np.ndarray]:
        """Tells the visitor of an expert to which no token was routed; of what stands for its matrices only the shape is used."""
        self.matrices(names, expert, x)
        return [np.empty(self._checkpoint.entries[name].spec.matrices[1:], np.float32) for name in names]

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        """Rows of a table, float32 [len(index), K], which is read once, in pieces."""
        _, rows, columns = self._checkpoint.entries[name].spec.matrices
        out = np.empty((len(index), columns), np.float32)
        order = np.argsort(index, kind="stable")
        for start in range(0, rows, OUTPUT_ROWS):
            stop = min(start + OUTPUT_ROWS, rows)
            here = order[np.searchsorted(index, start, sorter=order) : np.searchsorted(index, stop, sorter=order)]
            if len(here):
                out[here] = self._checkpoint.read(name, 0, start, stop).dequantize()[index[here] - start]
        return out


def _given(weight: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: weight
