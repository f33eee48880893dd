"""The KV cache of the kernels: bfloat16 pages, taken by sequences from one pool for each kind of layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from numba_kernels.cpu.attention import Pages
from numba_kernels.simd.values import LANES
from oss_tools.models.operations import Heads

POSITIONS = 64  # of a page
FIRST_PAGES = 16  # a pool begins with so many pages and doubles


class Pool:
    """Pages of all layers that have one window, one page number standing for a page in each of them.

    Attributes:
        heads: the layers.
        pages: geometry of a page.
        ring: a sequence's position p is in its page p // POSITIONS mod ring.
        memory: by layer, uint8 [pages, page bytes].
    """

    def __init__(self, heads: list[Heads], context: int, chunk: int, element: str = "bf16") -> None:
        self.heads = heads
        self.pages = Pages(heads[0].keys, heads[0].size, POSITIONS, element)
        self.dtype = np.dtype(np.float32 if element == "f32" else np.uint16)
        whole = -(-context // POSITIONS)
        window = heads[0].window
        self.ring = whole if window is None else min(-(-(window + chunk) // POSITIONS) + 1, whole)
        self.memory: dict[int, np.ndarray] = {}
        self._free: list[int] = []
        self.grow(FIRST_PAGES)

    def grow(self, count: int) -> None:
        """Makes the pool `count` pages large, layer by layer; `memory` is other arrays afterwards."""
        had = len(next(iter(self.memory.values()))) if self.memory else 0
        for h in self.heads:
            larger = self.pages.allocate(count)
            if had:
                larger[:had] = self.memory[h.layer]
            self.memory[h.layer] = larger
        self._free = list(range(count - 1, had - 1, -1)) + self._free

    def take(self, count: int) -> list[int]:
        """Page numbers; the pool grows if it has no more."""
        if len(self._free) < count:
            had = len(next(iter(self.memory.values())))
            self.grow(max(2 * had, had + count))
        return [self._free.pop() for _ in range(count)]

    def give(self, numbers: list[int]) -> None:
        self._free += numbers

    def needed(self, capacity: int) -> int:
        """Pages of a sequence with room for `capacity` positions."""
        return min(-(-capacity // POSITIONS), self.ring)

    # ---- copies of single positions, as [n, layers · 2 · heads · size] float32 or bfloat16 bits ---------------------

    def read(self, numbers: list[int], start: int, stop: int) -> np.ndarray:
        position = np.arange(start, stop)
        page, slot = self._place(numbers, position)
        parts = []
        for h in self.heads:
            keys, values = self._views(self.memory[h.layer])
            parts.append(keys[page, :, slot // LANES, :, slot % LANES].reshape(len(position), -1))
            parts.append(values[page, :, slot, : h.size].reshape(len(position), -1))
        return np.concatenate(parts, 1)

    def write(self, numbers: list[int], start: int, block: np.ndarray) -> None:
        skip = max(len(block) - (self.ring - 1) * POSITIONS, 0) if self.heads[0].window else 0
        position = np.arange(start + skip, start + len(block))
        page, slot = self._place(numbers, position)
        h = self.heads[0]
        together = 4 // self.dtype.itemsize  # columns of a key that lie in one lane
        parts = block[skip:].reshape(len(position), len(self.heads), 2, h.keys, h.size)
        for i, head in enumerate(self.heads):
            keys, values = self._views(self.memory[head.layer])
            keys[page, :, slot // LANES, :, slot % LANES] = parts[:, i, 0].reshape(
                len(position), *keys.shape[1:2], -1, together
            )
            values[page, :, slot, : h.size] = parts[:, i, 1]

    @property
    def width(self) -> int:
        """Values that `read` gives for a position."""
        return len(self.heads) * 2 * self.heads[0].keys * self.heads[0].size

    def _place(self, numbers: list[int], position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array(numbers)[position // POSITIONS % self.ring], position % POSITIONS

    def _views(self, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys [pages, heads, panels, columns, LANES, columns in a lane], values [pages, heads, POSITIONS, padded size]."""
        h, p, together = self.heads[0], self.pages, 4 // self.dtype.itemsize
        by_head = memory.reshape(len(memory), h.keys, p.head_bytes).view(self.dtype)
        split = p.key_bytes // self.dtype.itemsize
        keys = by_head[..., :split].reshape(len(memory), h.keys, POSITIONS // LANES, h.size // together, LANES, together)
        return keys, by_head[..., split:].reshape(len(memory), h.keys, POSITIONS, -1)


@dataclass(eq=False)
class Cache:
    """The pages of one sequence: page numbers by pool. They go back to their pools when the cache is dropped."""

    pools: list[Pool]
    numbers: list[list[int]] = field(default_factory=list)

    def __del__(self) -> None:
        for pool, numbers in zip(self.pools, self.numbers, strict=False):
            pool.give(numbers)
