"""The shape of a layer's attention over a paged KV cache: what its kernels are compiled for, and how much memory they take.

A page holds PAGE positions of one layer: keys [KV, PAGE, SIZE], then values alike, bfloat16 (two in a word) or float32.
A sequence's position p is in page table[p // PAGE % RING].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numba_kernels.cuda.elements import as_it_is, rotated
from numba_kernels.cuda.seam import NoKernel

PAGE = 64  # positions


@dataclass(frozen=True)
class Attention:
    """The compile-time numbers of a layer.

    Attributes:
        queries, keys: heads.
        size: values of a head, a multiple of 16.
        window: positions that are seen, or None.
        ring: pages of a sequence.
        element: bf16 or f32, of the cache.
        sinks: whether a logit per head joins the softmax.
        turned: whether the kernels rotate queries and keys, the halves of a head against each other; else they are taken as
            they are.
        latent: whether a page has one key for all heads, which is its value as well, and is stored by another kernel.
    """

    queries: int
    keys: int
    size: int
    window: int | None
    ring: int
    element: str = "bf16"
    sinks: bool = False
    turned: bool = True
    latent: bool = False

    def __post_init__(self) -> None:
        if self.size % 16 or (not 16 <= self.size <= 256 and not self.latent):
            raise NoKernel(f"head_dim is {self.size}: the GPU's attention takes multiples of 16 up to 256")

    @property
    def value_words(self) -> int:
        """Words of one key or value."""
        return self.size // 2 if self.element == "bf16" else self.size

    @property
    def page_words(self) -> int:
        return (1 if self.latent else 2 * self.keys) * PAGE * self.value_words

    def constants(self) -> dict[str, Any]:
        """For `Kernel.bind`."""
        return {
            "HEADS": self.queries // self.keys,
            "KV": self.keys,
            "SIZE": self.size,
            "HALF": self.size // 2,
            "WINDOW": self.window or 0,
            "RING": self.ring,
            "SINKS": int(self.sinks),
            "ELEMENT": self.element,
            "VALUE_WORDS": self.value_words,
            "PAGE_WORDS": self.page_words,
            "HEAD_SIZE": self.queries // self.keys * self.size,
            "WEIGHTS": self.queries // self.keys * PAGE,
            "STATS": self.queries // self.keys * 3,
            "TURNED": int(self.turned),
            "STORES": int(not self.latent),
            "KEY_STEP": 0 if self.latent else PAGE * self.value_words,
            "VALUES_AT": 0 if self.latent else self.keys * PAGE * self.value_words,
        }

    @property
    def turn(self) -> Any:
        """The function that gives a value of a query or key, rotated or as it is."""
        return rotated if self.turned else as_it_is


def attend_shared(group: int, size: int) -> int:
    """Bytes of shared memory for so many query heads that share a key-value head."""
    return 4 * (2 * group * size + group * (PAGE + 3) + 1)


def part_size(group: int, size: int) -> int:
    """float32 that a block leaves: a multiple of four."""
    return group * size + -(-2 * group // 4) * 4


def partial_size(shape: Attention, splits: int) -> int:
    """float32 that `attend` needs for its parts."""
    return shape.keys * splits * part_size(shape.queries // shape.keys, shape.size)
