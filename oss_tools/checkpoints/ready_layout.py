"""How a run-ready file is laid out: from what its table says to the place of every byte. Nothing in a file says where something
lies, so no file can say it wrongly: reader and writer compute it by the same rules, and the file's size has to agree.

    preamble (128 bytes) | table | hashes | config | metadata | companion files | records | planes | zero scales | padding

`docs/ready.md` documents this to the byte.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from numba_kernels.cpu.geometry import BYTES, Geometry, divides
from oss_tools.checkpoints.base import StoredTensor
from oss_tools.checkpoints.files import is_plain_name
from oss_tools.checkpoints.safetensors import is_sane_name
from oss_tools.formats import all_formats

MAGIC = b"OSSREADY"
VERSION = 1
ORDER = 0x01020304  # as it reads where bytes are in the file's order, little-endian
PREAMBLE = struct.Struct("<8sIIQQ32s32s32x")  # magic, version, order, file size, table size, sha256 of table and of hashes
HASH_BYTES = 32
SMALL, PAGE = 64, 4096  # what offsets are multiples of: of planes and texts, of records
MAX_TABLE = 64 << 20
MAX_TENSORS = 1 << 18
MAX_PIECES = 1 << 20  # each has a hash; the largest published models have some 20,000
MAX_FILES = 64
MAX_AXES = 16
LANES = (8, 16)

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


# ---- the table ------------------------------------------------------------------------------------------------------


def chosen(groups: Sequence[Group], tensors: Mapping[str, StoredTensor]) -> list[Group]:
    """What of the stacks that kernels would like can be had: tensors that are there and have panels, of one format in a stack.
    Tensors that only lie one under another get stacks of their own where their formats differ."""
    found: list[Group] = []
    taken: set[str] = set()
    for group in groups:
        stacks: Group = []
        for names, interleave in group:
            if any(name not in tensors or name in taken for name in names):
                continue
            together = len({tensors[name].format for name in names}) == 1
            parts = [names] if together else [] if interleave else [[name] for name in names]
            stacks += [(part, interleave) for part in parts if all(_has_panels(tensors[name]) for name in part)]
        counts = {matrices(tensors[names[0]])[0] for names, _ in stacks}
        found += [stacks] if len(counts) == 1 and max(counts) > 1 else [[stack] for stack in stacks]
        taken |= {name for names, _ in stacks for name in names}
    return found


def _has_panels(tensor: StoredTensor) -> bool:
    return len(tensor.shape) > 1 and divides(tensor.format.name, tensor.shape[-1])


def table(
    lanes: int, biased: bool, tensors: Sequence[StoredTensor], groups: Sequence[Group], texts: Mapping[str, bytes]
) -> dict[str, Any]:
    """What a file's table says. `texts`: config, metadata, then companion files."""
    return {
        "lanes": lanes,
        "biased": biased,
        "tensors": [[t.name, t.format.name, list(t.shape)] for t in tensors],
        "records": [[[list(names), interleave] for names, interleave in group] for group in groups],
        "texts": [[name, len(content)] for name, content in texts.items()],
    }


def table_bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")


def read_table(content: Mapping[str, Any], nbytes: int, file_size: int) -> Layout:
    """The layout that a table of so many bytes stands for. Raises BadTable; takes no memory that the table has not."""
    if set(content) != {"lanes", "biased", "tensors", "records", "texts"}:
        raise BadTable("its keys are not those of a run-ready file")
    lanes, biased = content["lanes"], content["biased"]
    if type(lanes) is not int or lanes not in LANES or type(biased) is not bool:
        raise BadTable(f"lanes are {str(lanes)[:20]!r}, biased {str(biased)[:20]!r}")
    tensors = _tensors(content["tensors"], file_size)
    groups = _groups(content["records"], tensors)
    return lay_out(lanes, biased, tensors, groups, _texts(content["texts"], file_size), nbytes)


def _tensors(listed: Any, file_size: int) -> list[StoredTensor]:
    if not isinstance(listed, list) or len(listed) > MAX_TENSORS:
        raise BadTable(f"tensors are no list, or more than {MAX_TENSORS}")
    formats, found = all_formats(), dict[str, StoredTensor]()
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 3 or not all(isinstance(text, str) for text in entry[:2]):
            raise BadTable(f"the tensor {str(entry)[:80]!r} is no [name, format, shape]")
        name, format, shape = entry
        if not is_sane_name(name) or name in found:
            raise BadTable(f"tensor name {name[:80]!r} is empty, too long, unprintable or there twice")
        if format not in formats:
            raise BadTable(f"tensor {name}: no number format named {format[:40]!r}")
        sane = (
            isinstance(shape, list) and 0 < len(shape) <= MAX_AXES and all(type(axis) is int and axis > 0 for axis in shape)
        )
        if not sane:
            raise BadTable(f"tensor {name}: the shape {str(shape)[:80]} is none")
        if not formats[format].fits(shape[-1]):
            raise BadTable(f"tensor {name}: {shape[-1]} columns do not divide into blocks of {format}")
        if prod(shape) > 64 * file_size:  # no format has less than an eighth of a byte for a value
            raise BadTable(f"tensor {name}: {prod(shape)} values cannot lie in a file of {file_size} bytes")
        found[name] = StoredTensor(name, formats[format], tuple(shape))
    return list(found.values())


def _groups(listed: Any, tensors: Sequence[StoredTensor]) -> list[Group]:
    by_name = {tensor.name: tensor for tensor in tensors}
    taken: set[str] = set()
    if not isinstance(listed, list):
        raise BadTable("records are no list")
    groups: list[Group] = []
    for record in listed:
        stacks: Group = []
        for stack in record if isinstance(record, list) else ():
            sane = isinstance(stack, list) and len(stack) == 2 and isinstance(stack[0], list) and type(stack[1]) is bool
            if not sane or not stack[0] or not all(isinstance(name, str) for name in stack[0]):
                raise BadTable(f"the stack {str(stack)[:80]!r} is no [[names], interleave]")
            for name in stack[0]:
                if name not in by_name or name in taken:
                    raise BadTable(f"a record holds {name[:80]!r}, which is no tensor of the file, or in another one too")
                taken.add(name)
            stacks.append((stack[0], stack[1]))
        if not stacks:
            raise BadTable("a record is empty, or no list")
        groups.append(stacks)
        _check_group(stacks, by_name)
    return groups


def _check_group(group: Group, tensors: Mapping[str, StoredTensor]) -> None:
    counts = set()
    for names, interleave in group:
        members = [tensors[name] for name in names]
        if any(not _has_panels(t) or (t.format, t.shape[-1]) != (members[0].format, members[0].shape[-1]) for t in members):
            raise BadTable(f"the tensors {', '.join(names)[:160]} have no panels in common")
        if interleave and len({t.shape[-2] for t in members}) > 1:
            raise BadTable(f"the tensors {', '.join(names)[:160]} take turns row by row, but have different numbers of them")
        counts |= {matrices(t)[0] for t in members}
    if len(counts) > 1:
        raise BadTable(f"the tensors of a record ({group[0][0][0]}, …) have different numbers of matrices")


def _texts(listed: Any, file_size: int) -> list[tuple[str, int]]:
    if not isinstance(listed, list) or not 2 <= len(listed) <= MAX_FILES + 2:
        raise BadTable(f"texts are no list of config, metadata and at most {MAX_FILES} files")
    found: dict[str, int] = {}
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str) or type(entry[1]) is not int:
            raise BadTable(f"the text {str(entry)[:80]!r} is no [name, bytes]")
        name, nbytes = entry
        if not is_plain_name(name) or name in found or not 0 <= nbytes <= file_size:
            raise BadTable(f"the text {name[:80]!r} has a bad name or size, or is there twice")
        found[name] = nbytes
    if list(found)[:2] != ["config", "metadata"]:
        raise BadTable("the first texts are not config and metadata")
    return list(found.items())


# ---- from a table to places -----------------------------------------------------------------------------------------


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


def preamble(size: int, content: bytes, hashes: bytes) -> bytes:
    """`hashes`: those of all pieces; b"" of a file that is not finished."""
    of_hashes = hashlib.sha256(hashes).digest() if hashes else bytes(HASH_BYTES)
    return PREAMBLE.pack(MAGIC, VERSION, ORDER, size, len(content), hashlib.sha256(content).digest(), of_hashes)
