"""Importance matrices of llama.cpp's `llama-imatrix`: GGUF, and the binary form that came before (`.dat`, `.imatrix`).

After https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/imatrix.cpp. In GGUF: `NAME.in_sum2`, the sums of the
squares of each input activation, and `NAME.counts`, over how many tokens; one row and one count for each expert. In the binary
form, little endian: int32 number of entries; for each an int32 length and the name, int32 calls, int32 number of values, and
float32 sums, those of all experts one after another; then, in all but the first, int32 number of chunks and the data's name.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oss_tools.checkpoints.files import read_at
from oss_tools.checkpoints.gguf_header import MAGIC, read_header
from oss_tools.errors import BadCheckpoint

SUMS, COUNTS = ".in_sum2", ".counts"
UINT32, STRING, ARRAY, F32 = 4, 8, 9, 0  # GGUF's numbers of types
ALIGNMENT = 32
MAX_NAME = 256  # bytes
MAX_ENTRIES = 1 << 20


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor to read from. Raises BadCheckpoint."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be opened: {(error.strerror or str(error)).lower()}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Means:
    """What a file says of one tensor.

    Attributes:
        values: mean squares of its inputs, float32 [matrices, K], or [matrices · K] where the file does not say how many.
        counts: over how many inputs each matrix's are, float32 [matrices]; None where the file does not say.
    """

    values: np.ndarray
    counts: np.ndarray | None


def read_gguf(path: Path) -> dict[str, Means]:
    """By GGUF tensor name. Raises BadCheckpoint."""
    with opened(path) as descriptor:
        header = read_header(descriptor, path)
        kind = header.keys.get("general.type")
        if kind != "imatrix":
            architecture = str(header.keys.get("general.architecture"))[:40]
            raise BadCheckpoint(
                f"{path}: not an importance matrix: general.type is {str(kind)[:40]!r}, general.architecture "
                f"{architecture!r}; `llama-imatrix` makes one of a model and a text"
            )
        tensors = {}
        for info in header.tensors:
            if info.name.endswith((SUMS, COUNTS)):
                if info.ggml_type.name != "F32":
                    raise BadCheckpoint(f"{path}: {info.name} is {info.ggml_type.name}, importance weights are F32")
                tensors[info.name] = read_at(descriptor, info.offset, info.nbytes, path).view(np.float32)
    means = {}
    for name, sums in tensors.items():
        counts = tensors.get(name.removesuffix(SUMS) + COUNTS)
        if not name.endswith(SUMS) or counts is None:
            continue
        if not counts.size or sums.size % counts.size:
            raise BadCheckpoint(f"{path}: {name}: {sums.size} sums for {counts.size} matrices")
        counts = counts.reshape(-1)
        means[name.removesuffix(SUMS)] = Means(sums.reshape(counts.size, -1) / np.maximum(counts[:, None], 1), counts)
    return means


def gguf_bytes(
    entries: Mapping[str, tuple[np.ndarray, np.ndarray]], datasets: Sequence[str], chunk_size: int, chunks: int
) -> bytes:
    """A file as llama-imatrix writes it.

    Args:
        entries: GGUF tensor name -> sums of squares [matrices, K] and counts [matrices].
        datasets: names of the texts.
        chunk_size: tokens of a sequence; chunks: how many sequences.
    """
    keys = _string(b"general.type") + struct.pack("<I", STRING) + _string(b"imatrix")
    keys += _string(b"imatrix.datasets") + struct.pack("<IIQ", ARRAY, STRING, len(datasets))
    keys += b"".join(_string(name.encode("utf-8", "replace")) for name in datasets)
    for key, value in ((b"imatrix.chunk_count", chunks), (b"imatrix.chunk_size", chunk_size)):
        keys += _string(key) + struct.pack("<II", UINT32, value)
    arrays = {}
    for name in sorted(entries):
        sums, counts = (np.ascontiguousarray(array, "<f4") for array in entries[name])
        arrays[name + SUMS], arrays[name + COUNTS] = sums, counts.reshape(-1, 1)
    places, offset = b"", 0
    for name, array in arrays.items():
        places += _string(name.encode()) + struct.pack("<IQQIQ", 2, array.shape[1], array.shape[0], F32, offset)
        offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    head = MAGIC + struct.pack("<IQQ", 3, len(arrays), 4) + keys + places
    return b"".join(_aligned(part) for part in (head, *(array.tobytes() for array in arrays.values())))


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _aligned(part: bytes) -> bytes:
    return part + bytes(-len(part) % ALIGNMENT)


def is_binary(head: bytes) -> bool:
    """Whether a file's first bytes are those of the binary form: a number of entries, and a tensor's name."""
    if len(head) < 9:
        return False
    entries, length = struct.unpack_from("<ii", head)
    name = head[8 : 8 + length] if 0 < length <= MAX_NAME else b""
    return 0 < entries <= MAX_ENTRIES and len(name) > 1 and name.isascii() and name.decode().isprintable()


def read_binary(path: Path) -> dict[str, Means]:
    """By GGUF tensor name. Raises BadCheckpoint."""
    with opened(path) as descriptor:
        size, at = os.fstat(descriptor).st_size, 0

        def take(count: int, what: str) -> np.ndarray:
            nonlocal at
            if count > size - at:
                raise BadCheckpoint(
                    f"{path}: an importance matrix that is cut off: {what} ends behind the file's {size} bytes"
                )
            at += count
            return read_at(descriptor, at - count, count, path)

        def number(what: str) -> int:
            return int(take(4, what).view("<i4")[0])

        means: dict[str, Means] = {}
        for entry in range(number("the number of entries")):
            where = f"entry {entry}"
            length = number(where)
            if not 0 < length <= MAX_NAME:
                raise BadCheckpoint(f"{path}: damaged: {where} of the importance matrix has a name of {length} bytes")
            name = take(length, where).tobytes().decode("utf-8", "replace")
            calls, count = number(name), number(name)
            if count < 1 or name in means:
                raise BadCheckpoint(f"{path}: {name[:80]!r} has {count} weights, or is there twice")
            means[name] = Means(take(4 * count, name).view("<f4") / np.float32(max(calls, 1)), None)
    return means
