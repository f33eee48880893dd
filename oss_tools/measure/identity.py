"""Which bytes a model is: the sha256 that records carry.

Hashing 12 GB takes some ten seconds, so what was hashed is remembered in the user's cache folder, for as long as the file's
size, times and place on the disk are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from numba_kernels.cache_folder import private_folder, user_cache

MAX_REMEMBERED = 1000  # files
MAX_BYTES = 4 << 20  # of the file that remembers them


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
    known = _read() if remember else {}
    state = _state(file)
    if known.get(str(file), [None])[:-1] == state:
        return str(known[str(file)][-1])
    if file.stat().st_size > 2 << 30:
        say(f"hashing {file.name}, for the record")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if remember and _state(file) == state:  # else it was written to meanwhile
        known = _read()
        known.pop(str(file), None)
        known[str(file)] = [*state, found]
        _write(dict(list(known.items())[-MAX_REMEMBERED:]))
    return found


def _state(file: Path) -> list[int]:
    """What changes when a file's bytes do."""
    s = file.stat()
    return [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev]


def _place() -> Path | None:
    """The file that remembers; None where somebody else could write in it, who could say then what a model's bytes are."""
    root = user_cache()
    folder = private_folder(root, "oss-tools") if root else None
    return folder / "hashes.json" if folder else None


def _read() -> dict[str, list]:
    """What is remembered: path -> state and hash. Nothing, if that cannot be read or is damaged."""
    place = _place()
    try:
        if place is None or place.stat().st_size > MAX_BYTES:
            return {}
        raw = json.loads(place.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(raw, dict):
        return {}
    return {k: v for k, v in raw.items() if isinstance(v, list) and len(v) == 6 and _is_hash(v[-1])}


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _write(known: dict[str, list]) -> None:
    """Keeps it; where the cache folder cannot be written, the next run hashes again."""
    place = _place()
    try:
        if place is None:
            return
        with tempfile.NamedTemporaryFile("w", dir=place.parent, delete=False, encoding="utf-8") as file:
            json.dump(known, file)
        os.replace(file.name, place)
    except OSError:
        return
