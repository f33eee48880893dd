"""Weights on their way from a checkpoint to a GPU: read by threads, copied through two pinned buffers, each byte once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import LAYOUTS, fits
from numba_kernels.cuda.device import Device
from numba_kernels.cuda.packing import packed_rows
from oss_tools.engine.backend import Progress
from oss_tools.engine.weights import Weights, converted, nearest_format
from oss_tools.formats import Format, get_format
from oss_tools.models import Architecture, Checkpoint, Entry
from oss_tools.models.entries import chunks
from oss_tools.models.operations import Latent

PIECE_BYTES = 32 << 20  # of float32 values: what a thread holds of a tensor
STAGING_BYTES = 32 << 20  # of one pinned buffer; there are two
READERS = 4  # threads; twice as many pieces are under way


def kernel_format(entry: Entry) -> Format:
    """The format in which a tensor's weights are kept on the device, see `nearest_format`."""
    return nearest_format(entry, lambda form, columns: fits(form.name, columns))


def device_bytes(checkpoint: Checkpoint, activations: str = "int8") -> int:
    """Bytes of all weights as the device keeps them."""
    total = 0
    for entry in checkpoint.entries.values():
        count, rows, columns = entry.spec.matrices
        if entry.spec.is_vector:
            total += 4 * count * rows
        elif entry.spec.role == "attention.kv_b":  # see `latent_stacks`
            total += rows * row_bytes("f32" if activations == "f32" else "bf16", columns)
        else:
            total += count * rows * row_bytes(kernel_format(entry).name, columns)
    return total


def row_bytes(format: str, columns: int) -> int:
    """Bytes of a row's codes and scales."""
    layout = LAYOUTS[format]
    return 4 * layout.row_words(columns) + layout.scale_dtype.itemsize * layout.row_scales(columns)


@dataclass(frozen=True)
class Stack:
    """Matrices of one shape on the device, one under another.

    Attributes:
        format: a name of `LAYOUTS`.
        matrices, rows, columns: the shape; rows of one matrix.
        codes, scales: arrays of the device.
        bias: float32 [matrices · rows] on the device, or None.
    """

    format: str
    matrices: int
    rows: int
    columns: int
    codes: Any
    scales: Any
    bias: Any

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.format, self.columns)

    @property
    def nbytes(self) -> int:
        return self.matrices * self.rows * self.row_bytes


@dataclass(frozen=True)
class Piece:
    """Rows [first, …) of a stack, ready to be copied: codes, scales, and the stored bytes that they were."""

    first: int
    codes: np.ndarray
    scales: np.ndarray
    stored: int


class CudaWeights(Weights[Stack]):
    """The tensors of a checkpoint on the device, loaded when they are first asked for."""

    def __init__(self, device: Device, checkpoint: Checkpoint, progress: Progress, say: Callable[[str], None]) -> None:
        super().__init__(checkpoint, kernel_format, say)
        self.device, self._progress = device, progress
        self._vectors: dict[tuple[str, ...], Any] = {}
        self._pairs: dict[str, tuple[Stack, Stack]] = {}
        self._staging = [device.pinned(STAGING_BYTES // 4, np.uint32) for _ in range(2)]
        self._copied: list[Any] = [None, None]  # the mark behind the last copy from each buffer
        self._turn = 0

    def finish(self) -> None:
        """Lets the checkpoint and the buffers go: from here on only what has been loaded can be had."""
        self.device.synchronize()
        self._checkpoint = None
        self._staging = []

    def vector(self, *names: str) -> Any:
        """A norm or sinks as float32 on the device, or several one behind another."""
        if names not in self._vectors:
            assert self._checkpoint
            values = [self._checkpoint.read_tensor(name).dequantize().reshape(-1) for name in names]
            self._vectors[names] = self.device.array(np.concatenate(values))
            self._progress(sum(self._checkpoint.entries[name].nbytes for name in names))
        return self._vectors[names]

    def bytes_by_format(self) -> dict[str, int]:
        """Bytes of matrices by format."""
        total: dict[str, int] = {}
        for stacks in (*self._stacks.values(), *self._pairs.values()):
            for stack in stacks:
                total[stack.format] = total.get(stack.format, 0) + stack.nbytes
        return total

    def bytes_per_token(self, architecture: Architecture) -> int:
        latents = sum(stack.nbytes for pair in self._pairs.values() for stack in pair)
        return super().bytes_per_token(architecture) + latents

    def latent_stacks(self, name: str, heads: Latent, form: str) -> tuple[Stack, Stack]:
        """Of `NAME.weight` [queries · (nope + value), rank] the two matrices of each head: [rank, nope], which takes its query to
        the latents, and [value, rank], which takes latents to its value; in a float format, as the first is transposed."""
        if name not in self._pairs:
            assert self._checkpoint
            entry = self._checkpoint.entries[f"{name}.weight"]
            if entry.format.name != form:
                self._remark(entry, get_format(form))
            self._pairs[name] = (
                self._empty(form, heads.queries, heads.rank, heads.nope),
                self._empty(form, heads.queries, heads.value, heads.rank),
            )
            jobs = (
                partial(self._head_piece, entry, form, heads, h, part) for h in range(heads.queries) for part in range(2)
            )
            for i, piece in enumerate(_in_threads(jobs)):
                stack = self._pairs[name][i % 2]
                self._copy(stack.codes, piece.codes, piece.first * LAYOUTS[form].row_words(stack.columns))
                self._progress(piece.stored)
        return self._pairs[name]

    def _empty(self, form: str, count: int, rows: int, columns: int) -> Stack:
        """Memory for matrices in a float format."""
        codes = self.device.empty(count * rows * LAYOUTS[form].row_words(columns), np.uint32)
        return Stack(form, count, rows, columns, codes, self.device.empty(0, np.uint16), None)

    def _head_piece(self, entry: Entry, form: str, heads: Latent, head: int, part: int) -> Piece:
        assert self._checkpoint
        first = head * (heads.nope + heads.value)
        edges = (first, first + heads.nope, first + heads.nope + heads.value)
        values = self._checkpoint.read(entry.name, 0, edges[part], edges[part + 1]).dequantize()
        rows = values if part else np.ascontiguousarray(values.T)
        codes, scales = packed_rows(form, get_format(form).quantize(rows).planes, rows.shape[1])
        return Piece(head * len(rows), codes.reshape(-1), scales, len(values) * entry.format.bytes_per_row(heads.rank))

    # ---- loading ----------------------------------------------------------------------------------------------------

    def _load(self, entries: list[Entry], names: tuple[str, ...], form: Format, interleave: bool) -> Stack:
        count, _, columns = entries[0].spec.matrices
        rows = sum(e.spec.matrices[1] for e in entries)
        layout = LAYOUTS[form.name]
        words, per_row = layout.row_words(columns), layout.row_scales(columns)
        codes = self.device.empty(count * rows * words, np.uint32)
        scales = self.device.empty(count * rows * per_row, layout.scale_dtype)
        for entry in entries:
            if form != entry.format:
                self._remark(entry, form)
        jobs = self._interleaved(entries, form) if interleave else self._stacked(entries, form)
        for piece in _in_threads(jobs):
            self._copy(codes, piece.codes, piece.first * words)
            self._copy(scales, piece.scales, piece.first * per_row)
            self._progress(piece.stored)
        return Stack(form.name, count, rows, columns, codes, scales, self._bias(names, interleave))

    def _stacked(self, entries: list[Entry], form: Format) -> Iterator[Callable[[], Piece]]:
        """Jobs that make pieces of matrices one under another."""
        rows, above = sum(e.spec.matrices[1] for e in entries), 0
        for entry in entries:
            for matrix, start, stop in chunks([entry], PIECE_BYTES):
                yield (
                    lambda e=entry, m=matrix, a=start, b=stop, f=matrix * rows + above + start: (  # type: ignore[misc]
                        self._piece([e], form, m, a, b, f)
                    )
                )
            above += entry.spec.matrices[1]

    def _interleaved(self, entries: list[Entry], form: Format) -> Iterator[Callable[[], Piece]]:
        """Jobs that make pieces whose rows are the matrices' in turn."""
        _, rows, _ = entries[0].spec.matrices
        for matrix, start, stop in chunks(entries, PIECE_BYTES):
            first = len(entries) * (matrix * rows + start)
            yield lambda m=matrix, a=start, b=stop, f=first: self._piece(entries, form, m, a, b, f)  # type: ignore[misc]

    def _piece(self, entries: list[Entry], form: Format, matrix: int, start: int, stop: int, first: int) -> Piece:
        assert self._checkpoint
        parts, stored = [], 0
        for entry in entries:
            rows = self._checkpoint.read(entry.name, matrix, start, stop)
            stored += (stop - start) * entry.format.bytes_per_row(rows.columns)
            parts.append(packed_rows(form.name, converted(rows, form).planes, rows.columns))
        codes, scales = (
            np.stack(same, 1).reshape(-1) if len(parts) > 1 else same[0].reshape(-1) for same in zip(*parts, strict=True)
        )
        return Piece(first, codes, scales, stored)

    def _copy(self, target: Any, values: np.ndarray, start: int) -> None:
        """Copies through the pinned buffers: while one is on its way, the other is filled."""
        for at in range(0, values.size, STAGING_BYTES // values.itemsize):
            part = values[at : at + STAGING_BYTES // values.itemsize]
            if self._copied[self._turn] is not None:
                self._copied[self._turn].synchronize()
            buffer = self._staging[self._turn].view(values.dtype)[: part.size]
            buffer[:] = part
            self.device.upload_soon(target, buffer, start + at)
            self._copied[self._turn] = self.device.event()
            self._turn = 1 - self._turn

    def _bias(self, names: tuple[str, ...], interleave: bool) -> Any:
        """The layers' biases, one behind another for each matrix or in turn; zeros where only some have one."""
        assert self._checkpoint
        wanted = [self.bias_name(name) for name in names]
        if not any(wanted):
            return None
        count = self._checkpoint.entries[self.weight_name(names[0])].spec.matrices[0]
        parts = [
            self._checkpoint.read_tensor(n).dequantize().reshape(count, h) if n else np.zeros((count, h), np.float32)
            for n, h in zip(wanted, self.heights(names), strict=True)
        ]
        self._progress(sum(self._checkpoint.entries[n].nbytes for n in wanted if n))
        return self.device.array(np.stack(parts, -1) if interleave else np.concatenate(parts, 1))


def _in_threads(jobs: Iterator[Callable[[], Piece]]) -> Iterator[Piece]:
    """The results of jobs in their order, some of them being worked on ahead."""
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[Future[Piece]] = deque()
        try:
            for job in jobs:
                ahead.append(pool.submit(job))
                if len(ahead) >= 2 * READERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
