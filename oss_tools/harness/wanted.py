"""A checkpoint that a node needs: at the same path there, or fetched from the hub by its name and commit; told by its hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from oss_tools.download.layout import is_snapshot, repository_name
from oss_tools.errors import BadSource
from oss_tools.harness.run import fingerprint
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource

TINY = "tiny/checkpoint"


@dataclass(frozen=True)
class Wanted:
    """A checkpoint.

    Attributes:
        path: where it lies on the machine where the command was given.
        sha256: `fingerprint` of its tensors' files.
        hub: owner/name, where it lies in the hub's cache; with its `commit` and the path `inside` of the repository.
        embedded: whether it travels with the program.
    """

    path: str
    sha256: str
    hub: str = ""
    commit: str = ""
    inside: str = ""
    embedded: bool = False

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def here(self) -> Path:
        """Its path on this machine, after a download if need be. Raises BadSource, Unreachable, NoRoom."""
        path = resource(TINY) if self.embedded else Path(self.path)
        if path.exists():
            if _sha256(path) == self.sha256:
                return path
            other = f"{path} has other weights than on the machine where the command was given"
        else:
            other = f"there is no {path}"
        if not self.hub:
            raise BadSource(f"{other}; put the checkpoint there on every node, or on a disk that all share")
        path = _fetched(self.hub, self.commit, self.inside)
        if _sha256(path) != self.sha256:
            raise BadSource(f"{other}, and {self.hub} at {self.commit} has others as well")
        return path


def wanted(path: Path, sha256: str) -> Wanted:
    """How others find a checkpoint of this machine."""
    found = path.absolute()
    for folder in (found, *found.parents):
        if is_snapshot(folder):
            inside = str(found.relative_to(folder))
            return Wanted(str(found), sha256, repository_name(folder.parents[1]), folder.name, inside)
    return Wanted(str(found), sha256, embedded=path == resource(TINY))


def _sha256(path: Path) -> str:
    with open_checkpoint(path) as checkpoint:
        files = checkpoint.reader.files()
    return _sha256_of(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _sha256_of(files: Sequence[tuple[Path, int, int]]) -> str:
    """Read once as long as sizes and times stay."""
    return str(fingerprint([file for file, _, _ in files])["sha256"])


def _fetched(repo: str, commit: str, inside: str) -> Path:
    """Downloads a repository's checkpoint at a commit to the hub's cache, unless it is there."""
    from oss_tools.download import sources
    from oss_tools.download.download import carry_out, make_plan
    from oss_tools.download.layout import SNAPSHOTS, cache_folder, cached_repository
    from oss_tools.download.web import Web

    folder = cached_repository(cache_folder(), repo) / SNAPSHOTS / commit
    path = folder / inside
    if not path.exists():
        web = Web()
        offer = sources.look_up(sources.understand(repo, commit, web.endpoint), web)
        include = [inside] if Path(inside).suffix else []
        carry_out(make_plan(offer, web=web, include=include), web)
    return path
