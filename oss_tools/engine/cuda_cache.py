"""The KV cache on a GPU: pages that sequences take from one pool for each kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from numba_kernels.cuda.attention import PAGE, Attention
from numba_kernels.cuda.device import Device
from numba_kernels.cuda.latent import latent_shape
from oss_tools.models.operations import Heads, Latent


class Pool:
    """Pages of all layers that have one window, one page number standing for a page in each of them.

    Attributes:
        heads: the layers.
        shape: of each of them, for the kernels.
        element: bf16 or f32, of what is kept.
        memory: by layer, uint32 [pages · words of a page] on the device.
        width: values that `read` gives for a position.
    """

    def __init__(
        self,
        device: Device,
        heads: Sequence[Heads | Latent],
        context: int,
        chunk: int,
        element: str,
        moved: Callable[[], None],
    ) -> None:
        """Room for one sequence of `context` positions. `moved` is called when `memory` has become other arrays."""
        first = heads[0]
        self.device, self.heads, self.element, self._moved = device, heads, element, moved
        ring = ring_pages(first.window, context, chunk)
        if isinstance(first, Latent):
            self.shape = latent_shape(first.queries, first.rank, first.rope, ring, element)
        else:
            self.shape = Attention(
                first.queries, first.keys, first.size, first.window, ring, element, first.sinks is not None
            )
        self.dtype = np.dtype(np.float32 if element == "f32" else np.uint16)
        self._halves, self._kept_heads = (1, 1) if self.shape.latent else (2, self.shape.keys)
        self.width = len(heads) * cached_values(first)
        self.memory: dict[int, Any] = {}
        self._pages = 0
        self._free: list[int] = []
        self._grow(ring)

    def _grow(self, pages: int) -> None:
        had = self._pages
        for h in self.heads:
            larger = self.device.empty(pages * self.shape.page_words, np.uint32)
            if had:
                self.device.copy(larger, self.memory[h.layer])
            self.memory[h.layer] = larger
        self._free[:0] = range(pages - 1, had - 1, -1)  # in place: another thread may drop a cache meanwhile
        self._pages = pages
        self._moved()

    def take(self, count: int) -> list[int]:
        """Page numbers; the pool grows if it has no more."""
        if len(self._free) < count:
            self._grow(max(2 * self._pages, self._pages + count))
        return [self._free.pop() for _ in range(count)]

    def give(self, numbers: list[int]) -> None:
        self._free += numbers

    def needed(self, capacity: int) -> int:
        """Pages of a sequence with room for `capacity` positions."""
        return min(-(-capacity // PAGE), self.shape.ring)

    def copy_pages(self, source: list[int], target: list[int]) -> None:
        """Copies pages, the first to the first."""
        words = self.shape.page_words
        for memory in self.memory.values():
            for a, b in zip(source, target, strict=False):
                self.device.copy(memory, memory[a * words : (a + 1) * words], b * words)

    # ---- copies of single positions, as [n, layers · halves · heads · size] float32 or bfloat16 bits ---------------------

    def read(self, numbers: list[int], start: int, stop: int) -> np.ndarray:
        block = np.empty((stop - start, len(self.heads), self.width // len(self.heads)), self.dtype)
        for page in range(start // PAGE, -(-stop // PAGE)):
            low, high = max(start, page * PAGE), min(stop, (page + 1) * PAGE)
            for i, h in enumerate(self.heads):
                held = self._page(h.layer, numbers[page % self.shape.ring])
                part = held[:, :, low - page * PAGE : high - page * PAGE]  # [halves, heads, positions, size]
                block[low - start : high - start, i] = part.transpose(2, 0, 1, 3).reshape(high - low, -1)
        return block.reshape(stop - start, self.width)

    def write(self, numbers: list[int], start: int, block: np.ndarray) -> None:
        skip = max(len(block) - self.shape.ring * PAGE, 0) if self.shape.window else 0
        start, block = start + skip, block[skip:]
        stop, words = start + len(block), self.shape.page_words
        parts = block.reshape(len(block), len(self.heads), self._halves, self._kept_heads, self.shape.size)
        for page in range(start // PAGE, -(-stop // PAGE)):
            low, high = max(start, page * PAGE), min(stop, (page + 1) * PAGE)
            for i, h in enumerate(self.heads):
                number = numbers[page % self.shape.ring]
                held = self._page(h.layer, number)
                held[:, :, low - page * PAGE : high - page * PAGE] = parts[low - start : high - start, i].transpose(
                    1, 2, 0, 3
                )
                self.device.upload(self.memory[h.layer], held.reshape(-1).view(np.uint32), number * words)

    def _page(self, layer: int, number: int) -> np.ndarray:
        """A copy of a page, [halves, heads, PAGE, size]: keys and values, or latents alone."""
        words = self.shape.page_words
        page = self.device.download(self.memory[layer], number * words, (number + 1) * words)
        return page.view(self.dtype).reshape(self._halves, self._kept_heads, PAGE, self.shape.size)


def cached_values(heads: Heads | Latent) -> int:
    """Values of a position in a layer's pages: latents are padded to multiples of 16."""
    return -(-heads.size // 16) * 16 if isinstance(heads, Latent) else heads.cached


def ring_pages(window: int | None, context: int, chunk: int) -> int:
    """Pages that hold all positions that a sequence still needs while `chunk` positions are added."""
    whole = -(-context // PAGE)
    return whole if window is None else min(-(-(window + chunk) // PAGE) + 1, whole)


@dataclass(eq=False)
class Cache:
    """The pages of one sequence: page numbers by pool. They go back to their pools when the cache is dropped."""

    pools: list[Pool]
    numbers: list[list[int]] = field(default_factory=list)

    def __del__(self) -> None:
        for pool, numbers in zip(self.pools, self.numbers, strict=False):
            pool.give(numbers)

    def grow(self, capacity: int) -> None:
        """Makes room for `capacity` positions."""
        for pool, numbers in self._parts():
            numbers += pool.take(pool.needed(capacity) - len(numbers))

    def copy_to(self, other: Cache, length: int) -> None:
        """Copies the pages of the first `length` positions."""
        for (pool, source), target in zip(self._parts(), other.numbers, strict=True):
            pool.copy_pages(source[: pool.needed(length)], target)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Positions of all pools, [n, widths together]."""
        return np.concatenate([pool.read(numbers, start, stop) for pool, numbers in self._parts()], 1)

    def write(self, start: int, block: np.ndarray) -> None:
        """Stores what `read` gave as positions start, start + 1, …"""
        at = 0
        for pool, numbers in self._parts():
            pool.write(numbers, start, block[:, at : at + pool.width])
            at += pool.width

    def _parts(self) -> Iterator[tuple[Pool, list[int]]]:
        return zip(self.pools, self.numbers, strict=True)
