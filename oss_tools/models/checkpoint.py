"""A checkpoint: a container seen through its architecture. Canonical names and row order, whatever the files hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from oss_tools.checkpoints import Metadata, Reader, StoredTensor, Writer, open_container
from oss_tools.checkpoints.base import Panels, Records
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import Format, QTensor, concatenate, get_format
from oss_tools.models.base import Architecture, architecture_of, is_canonical
from oss_tools.models.strangers import named, sort_out
from oss_tools.models.tensors import Placement, TensorSpec

CHUNK_BYTES = 4 << 20  # of float32 values: how much of a tensor is in memory at a time, unless one matrix must be whole
TRANSPOSED_ROWS = 256  # in one strip


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
        entry = self.entries[name]
        _, _, columns = entry.spec.matrices
        placements = (p for p in entry.placements if p.matrix in (None, matrix))
        read = ((p, self._read_part(p, matrix, start, stop, columns)) for p in placements)
        parts = [(p, part) for p, part in read if part is not None]
        if entry.mixed:
            f32 = entry.format
            parts = [(p, QTensor(f32, q.shape, {"values": q.dequantize()})) for p, q in parts]
        if len(parts) == 1:
            return parts[0][1]
        planes = {
            plane: np.empty((stop - start, array.shape[-1]), array.dtype) for plane, array in parts[0][1].planes.items()
        }
        for placement, part in parts:
            first, _ = _covered(placement, start, stop)
            for plane, array in part.planes.items():
                planes[plane][placement.first + first * placement.step - start :: placement.step][: len(array)] = array
        return QTensor(entry.format, (stop - start, columns), planes)

    def _read_part(self, p: Placement, matrix: int, start: int, stop: int, columns: int) -> QTensor | None:
        first, last = _covered(p, start, stop)
        if first >= last:
            return None
        matrix = p.matrix_of(matrix)
        if p.transposed:
            size = columns * p.stored_rows
            stored = self.reader.read(p.stored, matrix * columns, (matrix + 1) * columns, p.stored_rows)
            if not stored.format.is_float:
                stored = QTensor(get_format("f32"), stored.shape, {"values": stored.dequantize()})
            values = stored.planes["values"].reshape(columns, size // columns)[:, p.offset + first : p.offset + last]
            return QTensor(stored.format, (last - first, columns), {"values": _transposed(values)})
        base = matrix * p.stored_rows + p.offset
        if not p.rotary:
            return self.reader.read(p.stored, base + first, base + last, columns)
        low, high = first // p.rotary * p.rotary, -(-last // p.rotary) * p.rotary
        heads = self.reader.read(p.stored, base + low, base + high, columns)
        order = np.argsort(p.head_order())  # stored row of each canonical row
        index = (np.arange(low, high).reshape(-1, p.rotary)[:, order] - low).reshape(-1)
        return heads.rows(index[first - low : last - low])

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


def _transposed(matrix: np.ndarray) -> np.ndarray:
    """A contiguous copy of the transpose, made in strips that stay in the cache: several times as fast as in one piece."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, matrix.shape[0], TRANSPOSED_ROWS):
        result[:, start : start + TRANSPOSED_ROWS] = matrix[start : start + TRANSPOSED_ROWS].T
    return result


def _covered(p: Placement, start: int, stop: int) -> tuple[int, int]:
    """Which of a placement's rows, counted from its first, lie in the canonical range [start, stop)."""
    first = max(-(-(start - p.first) // p.step), 0)
    last = min(-(-(stop - p.first) // p.step), p.count)
    return first, last


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens any checkpoint. Headers only. Raises BadCheckpoint."""
    reader = open_container(Path(path))
    try:
        return Checkpoint(reader)
    except BaseException:
        reader.close()
        raise


def stored_tensors(entries: list[Entry]) -> list[StoredTensor]:
    """The container's tensors that the entries make up, in order, each once."""
    return list({p.stored: StoredTensor(p.stored, e.format, p.stored_shape) for e in entries for p in e.placements}.values())


def write_rows(writer: Writer, entry: Entry, matrix: int, start: int, rows: QTensor) -> None:
    """Writes canonical rows [start, start + n) of one matrix to wherever the entry's placements say.

    `start` and n are multiples of the entry's `row_unit`, except at the matrix's end; a transposed matrix is written whole.
    """
    stop = start + rows.shape[0]
    for p in entry.placements:
        if p.matrix not in (None, matrix):
            continue
        first, last = _covered(p, start, stop)
        if first >= last:
            continue
        stored_matrix = p.matrix_of(matrix)
        begin = p.first + first * p.step - start
        part = rows.rows(slice(begin, begin + (last - first - 1) * p.step + 1, p.step))
        if p.transposed:
            values = _transposed(part.planes["values"])  # [in, out]
            _write_columns(writer, p, stored_matrix * part.columns, QTensor(part.format, values.shape, {"values": values}))
            continue
        if p.rotary:
            heads = np.arange(last - first).reshape(-1, p.rotary)
            part = part.rows(heads[:, p.head_order()].reshape(-1))
        writer.write(p.stored, stored_matrix * p.stored_rows + p.offset + first, part)


def _write_columns(writer: Writer, p: Placement, first: int, values: QTensor) -> None:
    """Writes a whole matrix [in, out] from a row of the stored tensor on; or, where several share its rows (GPT-2's q, k and v),
    to its columns of each row."""
    if p.count == p.stored_rows:
        writer.write(p.stored, first, values)
        return
    share, place = p.stored_rows // p.count, p.offset // p.count
    for row in range(values.shape[0]):
        writer.write(p.stored, (first + row) * share + place, values.rows(slice(row, row + 1)))
