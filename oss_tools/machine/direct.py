"""Large reads of an open file past the system's cache, straight into aligned memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from oss_tools.errors import BadCheckpoint

PAGE = 4096  # what offsets, addresses and lengths of such reads are multiples of


class DirectFile:
    """A file that stays open, whatever happens to its name, and to whoever opened it first.

    Where the system or the file system has no reads past the cache, it reads through the cache and lets the pages go again.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        """descriptor: of the open file, which is not taken over. path: for messages."""
        self.path = path
        self._descriptor = os.dup(descriptor)
        self._ends = [weakref.finalize(self, os.close, self._descriptor)]
        self._direct = _reopened(descriptor)
        if self._direct >= 0:
            self._ends.append(weakref.finalize(self, os.close, self._direct))
        self._state = self._now()

    def close(self) -> None:
        """Closes what this object opened; it does so itself when nobody has it any more."""
        for end in self._ends:
            end()

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self._descriptor)
        return state.st_size, state.st_mtime_ns

    @property
    def is_direct(self) -> bool:
        """Whether there are reads past the cache, as far as can be told without one."""
        return self._direct >= 0

    def check(self) -> None:
        """Raises BadCheckpoint if the file was written to, or cut short, since it was opened."""
        if self._now() != self._state:
            raise BadCheckpoint(f"{self.path}: was changed while it was in use; what follows would be wrong. Start again")

    def read(self, offset: int, memory: np.ndarray) -> None:
        """Fills contiguous memory; what of it is not aligned comes through the cache. Safe from threads. Raises BadCheckpoint."""
        flat = memory.reshape(-1).view(np.uint8)
        whole = len(flat) // PAGE * PAGE if not (offset % PAGE or flat.ctypes.data % PAGE) else 0
        done = self._read_direct(offset, flat[:whole]) if whole and self._direct >= 0 else 0
        if done < len(flat):
            read_into(self._descriptor, offset + done, flat[done:], self.path)
            if self._direct < 0 and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._descriptor, offset + done, len(flat) - done, os.POSIX_FADV_DONTNEED)

    def _read_direct(self, offset: int, flat: np.ndarray) -> int:
        """Bytes read so, a multiple of a page; fewer than asked where the file ends or such a read is refused."""
        view, done = flat.data, 0
        while done < len(view):
            try:
                count = os.preadv(self._direct, [view[done:]], offset + done)
            except OSError as error:
                if isinstance(error, InterruptedError):
                    continue
                if error.errno == 22:  # EINVAL: larger blocks than pages, or a file system that knows no such reads
                    return done
                raise BadCheckpoint(f"{self.path}: cannot be read: {error.strerror}") from None
            done += count // PAGE * PAGE
            if not count or count % PAGE:
                break
        return done


def _reopened(descriptor: int) -> int:
    """The same open file, for reads past the cache; −1 where that cannot be had."""
    try:
        if sys.platform == "darwin":
            import fcntl

            again = os.dup(descriptor)
            fcntl.fcntl(again, fcntl.F_NOCACHE, 1)
            return again
        flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECT")  # noqa: B009  (not on every system)
        return os.open(f"/proc/self/fd/{descriptor}", flags)
    except (OSError, AttributeError):
        return -1


def cached_share(descriptor: int, offset: int, nbytes: int) -> float:
    """The share of these bytes of an open file that the system's cache holds, 0 to 1; 1 where the system does not say.

    `offset` is a multiple of a page, and the bytes are all within the file. Linux says 1 of files that the user may not write.
    """
    ask = _mincore()
    if ask is None or not nbytes or offset % mmap.ALLOCATIONGRANULARITY:
        return 1.0
    try:
        with mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ, offset=offset) as mapped:
            resident = np.zeros(-(-nbytes // mmap.PAGESIZE), np.uint8)
            pages = np.frombuffer(mapped, np.uint8)
            failed = ask(pages.ctypes.data, nbytes, resident.ctypes.data)
            del pages  # else it could not be closed
    except (OSError, ValueError):  # no such maps, or the file has just been cut short: whoever reads it says so
        return 1.0
    return 1.0 if failed else float(np.mean(resident & 1))


@cache
def _mincore() -> Callable[[int, int, int], int] | None:
    """The system call of this name; None where there is none."""
    function = getattr(ctypes.CDLL(None), "mincore", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return function


def read_into(descriptor: int, offset: int, memory: np.ndarray, path: Path) -> None:
    """Fills contiguous memory from an open file. Raises BadCheckpoint."""
    view, done = memory.reshape(-1).view(np.uint8).data, 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from None
        if not count:
            raise BadCheckpoint(f"{path}: ended at byte {offset + done} while being read; did it change?")
        done += count
