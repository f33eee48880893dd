"""The first 128 bytes of a run-ready file: its version, its size, and the hashes of what follows."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from oss_tools.checkpoints.files import read_at, what_bytes_are
from oss_tools.errors import BadCheckpoint

MAGIC = b"OSSREADY"
VERSION = 1
ORDER = 0x01020304  # as it reads where bytes are in the file's order, little-endian
PREAMBLE = struct.Struct("<8sIIQQ32s32s32x")  # magic, version, order, file size, table size, sha256 of table and of hashes
HASH_BYTES = 32
MAX_TABLE = 64 << 20


@dataclass(frozen=True)
class Preamble:
    """Bytes of the file and of its table; sha256 of the table and of the hashes."""

    size: int
    table_size: int
    table_hash: bytes
    hashes_hash: bytes


def read_preamble(descriptor: int, path: Path) -> Preamble:
    """Of an open file. Raises BadCheckpoint for one that is not run-ready, of another version, cut short or not finished."""
    size = os.fstat(descriptor).st_size
    head = read_at(descriptor, 0, min(size, PREAMBLE.size), path).tobytes()
    if size < PREAMBLE.size:
        what = "an empty file" if not size else what_bytes_are(head) or f"only {size} bytes long; is the copy complete?"
        raise BadCheckpoint(f"{path}: {what}")
    magic, version, order, file_size, table_size, table_hash, hashes_hash = PREAMBLE.unpack(head)
    if magic != MAGIC:
        raise BadCheckpoint(f"{path}: {what_bytes_are(head) or 'not a run-ready file'}")
    if version != VERSION or order != ORDER:
        raise BadCheckpoint(
            f"{path}: version {version} of the run-ready file (byte order {order:#x}); this program reads {VERSION} "
            f"({ORDER:#x}); make it anew from the checkpoint that it was made of"
        )
    if size != file_size:
        raise BadCheckpoint(f"{path}: {size} bytes long, {file_size} are meant; is the copy complete?")
    if hashes_hash == bytes(HASH_BYTES):
        raise BadCheckpoint(f"{path}: was never finished; make it anew")
    if not 0 < table_size <= min(MAX_TABLE, size - PREAMBLE.size):
        raise BadCheckpoint(f"{path}: a table of {table_size} bytes, which does not fit into the file")
    return Preamble(size, table_size, table_hash, hashes_hash)


def preamble(size: int, content: bytes, hashes: bytes) -> bytes:
    """Of a file of so many bytes with this table. `hashes`: those of all pieces; b"" of a file that is not finished."""
    of_hashes = hashlib.sha256(hashes).digest() if hashes else bytes(HASH_BYTES)
    return PREAMBLE.pack(MAGIC, VERSION, ORDER, size, len(content), hashlib.sha256(content).digest(), of_hashes)
