"""Experts in memory: slots of one size, filled by threads of their own; what was used least recently gives way."""

from __future__ import annotations

import mmap
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from numba_kernels.cpu.packing import empty_bytes
from oss_tools.checkpoints.direct import PAGE

READERS = 3  # threads that read: each waits for the disk nearly all of its time

Read = Callable[[int, int, np.ndarray], int]  # (key, slot, its memory) -> bytes read


class Reading:
    """An expert on its way into a slot."""

    __slots__ = ("_done", "error", "key", "slot")

    def __init__(self, key: int, slot: int) -> None:
        self.key, self.slot = key, slot
        self.error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    @property
    def is_done(self) -> bool:
        return not self._done.locked()

    def finish(self, error: BaseException | None) -> None:
        self.error = error
        self._done.release()

    def wait(self) -> None:
        """Returns when the slot is filled. Raises what went wrong."""
        self._done.acquire()
        self._done.release()
        if self.error:
            raise self.error


class ExpertCache:
    """Slots of memory for experts. One thread asks, `READERS` others read.

    Attributes:
        slab: uint8, all slots one behind the other, on huge pages where the system gives them.
        slots, slot_bytes: how many are in use, and of what size.
        table: the slot of each expert that is in memory, by its key, the least recently used first.
        hits, misses: experts that were there when they were wanted, and that were not.
    """

    def __init__(self, slots: int, slot_bytes: int, read: Read, readers: int = READERS) -> None:
        self.slots, self.slot_bytes = slots, slot_bytes
        self.slab = empty_bytes(slots * slot_bytes + PAGE)  # kernels may look past a panel's end
        self.table: OrderedDict[int, int] = OrderedDict()
        self.hits = self.misses = 0
        self._free = list(range(slots - 1, -1, -1))
        self._failed: list[int] = []  # keys of what could not be read
        self._read = read
        self._asked: queue.Queue[Reading | None] = queue.Queue()
        self._lock = threading.Lock()
        self._under_way, self._since = 0, 0.0
        self._bytes_read, self._read_seconds, self.wait_seconds = 0, 0.0, 0.0
        self._threads = [threading.Thread(target=self._work, name=f"reader {i}", daemon=True) for i in range(readers)]
        for thread in self._threads:
            thread.start()

    # ---- asking -----------------------------------------------------------------------------------------------------

    def ask(self, key: int, pinned: Collection[int]) -> Reading | None:
        """Has an expert read that is not in memory, into a slot that is free or whose expert has not been used for longest. None
        if all slots are pinned."""
        slot = self._free.pop() if self._free else self._evicted(pinned)
        if slot is None:
            return None
        reading = Reading(key, slot)
        self.misses += 1
        self._asked.put(reading)  # before it is in the table: an interrupt in between leaves nothing there that is not read
        self.table[key] = slot
        return reading

    def _evicted(self, pinned: Collection[int]) -> int | None:
        for key, slot in self.table.items():
            if slot not in pinned:
                del self.table[key]
                return slot
        return None

    def wait(self, reading: Reading) -> None:
        """Returns when an expert that was asked for is there. Raises BadCheckpoint where it cannot be read."""
        if not reading.is_done:
            began = time.perf_counter()
            reading.wait()
            self.wait_seconds += time.perf_counter() - began
        else:
            reading.wait()

    def settle(self) -> None:
        """After a pass that was broken off (an interrupt, a read that failed): waits for all reads that are under way, and makes
        sure that the table has what was read and nothing else."""
        self._asked.join()
        while self._failed:
            self.table.pop(self._failed.pop(), None)
        self._free = sorted(set(range(self.slots)).difference(self.table.values()), reverse=True)

    def resize(self, slots: int) -> None:
        """Uses fewer slots from now on, or more again, up to those of the beginning. The memory of the others goes back to the
        system. Not while a pass is under way."""
        if slots < self.slots:
            for key in [key for key, slot in self.table.items() if slot >= slots]:
                del self.table[key]
            self._free = [slot for slot in self._free if slot < slots]
            self._give_back(slots)
        else:
            self._free = list(range(slots - 1, self.slots - 1, -1)) + self._free
        self.slots = slots

    def _give_back(self, first: int) -> None:
        """Returns the pages of the slots from number `first` on to the system."""
        memory: Any = self.slab
        while not isinstance(memory, mmap.mmap):
            memory = memory.obj if isinstance(memory, memoryview) else memory.base
        start = self.slab.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data + first * self.slot_bytes
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and start < len(memory):
            memory.madvise(mmap.MADV_DONTNEED, start)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (reading := self._asked.get()) is not None:
            self._begin()
            nbytes, error = 0, None
            try:
                start = reading.slot * self.slot_bytes
                nbytes = self._read(reading.key, reading.slot, self.slab[start : start + self.slot_bytes])
            except BaseException as e:  # handed to the thread that asked
                error = e
                self._failed.append(reading.key)
            self._end(nbytes)
            reading.finish(error)
            self._asked.task_done()

    def _begin(self) -> None:
        with self._lock:
            if not self._under_way:
                self._since = time.perf_counter()
            self._under_way += 1

    def _end(self, nbytes: int) -> None:
        with self._lock:
            self._bytes_read += nbytes
            self._under_way -= 1
            if not self._under_way:
                self._read_seconds += time.perf_counter() - self._since

    def figures(self) -> dict[str, float]:
        """What was found, read and waited for so far."""
        with self._lock:
            read, seconds = self._bytes_read, self._read_seconds
        return {
            "hits": self.hits,
            "misses": self.misses,
            "bytes_read": read,
            "wait_seconds": self.wait_seconds,
            "read_seconds": seconds,
        }

    def close(self) -> None:
        """Ends the threads, when they have read what was asked for."""
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
