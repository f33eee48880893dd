"""Experts in memory: slots of one size, filled by threads of their own; what was used least recently gives way."""

from __future__ import annotations

import mmap
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from numba_kernels.cpu.huge_pages import empty_bytes
from oss_tools.machine.direct import PAGE

READERS = 3  # threads that read: each waits for the disk nearly all of its time

ReadPiece = Callable[[int, int, int, np.ndarray], int]  # (key, piece, slot, its memory) -> bytes read


class Reading:
    """An expert on its way into a slot, in pieces, so that several threads hurry for the one that is wanted first.

    Attributes:
        key, slot, pieces: which expert, where to, in how many pieces.
        started, under_way: pieces that were begun so far, and those that are being read now.
        is_cancelled: whether pieces were left out.
        error: what went wrong with the first piece that failed.
    """

    __slots__ = ("_done", "error", "is_cancelled", "key", "pieces", "slot", "started", "under_way")

    def __init__(self, key: int, slot: int, pieces: int) -> None:
        self.key, self.slot, self.pieces = key, slot, pieces
        self.started = self.under_way = 0
        self.is_cancelled = False
        self.error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    @property
    def is_done(self) -> bool:
        """Whether nothing is written into the slot any more."""
        return not self._done.locked()

    @property
    def is_whole(self) -> bool:
        """Whether the expert is in its slot."""
        return self.is_done and not self.is_cancelled and not self.error

    def finish(self) -> None:
        self._done.release()

    def wait(self) -> None:
        """Returns when it is done, one way or another."""
        self._done.acquire()
        self._done.release()


class ExpertCache:
    """Slots of memory for experts. One thread asks, `READERS` others read.

    Attributes:
        slab: uint8, all slots one behind the other, on huge pages where the system gives them: reads past the cache are three
            times as fast into those.
        slots, slot_bytes: how many are in use, and of what size.
        table: the slot of each expert that is in memory or was asked for, by its key, the least recently used first.
        ahead: what is read because it will probably be wanted, by key; it has slots, and no place in the table.
        hits, misses: experts that were there when they were wanted, and that had to be read, if only just before.
    """

    def __init__(
        self, slots: int, slot_bytes: int, pieces: Callable[[int], int], read: ReadPiece, readers: int = READERS
    ) -> None:
        """pieces: in how many an expert is read, by key."""
        self.slots, self.slot_bytes = slots, slot_bytes
        self.slab = empty_bytes(slots * slot_bytes + PAGE)  # kernels may look past a panel's end
        self.table: OrderedDict[int, int] = OrderedDict()
        self.ahead: dict[int, Reading] = {}
        self.hits = self.misses = 0
        self.wait_seconds = 0.0
        self._free = list(range(slots - 1, -1, -1))
        self._leaving: list[Reading] = []  # cancelled: their slots are free when the last piece is done
        self._asked: dict[int, Reading] = {}  # those in the table that may not be whole yet
        self._pieces, self._read = pieces, read
        self._wake = threading.Condition()  # guards what follows, and the readings' state
        self._urgent: deque[Reading] = deque()
        self._later: deque[Reading] = deque()
        self._is_closed = False
        self._under_way, self._since = 0, 0.0
        self._bytes_read, self._read_seconds = 0, 0.0
        self._threads = [threading.Thread(target=self._work, name=f"reader {i}", daemon=True) for i in range(READERS)]
        for thread in self._threads:
            thread.start()

    # ---- asking -----------------------------------------------------------------------------------------------------

    def ask(self, key: int, pinned: Collection[int]) -> Reading | None:
        """Has an expert read that is not in memory, into a slot that is free or whose expert has not been used for longest. None
        if all slots are pinned."""
        if (slot := self._slot(pinned)) is None:
            return None
        reading = Reading(key, slot, self._pieces(key))
        self._enter(reading)
        self._queue(reading, self._urgent)
        return reading

    def _enter(self, reading: Reading) -> None:
        """Puts what is wanted into the table; an interrupt leaves nothing there that `settle` does not know of."""
        self._asked[reading.key] = reading
        self.table[reading.key] = reading.slot
        self.misses += 1

    def _queue(self, reading: Reading, line: deque[Reading]) -> None:
        with self._wake:
            line.append(reading)
            self._wake.notify(reading.pieces)

    def _slot(self, pinned: Collection[int], patient: bool = True) -> int | None:
        self._free += [reading.slot for reading in self._leaving if reading.is_done]
        self._leaving = [reading for reading in self._leaving if not reading.is_done]
        if self._free:
            return self._free.pop()
        for key, slot in self.table.items():
            if slot not in pinned:
                del self.table[key]
                return slot
        if not patient or not (self._leaving or self.ahead):
            return None
        reading = self._leaving.pop() if self._leaving else self.ahead.popitem()[1]  # which nobody wanted
        reading.wait()
        return reading.slot

    def read_ahead(self, keys: list[int]) -> None:
        """Has experts read that will probably be wanted next, when there is nothing else to read."""
        kept = {self.table[key] for key in keys if key in self.table}
        for key in keys:
            if key in self.table:
                self.table.move_to_end(key)
                continue
            if key in self.ahead:
                continue
            if (slot := self._slot(kept, patient=False)) is None:
                return
            reading = self.ahead[key] = Reading(key, slot, self._pieces(key))
            self._queue(reading, self._later)

    def claim(self, wanted: Collection[int]) -> dict[int, Reading]:
        """Now it is known what is wanted. Of what is read ahead, that comes next: returns it, by key. The rest is broken off, or
        kept if it is there already."""
        claimed: dict[int, Reading] = {}
        for key, reading in list(self.ahead.items()):
            if key in wanted:
                claimed[key] = reading
                self._enter(reading)
                self._hurry(reading)
            elif reading.is_whole:
                self.table[key] = reading.slot
            elif self._cancel(reading) or reading.is_done:
                self._leaving.append(reading)
            else:
                continue  # its last pieces are being read: it may be wanted later
            del self.ahead[key]
        return claimed

    def _hurry(self, reading: Reading) -> None:
        with self._wake:
            if reading in self._later:
                self._later.remove(reading)
                self._urgent.append(reading)

    def _cancel(self, reading: Reading) -> bool:
        """Leaves out the pieces that nobody has begun to read; whether there were any."""
        with self._wake:
            if reading.started == reading.pieces:
                return reading.is_cancelled
            reading.is_cancelled = True
            self._drop(reading)
            if not reading.under_way:
                reading.finish()
            return True

    def wait(self, reading: Reading) -> None:
        """Returns when an expert that was asked for is there. Raises BadCheckpoint where it cannot be read."""
        if not reading.is_done:
            began = time.perf_counter()
            reading.wait()
            self.wait_seconds += time.perf_counter() - began
        if reading.error:
            raise reading.error
        del self._asked[reading.key]

    def settle(self) -> None:
        """After a pass that was broken off (an interrupt, a read that failed): ends all reads, and makes sure that the table has
        what was read and nothing else."""
        for reading in [*self._asked.values(), *self.ahead.values(), *self._leaving]:
            if not reading.is_done:
                self._cancel(reading)
                reading.wait()
        for key, reading in self._asked.items():
            if not reading.is_whole:
                self.table.pop(key, None)
        self._asked, self.ahead, self._leaving = {}, {}, []
        self._free = sorted(set(range(self.slots)).difference(self.table.values()), reverse=True)

    def resize(self, slots: int) -> None:
        """Uses fewer slots from now on, or more again, up to those of the beginning. The memory of the others goes back to the
        system. Not while a pass is under way."""
        self.settle()
        for key in [key for key, slot in self.table.items() if slot >= slots]:
            del self.table[key]
        if slots < self.slots:
            self._give_back(slots)
        self.slots = slots
        self.settle()

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

    def _drop(self, reading: Reading) -> None:
        """Begins no further pieces of a reading."""
        reading.started = reading.pieces
        for line in (self._urgent, self._later):
            if reading in line:
                line.remove(reading)

    def _begin(self) -> tuple[Reading, int] | None:
        """The next piece to read; waits until there is one. None when all is over."""
        with self._wake:
            while not (line := self._urgent or self._later):
                if self._is_closed:
                    return None
                self._wake.wait()
            reading = line[0]
            piece = reading.started
            reading.started += 1
            reading.under_way += 1
            if reading.started == reading.pieces:
                line.popleft()
            if not self._under_way:
                self._since = time.perf_counter()
            self._under_way += 1
            return reading, piece

    def _end(self, reading: Reading, nbytes: int, error: BaseException | None) -> None:
        with self._wake:
            self._bytes_read += nbytes
            self._under_way -= 1
            if not self._under_way:
                self._read_seconds += time.perf_counter() - self._since
            reading.under_way -= 1
            if error:
                reading.error = reading.error or error
                self._drop(reading)
            if reading.started == reading.pieces and not reading.under_way:
                reading.finish()

    def _work(self) -> None:
        while begun := self._begin():
            reading, piece = begun
            nbytes, error = 0, None
            try:
                start = reading.slot * self.slot_bytes
                nbytes = self._read(reading.key, piece, reading.slot, self.slab[start : start + self.slot_bytes])
            except BaseException as e:  # handed to the thread that asked
                error = e
            self._end(reading, nbytes, error)

    def figures(self) -> dict[str, float]:
        """What was found, read and waited for so far."""
        with self._wake:
            read, seconds = self._bytes_read, self._read_seconds
        return {
            "hits": self.hits,
            "misses": self.misses,
            "bytes_read": read,
            "wait_seconds": self.wait_seconds,
            "read_seconds": seconds,
        }

    def close(self) -> None:
        """Ends the threads."""
        with self._wake:
            self._is_closed = True
            self._urgent.clear()
            self._later.clear()
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads = []
