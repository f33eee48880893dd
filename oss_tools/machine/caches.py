"""What this program keeps on the disk and can make again: compiled kernels, by the version that made them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numba_kernels
from numba_kernels.cache_folder import user_cache


@dataclass(frozen=True)
class Kept:
    """A folder and what is in it.

    Attributes:
        what: "kernels", "kernels of other versions" or "downloads".
        path: of the folder.
        nbytes, files: of the files in it; links count as nothing.
    """

    what: str
    path: Path
    nbytes: int
    files: int


def kept(what: str, path: Path) -> Kept:
    """A folder, measured. One that is missing holds nothing; what cannot be read is passed over."""
    sizes = [size for _, size in _files(path)]
    return Kept(what, path, sum(sizes), len(sizes))


def kernels() -> list[Kept]:
    """Folders with compiled kernels: the one that this version uses, then those of other versions of the kernels or of Numba."""
    own = Path(os.environ["NUMBA_CACHE_DIR"])
    others = [folder for folder in _version_folders() if folder != own]
    return [kept("kernels", own), *(kept("kernels of other versions", folder) for folder in others)]


def clear_kernels() -> tuple[int, int]:
    """Removes the compiled kernels of all versions; returns how many bytes and files. The next run compiles what it needs.

    A folder that `NUMBA_CACHE_DIR` names is left alone: other programs may keep theirs there. Raises OSError.
    """
    nbytes = files = 0
    own = Path(os.environ["NUMBA_CACHE_DIR"])
    for folder in _version_folders():
        found = kept("", folder)
        nbytes, files = nbytes + found.nbytes, files + found.files
        if folder == own:  # its folders stay: who compiles at this moment has looked for them already
            for path, _ in list(_files(folder)):
                path.unlink(missing_ok=True)
        else:
            shutil.rmtree(folder)
    return nbytes, files


def is_named_by_user() -> bool:
    """Whether kernels lie in a folder that is not this program's own."""
    return Path(os.environ["NUMBA_CACHE_DIR"]) not in _version_folders() and not numba_kernels.NOT_KEPT


def _version_folders() -> list[Path]:
    """This program's own folders of kernels."""
    if not (root := user_cache()) or not (root / "oss-tools").is_dir():
        return []
    return sorted(f for f in (root / "oss-tools").glob("numba-*") if f.is_dir() and not f.is_symlink())


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """The files below a folder and their bytes. Links are not followed."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            try:
                status = path.lstat()
            except OSError:  # gone meanwhile
                continue
            if not path.is_symlink():
                yield path, status.st_size
