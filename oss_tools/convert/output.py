"""Outputs that appear whole or not at all: what is checked before the first byte, and how finished files get their names."""

from __future__ import annotations

import fcntl
import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from oss_tools.checkpoints import Writer
from oss_tools.checkpoints.files import check_place, sync_folder
from oss_tools.convert.manifest import manifest_path
from oss_tools.errors import BadRecipe, BadRequest, NoRoom, OssToolsError
from oss_tools.sizes import format_size

SPARE_BYTES = 64 << 20  # free disk beyond the tensors: headers, tokenizer, manifest
FILES = (".gguf", ".ready")  # extensions of checkpoints that are one file
LOCK = "oss-tools-lock"
SMALLEST_SHARD = 1000  # bytes; less is a mistake: `--shard-size 5` for 5GB
MAX_NAME = 200  # bytes of a destination's name; disks take 255, and parts and the manifest have longer ones


def check_name(destination: Path, kind: type[Writer]) -> None:
    """Raises BadRecipe unless the destination's name is one that this container has, and could be made where it is."""
    if destination.name in ("", ".."):
        raise BadRecipe(f"{destination} exists; name the {'file' if kind.extension else 'folder'} to make in it")
    if destination.suffix != kind.extension and (kind.extension or destination.suffix in FILES):
        form = f"a {kind.extension} file" if kind.extension else "a folder"
        raise BadRecipe(f"{destination}: a {kind.container} checkpoint is {form}")
    if len(os.fsencode(destination.name)) > MAX_NAME:
        raise BadRecipe(f"{destination}: the name is longer than {MAX_NAME} bytes")
    try:
        check_place(destination, with_parents=True)
    except BadRequest as error:
        raise BadRecipe(str(error)) from None


def stem_of(destination: Path, kind: type[Writer]) -> str:
    """What the names of a destination's files begin with, where the container has a choice."""
    return destination.stem if kind.extension else destination.name


def existing(destination: Path, kind: type[Writer]) -> Path | None:
    """What already has the destination's name, or the name of one of its parts; None if nothing has."""
    return next((path for path in (destination, *parts(destination, kind)) if os.path.lexists(path)), None)


def parts(destination: Path, kind: type[Writer]) -> list[Path]:
    """The files that have the names of a split destination's parts."""
    if not kind.extension:
        return []
    name = re.compile(re.escape(destination.stem) + r"-\d{5}-of-\d{5}" + re.escape(kind.extension))
    return sorted(p for p in destination.parent.glob(f"{glob.escape(destination.stem)}-*") if name.fullmatch(p.name))


def check_shard_size(nbytes: int | None) -> None:
    """Raises BadRecipe for a size that is meant in another unit."""
    if nbytes is not None and nbytes < SMALLEST_SHARD:
        raise BadRecipe(f"--shard-size {nbytes} is {nbytes} bytes; write it as 5GB or 500MB")


def check_room(destination: Path, nbytes: int) -> None:
    """Raises NoRoom unless the destination's disk has room for so many bytes, and a little more."""
    parent = next(p for p in destination.absolute().parents if p.exists())
    needed, free = nbytes + SPARE_BYTES, shutil.disk_usage(parent).free
    if needed > free:
        raise NoRoom(f"{parent}: {format_size(needed)} are needed and {format_size(free)} are free; choose another disk")


def partial_of(destination: Path) -> Path:
    """The temporary folder in which a destination is made."""
    return destination.with_name(destination.name + ".partial")


def in_use(folder: Path) -> bool:
    """Whether another process has claimed a temporary folder."""
    try:
        lock = open(folder / LOCK)  # noqa: SIM115 (closed below)
    except OSError:
        return False
    with lock:
        return not _lock(lock)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def taken_by_another(destination: Path) -> BadRecipe:
    return BadRecipe(f"{destination} is in use: another process is making it; wait for it, or choose another name")


@contextmanager
def claimed(folder: Path, destination: Path) -> Iterator[bool]:
    """Makes a temporary folder, or takes one that lies there, for this process alone; yields whether it was made.

    Raises BadRecipe if another process has it, or if it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
            made = True
        except FileExistsError:
            made = False
        lock = open(folder / LOCK, "a")  # noqa: SIM115 (closed below)
    except FileNotFoundError:  # its owner has just finished
        raise taken_by_another(destination) from None
    except OSError as error:
        raise BadRecipe(f"{destination}: cannot be made: {(error.strerror or str(error)).lower()}") from None
    with lock:
        there = folder / LOCK
        if not _lock(lock) or not there.exists() or not os.path.samestat(os.fstat(lock.fileno()), there.stat()):
            raise taken_by_another(destination)
        yield made


def clear(folder: Path) -> None:
    """Empties a claimed folder but for its lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


@contextmanager
def said_of(destination: Path, partial: Path) -> Iterator[None]:
    """Errors within name the destination that the user gave, not the temporary folder in which it is made."""
    try:
        yield
    except OssToolsError as error:
        text = str(error)
        if str(partial) not in text:
            raise
        raise type(error)(text.replace(str(partial), str(destination))) from error
    except OSError as error:
        if isinstance(error.filename, str):
            error.filename = error.filename.replace(str(partial), str(destination))
        raise


def give_names(partial: Path, destination: Path, kind: type[Writer]) -> Path:
    """Moves everything in a temporary folder to its final name; returns the checkpoint's path (its first part's).

    A folder takes the destination's place by one rename; files take theirs one by one, in alphabetical order, the manifest last.
    """
    (partial / LOCK).unlink(missing_ok=True)
    if kind.extension:
        outputs = sorted(partial.iterdir())
        for output in outputs:
            os.replace(output, destination.with_name(output.name))
        partial.rmdir()
        made = destination.with_name(next((o.name for o in outputs if o.suffix == kind.extension), destination.name))
    else:
        old = replaced(destination)
        moved = destination.exists()
        if moved:
            os.replace(destination, old)
        os.replace(partial, destination)
        if moved:
            shutil.rmtree(old)
        made = destination
    sync_folder(destination.absolute().parent)
    return made


def replaced(destination: Path) -> Path:
    """The name that an old output has for the moment in which the new one takes its place."""
    return destination.with_name(destination.name + ".replaced")


def manifest_in(partial: Path, destination: Path, kind: type[Writer]) -> Path:
    """Where a manifest lies in the temporary folder so that `give_names` puts it beside, or into, the output."""
    return partial / manifest_path(destination).name if kind.extension else manifest_path(partial)
