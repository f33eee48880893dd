"""Which bytes a model is: the sha256 that records carry.

Hashing 12 GB takes some ten seconds, so what was hashed is remembered in the user's cache folder, for as long as the file's
size, times and place on the disk are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from oss_tools.machine import remembered

MAX_REMEMBERED = 1000  # files
FILE, MAX_BYTES = "hashes.json", 4 << 20


def model_sha256(files: Sequence[Path], *, remember: bool = True, say: Callable[[str], None] = lambda line: None) -> str:
    """Sha256 of the names, sizes and hashes of the files that hold a model's tensors, in order of their names.

    Args:
        files: as `Reader.files` gives them.
        remember: whether to look hashes up, and to keep them for the next time.
        say: is told before a large file is read.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        digest.update(bytes.fromhex(file_sha256(file, remember=remember, say=say)))
    return digest.hexdigest()


def file_sha256(file: Path, *, remember: bool = True, say: Callable[[str], None] = lambda line: None) -> str:
    """Sha256 of a file's bytes, in hexadecimal."""
    file = file.resolve()
    known = _remembered() if remember else {}
    state = _state(file)
    if known.get(str(file), [None])[:-1] == state:
        return str(known[str(file)][-1])
    if file.stat().st_size > 2 << 30:
        say(f"hashing {file.name}, for the record")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if remember and _state(file) == state:  # else it was written to meanwhile
        known = _remembered()
        known.pop(str(file), None)
        known[str(file)] = [*state, found]
        remembered.write(FILE, dict(list(known.items())[-MAX_REMEMBERED:]))
    return found


def _state(file: Path) -> list[int]:
    """What changes when a file's bytes do."""
    s = file.stat()
    return [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev]


def _remembered() -> dict[str, list]:
    """Path → state and hash."""
    known = remembered.read(FILE, MAX_BYTES).items()
    return {path: kept for path, kept in known if isinstance(kept, list) and len(kept) == 6 and _is_hash(kept[-1])}


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
