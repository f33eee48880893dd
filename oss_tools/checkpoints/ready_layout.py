"""How a run-ready file is laid out: from what its table (`ready_table`) says to the place of every byte. Nothing in a file says
where something lies, so no file can say it wrongly: reader and writer compute it by the same rules, and the file's size has to
agree.

    preamble (128 bytes) | table | hashes | config | metadata | companion files | records | planes | zero scales | padding

`docs/ready.md` documents this to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

from numba_kernels.cpu.geometry import BYTES, Geometry
from oss_tools.checkpoints.base import StoredTensor
from oss_tools.checkpoints.ready_preamble import HASH_BYTES, PREAMBLE

SMALL, PAGE = 64, 4096  # what offsets are multiples of: of planes and texts, of records
MAX_PIECES = 1 << 20  # each has a hash; the largest published models have some 20,000

Group = list[tuple[list[str], bool]]  # stacks that lie beside each other: tensors' names, and whether their rows take turns


class BadTable(ValueError):
    """What is wrong with a table, in words."""


@dataclass(frozen=True)
class Stack:
    """Tensors whose matrices are one in panels, rows one under another or in turn.

    Attributes:
        tensors: names; interleave: whether rows take turns.
        shape: of one matrix; `matrices` of them.
        at: bytes from a record's beginning to its panels.
    """

    tensors: tuple[str, ...]
    interleave: bool
    shape: Geometry
    matrices: int
    at: int


@dataclass(frozen=True)
class Record:
    """Matrices that are read together: those of one expert, or of one layer. There are `count` of them, `stride` bytes apart,
    `nbytes` long without what pads them to whole pages."""

    stacks: tuple[Stack, ...]
    count: int
    offset: int
    nbytes: int

    @property
    def stride(self) -> int:
        return padded(self.nbytes, PAGE)


@dataclass(frozen=True)
class InPanels:
    """Where a tensor's rows lie: row i of a matrix is row first + i · step of the stack's."""

    record: Record
    stack: Stack
    first: int
    step: int


@dataclass(frozen=True)
class Piece:
    """A stretch of the file that has a hash of its own."""

    name: str
    offset: int
    nbytes: int


@dataclass
class Layout:
    """The places of everything.

    Attributes:
        tensors: by name, in order.
        texts: config, metadata and the companion files, by name: (offset, bytes).
        records: in order; `panels`: the tensors in them, by name.
        planes: of every other tensor: name -> plane -> offset. A plane has all rows of the tensor, one behind the other.
        zeros: of tensors in MXFP4 panels, where the bits lie that tell the scale byte 0 from 1: name -> offset.
        hashes: offset of the pieces' hashes; size: of the file.
    """

    lanes: int
    biased: bool
    tensors: dict[str, StoredTensor]
    texts: dict[str, tuple[int, int]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    panels: dict[str, InPanels] = field(default_factory=dict)
    planes: dict[str, dict[str, int]] = field(default_factory=dict)
    zeros: dict[str, int] = field(default_factory=dict)
    hashes: int = 0
    size: int = 0

    def pieces(self) -> Iterator[Piece]:
        """All that is hashed, in the order of the hashes."""
        for name, (offset, nbytes) in self.texts.items():
            yield Piece(name, offset, nbytes)
        for record in self.records:
            names = ", ".join(name for stack in record.stacks for name in stack.tensors)
            for matrix in range(record.count):
                which = f"{names} [{matrix}]" if record.count > 1 else names
                yield Piece(which, record.offset + matrix * record.stride, record.nbytes)
        for name, offsets in self.planes.items():
            tensor = self.tensors[name]
            for plane, offset in offsets.items():
                yield Piece(f"{name} ({plane})", offset, tensor.rows * row_bytes(tensor, plane))
        for name, offset in self.zeros.items():
            yield Piece(f"{name} (zero scales)", offset, self.tensors[name].rows * zero_bytes(self.tensors[name].shape[-1]))

    def is_native(self, format: str, lanes: int, biased: bool) -> bool:
        """Whether kernels with such panels take this file's of a format as they are."""
        return self.lanes == lanes and (format not in BYTES or self.biased == biased)


def padded(nbytes: int, multiple: int) -> int:
    return -(-nbytes // multiple) * multiple


def row_bytes(tensor: StoredTensor, plane: str) -> int:
    return tensor.format.planes(tensor.shape[-1])[plane].nbytes


def zero_bytes(columns: int) -> int:
    """Bytes of a row's bits for zero scales."""
    return -(-columns // 256)


def matrices(tensor: StoredTensor) -> tuple[int, int, int]:
    """(matrices, rows, columns)."""
    return prod(tensor.shape[:-2]), tensor.shape[-2], tensor.shape[-1]


def lay_out(
    lanes: int,
    biased: bool,
    tensors: Sequence[StoredTensor],
    groups: Sequence[Group],
    texts: Sequence[tuple[str, int]],
    nbytes: int,
) -> Layout:
    """The places of everything in a file whose table has so many bytes. Raises BadTable for too many pieces."""
    layout = Layout(lanes, biased, {tensor.name: tensor for tensor in tensors})
    inside = {name for group in groups for names, _ in group for name in names}
    plain = [tensor for tensor in tensors if tensor.name not in inside]
    packed = [tensor for tensor in tensors if tensor.name in inside and tensor.format.name == "mxfp4"]
    count = len(texts) + len(packed) + sum(matrices(layout.tensors[group[0][0][0]])[0] for group in groups)
    count += sum(len(tensor.format.planes(tensor.shape[-1])) for tensor in plain)
    if count > MAX_PIECES:
        raise BadTable(f"{count} records and planes, more than {MAX_PIECES}")
    layout.hashes = padded(PREAMBLE.size + nbytes, SMALL)
    at = layout.hashes + count * HASH_BYTES
    for name, size in texts:
        at = padded(at, SMALL)
        layout.texts[name] = at, size
        at += size
    for group in groups:
        record = _record(layout, group, padded(at, PAGE))
        layout.records.append(record)
        at = record.offset + record.count * record.stride
    at = padded(at, PAGE)
    for tensor in plain:
        layout.planes[tensor.name] = {}
        for plane in tensor.format.planes(tensor.shape[-1]):
            layout.planes[tensor.name][plane] = at
            at = padded(at + tensor.rows * row_bytes(tensor, plane), SMALL)
    for tensor in packed:
        layout.zeros[tensor.name] = at
        at = padded(at + tensor.rows * zero_bytes(tensor.shape[-1]), SMALL)
    layout.size = padded(at, PAGE) + PAGE  # kernels may read past a panel's end
    return layout


def _record(layout: Layout, group: Group, offset: int) -> Record:
    stacks, at = [], 0
    for names, interleave in group:
        shapes = [matrices(layout.tensors[name]) for name in names]
        count, _, columns = shapes[0]
        form = layout.tensors[names[0]].format.name
        shape = Geometry(form, sum(rows for _, rows, _ in shapes), columns, layout.lanes)
        stacks.append(Stack(tuple(names), interleave, shape, count, at))
        at += shape.nbytes
    record = Record(tuple(stacks), stacks[0].matrices, offset, at)
    for stack in stacks:
        first = 0
        for name in stack.tensors:
            layout.panels[name] = InPanels(record, stack, first, len(stack.tensors) if stack.interleave else 1)
            first += 1 if stack.interleave else layout.tensors[name].shape[-2]
    return record
