"""Weights on their way from a checkpoint into the kernels' panels: in chunks, by threads, each byte once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from numba_kernels.cpu.packing import Packed, all_formats, pack
from oss_tools.engine.backend import Progress
from oss_tools.engine.weights import Weights, converted, nearest_format
from oss_tools.formats import Format
from oss_tools.models import Checkpoint, Entry
from oss_tools.models.checkpoint import chunks

CHUNK_BYTES = 4 << 20  # of float32 values: what a thread holds of a tensor while it packs it


def kernel_format(entry: Entry) -> Format:
    """The format in which a tensor's weights are kept, see `nearest_format`."""
    return nearest_format(entry, lambda form, columns: form.name in all_formats() and (form.is_float or columns % 32 == 0))


def kernel_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of all weights in the formats in which they are kept."""
    total = 0
    for entry in checkpoint.entries.values():
        count, rows, columns = entry.spec.matrices
        total += count * rows * (4 * columns if entry.spec.is_vector else kernel_format(entry).bytes_per_row(columns))
    return total


@dataclass(frozen=True)
class Stack:
    """Matrices that are multiplied as one: their panels, and which rows of them are which.

    Attributes:
        packed: the panels.
        bias: float32 [matrices, rows], or None.
    """

    packed: Packed
    bias: np.ndarray | None

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    @property
    def row_bytes(self) -> float:
        return self.packed.nbytes / self.packed.rows

    @property
    def matrices(self) -> int:
        return self.packed.matrices


class NumbaWeights(Weights[Stack]):
    """The tensors of a checkpoint in kernel form. Asked for one, it gives the memory; `load` fills all that was asked for."""

    def __init__(self, checkpoint: Checkpoint, threads: int, say: Callable[[str], None]) -> None:
        super().__init__(checkpoint, kernel_format, say)
        self._threads = threads
        self._vectors: dict[str, np.ndarray] = {}
        self._jobs: list[Callable[[], int]] = []  # each loads a piece and returns its stored bytes

    def load(self, progress: Progress) -> None:
        """Fills the memory that was given out, and lets the checkpoint go. Stops at the first error and on an interrupt."""

        def run(job: Callable[[], int]) -> None:
            progress(job())

        pool = ThreadPoolExecutor(self._threads)
        try:
            for done in [pool.submit(run, job) for job in self._jobs]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
        self._jobs, self._checkpoint = [], None

    @property
    def packed(self) -> list[Packed]:
        """All panels."""
        return [stack.packed for stacks in self._stacks.values() for stack in stacks]

    def vector(self, name: str) -> np.ndarray:
        """A norm, a bias or sinks as float32, padded with zeros to a multiple of 32 values."""
        if name not in self._vectors:
            assert self._checkpoint
            self._vectors[name] = padded_zeros(self._checkpoint.entries[name].spec.shape)
            self._fill(name, self._vectors[name], self._heights[name])
        return self._vectors[name]

    def _fill(self, name: str, memory: np.ndarray, height: int, first: int = 0, step: int = 1) -> None:
        """Has values first, first + step, … of float32 memory [..., padded] filled with the `height` values of a vector."""
        checkpoint = self._checkpoint
        assert checkpoint

        def job() -> int:
            values = checkpoint.read_tensor(name).dequantize()
            memory[..., first : first + height * step : step] = values.reshape(*memory.shape[:-1], height)
            return checkpoint.entries[name].nbytes

        self._jobs.append(job)

    @property
    def formats(self) -> list[str]:
        """Of the panels."""
        return sorted({packed.format for packed in self.packed})

    def _load(self, entries: list[Entry], names: tuple[str, ...], form: Format, interleave: bool) -> Stack:
        count, _, columns = entries[0].spec.matrices
        heights = [e.spec.matrices[1] for e in entries]
        packed = Packed(form.name, count, sum(heights), columns)
        first, step = 0, len(entries) if interleave else 1
        for entry, height in zip(entries, heights, strict=True):
            self._queue(packed, entry, form, first, step)
            first += 1 if interleave else height
        return Stack(packed, self._biases(names, count, heights, step))

    def _biases(self, names: tuple[str, ...], count: int, heights: list[int], step: int) -> np.ndarray | None:
        wanted = [self.bias_name(name) for name in names]
        if not any(wanted):
            return None
        biases, first = padded_zeros((count, sum(heights))), 0
        for name, height in zip(wanted, heights, strict=True):
            if name:
                self._fill(name, biases, height, first, step)
            first += height if step == 1 else 1
        return biases

    def _queue(self, packed: Packed, entry: Entry, form: Format, first: int, step: int) -> None:
        if form != entry.format:
            self._remark(entry, form)
        self._jobs += [
            partial(self._pack_rows, packed, entry, form, piece, first, step) for piece in chunks([entry], CHUNK_BYTES)
        ]

    def _pack_rows(
        self, packed: Packed, entry: Entry, form: Format, piece: tuple[int, int, int], first: int, step: int
    ) -> int:
        assert self._checkpoint
        matrix, start, stop = piece
        rows = converted(self._checkpoint.read(entry.name, matrix, start, stop), form)
        pack(packed, rows.planes, matrix=matrix, first=first + start * step, step=step)
        return (stop - start) * entry.format.bytes_per_row(packed.columns)


def padded_zeros(shape: tuple[int, ...]) -> np.ndarray:
    """float32 zeros, the last axis rounded up to a multiple of 32: kernels load whole vectors."""
    return np.zeros((*shape[:-1], -(-shape[-1] // 32) * 32), np.float32)


def bytes_by_format(packed: Iterable[Packed]) -> dict[str, int]:
    """Bytes of panels by format."""
    total: dict[str, int] = {}
    for p in packed:
        total[p.format] = total.get(p.format, 0) + p.nbytes
    return total
