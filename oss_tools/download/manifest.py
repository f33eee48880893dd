"""The checksums of what was downloaded, in a file beside it, and the check against them at any later time."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oss_tools import __version__
from oss_tools.checkpoints.files import is_plain_name, replace_file
from oss_tools.checkpoints.json_files import json_bytes, read_json
from oss_tools.download.addresses import shown
from oss_tools.download.layout import MANIFEST, MAX_MANIFEST
from oss_tools.download.quantizations import PART
from oss_tools.download.transfer import RemoteFile, digests
from oss_tools.errors import BadCheckpoint

NAME, MAX_BYTES = MANIFEST, MAX_MANIFEST
SCHEMA = 1
LEVELS = 3  # folders above a file in which its manifest is looked for
BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a file of the hub's cache: its git id or its sha256


@dataclass(frozen=True)
class Entry:
    """A downloaded file.

    Attributes:
        path: relative to the manifest's folder.
        bytes: its size.
        sha256: of its content, as read back from disk.
        verified_by: the published checksum that it was held against: sha256, git, or nothing.
        url: where it came from.
    """

    path: str
    bytes: int
    sha256: str
    verified_by: str
    url: str


@dataclass(frozen=True)
class Check:
    """One file's outcome: `fault` is "" if it is as it was."""

    path: str
    bytes: int
    fault: str


def entry(file: RemoteFile, sha256: str) -> Entry:
    return Entry(file.path, file.size, sha256, file.verified_by, shown(file.url))


def read(folder: Path) -> dict[str, Entry]:
    """The entries of a folder's manifest by path; {} if it has none. A link is none of ours: huggingface_hub makes one of what a
    repository calls so. Raises BadCheckpoint."""
    path = folder / NAME
    if path.is_symlink() or not path.exists():
        return {}
    content = read_json(path, MAX_BYTES)
    try:
        entries = [Entry(**{key: item[key] for key in Entry.__annotations__}) for item in content["files"]]
    except (KeyError, TypeError) as error:
        raise BadCheckpoint(f"{path}: not a manifest of a download: {error!r}") from None
    for found in entries:
        if not isinstance(found.path, str) or not all(map(is_plain_name, found.path.split("/"))):
            raise BadCheckpoint(f"{path}: {str(found.path)[:80]!r} is no name of a file in its folder")
    return {found.path: found for found in entries}


def write(folder: Path, entries: list[Entry], facts: dict[str, Any]) -> Path:
    """Adds entries to a folder's manifest; `facts` (repository, commit) describe the newest download. Raises NoRoom."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    if path.is_symlink():
        path.unlink()  # else what it leads to would be written over
    with _locked(folder):
        merged = {e.path: e for e in [*read(folder).values(), *entries]}
        content = {"schema": SCHEMA, "oss_tools": __version__, **facts, "files": [asdict(e) for e in merged.values()]}
        replace_file(path, json_bytes(content))
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing the folder's manifest."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def expected(path: Path) -> tuple[Path, dict[str, Entry]]:
    """The folder, and the files in it whose checksums are known: from the manifest there or in a folder above, or from the hub's
    cache, which names files by checksum. `path` is a folder or a file; a part of a split GGUF file means all of its parts.
    Raises BadCheckpoint if nothing is known."""
    start = path if path.is_dir() else path.parent
    for folder in (start, *start.absolute().parents[:LEVELS]):
        below = path.absolute().relative_to(folder.absolute()).as_posix()
        if known := {name: e for name, e in read(folder).items() if _belongs(name, "" if below == "." else below)}:
            return folder, known
    below = "" if path.is_dir() else path.name
    if known := {name: e for name, e in _from_cache(start).items() if _belongs(name, below)}:
        return start, known
    raise BadCheckpoint(f"{path}: no checksums are known: no {NAME} beside it, and not in the hub's cache")


def _belongs(name: str, path: str) -> bool:
    """Whether a file of the manifest is the one at `path`, another part of it, or lies in that folder ("": the top)."""
    return not path or name == path or name.startswith(f"{path}/") or PART.sub(r"-\2", name) == PART.sub(r"-\2", path)


def _from_cache(folder: Path) -> dict[str, Entry]:
    found = {}
    for path in sorted(folder.rglob("*")):
        target = Path(os.readlink(path)) if path.is_symlink() else path
        if target.parent.name == "blobs" and BLOB.fullmatch(target.name):
            name = path.relative_to(folder).as_posix()
            size = path.stat().st_size if path.exists() else 0
            found[name] = Entry(name, size, target.name, "cache", "")
    return found


def check(folder: Path, known: dict[str, Entry], advance: Callable[[int], None] = lambda nbytes: None) -> list[Check]:
    """Reads every file and compares; `advance` is told of the bytes read."""
    return [Check(e.path, e.bytes, _fault(folder / e.path, e, advance)) for e in known.values()]


def _fault(path: Path, entry: Entry, advance: Callable[[int], None]) -> str:
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"{size} bytes instead of {entry.bytes}"
        git = len(entry.sha256) == 40
        sha256, git_oid = digests(path, want_git=git, advance=advance)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if (git_oid if git else sha256) == entry.sha256 else "its bytes have changed"
