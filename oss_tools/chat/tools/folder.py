"""The folder that one call of the python tool works in: what it may hold, measured while the code runs, and its removal."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import stat
import time

BYTES, ENTRIES, DEPTH = 64 << 20, 1000, 64  # of all files; files, folders and links; folders inside of each other
FILE_SIZE = 16 << 20  # bytes of one file
WRITTEN = 4 * BYTES  # of all write calls together, however often a file is written anew
THREADS = 256
BLIND = 5  # looks
HOLDS = f"its folder may hold {BYTES >> 20} MiB and {ENTRIES:,} files and folders, {DEPTH} deep"
OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PASSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # what a name that the code has just removed or replaced gives


class _Exceeded(Exception):
    """The folder holds more than it may."""


class Watch:
    """Looks at a folder, and at the process that works in it.

    What counts is each file's length or its blocks, whichever is more, also of files that have lost their name: those
    that the process has open or mapped are found in `/proc`. The process is stopped for a look if it may have written
    more than there is room for, so that it can neither write on nor hide anything meanwhile.
    """

    def __init__(self, folder: str, process: int) -> None:
        self._folder, self._process = folder, process
        self._bytes = self._written = 0  # at the last look
        self._due = 0.0
        self._blind = 0  # looks at which `/proc` was closed

    def excess(self) -> str:
        """The limit that has been passed, in words; "" if none. Raises OSError if the folder or `/proc` cannot be read."""
        if _threads(self._process) > THREADS:
            return f"it may run {THREADS} threads"
        may_be_full = self._bytes + _written(self._process) - self._written > BYTES
        began = time.monotonic()
        if not may_be_full and began < self._due:
            return ""
        if may_be_full:
            self._send(signal.SIGSTOP)
        try:
            self._written = _written(self._process)
            self._bytes = _Count(self._folder, self._nameless()).bytes
        except _Exceeded:
            return HOLDS
        finally:
            if may_be_full:
                self._send(signal.SIGCONT)
        self._due = began + 3 * (time.monotonic() - began)
        return f"it may write {WRITTEN >> 20} MiB in all" if self._written > WRITTEN else ""

    def _nameless(self) -> int:
        try:
            return _nameless(self._folder, self._process)
        except (
            PermissionError
        ):  # so it is for a moment when a program begins whose parent has changed its user, PR_SET_DUMPABLE in prctl(2)
            self._blind += 1
            if self._blind > BLIND:
                raise
            return 0

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self._process, number)


def over(folder: str) -> str:
    """What `Watch.excess` says of a folder whose process has ended."""
    try:
        _Count(folder)
    except _Exceeded:
        return HOLDS
    return ""


class _Count:
    """Bytes and entries of a folder, and bytes beside it. Raises _Exceeded as soon as they are too many."""

    def __init__(self, folder: str, beside: int = 0) -> None:
        self.bytes, self.entries = beside, 0
        self._hold()
        self._take(folder)

    def _take(self, name: str, above: int | None = None, depth: int = 0) -> None:
        """Counts a folder. Descriptors are held on the way down: the code may move folders meanwhile."""
        try:
            opened = os.open(name, OPEN, dir_fd=above)
        except OSError as error:
            if above is None or error.errno not in PASSING:
                raise
            return
        try:
            if depth > DEPTH:
                raise _Exceeded
            with os.scandir(opened) as entries:
                for entry in entries:
                    self.entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        self._take(entry.name, opened, depth + 1)
                    else:
                        self.bytes += _size(entry)
                    self._hold()
        finally:
            os.close(opened)

    def _hold(self) -> None:
        if self.bytes > BYTES or self.entries > ENTRIES:
            raise _Exceeded


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return _taken(entry.stat(follow_symlinks=False))
    except OSError as error:
        if error.errno in PASSING:
            return 0
        raise


def _taken(found: os.stat_result) -> int:
    return max(found.st_size, found.st_blocks * 512)


def _nameless(folder: str, process: int) -> int:
    """Bytes of files without a name: as many as are open have; as many as a file may have for each that is mapped."""
    opened, total = f"/proc/{process}/fd", 0
    try:
        numbers = os.listdir(opened)
    except (FileNotFoundError, ProcessLookupError):  # the process has ended, and holds nothing
        return 0
    for number in numbers:
        with contextlib.suppress(OSError):  # closed since; the bound on what is written holds all the same
            found = os.stat(f"{opened}/{number}")
            total += _taken(found) if stat.S_ISREG(found.st_mode) and not found.st_nlink else 0
    inside = os.fsencode(folder).replace(b"\n", b"\\012") + b"/"
    lines = _read(f"/proc/{process}/maps").splitlines()
    return total + FILE_SIZE * len(
        {line.split(None, 5)[4] for line in lines if line.endswith(b" (deleted)") and inside in line}
    )


def _written(process: int) -> int:
    """Bytes that the process has given to write calls so far, files and output alike."""
    found = re.search(rb"^wchar: (\d+)", _read(f"/proc/{process}/io"), re.MULTILINE)
    return int(found[1]) if found else 0


def _read(name: str) -> bytes:
    """A file of `/proc`; empty if the process has ended."""
    try:
        with open(name, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _threads(process: int) -> int:
    try:
        return os.stat(f"/proc/{process}/task").st_nlink - 2
    except OSError:  # it has ended
        return 0


def remove(folder: str) -> str:
    """Removes the folder with all it holds, however deep, whatever its names and permissions. Returns why it could not.

    The process that worked in it must have ended. Needs two descriptors, and no path longer than a name.
    """
    opened = -1
    try:
        os.chmod(folder, 0o700)
        opened = os.open(folder, OPEN)
        levels = [_emptied_of_files(opened)]
        while levels:
            if levels[-1]:
                below = os.open(levels[-1][-1], OPEN, dir_fd=opened)
                os.close(opened)
                opened = below
                levels.append(_emptied_of_files(opened))
                continue
            levels.pop()
            if levels:
                above = os.open("..", OPEN, dir_fd=opened)
                os.close(opened)
                opened = above
                os.rmdir(levels[-1].pop(), dir_fd=opened)
        os.rmdir(folder)
    except OSError as error:
        return str(error)
    finally:
        if opened >= 0:
            os.close(opened)
    return ""


def _emptied_of_files(opened: int) -> list[str]:
    """Removes what is no folder. Returns the folders' names; each can be entered."""
    folders = []
    with os.scandir(opened) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.name, 0o700, dir_fd=opened)
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=opened)
    return folders
