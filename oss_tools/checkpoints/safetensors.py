"""The safetensors file: an 8-byte little-endian length, that many bytes of JSON, then the tensors' bytes without a gap.

Format: https://github.com/huggingface/safetensors#format. Data is read with pread and written with pwrite, never mapped, so
that resident memory stays flat; both are safe from threads.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.checkpoints.data_file import DataFile
from oss_tools.checkpoints.files import full_disk_is_no_room, read_at, what_bytes_are, write_at
from oss_tools.checkpoints.json_files import parse_json
from oss_tools.errors import BadCheckpoint

MAX_HEADER = 100_000_000  # bytes, the format's own limit
MAX_TENSORS = 1 << 18  # of a file; the largest models have some 200,000 in all their files together
MAX_VALUES = 12 * MAX_TENSORS  # of the header: braces, brackets and commas that so many entries have
MAX_AXES = 16
MAX_NAME = 512

# bits per element
DTYPES = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True)
class RawTensor:
    """A tensor of a safetensors file.

    Attributes:
        name, dtype, shape: as in the header.
        offset, nbytes: where its bytes lie, counted from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return _product(self.shape)


class SafetensorsFile:
    """An open safetensors file. Opening reads the header and checks all of it against the file's length.

    Attributes:
        path: the file.
        tensors: name -> RawTensor, in order of their bytes.
        metadata: the texts by name that the header holds beside them.
        data: how the tensors' bytes are read.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadCheckpoint, naming file, tensor and fault."""
        self.path = path
        try:
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):
                raise BadCheckpoint(f"{path}: not a regular file")
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadCheckpoint(f"{path}: cannot be opened: {error.strerror}") from None
        self.data = DataFile(self._fd, path)
        try:
            self.tensors = self._parse_header(os.fstat(self._fd).st_size)
        except BaseException:
            self.close()
            raise

    def _parse_header(self, size: int) -> dict[str, RawTensor]:
        first = read_at(self._fd, 0, min(512, size), self.path).tobytes()
        if first[8:9] != b"{" and (foreign := what_bytes_are(first)):  # else it is the header, behind its length
            raise BadCheckpoint(f"{self.path}: {foreign}")
        if first.startswith(b"GGUF"):
            raise BadCheckpoint(f"{self.path}: a GGUF file under another name; name it .gguf")
        if size < 8:
            raise BadCheckpoint(
                f"{self.path}: {size} bytes are too few for a safetensors file{' (it is empty)' * (not size)}"
            )
        length = int.from_bytes(read_at(self._fd, 0, 8, self.path).tobytes(), "little")
        if length > MAX_HEADER:
            raise BadCheckpoint(f"{self.path}: the header claims {length} bytes, more than the {MAX_HEADER} allowed")
        if 8 + length > size:
            raise BadCheckpoint(f"{self.path}: the header claims {length} bytes, the file has {size}; it is truncated")
        text = read_at(self._fd, 8, length, self.path).tobytes()
        if not text.startswith(b"{"):
            raise BadCheckpoint(f"{self.path}: the header does not begin with '{{'; not a safetensors file")
        header = parse_json(text, f"{self.path}: header", MAX_VALUES)
        said = header.pop("__metadata__", None)
        self.metadata = {k: v for k, v in said.items() if isinstance(v, str)} if isinstance(said, dict) else {}
        if len(header) > MAX_TENSORS:
            raise BadCheckpoint(f"{self.path}: {len(header)} tensors, more than the {MAX_TENSORS} that a file may hold")
        tensors = [self._parse_entry(name, entry, 8 + length) for name, entry in header.items()]
        tensors.sort(key=lambda t: (t.offset, t.nbytes))
        self._check_layout(tensors, 8 + length, size)
        return {t.name: t for t in tensors}

    def _parse_entry(self, name: str, entry: Any, data_start: int) -> RawTensor:
        if not is_sane_name(name):
            raise BadCheckpoint(f"{self.path}: tensor name {name[:80]!r} is empty, too long or unprintable")
        where = f"{self.path}: tensor {name}"
        if not isinstance(entry, dict):
            raise BadCheckpoint(f"{where}: its entry is not an object")
        dtype = entry.get("dtype")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise BadCheckpoint(f"{where}: unknown dtype {str(dtype)[:40]!r}")
        shape = _sizes(entry.get("shape"))
        if shape is None or len(shape) > MAX_AXES:
            raise BadCheckpoint(f"{where}: its shape is not a list of at most {MAX_AXES} sizes")
        offsets = _sizes(entry.get("data_offsets"))
        if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise BadCheckpoint(f"{where}: data_offsets are not two ascending offsets")
        bits = _product(shape) * DTYPES[dtype]
        if bits != 8 * (offsets[1] - offsets[0]):
            raise BadCheckpoint(
                f"{where}: {offsets[1] - offsets[0]} bytes by its offsets, but {dtype} {shape} takes {-(-bits // 8)}"
            )
        return RawTensor(name, dtype, tuple(shape), data_start + offsets[0], offsets[1] - offsets[0])

    def _check_layout(self, tensors: list[RawTensor], start: int, size: int) -> None:
        """The tensors' bytes must cover the rest of the file, in turn, without overlap or hole."""
        for tensor in tensors:
            if tensor.offset + tensor.nbytes > size:
                end = tensor.offset + tensor.nbytes
                raise BadCheckpoint(
                    f"{self.path}: tensor {tensor.name} ends at byte {end}, the file at {size}; it is truncated"
                )
            if tensor.offset != start:
                fault = "overlaps the tensor before it" if tensor.offset < start else "leaves a hole before it"
                raise BadCheckpoint(f"{self.path}: tensor {tensor.name} {fault}")
            start += tensor.nbytes
        if start != size:
            raise BadCheckpoint(f"{self.path}: {size - start} bytes follow the last tensor")

    def read(self, tensor: RawTensor, start: int, stop: int) -> np.ndarray:
        """Bytes [start, stop) of a tensor's data: uint8 [stop - start], freshly allocated."""
        if not 0 <= start <= stop <= tensor.nbytes:
            raise IndexError(f"bytes {start}..{stop} of {tensor.name}, which has {tensor.nbytes}")
        return self.data.read(tensor.offset + start, stop - start)

    @property
    def descriptor(self) -> int:
        """Of the open file."""
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            self.data.close()
            os.close(self._fd)
            self._fd = -1


class SafetensorsWriter:
    """A safetensors file laid out in full when opened; tensors are then written at their offsets in any order.

    Opening an existing file with the same tensors keeps what was written. Wider elements come first, so that every
    tensor's bytes are aligned to its elements; within a width the given order holds.

    Attributes:
        path: the file.
        tensors: name -> RawTensor.
    """

    def __init__(
        self,
        path: Path,
        tensors: Iterable[tuple[str, str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
        mode: int = 0o644,
    ) -> None:
        """Creates the file with its final length and header, from (name, dtype, shape). `metadata`: texts by name for the header,
        in place of those that mark weights. Raises NoRoom."""
        self.path = path
        header, self.tensors, size = _lay_out(list(tensors), metadata or {"format": "pt"})
        self._writing = threading.Lock()
        with full_disk_is_no_room(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
            try:
                os.ftruncate(self._fd, size)
                write_at(self._fd, 0, np.frombuffer(header, np.uint8), path)
            except BaseException:
                self.close()
                raise

    def write(self, name: str, start: int, data: np.ndarray) -> None:
        """Writes an array's bytes at byte `start` of a tensor's data. Thread-safe. Raises NoRoom."""
        tensor = self.tensors[name]
        if not 0 <= start <= start + data.nbytes <= tensor.nbytes:
            raise IndexError(f"bytes {start}..{start + data.nbytes} of {name}, which has {tensor.nbytes}")
        with self._writing:  # the system lets one thread write to a file at a time; others would wait for it busily
            write_at(self._fd, tensor.offset + start, data, self.path)

    def sync(self) -> None:
        """Flushes to disk. Raises NoRoom."""
        with full_disk_is_no_room(self.path):
            os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def is_sane_name(name: str) -> bool:
    """Whether a tensor's name is of printable characters, and neither empty nor very long."""
    return 0 < len(name) <= MAX_NAME and name.isprintable()


def _lay_out(
    tensors: list[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, RawTensor], int]:
    """(header with its length, tensors with offsets, size of the file). The header is padded to a multiple of 8 bytes."""
    tensors = sorted(tensors, key=lambda t: -DTYPES[t[1]])
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, dtype, shape in tensors:
        nbytes = _product(shape) * DTYPES[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    raw = {}
    for name, dtype, shape in tensors:
        first, last = entries[name]["data_offsets"]
        raw[name] = RawTensor(name, dtype, shape, base + first, last - first)
    return len(text).to_bytes(8, "little") + text, raw, base + end


def _sizes(values: Any) -> list[int] | None:
    """A list of non-negative integers; None if it is something else."""
    fine = isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)
    return values if fine else None


def _product(shape: Iterable[int]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size
