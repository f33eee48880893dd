"""A checkpoint some of whose tensors have other values, without being written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from oss_tools.formats import QTensor, concatenate, get_format
from oss_tools.models import Checkpoint

Change = Callable[[np.ndarray, int], QTensor]  # a matrix, float32 [out, K], and its number → its new values, [out, K]


class Overlay(Checkpoint):
    """Another checkpoint's tensors, of which some are changed as they are read, matrix by matrix.

    Attributes:
        changes: by canonical name.
    """

    def __init__(self, source: Checkpoint, changes: Mapping[str, Change]) -> None:
        """`source` stays the caller's to close."""
        self.source, self.changes = source, changes
        self.reader, self.path, self.container, self.remarks = source.reader, source.path, source.container, source.remarks
        self.architecture = source.architecture
        f32 = get_format("f32")
        self.entries = {
            name: replace(entry, format=f32, mixed=()) if name in changes else entry
            for name, entry in source.entries.items()
        }
        self._last: tuple[str, int, np.ndarray] | None = None

    def read(self, name: str, matrix: int, start: int, stop: int) -> QTensor:
        if name not in self.changes:
            return self.source.read(name, matrix, start, stop)
        values = self._changed(name, matrix)[start:stop]
        return QTensor(get_format("f32"), values.shape, {"values": values})

    def _changed(self, name: str, matrix: int) -> np.ndarray:
        """A whole matrix, float32; the last one is kept, as it is mostly read in pieces, one after another."""
        last = self._last
        if last is None or last[:2] != (name, matrix):
            _, rows, _ = self.source.entries[name].spec.matrices
            values = np.array(self.source.read(name, matrix, 0, rows).dequantize())
            self._last = last = (name, matrix, self.changes[name](values, matrix).dequantize())
        return last[2]

    def read_tensor(self, name: str) -> QTensor:
        if name not in self.changes:
            return self.source.read_tensor(name)
        count, rows, _ = self.entries[name].spec.matrices
        return concatenate([self.read(name, m, 0, rows) for m in range(count)]).reshape(*self.entries[name].spec.shape)

    def close(self) -> None:
        """The source is its owner's to close."""
