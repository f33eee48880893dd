"""Weights on their way from a checkpoint into the kernels' panels: in chunks, by threads, each byte once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from numba_kernels.cpu.packing import Packed, all_formats, pack
from oss_tools.engine.backend import Progress
from oss_tools.formats import Format, QTensor, get_format
from oss_tools.models import Architecture, Checkpoint, Entry
from oss_tools.models.checkpoint import chunks

CHUNK_BYTES = 4 << 20  # of float32 values: what a thread holds of a tensor while it packs it


def kernel_format(entry: Entry) -> Format:
    """The format in which a tensor's weights are kept: its own if there is a kernel for it, else the nearest that holds
    it well: q8_0 for block formats of fewer bits, bf16 where rows do not divide into blocks of 32."""
    columns = entry.spec.matrices[2]
    formats = entry.mixed or (entry.format,)
    if len(formats) == 1 and formats[0].name in all_formats() and (formats[0].is_float or columns % 32 == 0):
        return formats[0]
    if all(f.is_float for f in formats):
        return get_format("f32")
    return get_format("q8_0" if columns % 32 == 0 else "bf16")


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


class Weights:
    """The tensors of a checkpoint in kernel form, loaded when they are first asked for."""

    def __init__(self, checkpoint: Checkpoint, threads: int, progress: Progress, say: Callable[[str], None]) -> None:
        self._checkpoint: Checkpoint | None = checkpoint
        self._names = set(checkpoint.entries)
        self._heights = {name: e.spec.matrices[1] for name, e in checkpoint.entries.items()}
        self._threads, self._progress, self._say = threads, progress, say
        self._stacks: dict[tuple[str, ...], list[Stack]] = {}
        self._vectors: dict[str, np.ndarray] = {}
        self._said: set[str] = set()

    def finish(self) -> None:
        """Lets the checkpoint go: from here on only what has been loaded can be had."""
        self._checkpoint = None

    def heights(self, names: tuple[str, ...]) -> list[int]:
        """The rows of each layer's matrix."""
        return [self._heights[self.weight_name(name)] for name in names]

    def bytes_per_token(self, architecture: Architecture) -> int:
        """Bytes of panels that one token's pass reads: every matrix once, the chosen experts' share of theirs, of the
        embedding one row unless it is the output as well."""
        config = getattr(architecture, "config", None)
        chosen = getattr(config, "num_experts_per_tok", 1)
        total = 0.0
        for key, stacks in self._stacks.items():
            for stack in stacks:
                p = stack.packed
                if key == ("model.embed_tokens.weight",) and "lm_head.weight" in self._names:
                    total += p.nbytes / p.rows
                else:
                    total += p.nbytes * (chosen / p.matrices if p.matrices > 1 else 1)
        return round(total)

    @property
    def packed(self) -> list[Packed]:
        """All panels."""
        return [stack.packed for stacks in self._stacks.values() for stack in stacks]

    def vector(self, name: str) -> np.ndarray:
        """A norm, a bias or sinks as float32, padded with zeros to a multiple of 32 values."""
        if name not in self._vectors:
            assert self._checkpoint
            values = self._checkpoint.read_tensor(name).dequantize()
            self._vectors[name] = padded(values)
            self._progress(self._checkpoint.entries[name].nbytes)
        return self._vectors[name]

    def stacks(self, names: tuple[str, ...], interleave: bool = False) -> list[Stack]:
        """The named linear layers (`NAME.weight`, `NAME.bias`) one under another, or row by row in turn, as one stack if
        their formats agree, else (never if interleaved) one for each."""
        key = tuple(self.weight_name(name) for name in names)
        if key not in self._stacks:
            assert self._checkpoint
            entries = [self._checkpoint.entries[self.weight_name(name)] for name in names]
            forms = [kernel_format(e) for e in entries]
            if len(set(forms)) == 1 or interleave:
                form = forms[0] if len(set(forms)) == 1 else get_format("q8_0")
                self._stacks[key] = [self._load(entries, names, form, interleave)]
            else:
                triples = zip(entries, names, forms, strict=True)
                self._stacks[key] = [self._load([e], (n,), form, False) for e, n, form in triples]
        return self._stacks[key]

    def weight_name(self, name: str) -> str:
        """The tensor of a layer: `NAME.weight`, `NAME` itself (stacked experts), or the embedding for a tied output."""
        if f"{name}.weight" in self._names:
            return f"{name}.weight"
        return name if name in self._names else "model.embed_tokens.weight"

    def _bias_name(self, name: str) -> str | None:
        return next((n for n in (f"{name}.bias", f"{name}_bias") if n in self._names), None)

    def _load(self, entries: list[Entry], names: tuple[str, ...], form: Format, interleave: bool) -> Stack:
        count, _, columns = entries[0].spec.matrices
        heights = [e.spec.matrices[1] for e in entries]
        packed = Packed(form.name, count, sum(heights), columns)
        first, step = 0, len(entries) if interleave else 1
        for entry, height in zip(entries, heights, strict=True):
            self._pack(packed, entry, form, first, step)
            first += 1 if interleave else height
        return Stack(packed, self._biases(names, count, heights, interleave))

    def _biases(self, names: tuple[str, ...], count: int, heights: list[int], interleave: bool) -> np.ndarray | None:
        wanted = [self._bias_name(name) for name in names]
        if not any(wanted):
            return None
        parts = [
            self._checkpoint.read_tensor(n).dequantize().reshape(count, h) if n else np.zeros((count, h), np.float32)
            for n, h in zip(wanted, heights, strict=True)
            if self._checkpoint
        ]
        joined = np.stack(parts, -1).reshape(count, -1) if interleave else np.concatenate(parts, 1)
        return padded(joined)

    def _pack(self, packed: Packed, entry: Entry, form: Format, first: int, step: int) -> None:
        if form != entry.format:
            self._remark(entry, form)
        with ThreadPoolExecutor(self._threads) as pool:
            jobs = [
                pool.submit(self._pack_rows, packed, entry, form, piece, first, step)
                for piece in chunks([entry], CHUNK_BYTES)
            ]
            for job in jobs:
                job.result()

    def _pack_rows(
        self, packed: Packed, entry: Entry, form: Format, piece: tuple[int, int, int], first: int, step: int
    ) -> None:
        assert self._checkpoint
        matrix, start, stop = piece
        rows = converted(self._checkpoint.read(entry.name, matrix, start, stop), form)
        pack(packed, rows.planes, matrix=matrix, first=first + start * step, step=step)
        self._progress((stop - start) * entry.format.bytes_per_row(packed.columns))

    def _remark(self, entry: Entry, form: Format) -> None:
        have = ", ".join(f.name for f in entry.mixed) or entry.format.name
        if (line := f"no kernel for {have}: weights are kept as {form.name}") not in self._said:
            self._said.add(line)
            self._say(line)


def converted(rows: QTensor, form: Format) -> QTensor:
    """The rows in another format, by its default rule."""
    return rows if rows.format == form else form.quantize(rows.dequantize())


def padded(values: np.ndarray) -> np.ndarray:
    """float32 with zeros up to a multiple of 32 along the last axis: kernels load whole vectors."""
    width = -(-values.shape[-1] // 32) * 32
    out = np.zeros((*values.shape[:-1], width), np.float32)
    out[..., : values.shape[-1]] = values
    return out


def bytes_by_format(packed: Iterable[Packed]) -> dict[str, int]:
    """Bytes of panels by format."""
    total: dict[str, int] = {}
    for p in packed:
        total[p.format] = total.get(p.format, 0) + p.nbytes
    return total
