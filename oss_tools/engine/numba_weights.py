"""Weights on their way from a checkpoint into the kernels' panels: in chunks, by threads, each byte once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from numba_kernels.cpu.packed import Packed, fits
from numba_kernels.cpu.packing import pack
from oss_tools.engine.backend import Progress
from oss_tools.engine.weights import Weights, converted, nearest_format
from oss_tools.formats import Format, get_format
from oss_tools.models import Architecture, Checkpoint, Entry
from oss_tools.models.entries import chunks
from oss_tools.models.operations import Latent

TRANSPOSED = "f16"  # in which a matrix is kept that is transposed and comes from a format of blocks
CHUNK_BYTES = 4 << 20  # of float32 values: what a thread holds of a tensor while it packs it


def kernel_format(entry: Entry) -> Format:
    """The format in which a tensor's weights are kept, see `nearest_format`."""
    return nearest_format(entry, lambda form, columns: fits(form.name, columns))


def kernel_format_for(activations: str) -> Callable[[Entry], Format]:
    """`kernel_format` with such activations: those in bf16 meet weights in bf16, and weights in f16 are converted to it."""

    def form(entry: Entry) -> Format:
        kept = kernel_format(entry)
        return get_format("bf16") if activations == "bf16" and kept.name == "f16" else kept

    return form


def kept_bytes(entry: Entry) -> int:
    """Bytes of a tensor in the format in which it is kept."""
    count, rows, columns = entry.spec.matrices
    return count * rows * (4 * columns if entry.spec.is_vector else kernel_format(entry).bytes_per_row(columns))


def kernel_bytes(checkpoint: Checkpoint, mapped: bool = False, activations: str = "int8") -> int:
    """Bytes of all weights in the formats in which they are kept; if mapped, of those that have to be loaded all the same."""
    entries, form = checkpoint.entries.values(), kernel_format_for(activations)
    there = [entry for entry in entries if mapped and checkpoint.is_in_panels(entry.name)]
    inside = {entry.name for entry in there if entry.spec.is_vector or form(entry) == kernel_format(entry)}
    return sum(kept_bytes(entry) for entry in entries if entry.name not in inside)


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

    def __init__(
        self,
        checkpoint: Checkpoint,
        threads: int,
        say: Callable[[str], None],
        transposed: str = TRANSPOSED,
        mapped: bool = False,
        activations: str = "int8",
    ) -> None:
        """transposed: the float format of matrices that are transposed and come from a format of blocks. mapped: whether panels
        that lie ready in the file are used there, rather than copied. activations: see `kernel_format_for`."""
        super().__init__(checkpoint, kernel_format_for(activations), say)
        self._threads, self._transposed, self._mapped = threads, get_format(transposed), mapped
        self._checks: list[Callable[[], None]] = []  # of mapped files
        self.mapped_bytes = 0
        self._vectors: dict[str, np.ndarray] = {}
        self._pairs: dict[tuple[str, str], tuple[Stack, Stack]] = {}
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

    def bytes_per_token(self, architecture: Architecture) -> int:
        latents = sum(stack.nbytes for pair in self._pairs.values() for stack in pair)
        return super().bytes_per_token(architecture) + latents

    @property
    def packed(self) -> list[Packed]:
        """All panels."""
        stacks = [*self._stacks.values(), *self._pairs.values()]
        return [stack.packed for several in stacks for stack in several]

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
        if packed := self._ready(entries, form, interleave):
            return Stack(packed, self._biases(names, count, heights, len(entries) if interleave else 1))
        packed = Packed(form.name, count, sum(heights), columns)
        first, step = 0, len(entries) if interleave else 1
        for entry, height in zip(entries, heights, strict=True):
            self._queue(packed, entry, form, first, step)
            first += 1 if interleave else height
        return Stack(packed, self._biases(names, count, heights, step))

    def _ready(self, entries: list[Entry], form: Format, interleave: bool) -> Packed | None:
        """The matrices, if they lie in the file as the kernels take them: where they lie, or copied when all is loaded."""
        assert self._checkpoint
        count, _, columns = entries[0].spec.matrices
        shape = form.name, count, sum(entry.spec.matrices[1] for entry in entries), columns
        found = self._checkpoint.panels([entry.name for entry in entries], interleave)
        if not found or any(entry.mixed or entry.format != form for entry in entries):
            return None
        stored = sum(entry.nbytes for entry in entries)
        if self._mapped:
            from oss_tools.engine.bus_errors import say_and_end

            say_and_end()
            packed = Packed(*shape, found.mapped())
            self._checks = self._checks or [found.check]
            self.mapped_bytes += packed.nbytes
            self._jobs.append(lambda: stored)
            return packed
        packed = Packed(*shape)

        def copy(matrix: int) -> int:
            found.read(matrix, packed.data[matrix])
            return stored // count

        self._jobs += [partial(copy, matrix) for matrix in range(count)]
        return packed

    def stacked_biases(self, entries: Sequence[Entry], interleave: bool) -> np.ndarray | None:
        """The biases of matrices that are multiplied as one and kept elsewhere, float32 [matrices, padded rows]; None if there
        are none."""
        names = tuple(entry.name.removesuffix(".weight") for entry in entries)
        heights = [entry.spec.matrices[1] for entry in entries]
        return self._biases(names, entries[0].spec.matrices[0], heights, len(entries) if interleave else 1)

    def check(self) -> None:
        """Raises BadCheckpoint if a mapped file is no longer what it was: nothing that was computed with it is to be used."""
        for check in self._checks:
            check()

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

    def latent_stacks(self, name: str, heads: Latent) -> tuple[Stack, Stack]:
        """Of `NAME.weight` [queries · (nope + value), rank] the two matrices of each head: [rank, nope], which takes its query to
        the latents, and [value, rank], which takes latents to its value. The first is transposed, so it is kept in a float
        format: blocks of other formats go along the other axis."""
        entry = self._checkpoint.entries[f"{name}.weight"] if self._checkpoint else None
        key = f"{name} to latents", f"{name} to values"
        if key not in self._pairs:
            assert entry
            form = self._form(entry)
            transposed = form if form.is_float else self._transposed
            stacks = (
                Stack(Packed(transposed.name, heads.queries, heads.rank, heads.nope), None),
                Stack(Packed(form.name, heads.queries, heads.value, heads.rank), None),
            )
            if form != entry.format:
                self._remark(entry, form)
            self._jobs += [partial(self._pack_head, stacks, entry, transposed, form, heads, h) for h in range(heads.queries)]
            self._pairs[key] = stacks
        return self._pairs[key]

    def _pack_head(
        self, stacks: tuple[Stack, Stack], entry: Entry, transposed: Format, form: Format, heads: Latent, head: int
    ) -> int:
        assert self._checkpoint
        first = head * (heads.nope + heads.value)
        middle, last = first + heads.nope, first + heads.nope + heads.value
        columns = np.ascontiguousarray(self._checkpoint.read(entry.name, 0, first, middle).dequantize().T)
        pack(stacks[0].packed, transposed.quantize(columns).planes, matrix=head)
        rows = converted(self._checkpoint.read(entry.name, 0, middle, last), form)
        pack(stacks[1].packed, rows.planes, matrix=head)
        return (last - first) * entry.format.bytes_per_row(heads.rank)

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


def bytes_by_format(packed: Iterable[Packed], others: Mapping[str, int]) -> dict[str, int]:
    """Bytes of panels by format, added to others'."""
    total = dict(others)
    for p in packed:
        total[p.format] = total.get(p.format, 0) + p.nbytes
    return total
