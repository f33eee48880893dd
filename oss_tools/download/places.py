"""Where files come to lie: in the hub's cache, laid out as huggingface_hub does, or in a folder of the user's."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

from oss_tools.checkpoints.files import clear_leftovers, replace_file
from oss_tools.download.layout import HIDDEN, SNAPSHOTS, cached_repository
from oss_tools.download.transfer import Job, RemoteFile
from oss_tools.errors import BadRequest, NoRoom
from oss_tools.sizes import format_size

SPARE_BYTES = 64 << 20  # free disk beyond the files


class Place(ABC):
    """Attributes:
    root: the folder that the files' paths are relative to, and that holds the manifest.
    """

    root: Path

    @abstractmethod
    def job(self, file: RemoteFile) -> Job:
        """How the file gets here. Files of equal content may share a job's places."""

    def is_here(self, file: RemoteFile) -> bool:
        """Whether a file of this size lies at its final place."""
        final = self.job(file).final
        return final.is_file() and final.stat().st_size == file.size

    @abstractmethod
    def settle(self, file: RemoteFile) -> None:
        """After the file has its final place: makes it visible under `root`."""

    @abstractmethod
    def finish(self) -> None:
        """After all files are there."""

    def require_inside(self, file: RemoteFile) -> None:
        """Raises BadRequest if a link on the way to a file leads out of `root`: a stranger's folder may have one."""
        root = self.root.resolve()
        folder = (self.root / file.path).parent
        if not folder.resolve().is_relative_to(root):
            raise BadRequest(f"{folder}: a link that leads out of {self.root}; remove it, or choose another place with --to")

    def missing_bytes(self, files: list[RemoteFile]) -> int:
        """Bytes that the disk must still take."""
        total = 0
        for file in {self.job(f).incomplete: f for f in files}.values():
            job = self.job(file)
            have = job.incomplete.stat().st_blocks * 512 if job.incomplete.exists() else 0
            total += max(file.size - have, 0)
        return total

    def free_bytes(self) -> int:
        """Free on the disk that the files will lie on."""
        return shutil.disk_usage(_nearest(self.root)).free

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written under `root`, such as in a cache that others share."""
        return not os.access(_nearest(self.root), os.W_OK | os.X_OK)

    def require(self, files: list[RemoteFile]) -> None:
        """Raises BadRequest if the files cannot be written here, NoRoom if they do not fit on the disk."""
        jobs = [self.job(file) for file in files]
        folders = {path.parent for job in jobs for path in (job.incomplete, job.final)}
        for folder in sorted(folders | {self.root} if files else []):
            nearest = _nearest(folder)
            if not nearest.is_dir():
                raise BadRequest(f"{nearest}: not a folder; choose another place with --to")
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise BadRequest(f"{nearest}: read-only, nothing can be written there; choose another place with --to")
        for file in files:
            self.require_inside(file)
        needed, free = self.missing_bytes(files), self.free_bytes()
        if needed and needed + SPARE_BYTES > free:
            raise NoRoom(
                f"{self.root}: {format_size(needed)} are still to be fetched and {format_size(SPARE_BYTES)} to stay free, but "
                f"{format_size(free)} are free; "
                "free some space, or choose another disk with --to"
            )


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(p))


class Folder(Place):
    """A folder of the user's: plain files, and a hidden folder of incomplete ones while the download lasts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._hidden = root / HIDDEN

    def job(self, file: RemoteFile) -> Job:
        name = hashlib.sha256(f"{file.path}\n{file.blob}".encode()).hexdigest()[:32]
        return Job(file, self._hidden / f"{name}.incomplete", self.root / file.path)

    def require_inside(self, file: RemoteFile) -> None:
        super().require_inside(file)
        if self._hidden.is_symlink():
            raise BadRequest(f"{self._hidden}: a link, where a download keeps what is incomplete; remove it")

    def settle(self, file: RemoteFile) -> None:
        """Nothing: the final place is under `root`."""

    def finish(self) -> None:
        clear_leftovers(self.root)
        with contextlib.suppress(OSError):  # another download's incomplete files keep it
            self._hidden.rmdir()


class Cache(Place):
    """The hub's cache: content under blobs/, named by checksum, and links to it under snapshots/COMMIT/."""

    def __init__(self, cache: Path, repo: str, revision: str, commit: str) -> None:
        self._folder = cached_repository(cache, repo)
        self._revision, self._commit = revision, commit
        self.root = self._folder / SNAPSHOTS / commit

    def job(self, file: RemoteFile) -> Job:
        blob = self._folder / "blobs" / file.blob
        return Job(file, blob.with_name(blob.name + ".oss-tools.incomplete"), blob)

    def settle(self, file: RemoteFile) -> None:
        link, blob = self.root / file.path, self.job(file).final
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() or link.exists():
            return
        try:
            link.symlink_to(os.path.relpath(blob, link.parent))
        except OSError:  # a disk without symbolic links: the file itself, as huggingface_hub does
            shutil.copy2(blob, link)

    def finish(self) -> None:
        if self._revision != self._commit:
            reference = self._folder / "refs" / self._revision
            reference.parent.mkdir(parents=True, exist_ok=True)
            replace_file(reference, self._commit)
