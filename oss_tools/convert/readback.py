"""Reads back what was written while later tensors are still being written, through the same readers that any user has."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

from oss_tools.checkpoints import open_container
from oss_tools.convert.manifest import TensorHash
from oss_tools.convert.options import Progress
from oss_tools.convert.plan import Plan
from oss_tools.errors import OssToolsError
from oss_tools.models import Checkpoint

MOST = 32  # pieces that were written and wait to be read back
Piece = tuple[int, int, int]  # (matrix, first row, last row + 1)


class ReadBack:
    """A thread that reads pieces of tensors in the order in which they were written, and compares hashes.

    What it finds equal needs no other look. What it cannot read, or finds different, is left to whoever reads the finished
    files. To be closed, whatever happens.
    """

    def __init__(self, written: Checkpoint, progress: Progress) -> None:
        self._written, self._progress = written, progress
        self._waiting: queue.Queue[tuple[str, Piece | str] | None] = queue.Queue(MOST)
        self._equal: set[str] = set()
        self._found: dict[str, TensorHash] = {}
        for file in written.reader.data_files():
            file.read_back()
        self._thread = threading.Thread(target=self._run, name="read back")
        self._thread.start()

    @staticmethod
    def of(plan: Plan, path: Path | None, progress: Progress) -> ReadBack | None:
        """One for a plan's unfinished output, which `Writer.readable` names; None if it cannot be read before its end."""
        if path is None:
            return None
        try:
            written = Checkpoint(open_container(path))
        except OssToolsError:  # its reader wants values that are still to come
            return None
        there = {name: (entry.format, entry.spec.shape) for name, entry in written.entries.items()}
        if there != {step.name: (step.target.format, step.target.spec.shape) for step in plan.steps}:
            written.close()
            return None
        return ReadBack(written, progress)

    def wrote(self, name: str, piece: Piece) -> None:
        """A piece of a tensor was written, behind those that were told of before; waits while too many are still to be read."""
        self._waiting.put((name, piece))

    def completed(self, name: str, expected: str) -> None:
        """All pieces of a tensor were written, and this is the hash of what was meant."""
        self._waiting.put((name, expected))

    def close(self) -> set[str]:
        """Reads to the end; returns the names of the tensors that were found equal."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
            self._written.close()
        return self._equal

    def _run(self) -> None:
        failed: set[str] = set()
        while told := self._waiting.get():
            name, what = told
            if name in failed:
                continue
            try:
                self._take(name, what)
            except Exception:  # whatever it is, the finished file is read again; and `wrote` must not wait for a dead thread
                failed.add(name)

    def _take(self, name: str, what: Piece | str) -> None:
        entry = self._written.entries[name]
        if isinstance(what, str):
            if self._found.pop(name).result() == what:
                self._equal.add(name)
            return
        if name not in self._found:
            self._found[name] = TensorHash(entry.format, entry.spec.shape)
        matrix, start, stop = what
        rows = self._written.read(name, matrix, start, stop)
        self._found[name].update(rows)
        self._progress("verify", name, (stop - start) * entry.format.bytes_per_row(rows.columns))
