"""A canonical tensor of a checkpoint: its format, its placements, and the pieces in which it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from oss_tools.checkpoints import StoredTensor
from oss_tools.formats import Format
from oss_tools.models.tensors import Placement, TensorSpec

CHUNK_BYTES = 4 << 20  # of float32 values: how much of a tensor is in memory at a time, unless one matrix must be whole


@dataclass(frozen=True)
class Entry:
    """A canonical tensor of a checkpoint: what it is, how it is stored, and where."""

    spec: TensorSpec
    format: Format
    placements: tuple[Placement, ...]
    mixed: tuple[Format, ...] = ()  # its parts' formats where they differ, or have blocks across rows: it is read as float32

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def needs_whole_matrix(self) -> bool:
        """Whether rows can only be had by reading a matrix whole, because it is stored transposed."""
        return any(p.transposed for p in self.placements)

    @property
    def row_unit(self) -> int:
        """Rows per chunk must be a multiple of this, so that every chunk is one stretch of each stored tensor."""
        return int(np.lcm.reduce([self.format.row_block, *(max(p.step, p.rotary, 1) for p in self.placements)]))

    @property
    def nbytes(self) -> int:
        count, rows, columns = self.spec.matrices
        return self.format.stored_bytes(rows, columns, count)


def chunks(entries: list[Entry], chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int, int]]:
    """Pieces (matrix, start, stop) of a tensor, in order, that suit all given entries of it (source and target)."""
    count, rows, columns = entries[0].spec.matrices
    unit = int(np.lcm.reduce([e.row_unit for e in entries]))
    whole = any(e.needs_whole_matrix for e in entries)
    step = rows if whole else max(chunk_bytes // (4 * columns) // unit, 1) * unit
    for matrix in range(count):
        for start in range(0, rows, step):
            yield matrix, start, min(start + step, rows)


def stored_tensors(entries: list[Entry]) -> list[StoredTensor]:
    """The container's tensors that the entries make up, in order, each once."""
    return list({p.stored: StoredTensor(p.stored, e.format, p.stored_shape) for e in entries for p in e.placements}.values())
