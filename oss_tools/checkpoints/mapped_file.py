"""A file in memory, read-only, which is mapped and not read."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path

import numpy as np

from oss_tools.errors import BadCheckpoint, NoRoom


class MappedFile:
    """A file in memory, read-only, whose pages the system takes back when it needs them.

    What another process writes into the file shows in the map, and a page behind a new end ends the process (SIGBUS). So `check`
    tells, before what was computed is given out, whether the file is as it was when it was mapped. A file that is replaced or
    removed under its name stays as it was.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._path = path
        self._descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._now()
        try:
            self._memory = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        except OSError as error:  # a limit of the address space, a file system that maps nothing
            raise NoRoom(f"{path}: cannot be mapped: {error.strerror}; --load resident reads it into memory") from None

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self._descriptor)
        return state.st_size, state.st_mtime_ns

    def check(self) -> None:
        """Raises BadCheckpoint if the file was written to, or cut short."""
        if self._now() != self._state:
            raise BadCheckpoint(f"{self._path}: was changed while it was in use; what follows would be wrong. Start again")

    def view(self, offset: int, shape: tuple[int, int, int], stride: int) -> np.ndarray:
        """uint8 [matrices, panels, panel_bytes], the matrices `stride` bytes apart; read-only."""
        return np.ndarray(shape, np.uint8, self._memory, offset, (stride, shape[2], 1))
