"""A checkpoint: a container seen through its architecture. Canonical names and row order, whatever the files hold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from oss_tools.checkpoints import Metadata, Reader, StoredTensor, open_container
from oss_tools.checkpoints.base import Panels, Records
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import QTensor, concatenate, get_format
from oss_tools.models.base import Architecture, architecture_of, is_canonical
from oss_tools.models.entries import Entry, chunks
from oss_tools.models.rows import read_rows
from oss_tools.models.strangers import named, sort_out
from oss_tools.models.tensors import Placement, TensorSpec


class Checkpoint:
    """An open checkpoint: its architecture, its tensors by canonical name, its metadata in Hugging Face terms.

    Attributes:
        path, container: what was opened, and its kind.
        architecture: config, tensor specs, placements.
        entries: canonical name -> Entry, in the architecture's order.
        remarks: what a user should know about how all of this was read, a sentence each.
    """

    _users = 1

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.path = reader.path
        self.container = reader.container
        kind = architecture_of(reader.model_type, reader.raw_config if reader.container == "gguf" else None)
        self.architecture: Architecture = kind.from_config(reader.container, reader.raw_config, reader)
        self.entries = {e.name: e for spec in self.architecture.tensors() if (e := self._entry(spec))}
        left_out = self._left_out()
        self.remarks: list[str] = [*reader.remarks, *self.architecture.remarks, *left_out]

    def _entry(self, spec: TensorSpec) -> Entry | None:
        found = self._found(spec)
        if found is None:
            if spec.optional:
                return None
            raise self._missing(spec)
        placements, stored = found
        for placement, tensor in zip(placements, stored, strict=True):
            if tensor.shape != placement.stored_shape:
                raise BadCheckpoint(
                    f"{self.path}: tensor {tensor.name} has shape {list(tensor.shape)}, "
                    f"the configuration says {list(placement.stored_shape)}"
                )
        formats = tuple(dict.fromkeys(tensor.format for tensor in stored))
        if len(formats) > 1 or (not formats[0].is_float and any(p.transposed for p in placements)):
            return Entry(spec, get_format("f32"), tuple(placements), mixed=formats)
        return Entry(spec, formats[0], tuple(placements))

    def _found(self, spec: TensorSpec) -> tuple[list[Placement], list[StoredTensor]] | None:
        """The first of the architecture's ways to place a tensor whose parts are all there, and those parts."""
        found = None
        for is_float in (False, True):
            usual = self.architecture.places(self.container, spec, is_float)
            others = (
                self.architecture.other_placements(self.container, spec, is_float)
                if not is_canonical(self.container)
                else ()
            )
            for placements in chain([usual], others):
                stored = [tensor for p in placements if (tensor := self.reader.tensors.get(p.stored))]
                if len(stored) == len(placements):
                    found = placements, stored
                    if all(tensor.format.is_float for tensor in stored) == is_float:
                        return found
                    break
        return found

    def _missing(self, spec: TensorSpec) -> BadCheckpoint:
        """The error for a tensor that is not there, with what is there in its place."""
        if not self.reader.tensors:
            return BadCheckpoint(f"{self.path}: holds no tensors (a vocabulary only?)")
        usual = self.architecture.places(self.container, spec, False)
        missing = next(p.stored for p in usual if p.stored not in self.reader.tensors)
        if missing in self.reader.others:
            return BadCheckpoint(
                f"{self.path}: tensor {missing} has dtype {self.reader.others[missing]}, which is no weight's"
            )
        module = missing.rpartition(".")[0]
        there = [name for name in (*self.reader.tensors, *self.reader.others) if module and name.startswith(f"{module}.")]
        hint = f"; in its place there is {named(there)}" if there else ""
        return BadCheckpoint(f"{self.path}: tensor {missing} is missing{hint}")

    def _left_out(self) -> list[str]:
        """A remark on tensors that are not the model's. Raises BadCheckpoint for those that the computation might need."""
        known = {p.stored for e in self.entries.values() for p in e.placements}
        known |= set(self.architecture.derived_tensors(self.container))
        unknown = [n for n in self.reader.tensors if n not in known and not self.architecture.is_ignored(n)]
        others = {
            n: dtype for n, dtype in self.reader.others.items() if n not in known and not self.architecture.is_ignored(n)
        }
        found = sort_out(unknown, others, known, self.architecture.model_type)
        if found.refused:
            name, reason = found.refused[0]
            more = f" and {len(found.refused) - 1} more" if len(found.refused) > 1 else ""
            raise BadCheckpoint(f"{self.path}: tensor {name}{more} {reason}")
        return [f"not the model's, and left out: {named(found.left_out)}"] if found.left_out else []

    def records(self, stacks: Sequence[tuple[Sequence[str], bool]]) -> Records | None:
        """The matrices of stacks that lie beside each other in the file, see `Reader.records`."""
        return self.reader.records(stacks)

    def panels(self, names: Sequence[str], interleave: bool) -> Panels | None:
        """The matrices of these tensors as the kernels take them, if they lie so in the file, see `Reader.panels`."""
        return self.reader.panels(names, interleave)

    def is_in_panels(self, name: str) -> bool:
        """Whether a tensor is part of such matrices."""
        return self.reader.is_in_panels(name)

    def read(self, name: str, matrix: int, start: int, stop: int) -> QTensor:
        """Rows [start, stop) of one matrix of a tensor, in canonical order: [stop - start, columns]."""
        return read_rows(self.reader, self.entries[name], matrix, start, stop)

    def read_tensor(self, name: str) -> QTensor:
        """A whole tensor, in its canonical shape (a vector's shape is [..., n] as well)."""
        entry = self.entries[name]
        count, rows, _ = entry.spec.matrices
        whole = concatenate([self.read(name, m, 0, rows) for m in range(count)])
        if entry.spec.is_vector:
            return QTensor(whole.format, entry.spec.shape, {"values": whole.planes["values"].reshape(entry.spec.shape)})
        return whole.reshape(*entry.spec.shape)

    def largest_magnitude(self, name: str) -> float:
        """Of all values of a tensor, read piece by piece."""
        pieces = (self.read(name, *piece).dequantize() for piece in chunks([self.entries[name]]))
        return max(float(np.abs(values).max(initial=0)) for values in pieces)

    def metadata(self) -> Metadata:
        """Config, tokenizer, templates and companions in Hugging Face terms."""
        return self.reader.metadata(self.architecture.hf_config())

    @property
    def parameters(self) -> int:
        return sum(e.spec.size for e in self.entries.values())

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data as stored."""
        return sum(t.nbytes for t in self.reader.tensors.values())

    def held(self) -> Checkpoint:
        """This checkpoint for one more user: its files are closed when all have closed it."""
        self._users += 1
        return self

    def close(self) -> None:
        self._users -= 1
        if self._users <= 0:
            self.reader.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens any checkpoint. Headers only. Raises BadCheckpoint."""
    reader = open_container(Path(path))
    try:
        return Checkpoint(reader)
    except BaseException:
        reader.close()
        raise
