"""The memory of a launch: arrays and shared memory, which say what no program may do to them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ptx_program import Fault

SHARED_BASE, GLOBAL_BASE = 1 << 32, 1 << 40
ATOMIC = -3  # in place of a warp's number
GUARD = 4096  # bytes between arrays


class Memory:
    """Arrays at addresses, and the shared memory of all blocks."""

    def __init__(self, arrays: Sequence[np.ndarray], blocks: int, shared_bytes: int) -> None:
        self.arrays, self.bases = [], []
        at = GLOBAL_BASE
        for array in arrays:
            self.arrays.append(array.reshape(-1).view(np.uint8))
            self.bases.append(at)
            at += -(-array.nbytes // GUARD) * GUARD + GUARD
        self.starts = np.array(self.bases, np.int64)
        self.sizes = np.array([a.nbytes for a in arrays], np.int64)
        self.shared = np.full((blocks, shared_bytes), 0xA5, np.uint8)
        cells = (blocks, -(-shared_bytes // 4))
        self.writer, self.written = np.full(cells, -1), np.full(cells, -1)  # warp, epoch
        self.reader, self.read = np.full(cells, -1), np.full(cells, -1)  # −2: several warps
        self.uncached: set[int] = set()  # arrays read by ld.global.nc
        self.changed: set[int] = set()

    def place(self, address: np.ndarray, size: int) -> tuple[int, np.ndarray]:
        """(array, byte offsets). All lanes of one instruction have to mean one array."""
        which = np.searchsorted(self.starts, address.astype(np.int64), "right") - 1
        if which.min(initial=0) < 0 or (which.size and which.min() != which.max()):
            raise Fault("an instruction whose lanes mean no array, or several")
        n = int(which[0])
        offset = address.astype(np.int64) - self.starts[n]
        if offset.min() < 0 or offset.max() + size > self.sizes[n]:
            raise Fault(f"bytes {offset.min()}..{offset.max() + size} of array {n}, which has {self.sizes[n]}")
        if (offset % size).any():
            raise Fault(f"an access of {size} bytes at {int(offset[offset % size > 0][0])}")
        return n, offset

    def check_shared(
        self, block: np.ndarray, offset: np.ndarray, size: int, warp: np.ndarray, epoch: np.ndarray, write: bool
    ) -> None:
        if offset.min(initial=0) < 0 or offset.max(initial=0) + size > self.shared.shape[1] or (offset % size).any():
            raise Fault(f"shared memory: {size} bytes at {offset.min()}..{offset.max()} of {self.shared.shape[1]}")
        for word in range(max(size // 4, 1)):
            cell = offset // 4 + word
            now = epoch[block]
            racing = (self.written[block, cell] == now) & (self.writer[block, cell] != warp)
            if write:
                racing |= (self.read[block, cell] == now) & (self.reader[block, cell] != warp)
            if racing.any():
                raise Fault(f"shared memory at {int(offset[racing][0])}: two warps, one of which writes, without a barrier")
            if write:
                self.writer[block, cell], self.written[block, cell] = warp, now
            else:
                again = (self.read[block, cell] == now) & (self.reader[block, cell] != warp)
                self.reader[block, cell] = np.where(again, -2, warp)
                self.read[block, cell] = now

    def check_shared_atomic(self, block: np.ndarray, offset: np.ndarray, size: int, epoch: np.ndarray) -> None:
        """Atomic operations of several warps may meet, but no other access of the same time."""
        if offset.min(initial=0) < 0 or offset.max(initial=0) + size > self.shared.shape[1] or (offset % size).any():
            raise Fault(f"shared memory: {size} bytes at {offset.min()}..{offset.max()} of {self.shared.shape[1]}")
        cell, now = offset // 4, epoch[block]
        if (
            ((self.written[block, cell] == now) & (self.writer[block, cell] != ATOMIC)) | (self.read[block, cell] == now)
        ).any():
            raise Fault(f"shared memory at {int(offset[0])}: an atomic operation beside another access, without a barrier")
        self.writer[block, cell], self.written[block, cell] = ATOMIC, now
