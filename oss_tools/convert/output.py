"""Outputs that appear whole or not at all: what is checked before the first byte, and how finished files get their names."""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path

from oss_tools.checkpoints import Writer
from oss_tools.checkpoints.files import sync_folder
from oss_tools.convert.manifest import manifest_path
from oss_tools.errors import BadRecipe, NoRoom
from oss_tools.sizes import format_size

SPARE_BYTES = 64 << 20  # free disk beyond the tensors: headers, tokenizer, manifest


def check_name(destination: Path, kind: type[Writer]) -> None:
    """Raises BadRecipe unless the destination's name is one that this container has."""
    if (destination.suffix == ".gguf") != (kind.extension == ".gguf"):
        form = f"a {kind.extension} file" if kind.extension else "a folder"
        raise BadRecipe(f"{destination}: a {kind.container} checkpoint is {form}")


def existing(destination: Path, kind: type[Writer]) -> Path | None:
    """What already has the destination's name, or the name of one of its parts; None if nothing has."""
    pattern = f"{glob.escape(destination.stem)}-[0-9]*-of-[0-9]*{kind.extension}"
    parts = destination.parent.glob(pattern) if kind.extension else ()
    return next((path for path in (destination, *parts) if path.exists()), None)


def check_room(destination: Path, nbytes: int) -> None:
    """Raises NoRoom unless the destination's disk has room for so many bytes, and a little more."""
    parent = next(p for p in destination.absolute().parents if p.exists())
    needed, free = nbytes + SPARE_BYTES, shutil.disk_usage(parent).free
    if needed > free:
        raise NoRoom(f"{parent}: {format_size(needed)} are needed and {format_size(free)} are free; choose another disk")


def give_names(partial: Path, destination: Path, kind: type[Writer]) -> Path:
    """Moves everything in a temporary folder to its final name; returns the checkpoint's path (its first part's).

    A folder takes the destination's place by one rename; files take theirs one by one, in alphabetical order.
    """
    if kind.extension:
        outputs = sorted(partial.iterdir())
        for output in outputs:
            os.replace(output, destination.with_name(output.name))
        partial.rmdir()
        made = destination.with_name(next(o.name for o in outputs if o.suffix == kind.extension))
    else:
        replaced = destination.with_name(destination.name + ".replaced")
        if destination.exists():
            os.replace(destination, replaced)
        os.replace(partial, destination)
        if replaced.exists():
            shutil.rmtree(replaced)
        made = destination
    sync_folder(destination.absolute().parent)
    return made


def manifest_in(partial: Path, destination: Path, kind: type[Writer]) -> Path:
    """Where a manifest lies in the temporary folder so that `give_names` puts it beside, or into, the output."""
    return partial / manifest_path(destination).name if kind.extension else manifest_path(partial)
