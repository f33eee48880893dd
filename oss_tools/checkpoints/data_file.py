"""An open file of tensors' bytes, and the ways to read it: to be kept in the system's cache, once and never again, or read back.

All ways give the same bytes. What only Linux has is asked for; elsewhere, and where a file system refuses it, reading is plain.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from pathlib import Path

import numpy as np

from oss_tools.checkpoints.files import read_at
from oss_tools.checkpoints.overlap import LEAST, let_go
from oss_tools.machine.direct import PAGE, DirectFile, cached_share

ALIGNED = 16  # bytes; arrays begin at multiples of it, as those do that are not read past the cache
STRETCH = 16 << 20  # bytes of which the system is asked at a time whether they are in its cache
BEHIND = 32 << 20  # bytes that were read back and may still be on their way to the disk


class DataFile:
    """Reads stretches of an open file, whose descriptor remains its owner's. Safe from threads."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self._direct: DirectFile | None = None
        self._behind: deque[tuple[int, int]] | None = None
        self._cached: dict[int, bool] = {}  # number of a stretch -> whether the cache has most of it
        self._lock = threading.Lock()

    def read_once(self) -> None:
        """From now on large stretches that are not in the system's cache are read past it: each byte is wanted once, and a copy
        through the cache takes several times the processor's time."""
        if sys.platform == "linux" and self._direct is None:
            direct = DirectFile(self._descriptor, self._path)
            if direct.is_direct:
                self._direct = direct
            else:
                direct.close()

    def close(self) -> None:
        """Closes what it opened besides; the owner's descriptor stays open."""
        if self._direct:
            self._direct.close()
            self._direct = None

    def read_back(self) -> None:
        """From now on what is read was just written: it comes from the system's cache, and leaves it when it is on the disk, so
        that its memory serves for what is written next."""
        if self._behind is None:
            self._behind = deque()

    def read(self, offset: int, nbytes: int) -> np.ndarray:
        """Bytes of the file, freshly allocated: uint8 [nbytes]. Raises BadCheckpoint."""
        if nbytes < LEAST:
            return read_at(self._descriptor, offset, nbytes, self._path)
        if self._direct and (found := self._past_the_cache(self._direct, offset, nbytes)) is not None:
            return found
        ahead = self._direct is None and self._behind is None
        found = read_at(self._descriptor, offset, nbytes, self._path, ahead=ahead)
        if self._behind is not None:
            self._let_go(offset, nbytes)
        return found

    def _past_the_cache(self, direct: DirectFile, offset: int, nbytes: int) -> np.ndarray | None:
        """The same in whole pages, straight from the disk; None where the cache has most of them, or the file ends before."""
        start, stop = offset // PAGE * PAGE, -(-(offset + nbytes) // PAGE) * PAGE
        size = os.fstat(self._descriptor).st_size
        end = min(stop, size)
        if end < offset + nbytes or self._is_cached(offset, size):
            return None
        memory = np.empty(stop - start + PAGE, np.uint8)
        memory = memory[-memory.ctypes.data % PAGE :][: end - start]
        direct.read(start, memory)
        found = memory[offset - start : offset - start + nbytes]
        return found if found.ctypes.data % ALIGNED == 0 else found.copy()

    def _is_cached(self, offset: int, size: int) -> bool:
        """Whether the cache holds most of the stretch of the file that a byte lies in; asked once of each."""
        place = offset // STRETCH
        if place not in self._cached:
            start = place * STRETCH
            self._cached[place] = cached_share(self._descriptor, start, min(STRETCH, size - start)) > 0.5
        return self._cached[place]

    def _let_go(self, offset: int, nbytes: int) -> None:
        assert self._behind is not None
        with self._lock:
            self._behind.append((offset, nbytes))
            old = []
            while sum(size for _, size in self._behind) > BEHIND:
                old.append(self._behind.popleft())
        for stretch in old:
            let_go(self._descriptor, *stretch)
