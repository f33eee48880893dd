"""Memory on huge pages, where the system gives them: weights are read through, and each page costs a look-up."""

from __future__ import annotations

import mmap

import numpy as np

HUGE = 2 << 20
REGION = 32 << 20


def empty_bytes(size: int) -> np.ndarray:
    """Zeroed uint8 [size] on pages of its own, huge ones where the system gives them. Not resident until written."""
    length = max(size, 1) + (HUGE if size >= HUGE else 0)
    if hasattr(mmap, "MAP_PRIVATE"):  # shared memory, Python's default, gets no huge pages on most systems
        memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        memory = mmap.mmap(-1, length)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE if size >= HUGE else 0
    return whole[start : start + size]


class Region:
    """Memory that small matrices share, so that they lie on huge pages as well. Freed with the last of them."""

    def __init__(self) -> None:
        self._left = np.empty(0, np.uint8)

    def take(self, size: int) -> np.ndarray:
        """Zeroed uint8 [size], at a multiple of 64 bytes."""
        if size > REGION // 4:
            return empty_bytes(size)
        if size > len(self._left):
            self._left = empty_bytes(REGION)
        taken, self._left = self._left[:size], self._left[-(-size // 64) * 64 :]
        return taken
