"""Multi-head latent attention (https://arxiv.org/abs/2405.04434, section 2.1) in its absorbed form, over a paged cache.

The cache holds, of each position, a latent and a rotated key that all heads share: one row of rank + rope values, padded to a
multiple of LANES. With each head's projection from latent to key made part of its query, a score is the product of a query with
a row, and what the softmax sums are the rows' first `rank` values, which each head then projects to its values. So nothing is
stored twice, and `attention` works as on one key-value head whose value is the beginning of its key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from numba_kernels.cpu import attention_steps
from numba_kernels.cpu.attention import attention_op
from numba_kernels.cpu.attention_steps import AHEAD, SEGMENT, STRIDE
from numba_kernels.cpu.attention_tiles import load_places
from numba_kernels.cpu.huge_pages import empty_bytes
from numba_kernels.cpu.kv_pages import ELEMENTS, MAX_HEAD, page_of, rotate, row_storing, slot_of, store_row
from numba_kernels.cpu.op import Op, maker, op
from numba_kernels.cpu.rows import load_part, store_part
from numba_kernels.cpu.team import take
from numba_kernels.simd.memory import get_i32, get_u16, load_bf16, load_floats, prefetch, set_f32, set_u16, store_floats
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.tiles import add_products, store_sums, zero_tile
from numba_kernels.simd.values import LANES, keep_between, splat

ROWS = attention_steps.ROWS
WIDTH = 2
load_value: Any = load_bf16
WIDTHS = {name: width for name, width in ELEMENTS.items() if name != "q8"}  # bytes of a cached value
PIECE = 64  # positions of a piece of work of a copy
TO_ROWS = 1


def row_stride(size: int, element: str = "bf16") -> int:
    """Bytes between the rows of two positions of `size` values in a page."""
    return -(-size // LANES) * LANES * WIDTHS[element]


@dataclass(frozen=True)
class LatentPages:
    """The geometry of a layer's pages.

    Attributes:
        rank, rope: values of a position's latent, at most MAX_HEAD, and of its rotated key.
        positions: of a page, a multiple of LANES.
        element: bf16 or f32.
    """

    rank: int
    rope: int
    positions: int = 64
    element: str = "bf16"

    def __post_init__(self) -> None:
        if not 0 < self.rank <= MAX_HEAD:
            raise ValueError(f"a latent has {self.rank} values; the kernels take up to {MAX_HEAD}")
        if self.element not in WIDTHS:
            raise ValueError(f"latents are kept in {' or '.join(WIDTHS)}, not in {self.element}")
        if self.positions % LANES or self.positions < LANES:
            raise ValueError(f"a page of {self.positions} positions does not divide into panels of {LANES}")

    @property
    def size(self) -> int:
        """Values of a position."""
        return self.rank + self.rope

    @property
    def nbytes(self) -> int:
        return self.positions * row_stride(self.size, self.element)

    @property
    def row_bytes(self) -> int:
        """Values of a position, as the copies read them."""
        return self.size * WIDTHS[self.element]

    def allocate(self, count: int) -> np.ndarray:
        """Zeroed memory for `count` pages, uint8 [count, nbytes]."""
        return empty_bytes(count * self.nbytes).reshape(count, self.nbytes)


@op
def store_latents(  # type: ignore[no-untyped-def]
    query, query_stride, latent, latent_stride, key, key_stride, rows, heads, nope, rope, rank, positions, sequence,
    cos, sin, pairs, interleaved, scale: float, unrotated, unrotated_stride, absorbed, absorbed_stride,
    pages, page_bytes, page_positions, tables, table_stride, ring, team, thread,
):  # fmt: skip
    """Divides queries into what meets the latents and what meets the rotated keys, and stores latents and keys in their pages.

    query: float32 rows of heads, nope + rope values each; latent, key: float32 rows of rank and of rope values. The first nope
    values of head h of row t go to row h · rows + t of `unrotated`, the others, rotated, behind the first `rank` of that row of
    `absorbed`, both times `scale`. Tables, pages and rotation as in `kv_pages.rotate_and_store`; the key is rotated in place.
    A piece of work is one head of one row, or the row's latent and key.
    """
    across = (rank + rope + LANES - 1) // LANES * LANES
    item = take(team)
    while item < rows * (heads + 1):
        row = item // (heads + 1)
        head = item - row * (heads + 1)
        position = get_i32(positions + 4 * row)
        angle = position * pairs * 4
        if head < heads:
            source = query + row * query_stride + head * (nope + rope) * 4
            target = unrotated + (head * rows + row) * unrotated_stride
            for i in range(0, nope, LANES):
                store_part(target + 4 * i, load_part(source + 4 * i, nope - i) * splat(scale), nope - i)
            target = absorbed + (head * rows + row) * absorbed_stride + 4 * rank
            for i in range(0, rope, LANES):
                store_part(target + 4 * i, load_part(source + 4 * (nope + i), rope - i), rope - i)
            rotate(target, cos + angle, sin + angle, pairs, interleaved, rope, scale)
            for i in range(rank + rope, across):
                set_f32(target + 4 * (i - rank), np.float32(0))
        else:
            table = tables + get_i32(sequence + 4 * row) * table_stride
            page = page_of(position, pages, page_bytes, page_positions, table, ring)
            to = page + slot_of(position, page_positions) * across * WIDTH
            store_row(to, latent + row * latent_stride, rank)
            at = key + row * key_stride
            rotate(at, cos + angle, sin + angle, pairs, interleaved, rope, np.float32(1))
            store_row(to + WIDTH * rank, at, rope)
            for i in range((rank + rope) * WIDTH, across * WIDTH, 2):
                set_u16(to + i, 0)
        item = take(team)


def scores_of_rows(  # type: ignore[no-untyped-def]
    scores, queries, sees, head_dim, low, high, pages, page_bytes, page_positions, table, ring, offset, across, is_ahead
):
    """`attention_steps.scores_of` for keys that lie in rows, and queries in rows at the addresses queries[t] (int64), zero from
    head_dim on; low is a multiple of SEGMENT."""
    step = across * WIDTH
    rows = load_places(ROWS, queries)
    last = get_i32(sees + 8 * ROWS - 4) - 1  # that any row sees
    for p in range(low, high, 2):
        row = page_of(p, pages, page_bytes, page_positions, table, ring) + offset + slot_of(p, page_positions) * step
        later = min(p + AHEAD, last)
        wanted = (
            page_of(later, pages, page_bytes, page_positions, table, ring) + offset + slot_of(later, page_positions) * step
        )
        first, second = zero_tile(ROWS), zero_tile(ROWS)
        for d in range(0, across, LANES):
            if is_ahead:
                prefetch(wanted + 2 * d * WIDTH)
            first = add_products(first, load_value(row + d * WIDTH), rows, 4 * d)
            second = add_products(second, load_value(row + step + d * WIDTH), rows, 4 * d)
        store_sums(scores + p % SEGMENT * 4, STRIDE, first, second)
    for t in range(ROWS):
        for p in range(low, high, LANES):
            at = scores + t * STRIDE + p % SEGMENT * 4
            store_floats(at, keep_between(p, get_i32(sees + 8 * t), get_i32(sees + 8 * t + 4), load_floats(at)))


@maker
def store_latents_op(element: str = "bf16") -> Op:
    """The operation `store_latents` for caches of this element."""
    return store_latents.bind(WIDTH=WIDTHS[element], store_row=row_storing(element))


@maker
def latent_attention_op(element: str = "bf16", rank: int = 512) -> Op:
    """The operation `attention` for queries that meet the latents; value_dim is `rank`."""
    return attention_op(ACTIVE.sums // 2, element, rank, scores_of_rows)  # which meet two positions at a time


@op
def _copy_latents(  # type: ignore[no-untyped-def]
    pages, table, ring, rows, row_stride, first, count, size, page_bytes, page_positions, team, thread
):
    """Copies positions first … first + count − 1 of a sequence's pages to or from rows of `size` values."""
    across = (size + LANES - 1) // LANES * LANES * WIDTH
    item = take(team)
    while item * PIECE < count:
        for n in range(item * PIECE, min(item * PIECE + PIECE, count)):
            p = first + n
            there = page_of(p, pages, page_bytes, page_positions, table, ring) + slot_of(p, page_positions) * across
            row = rows + n * row_stride
            for i in range(0, size * WIDTH, 2):
                if TO_ROWS:
                    set_u16(row + i, get_u16(there + i))
                else:
                    set_u16(there + i, get_u16(row + i))
        item = take(team)


@maker
def copy_latents_ops(element: str = "bf16") -> tuple[Op, Op]:
    """The operations that read rows from pages and write them there, for caches of this element."""
    reading, writing = (_copy_latents.bind(TO_ROWS=to_rows, WIDTH=WIDTHS[element]) for to_rows in (1, 0))
    return reading, writing
