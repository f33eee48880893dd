"""How tensors are written: several threads read, round and write pieces of rows, which are then hashed and summed in turn.

Hashes and sums are of the whole tensor, and need its pieces in order. A tensor that must be looked at as a whole before its
first piece is rounded (formats with one scale for all of it, updates) is one thread's from beginning to end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from numba_kernels.parallel import cores
from oss_tools.checkpoints import Writer
from oss_tools.convert.journal import Journal
from oss_tools.convert.manifest import TensorHash, TensorRecord
from oss_tools.convert.options import Options, Progress
from oss_tools.convert.plan import Plan
from oss_tools.convert.readback import Piece, ReadBack
from oss_tools.convert.rounding import ErrorSums, round_rows, rounded_before, updated
from oss_tools.convert.steps import Step
from oss_tools.convert.threads import InTurn, Stop, in_threads
from oss_tools.convert.updates import KeptSums
from oss_tools.formats import QTensor, concatenate
from oss_tools.models.entries import chunks
from oss_tools.models.rows import write_rows

ROUNDED_BYTES = 1 << 20  # of float32 values that are rounded at a time, so that they stay in a core's cache
READERS = 4  # threads beyond those that compute, so that the disk has something to do while these do


@dataclass(frozen=True)
class _Done:
    """A piece: where it begins, its rows before and after, what rounding cost, and what it left of an update."""

    matrix: int
    start: int
    rows: QTensor
    rounded: QTensor | None
    sums: ErrorSums
    kept: KeptSums


def write_tensors(
    plan: Plan, writer: Writer, journal: Journal, options: Options, progress: Progress, back: ReadBack | None = None
) -> None:
    """Writes the tensors that the journal does not have, and adds them to it. `back` is told of every piece."""
    workers = options.jobs or cores()
    output = _Output(writer, journal, options, progress, back, threading.Semaphore(workers))

    def parts() -> Iterator[tuple[_Tensor, int, Sequence[Piece]]]:
        for step in plan.steps:
            if step.name not in journal.records:
                yield from _Tensor(plan, step, output, 2 * workers).parts()

    def write(part: tuple[_Tensor, int, Sequence[Piece]], stop: Stop) -> None:
        tensor, first, pieces = part
        tensor.prepare()
        for number, piece in enumerate(pieces, first):
            stop.check()
            tensor.done.bring(number, tensor.written(*piece), stop)

    for file in plan.source.reader.data_files():
        file.read_once()
    in_threads(write, parts(), workers + READERS)


@dataclass(frozen=True)
class _Output:
    """What all tensors share: where they go, who is told, and how many threads may compute at a time."""

    writer: Writer
    journal: Journal
    options: Options
    progress: Progress
    back: ReadBack | None
    computing: threading.Semaphore


class _Tensor:
    """One tensor on its way from the source to the files.

    Attributes:
        pieces: of the whole tensor, in order.
        done: takes pieces that are rounded; the last one completes the tensor's record in the journal.
    """

    def __init__(self, plan: Plan, step: Step, output: _Output, most: int) -> None:
        """most: pieces that may wait for their turn."""
        spec = step.source.spec
        self.plan, self.step, self.output, self.options = plan, step, output, output.options
        self.pieces = list(chunks([step.source, step.target]))
        self.done = InTurn(self._take, most)
        self.before, self.after = TensorHash(step.source.format, spec.shape), TensorHash(step.target.format, spec.shape)
        self.sums, self.kept = ErrorSums(), KeptSums()
        self.amax: float | None = None
        self.taken = 0

    def parts(self) -> Iterator[tuple[_Tensor, int, Sequence[Piece]]]:
        """What one thread does at a time: (the tensor, the number of the first piece, pieces)."""
        if self.step.update or self._needs_amax:
            yield self, 0, self.pieces
        else:
            yield from ((self, number, [piece]) for number, piece in enumerate(self.pieces))

    @property
    def _needs_amax(self) -> bool:
        return self.step.target.format.needs_amax and not self.step.moves

    def prepare(self) -> None:
        """Looks at the whole tensor where its pieces depend on all of it."""
        if self.step.update:
            self.step.update.prepare(self._base)
        if self._needs_amax:
            rows = (updated(self.step, base, matrix, start) for matrix, start, base in self._source())
            self.amax = max(float(np.abs(values.dequantize()).max(initial=0)) for values in rows)

    def _source(self) -> Iterator[tuple[int, int, QTensor]]:
        """The source, piece by piece: (matrix, first row, rows)."""
        for matrix, start, stop in chunks([self.step.source]):
            yield matrix, start, self.plan.source.read(self.step.name, matrix, start, stop)

    def _base(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Its values: (matrix, first row, float32 [n, K])."""
        for matrix, start, rows in self._source():
            yield matrix, start, rows.dequantize()

    def written(self, matrix: int, start: int, stop: int) -> _Done:
        """Reads a piece, rounds it and writes it."""
        piece = self._read(matrix, start, stop)
        write_rows(self.output.writer, self.step.target, matrix, start, piece.rounded or piece.rows)
        return piece

    def _read(self, matrix: int, start: int, stop: int) -> _Done:
        """Reads a piece and rounds it."""
        rows = self.plan.source.read(self.step.name, matrix, start, stop)
        if self.step.moves:
            return _Done(matrix, start, rows, None, ErrorSums(), KeptSums())
        with self.output.computing:
            return self._rounded(rows, matrix, start)

    def _rounded(self, rows: QTensor, matrix: int, start: int) -> _Done:
        """A piece with the step's update, in the target's format; by so many rows at a time as stay in the cache."""
        step, options, sums, kept = self.step, self.options, ErrorSums(), KeptSums()
        merged = updated(step, rows, matrix, start)
        importance = _importance(options, step, matrix)
        given = options.rounding.rows(step.name, matrix, start, start + rows.shape[0]) if options.rounding else None
        unit = int(np.lcm(step.source.format.row_block, step.target.format.row_block))
        height = max(ROUNDED_BYTES // (4 * rows.columns) // unit, 1) * unit
        parts = []
        for first in range(0, rows.shape[0], height):
            some = slice(first, first + height)
            if given:
                part = rounded_before(step, merged.rows(some), given.rows(some), options.on_nonfinite, sums)
            else:
                part = round_rows(step, merged.rows(some), importance, self.amax, options.on_nonfinite, sums)
            if step.update:
                kept.add(rows.rows(some).dequantize(), merged.rows(some).dequantize(), part.dequantize())
            parts.append(part)
        return _Done(matrix, start, rows, concatenate(parts), sums, kept)

    def _take(self, piece: _Done) -> None:
        """Hashes and sums a piece, in its turn, and has it read back."""
        step, output = self.step, self.output
        count, columns = piece.rows.shape
        if output.back:
            output.back.wrote(step.name, (piece.matrix, piece.start, piece.start + count))
        self.before.update(piece.rows)
        if piece.rounded:
            self.after.update(piece.rounded)
        self.sums.include(piece.sums)
        self.kept.include(piece.kept)
        output.progress("write", step.name, count * step.source.format.bytes_per_row(columns))
        self.taken += 1
        if self.taken == len(self.pieces):
            record = self._record()
            output.journal.add(record)
            if output.back:
                output.back.completed(step.name, record.hash)

    def _record(self) -> TensorRecord:
        step, spec = self.step, self.step.source.spec
        source_hash = self.before.result()
        return TensorRecord(
            name=spec.name,
            role=spec.role,
            shape=list(spec.shape),
            source_format="+".join(f.name for f in step.source.mixed) or step.source.format.name,
            source_hash=source_hash,
            format=step.target.format.name,
            hash=source_hash if step.moves else self.after.result(),
            action=step.action,
            note=step.note,
            error=self.sums.error() if step.rounds else None,
            kept=self.kept.kept() if step.update else None,
            output=self.options.rounding.output_error(step.name) if self.options.rounding else None,
        )


def _importance(options: Options, step: Step, matrix: int) -> np.ndarray | None:
    weights = (options.importance or {}).get(step.name)
    return weights[matrix] if weights is not None and weights.ndim == 2 else weights
