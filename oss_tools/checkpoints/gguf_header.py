"""The header of a GGUF file: key-values and tensor infos, read from a file that is not to be trusted.

Layout after https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian). Every length and
count is held against the file's size before memory is taken for it. Arrays of strings (vocabularies) are walked over but
decoded only when asked for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, overload

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_VERSION,
    GGMLQuantizationType,
    GGUFValueType,
    Keys,
)

from oss_tools.checkpoints.files import what_bytes_are
from oss_tools.errors import BadCheckpoint

MAGIC = b"GGUF"
VERSIONS = (2, GGUF_VERSION)
CHUNK = 4 << 20  # bytes read at a time
MAX_HEADER = 256 << 20  # bytes; the largest published headers are some 20 MB of vocabulary
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16  # those with one tensor for each expert have some 20,000
MAX_STRINGS = 1 << 22  # in all arrays together; the largest vocabularies with their merges have some 800,000
MAX_KEY = 1024  # bytes of a key's name
MAX_NAME = 64  # bytes of a tensor's name
FACTS_OF_THE_FILE = (
    "architecture",
    "type",
    "alignment",
    "file_type",
    "quantization_version",
    "size_label",
)  # of `general.*`; the others describe the model
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
OLLAMA_GPT_OSS = "gptoss"  # Ollama's own name of the architecture
OLLAMA_MXFP4 = 4  # the type number of MXFP4 in its early files (ollama/ollama: fs/ggml/type.go)
REMOVED_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
FIRST_OF_IK_LLAMA = 97  # ikawrakow/ik_llama.cpp: ggml/include/ggml.h

SCALARS = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<B"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}
Pread = Callable[[int, int, int], bytes]
_U32, _U64 = SCALARS[GGUFValueType.UINT32], SCALARS[GGUFValueType.UINT64]


class StringArray(Sequence[str]):
    """An array of strings as it lies in the file, decoded when first looked into. Its length is known at once.

    Raises BadCheckpoint on access if a string is not UTF-8.
    """

    def __init__(self, data: bytes, count: int, where: str) -> None:
        self._data, self._count, self._where = data, count, where
        self._strings: list[str] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.strings[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.strings)

    def __repr__(self) -> str:
        return f"<{self._count} strings>"

    @property
    def strings(self) -> list[str]:
        """All of them."""
        if self._strings is None:
            self._strings = self._decode()
            self._data = b""
        return self._strings

    def _decode(self) -> list[str]:
        data, position, strings = self._data, 0, []
        for index in range(self._count):
            (length,) = _U64.unpack_from(data, position)
            position += 8 + length
            try:
                strings.append(data[position - length : position].decode())
            except UnicodeDecodeError:
                raise BadCheckpoint(f"{self._where}[{index}] is not UTF-8") from None
        return strings


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's entry in the header.

    Attributes:
        name: its name.
        shape: the axes, slowest first (the file lists them fastest first).
        ggml_type: the number format.
        offset: of its first byte, from the file's start.
        nbytes: how long it is.
        in_value_order: whether an MXFP4 block's codes lie as OpenAI has them, two neighbours a byte (Ollama's early files).
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: GGMLQuantizationType
    offset: int
    nbytes: int
    in_value_order: bool = False


@dataclass(frozen=True)
class Header:
    """A GGUF file's header.

    Attributes:
        version: 2 or 3.
        keys: the key-values. Numbers, booleans and strings are Python's; arrays are NumPy's, or StringArray. A 32-bit float
            is the shortest decimal that rounds to it (1e-05, not 9.999999747378752e-06).
        tensors: in file order.
        data_start: where the tensor data begins.
    """

    version: int
    keys: dict[str, Any]
    tensors: list[TensorInfo]
    data_start: int


class _Cursor:
    """Walks over a file's bytes; what was read stays in `buffer`."""

    def __init__(self, descriptor: int, path: Path, pread: Pread) -> None:
        self.descriptor, self.path, self.pread = descriptor, path, pread
        self.size = os.fstat(descriptor).st_size
        self.buffer = bytearray()
        self.position = 0
        self.strings = 0  # that were walked over

    def fail(self, message: str) -> NoReturn:
        raise BadCheckpoint(f"{self.path}: {message}")

    def load(self, end: int, what: str) -> int:
        """Reads on until the buffer reaches `end`; returns how far it reaches."""
        if end > self.size:
            self.fail(f"damaged or cut off: {what} would end at byte {end}, the file has {self.size}")
        if end > MAX_HEADER:
            self.fail(f"the header is longer than {MAX_HEADER >> 20} MiB at {what}; no model needs that")
        while len(self.buffer) < end:
            chunk = self.pread(self.descriptor, max(end - len(self.buffer), CHUNK), len(self.buffer))
            if not chunk:
                self.fail(f"cut off at byte {len(self.buffer)} while it was read")
            self.buffer += chunk
        return len(self.buffer)

    def peek(self, count: int) -> bytes:
        """Up to so many bytes from here on, without moving."""
        end = min(self.position + count, self.size)
        self.load(end, "the beginning")
        return bytes(self.buffer[self.position : end])

    def take(self, count: int, what: str) -> bytes:
        self.load(self.position + count, what)
        self.position += count
        return bytes(self.buffer[self.position - count : self.position])

    def scalar(self, kind: struct.Struct, what: str) -> Any:
        self.load(self.position + kind.size, what)
        (value,) = kind.unpack_from(self.buffer, self.position)
        self.position += kind.size
        return value

    def string(self, what: str, limit: int = MAX_HEADER) -> str:
        length = self.scalar(_U64, what)
        if length > limit:
            self.fail(f"{what} claims {length} bytes, at most {limit} are allowed")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def name(self, what: str, limit: int) -> str:
        """A short printable string."""
        found = self.string(what, limit)
        if not found or not found.isprintable():
            self.fail(f"{what} is {found[:80]!r}, expected printable text")
        return found

    def skip_strings(self, count: int, what: str) -> bytes:
        """Walks over an array of strings and returns its bytes, lengths included."""
        self.strings += count
        if self.strings > MAX_STRINGS:
            self.fail(
                f"{what} and the lists before it hold {self.strings} texts, more than {MAX_STRINGS}; no model needs that"
            )
        start = position = self.position
        buffer, unpack = self.buffer, _U64.unpack_from
        loaded = len(buffer)
        for _ in range(count):
            if position + 8 > loaded:
                loaded = self.load(position + 8, what)
            position += 8 + unpack(buffer, position)[0]
            if position > loaded:
                loaded = self.load(position, what)
        self.position = position
        return bytes(buffer[start:position])


def read_header(descriptor: int, path: Path, pread: Pread = os.pread) -> Header:
    """Reads and checks the header of an open GGUF file. Raises BadCheckpoint.

    `path` is for messages; `pread` takes descriptor, count and offset as os.pread does, and may fetch what is still missing.
    """
    cursor = _Cursor(descriptor, path, pread)
    version, tensor_count, key_count = _read_start(cursor)
    keys: dict[str, Any] = {}
    for index in range(key_count):
        key = cursor.name(f"the name of key {index}", MAX_KEY)
        if key in keys:
            cursor.fail(f"two keys are named {key}")
        keys[key] = _read_value(cursor, f"key {key}")
    alignment = _alignment(cursor, keys)
    ollama = keys.get(Keys.General.ARCHITECTURE) == OLLAMA_GPT_OSS
    infos = [_read_info(cursor, index, ollama) for index in range(tensor_count)]
    start = -(-cursor.position // alignment) * alignment
    if infos:
        _check_places(cursor, infos, start, alignment)
    tensors = [replace(info, offset=start + info.offset) for info in infos]
    return Header(version, keys, tensors, start)


def _read_start(cursor: _Cursor) -> tuple[int, int, int]:
    """(version, tensors, keys), the counts held against the file's size."""
    head = cursor.peek(512)
    if not head.startswith(MAGIC):
        if head[8:9] == b"{":
            cursor.fail("a safetensors file under another name; name it .safetensors")
        if not head:
            cursor.fail("an empty file: cut off, or a download that has not begun")
        cursor.fail(what_bytes_are(head) or "not a GGUF file: it does not begin with GGUF")
    cursor.take(4, "the magic number")
    version = cursor.scalar(_U32, "the version")
    if version and version & 0xFFFF == 0:
        cursor.fail("a big-endian GGUF file; only little-endian ones can be read")
    if version not in VERSIONS:
        cursor.fail(f"GGUF version {version} is not supported; supported: {', '.join(map(str, VERSIONS))}")
    tensors, keys = cursor.scalar(_U64, "the number of tensors"), cursor.scalar(_U64, "the number of keys")
    room = cursor.size - cursor.position
    for count, limit, least, what in ((tensors, MAX_TENSORS, 32, "tensors"), (keys, MAX_KEYS, 13, "keys")):
        if count > limit or count * least > room:
            cursor.fail(f"the header claims {count} {what}, which a file of {cursor.size} bytes cannot hold")
    return version, tensors, keys


def _read_value(cursor: _Cursor, what: str) -> Any:
    kind = _value_type(cursor, what)
    if kind == GGUFValueType.ARRAY:
        return _read_array(cursor, what)
    if kind == GGUFValueType.STRING:
        return cursor.string(what)
    value = cursor.scalar(SCALARS[kind], what)
    if kind == GGUFValueType.BOOL:
        if value > 1:
            cursor.fail(f"{what} is a boolean of value {value}")
        return bool(value)
    return float(str(np.float32(value))) if kind == GGUFValueType.FLOAT32 else value


def _value_type(cursor: _Cursor, what: str) -> GGUFValueType:
    number = cursor.scalar(_U32, what)
    try:
        return GGUFValueType(number)
    except ValueError:
        cursor.fail(f"{what} has the unknown value type {number}")


def _read_array(cursor: _Cursor, what: str) -> np.ndarray | StringArray:
    kind = _value_type(cursor, what)
    count = cursor.scalar(_U64, what)
    if kind == GGUFValueType.ARRAY:
        cursor.fail(f"{what} is an array of arrays, which no model uses")
    size = 8 if kind == GGUFValueType.STRING else SCALARS[kind].size
    if count * size > cursor.size - cursor.position:
        cursor.fail(f"{what} claims {count} values, more than the file has room for")
    if kind == GGUFValueType.STRING:
        return StringArray(cursor.skip_strings(count, what), count, f"{cursor.path}: {what}")
    data = cursor.take(count * size, what)
    if kind == GGUFValueType.BOOL:
        return np.frombuffer(data, np.uint8) != 0
    return np.frombuffer(data, np.dtype(SCALARS[kind].format))


def _alignment(cursor: _Cursor, keys: dict[str, Any]) -> int:
    alignment = keys.get(Keys.General.ALIGNMENT, GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.fail(f"key {Keys.General.ALIGNMENT} is {str(alignment)[:80]!r}, expected a power of two")
    return alignment


def _read_info(cursor: _Cursor, index: int, ollama: bool) -> TensorInfo:
    """One tensor's entry; its offset is still counted from the data's start."""
    name = cursor.name(f"the name of tensor {index}", MAX_NAME)
    what = f"tensor {name}"
    dims = cursor.scalar(_U32, what)
    if dims > MAX_DIMS:
        cursor.fail(f"{what} has {dims} axes, at most {MAX_DIMS} are allowed")
    shape = tuple(cursor.scalar(_U64, what) for _ in range(dims))[::-1] or (1,)
    number = cursor.scalar(_U32, what)
    offset = cursor.scalar(_U64, what)
    in_value_order = ollama and number == OLLAMA_MXFP4
    try:
        ggml_type = GGMLQuantizationType.MXFP4 if in_value_order else GGMLQuantizationType(number)
        block, size = GGML_QUANT_SIZES[ggml_type]
    except (ValueError, KeyError):
        cursor.fail(f"{what} has the {_unknown_type(number)}")
    if 0 in shape or shape[-1] % block:
        cursor.fail(f"{what} has shape {list(shape)}, impossible for blocks of {block} {ggml_type.name} values")
    values = 1
    for axis in shape:
        values *= axis
    return TensorInfo(name, shape, ggml_type, offset, values // block * size, in_value_order)


def _unknown_type(number: int) -> str:
    """A tensor's number format that gguf-py does not know, as a message names it."""
    if number in REMOVED_TYPES:
        return f"format {REMOVED_TYPES[number]} (type {number}), which llama.cpp has removed; take a file in another format"
    if number >= FIRST_OF_IK_LLAMA:
        return f"unknown number format {number}; such numbers are ik_llama.cpp's own (IQ4_K …): take a file for llama.cpp"
    return f"unknown number format {number}"


def _check_places(cursor: _Cursor, infos: list[TensorInfo], start: int, alignment: int) -> None:
    """Names unique; offsets aligned, in order, apart, and inside the file."""
    names: set[str] = set()
    end = 0
    for info in infos:
        if info.name in names:
            cursor.fail(f"two tensors are named {info.name}")
        names.add(info.name)
        if info.offset % alignment:
            cursor.fail(f"tensor {info.name} begins at offset {info.offset}, no multiple of the alignment {alignment}")
        if info.offset < end:
            cursor.fail(f"tensor {info.name} begins at offset {info.offset}, inside or before the tensor that precedes it")
        end = info.offset + info.nbytes
        if start + end > cursor.size:
            cursor.fail(
                f"damaged or cut off: tensor {info.name} would end at byte {start + end}, the file has {cursor.size}"
            )


def row_bytes(ggml_type: int, columns: int) -> int:
    """Bytes of a row of so many values in a ggml type."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(ggml_type)]
    return columns // block * size
