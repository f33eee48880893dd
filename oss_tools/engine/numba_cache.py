"""The KV cache of the kernels: pages of bfloat16, float32 or 8 bits, taken by sequences from one pool for each kind of layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from numba_kernels.cpu.kv_pages import Pages
from numba_kernels.cpu.op import Op
from numba_kernels.cpu.team import Program
from oss_tools.engine.backend import Run
from oss_tools.engine.numba_pages import POSITIONS, copies_for, pages_for, pages_of
from oss_tools.models.operations import Heads, Latent

FIRST_PAGES = 16  # a pool begins with so many pages and doubles
SEQUENCES = 64  # in one pass
SERIALS = itertools.count(1)


class Pool:
    """Pages of all layers that have one window, one page number standing for a page in each of them.

    A sliding layer's sequence has a ring of pages for the window and no more (128 positions for a window of 128). A pass over
    more tokens of a sequence than fit beside the window works on other pages, see `Passing`.

    Attributes:
        heads: the layers.
        window: of the layers, or None.
        pages: geometry of a page.
        ring: a sequence's position p is in its page p // POSITIONS mod ring.
        copies: what reads the rows of positions, what writes them, and what copies positions from page to page.
        memory: by layer, uint8 [pages, page bytes].
        table: the page numbers of the sequences of the pass at hand, int32 [SEQUENCES, ring].
        passing: for passes over many tokens; None where the ring holds the whole context.
        version: changes when `memory` does.
    """

    def __init__(self, heads: list[Heads | Latent], context: int, chunk: int, element: str = "bf16") -> None:
        self.heads, self.window = heads, heads[0].window
        self.pages = pages_for(heads[0], element)
        self.copies = copies_for(heads[0], element)
        self.dtype = np.dtype({"f32": np.float32, "bf16": np.uint16, "q8": np.uint8}[element])
        whole = pages_of(context)
        self.ring = whole if self.window is None else min(pages_of(self.window), whole)
        self.memory: dict[int, np.ndarray] = {}
        self.table = np.zeros((SEQUENCES, self.ring), np.int32)
        self.passing = Passing(self, chunk) if self.window and self.ring < whole else None
        self._free: list[int] = []
        self.version = 0
        self._laid: list[tuple[int, int]] = [(0, 0)] * SEQUENCES  # whose pages, and how many, are in each row of the table
        self._uses: list[int] = []  # of each page: how many sequences it belongs to
        self._most = 0  # pages that have been in use at once
        self.grow(FIRST_PAGES)

    def grow(self, count: int) -> None:
        """Makes the pool `count` pages large, layer by layer; `memory` is other arrays afterwards."""
        had = len(self._uses)
        for h in self.heads:
            larger = self.pages.allocate(count)
            if had:
                larger[:had] = self.memory[h.layer]
            self.memory[h.layer] = larger
        self._free[:0] = range(count - 1, had - 1, -1)  # in place: another thread may drop a cache meanwhile
        self._uses += [0] * (count - had)
        self.version += 1

    def take(self, count: int) -> list[int]:
        """Page numbers; the pool grows if it has no more."""
        if len(self._free) < count:
            self.grow(max(2 * len(self._uses), len(self._uses) + count))
        numbers = [self._free.pop() for _ in range(count)]
        for number in numbers:
            self._uses[number] = 1
        self._most = max(self._most, len(self._uses) - len(self._free))
        return numbers

    def give(self, numbers: list[int]) -> None:
        """Ends a sequence's use of pages."""
        for number in numbers:
            self._uses[number] -= 1
            if not self._uses[number]:
                self._free.append(number)

    def fork(self, numbers: list[int], length: int, capacity: int) -> list[int]:
        """Pages for a sequence of `capacity` positions that begins with all `length` positions of the one that has `numbers`.
        Pages that neither will write again belong to both, the others are copied."""
        shared = 0 if self.window else length // POSITIONS
        for number in numbers[:shared]:
            self._uses[number] += 1
        own = self.take(self.needed(capacity) - shared)
        for source, target in zip(numbers[shared : pages_of(length)], own, strict=False):
            for memory in self.memory.values():
                memory[target] = memory[source]
        return numbers[:shared] + own

    def needed(self, capacity: int) -> int:
        """Pages of a sequence with room for `capacity` positions."""
        return min(pages_of(capacity), self.ring)

    def lay_out(self, runs: Sequence[Run]) -> Pool | Passing:
        """Where a pass stores and reads the keys and values of its runs: the rings, if their tokens fit in beside the windows
        that the first of them see, else pages of the pass."""
        for s, run in enumerate(runs):
            numbers = run.cache.numbers[self.window]
            laid = (run.cache.serial, len(numbers))
            if self._laid[s] != laid:
                self.table[s, : len(numbers)] = numbers
                self._laid[s] = laid
        if not self.passing or all(len(r.tokens) + self.passing.before <= self.ring * POSITIONS for r in runs):
            return self
        self.passing.lay_out(runs)
        return self.passing

    # ---- copies of single positions, as [n, values of all layers]: float32, bfloat16 bits, or bytes and scales -----

    @property
    def nbytes(self) -> int:
        """Of the pages that have been written to, in all layers: the others take no memory yet."""
        return self._most * self.pages.nbytes * len(self.heads)

    @property
    def width(self) -> int:
        """Numbers of `dtype` that a position has in all layers."""
        return len(self.heads) * self.pages.row_bytes // self.dtype.itemsize

    def is_finite(self, rows: np.ndarray) -> bool:
        """Whether rows of positions hold numbers alone."""
        if isinstance(self.pages, Pages) and self.pages.scale_bytes:
            scales = rows.reshape(len(rows), len(self.heads), -1)[..., -self.pages.row_scale_bytes :]
            rows = np.ascontiguousarray(scales).view(np.float32)
        if rows.dtype == np.float32:
            return bool(np.isfinite(rows).all())
        return bool(((rows & 0x7F80) != 0x7F80).all())

    def reading(self, program: Program, cache: Cache, start: int, rows: np.ndarray) -> None:
        """Records what fills rows [n, width] with positions start, start + 1, …"""
        seen = cache.passed.get(self.window)
        if not self.passing or not seen or seen.serial != self.passing.serial or start < seen.first:
            self._copying(program, self.copies[0], self.memory, cache.numbers[self.window], self.ring, start, rows)
            return
        here = min(max(seen.stop - start, 0), len(rows))
        self._copying(program, self.copies[0], self.passing.memory, seen.table, self.passing.ring, start, rows[:here])
        self._copying(program, self.copies[0], self.memory, cache.numbers[self.window], self.ring, start + here, rows[here:])

    def writing(self, program: Program, cache: Cache, start: int, rows: np.ndarray) -> None:
        """Records what stores rows [n, width] as positions start, start + 1, …; of a ring only the last ones."""
        skip = max(len(rows) - self.ring * POSITIONS, 0) if self.window else 0
        self._copying(program, self.copies[1], self.memory, cache.numbers[self.window], self.ring, start + skip, rows[skip:])

    def _copying(
        self, program: Program, op: Op, memory: dict[int, np.ndarray], numbers: Any, ring: int, start: int, rows: np.ndarray
    ) -> None:
        table = np.array(numbers, np.int32)
        width = self.width // len(self.heads)
        for i, h in enumerate(self.heads if len(rows) else ()):
            program.add(
                op, pages=memory[h.layer], table=table, ring=ring, rows=rows[:, i * width :], row_stride=rows.strides[0],
                first=start, count=len(rows), **self.geometry,
            )  # fmt: skip

    @property
    def geometry(self) -> dict[str, int]:
        """What the copying kernels want to know of a page."""
        h, page = self.heads[0], {"page_bytes": self.pages.nbytes, "page_positions": POSITIONS}
        if isinstance(h, Latent):
            return {"size": h.size, **page}
        return {"kv_heads": h.keys, "head_dim": h.size, **page}


class Passing:
    """The pages that a pass over many tokens works on in sliding layers: the window before the tokens is copied here from the
    ring, their keys and values are stored behind it, and when the pass is complete, what is then the window goes back. So an
    interrupted pass leaves the rings as they were, and all that a pass has computed can be read after it.

    Attributes:
        before: positions before a token that it sees.
        ring, memory, table, version: as of a pool; a sequence's pages follow each other.
        serial: counts the passes.
    """

    def __init__(self, pool: Pool, chunk: int) -> None:
        self._pool = pool
        self.before = (pool.window or 1) - 1
        self.ring = pages_of(self.before + chunk) + 1
        self.table = np.zeros((SEQUENCES, self.ring), np.int32)
        self.memory: dict[int, np.ndarray] = {}
        self.serial = self.version = 0
        self._ranges = np.zeros(
            (2, 2, SEQUENCES), np.int32
        )  # to the pass and back: first and last position of each sequence
        self._copies: tuple[tuple[int, int], list[Program]] = ((0, 0), [])
        self._runs = 0
        self._reserve(self.ring)

    def _reserve(self, count: int) -> None:
        self.memory = {h.layer: self._pool.pages.allocate(count) for h in self._pool.heads}
        self._count = count
        self.version += 1

    def lay_out(self, runs: Sequence[Run]) -> None:
        """Gives the runs of a pass their pages."""
        self.serial += 1
        self._runs, taken = len(runs), 0
        for s, run in enumerate(runs):
            stop = run.start + len(run.tokens)
            low = max(run.start - self.before, 0)
            page, count = low // POSITIONS, pages_of(stop) - low // POSITIONS
            self.table[s, np.arange(page, page + count) % self.ring] = np.arange(taken, taken + count)
            taken += count
            self._ranges[:, :, s] = (low, run.start), (max(low, stop - self._pool.ring * POSITIONS), stop)
            run.cache.passed[self._pool.window] = Passed(self.serial, low, stop, self.table[s].copy())
        if taken > self._count:
            self._reserve(max(taken, 2 * self._count))

    def rewind(self, ends: Sequence[tuple[Cache, int]]) -> None:
        """From now on the runs of the last pass end before these positions; to be copied back once more."""
        for s, (cache, stop) in enumerate(ends):
            low = int(self._ranges[0, 0, s])
            self._ranges[1, :, s] = max(low, stop - self._pool.ring * POSITIONS), stop
            cache.passed[self._pool.window] = replace(cache.passed[self._pool.window], stop=stop)

    def copying(self, back: bool) -> Program:
        """What copies the windows from the rings to the pages of the pass, or back."""
        version = (self._pool.version, self.version)
        if self._copies[0] != version:
            self._copies = (version, [self._record(self._pool, self, 0), self._record(self, self._pool, 1)])
        program = self._copies[1][back]
        for number in range(len(program.ops)):
            program.set(number, "sequences", self._runs)
        return program

    def _record(self, source: Pool | Passing, target: Pool | Passing, which: int) -> Program:
        program, (first, last) = Program(), self._ranges[which]
        for h in self._pool.heads:
            program.add(
                self._pool.copies[2], source=source.memory[h.layer], source_tables=source.table,
                source_stride=source.table.strides[0],
                source_ring=source.ring, target=target.memory[h.layer], target_tables=target.table,
                target_stride=target.table.strides[0], target_ring=target.ring, first=first, last=last, sequences=0,
                **self._pool.geometry,
            )  # fmt: skip
        return program


@dataclass(frozen=True)
class Passed:
    """Where the positions first … stop − 1 of a sequence lay in a pass."""

    serial: int
    first: int
    stop: int
    table: np.ndarray


@dataclass(eq=False)
class Cache:
    """The pages of one sequence: page numbers by window, to which others may be added. They go back to their pools when the
    cache is dropped. No two caches have the same serial number."""

    pools: dict[int | None, Pool]
    numbers: dict[int | None, list[int]]
    passed: dict[int | None, Passed] = field(default_factory=dict)
    serial: int = field(default_factory=lambda: next(SERIALS))

    def __del__(self) -> None:
        for window, numbers in self.numbers.items():
            self.pools[window].give(numbers)


def parts(pools: dict[int | None, Pool], rows: np.ndarray) -> Iterator[tuple[Pool, np.ndarray]]:
    """Each pool's columns of rows that hold all layers."""
    at = 0
    for pool in pools.values():
        yield pool, rows[:, at : at + pool.width]
        at += pool.width
