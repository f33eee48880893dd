"""A memory limit that the system enforces: a control group (version 2 or 1) in which a measured process runs, pages of files that
it reads included. Needs Linux, and the right to make groups (root, as a rule)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class MemoryGroup:
    """A group with a limit.

    Attributes:
        folder: of the group; a process joins by writing its number to `members`.
        version: of control groups.
    """

    folder: Path
    version: int

    @property
    def members(self) -> Path:
        return self.folder / "cgroup.procs"

    def peak_bytes(self) -> int | None:
        """The most memory that its processes had, pages of files included; None where the system does not say."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        with suppress(OSError, ValueError):
            return int((self.folder / name).read_text())
        return None


def join(members: str) -> None:
    """Puts this process into a group."""
    Path(members).write_text(str(os.getpid()))


@contextmanager
def memory_group(limit: int, name: str) -> Iterator[MemoryGroup | None]:
    """A group of that limit in bytes, removed at the end; None where none can be made."""
    group = None
    for version, parent, bound in _places():
        folder = parent / f"oss-tools-{name}-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / bound).write_text(str(limit))
            group = MemoryGroup(folder, version)
            break
        except OSError:
            folder.rmdir()
    try:
        yield group
    finally:
        if group:
            with suppress(OSError):  # a process that is still ending: the group stays, empty
                group.folder.rmdir()


def _places() -> list[tuple[int, Path, str]]:
    """Where a group could be made: version, folder above it, and the name of the file with the limit."""
    try:
        lines = [line.split(":", 2) for line in GROUPS.read_text().splitlines()]
    except OSError:
        return []
    own = {controllers: path.lstrip("/") for _, controllers, path in lines}
    first = [(1, ROOT / "memory" / own["memory"], "memory.limit_in_bytes")] if "memory" in own else []
    return [*first, *[(1, ROOT / "memory", "memory.limit_in_bytes")], (2, ROOT / own.get("", ""), "memory.max")]
