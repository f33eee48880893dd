"""Typed values of a GGUF file, one behind another: numbers, strings, arrays; read from a file that is not to be trusted.

Every length is held against the file's size before memory is taken for it. Arrays of strings (vocabularies) are walked over but
decoded only when asked for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, overload

import numpy as np
from gguf.constants import GGUFValueType

from oss_tools.errors import BadCheckpoint

CHUNK = 4 << 20  # bytes read at a time
MAX_HEADER = 256 << 20  # bytes; the largest published headers are some 20 MB of vocabulary
MAX_STRINGS = 1 << 22  # in all arrays together; the largest vocabularies with their merges have some 800,000
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
U32, U64 = SCALARS[GGUFValueType.UINT32], SCALARS[GGUFValueType.UINT64]


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
            (length,) = U64.unpack_from(data, position)
            position += 8 + length
            try:
                strings.append(data[position - length : position].decode())
            except UnicodeDecodeError:
                raise BadCheckpoint(f"{self._where}[{index}] is not UTF-8") from None
        return strings


class Cursor:
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
        length = self.scalar(U64, what)
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
        buffer, unpack = self.buffer, U64.unpack_from
        loaded = len(buffer)
        for _ in range(count):
            if position + 8 > loaded:
                loaded = self.load(position + 8, what)
            position += 8 + unpack(buffer, position)[0]
            if position > loaded:
                loaded = self.load(position, what)
        self.position = position
        return bytes(buffer[start:position])


def read_value(cursor: Cursor, what: str) -> Any:
    """A value behind its type: numbers, booleans and strings as Python's, arrays as NumPy's or StringArray."""
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


def _value_type(cursor: Cursor, what: str) -> GGUFValueType:
    number = cursor.scalar(U32, what)
    try:
        return GGUFValueType(number)
    except ValueError:
        cursor.fail(f"{what} has the unknown value type {number}")


def _read_array(cursor: Cursor, what: str) -> np.ndarray | StringArray:
    kind = _value_type(cursor, what)
    count = cursor.scalar(U64, what)
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
