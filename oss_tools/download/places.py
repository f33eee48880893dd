"""Where files come to lie: in the hub's cache, laid out as huggingface_hub does, or in a folder of the user's."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

from oss_tools.checkpoints.files import replace_file
from oss_tools.download.transfer import Job, RemoteFile
from oss_tools.errors import NoRoom

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
        return shutil.disk_usage(next(p for p in (self.root.absolute(), *self.root.absolute().parents) if p.exists())).free

    def require(self, files: list[RemoteFile]) -> None:
        """Raises NoRoom if the files do not fit on the disk."""
        needed, free = self.missing_bytes(files), self.free_bytes()
        if needed and needed + SPARE_BYTES > free:
            raise NoRoom(
                f"{self.root}: {needed / 1e9:.2f} GB are still to be fetched, {free / 1e9:.2f} GB are free; "
                "free some space, or choose another disk with --to"
            )


class Folder(Place):
    """A folder of the user's: plain files, and a hidden folder of incomplete ones while the download lasts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._hidden = root / ".oss-tools-download"

    def job(self, file: RemoteFile) -> Job:
        name = hashlib.sha256(f"{file.path}\n{file.blob}".encode()).hexdigest()[:32]
        return Job(file, self._hidden / f"{name}.incomplete", self.root / file.path)

    def settle(self, file: RemoteFile) -> None:
        """Nothing: the final place is under `root`."""

    def finish(self) -> None:
        with contextlib.suppress(OSError):  # another download's incomplete files keep it
            self._hidden.rmdir()


class Cache(Place):
    """The hub's cache: content under blobs/, named by checksum, and links to it under snapshots/COMMIT/.

    Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
    """

    def __init__(self, cache: Path, repo: str, revision: str, commit: str) -> None:
        self._folder = cache / ("models--" + repo.replace("/", "--"))
        self._revision, self._commit = revision, commit
        self.root = self._folder / "snapshots" / commit

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
