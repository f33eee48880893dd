"""Which models lie on this machine, in the hub's cache and in a folder; and how one leaves the cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from oss_tools.checkpoints.files import read_text
from oss_tools.download.contents import checkpoint_in, models_in, snapshot
from oss_tools.download.layout import SNAPSHOTS, cached_names, cached_repository
from oss_tools.download.names import understand
from oss_tools.errors import BadCheckpoint, BadSource
from oss_tools.guesses import near_names

BLOBS, REFS = "blobs", "refs"
SINGLE_FILES = (".gguf", ".safetensors")


@dataclass(frozen=True)
class Holding:
    """A model on the disk.

    Attributes:
        name: what a MODEL of the command line calls it.
        path: its checkpoint; where the download is not complete, its folder.
        nbytes: bytes of its files on the disk. Of several GGUF models of a repository each has its own.
        modified: when the newest of its files was written, in seconds since the epoch.
        cached: whether it is in the hub's cache.
        problem: why it cannot be used; "" if it can.
    """

    name: str
    path: Path
    nbytes: int
    modified: float
    cached: bool
    problem: str = ""


def holdings(cache: Path, here: Path) -> list[Holding]:
    """The models in the hub's cache, by name, and those that lie in the folder `here`."""
    return [*_in_cache(cache), *_in_folder(here)]


def _in_cache(cache: Path) -> Iterator[Holding]:
    for name in cached_names(cache):
        repository = cached_repository(cache, name)
        if not (repository / SNAPSHOTS).is_dir():
            continue
        try:
            folder = snapshot(repository)
        except BadSource as error:  # several revisions, none of them main
            yield Holding(name, repository, *_size_and_time(_files(repository / BLOBS)), True, str(error))
            continue
        models = [] if (folder / "config.json").exists() else models_in(folder)
        for model in models if len(models) > 1 else ():
            files = [folder / path for path in model.paths]
            problem = f"lacks {model.missing_parts[0]}" if model.missing_parts else ""
            word = model.tag or model.paths[0]
            yield Holding(f"{name}:{word}", files[0], *_size_and_time(files), True, problem)
        if len(models) < 2:
            yield _whole(name, folder, _files(repository / BLOBS), cached=True)


def _in_folder(here: Path) -> Iterator[Holding]:
    for path in sorted(here.iterdir()):
        if path.is_file() and path.suffix in SINGLE_FILES:
            yield Holding(path.name, path, *_size_and_time([path]), False)
        elif path.is_dir() and not path.is_symlink() and _may_hold_a_model(path):
            yield _whole(f"{path.name}/", path, _files(path), cached=False)


def _may_hold_a_model(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*.safetensors.index.json", "*.gguf"))


def _whole(name: str, folder: Path, files: list[Path], cached: bool) -> Holding:
    try:
        path, problem = checkpoint_in(folder), ""
    except (BadSource, BadCheckpoint) as error:
        path, problem = folder, str(error)
    return Holding(name, path, *_size_and_time(files), cached, problem)


def _files(folder: Path) -> list[Path]:
    """The files of a folder and of those in it; links to folders are not followed."""
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]


def _size_and_time(files: list[Path]) -> tuple[int, float]:
    found = [path.stat() for path in files if path.is_file()]
    return sum(stat.st_size for stat in found), max((stat.st_mtime for stat in found), default=0.0)


# ---- leaving --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removal:
    """What removing a model takes away: links, and the files that nothing else in the cache refers to.

    Attributes:
        name: as it was asked for.
        links: in snapshots, and names of revisions.
        blobs: content that no other link of the repository points to.
        folders: that go with all that is in them.
        nbytes: bytes that become free.
    """

    name: str
    links: tuple[Path, ...]
    blobs: tuple[Path, ...]
    folders: tuple[Path, ...]
    nbytes: int

    def carry_out(self) -> None:
        for path in (*self.links, *self.blobs):
            path.unlink(missing_ok=True)
        for folder in self.folders:
            shutil.rmtree(folder)


def removal(name: str, cache: Path, endpoint: str) -> Removal:
    """What is to go from the hub's cache: a repository, one of its revisions (`owner/name@REVISION`), or one of its GGUF models
    (`owner/name:QUANTIZATION`). Raises BadSource if it is not there, or is a file or folder outside of the cache."""
    if Path(name).exists():
        raise BadSource(f"{name}: lies outside of the hub's cache; `rm` deletes it")
    wanted = understand(name, "", endpoint)
    repository = cached_repository(cache, wanted.repo)
    if wanted.address or not repository.is_dir():
        near = near_names(wanted.repo, cached_names(cache))
        guess = f"; did you mean {' or '.join(near)}?" if near else ""
        raise BadSource(f"{name} is not in {cache}{guess}")
    if not wanted.named and not wanted.quantization:
        blobs = _files(repository / BLOBS)
        return Removal(name, (), (), (repository,), _size_and_time(blobs)[0])
    folder = snapshot(repository, wanted.revision, fallback=not wanted.named)
    links = _files(folder) if not wanted.quantization else _parts(checkpoint_in(folder, wanted.quantization))
    others = {path.resolve() for path in _files(repository / SNAPSHOTS) if path not in links}
    blobs = [
        blob
        for blob in {link.resolve() for link in links}
        if blob not in others and blob.parent == (repository / BLOBS).resolve()
    ]
    nbytes = _size_and_time(blobs)[0]
    if wanted.quantization:
        return Removal(name, tuple(links), tuple(blobs), (), nbytes)
    names = [path for path in _files(repository / REFS) if read_text(path, 1000).strip() == folder.name]
    return Removal(name, tuple(names), tuple(blobs), (folder,), nbytes)


def _parts(model: Path) -> list[Path]:
    """The files of a GGUF model whose first part, or only file, this is."""
    (found,) = [m for m in models_in(model.parent) if model.name in m.paths]
    return [model.parent / path for path in found.paths]
