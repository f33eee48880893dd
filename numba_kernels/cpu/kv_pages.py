"""The pages of a KV cache of bfloat16, float32 or 8 bits, and what stores keys there: norms of heads and rotary embedding.

A page holds P positions of one layer. For every key-value head it has the keys, in panels of LANES positions as a float
weight matrix has rows, and then the values, a row of head_dim (padded to a multiple of LANES) for every position. A
sequence's position p is in page table[p // P mod `ring`]: with `ring` pages a sliding window needs no more than its own
memory, and sequences that begin alike can share pages. Keys and values of 8 bits have scales beside them, see `kv_bytes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from numba_kernels.cpu.blocks import PAIR
from numba_kernels.cpu.huge_pages import empty_bytes
from numba_kernels.cpu.kv_bytes import SCALE_BYTES, mix, store_key_bytes, store_value_bytes
from numba_kernels.cpu.op import Op, inner, maker, op, specialize
from numba_kernels.cpu.rows import load_part, store_part
from numba_kernels.cpu.team import take, thread_count
from numba_kernels.simd.memory import get_f32, get_i32, get_u32, load_floats, set_f32, set_u16, store_bf16
from numba_kernels.simd.numbers import quotient, remainder
from numba_kernels.simd.values import LANES, evens, fma, lower_pairs, odds, splat, sum_lanes, upper_pairs

MAX_HEAD = 1024  # values of a head, at most
ELEMENTS = {"bf16": 2, "f32": 4, "q8": 1}  # bytes of a cached value
SCALES = {"q8": SCALE_BYTES}  # bytes of the scale of a position's key, and of its value
FEW = 4  # times LANES rows for each thread, from which on a piece of work is LANES rows
WIDTH, SCALE, MIXED = 2, 0, 0


def value_stride(head_dim: int, element: str = "bf16") -> int:
    """Bytes between the values of two positions in a page. Keys take no more than their own."""
    return -(-head_dim // LANES) * LANES * ELEMENTS[element]


@dataclass(frozen=True)
class Pages:
    """The geometry of a layer's KV pages.

    Attributes:
        kv_heads, head_dim: of the layer; head_dim even, at most MAX_HEAD.
        positions: of a page, a multiple of LANES.
        element: bf16, f32 or q8.
    """

    kv_heads: int
    head_dim: int
    positions: int = 64
    element: str = "bf16"

    def __post_init__(self) -> None:
        if self.head_dim % PAIR or not 0 < self.head_dim <= MAX_HEAD:
            raise ValueError(f"head_dim is {self.head_dim}; the kernels take even numbers up to {MAX_HEAD}")
        if self.positions % LANES or self.positions < LANES:
            raise ValueError(f"a page of {self.positions} positions does not divide into panels of {LANES}")

    @property
    def scale_bytes(self) -> int:
        """Of the scale that a position's key has, and its value; 0 for none."""
        return SCALES.get(self.element, 0)

    @property
    def key_bytes(self) -> int:
        """Keys of one head in a page."""
        return self.positions * (self.head_dim * ELEMENTS[self.element] + self.scale_bytes)

    @property
    def value_stride(self) -> int:
        """Bytes between the values of two positions."""
        return value_stride(self.head_dim, self.element)

    @property
    def head_bytes(self) -> int:
        """Keys and values of one head in a page."""
        return self.key_bytes + self.positions * (self.value_stride + self.scale_bytes)

    @property
    def row_bytes(self) -> int:
        """Keys and values of a position, as `copies` reads them."""
        return self.kv_heads * 2 * self.head_dim * ELEMENTS[self.element] + self.row_scale_bytes

    @property
    def row_scale_bytes(self) -> int:
        """Of these, the scales, float32, which come last."""
        return self.kv_heads * 2 * self.scale_bytes

    @property
    def nbytes(self) -> int:
        return self.kv_heads * self.head_bytes

    def allocate(self, count: int) -> np.ndarray:
        """Zeroed memory for `count` pages, uint8 [count, nbytes]."""
        return empty_bytes(count * self.nbytes).reshape(count, self.nbytes)


@inner
def page_of(position, pages, page_bytes, page_positions, table, ring):  # type: ignore[no-untyped-def]
    """The address of the page that holds a position."""
    return pages + get_i32(table + 4 * remainder(quotient(position, page_positions), ring)) * page_bytes


@inner
def slot_of(position, page_positions):  # type: ignore[no-untyped-def]
    """A position's place in its page."""
    return remainder(position, page_positions)


@inner
def bf16_at(address):  # type: ignore[no-untyped-def]
    """The float32 at an address as bfloat16 bits, rounded to nearest even."""
    bits = get_u32(address)
    if (bits & 0x7FFFFFFF) > 0x7F800000:
        return 0x7FC0
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@inner
def rotate(at, cos, sin, pairs, interleaved, size, factor):  # type: ignore[no-untyped-def]
    """Rotary embedding of one head of `size` values in place: the first 2 · pairs are rotated, halves paired or neighbours; all
    are multiplied by a factor."""
    f = splat(factor)
    if interleaved:
        for i in range(0, pairs, LANES):
            left = pairs - i
            c, s = load_part(cos + 4 * i, left), load_part(sin + 4 * i, left)
            low, high = load_part(at + 8 * i, 2 * left), load_part(at + 8 * i + 4 * LANES, 2 * left - LANES)
            x, y = evens(low, high), odds(low, high)
            u, v = (x * c - y * s) * f, (y * c + x * s) * f
            store_part(at + 8 * i, lower_pairs(u, v), 2 * left)
            store_part(at + 8 * i + 4 * LANES, upper_pairs(u, v), 2 * left - LANES)
    else:
        for i in range(0, pairs, LANES):
            left = pairs - i
            c, s = load_part(cos + 4 * i, left), load_part(sin + 4 * i, left)
            x, y = load_part(at + 4 * i, left), load_part(at + 4 * (pairs + i), left)
            u, v = (x * c - y * s) * f, (y * c + x * s) * f
            store_part(at + 4 * i, u, left)
            store_part(at + 4 * (pairs + i), v, left)
    if factor != np.float32(1):
        for i in range(2 * pairs, size):
            set_f32(at + 4 * i, get_f32(at + 4 * i) * factor)


@inner
def norm_head(at, weight, size, eps):  # type: ignore[no-untyped-def]
    """One head by its root mean square, in place, times a weight."""
    squares = splat(np.float32(0))
    for i in range(0, size, LANES):
        v = load_part(at + 4 * i, size - i)
        squares = fma(v, v, squares)
    factor = splat(np.float32(1) / np.sqrt(sum_lanes(squares) / np.float32(size) + eps))
    for i in range(0, size, LANES):
        left = size - i
        store_part(at + 4 * i, load_part(at + 4 * i, left) * factor * load_part(weight + 4 * i, left), left)


@inner
def store_row_bf16(to, at, count):  # type: ignore[no-untyped-def]
    """`count` float32 as cached bfloat16."""
    whole = count // LANES * LANES
    for i in range(0, whole, LANES):
        store_bf16(to + 2 * i, load_floats(at + 4 * i))
    for i in range(whole, count):
        set_u16(to + 2 * i, bf16_at(at + 4 * i))


@inner
def store_row_f32(to, at, count):  # type: ignore[no-untyped-def]
    """`count` float32 as cached float32."""
    for i in range(0, count, LANES):
        store_part(to + 4 * i, load_part(at + 4 * i, count - i), count - i)


store_row: Any = store_row_bf16


def row_storing(element: str) -> Any:
    """What stores cached values of this element that lie beside each other."""
    return {"bf16": store_row_bf16, "f32": store_row_f32}[element]


def store_key_row(keys, slot, at, head_dim, page_positions):  # type: ignore[no-untyped-def]
    """Stores float32 as the key of a page's position."""
    panel = keys + slot // LANES * LANES * head_dim * WIDTH + slot % LANES * 4
    for i in range(head_dim):
        if WIDTH == 2:  # pairs of columns in a lane
            set_u16(panel + i // 2 * 4 * LANES + i % 2 * 2, bf16_at(at + 4 * i))
        else:
            set_f32(panel + i * 4 * LANES, get_f32(at + 4 * i))


def store_value_row(values, slot, at, head_dim, page_positions):  # type: ignore[no-untyped-def]
    """Stores float32 as the value of a page's position."""
    store_row(values + slot * ((head_dim + LANES - 1) // LANES * LANES * WIDTH), at, head_dim)


store_key: Any = None  # their compiled forms, or those of 8 bits; set by `store_op`
store_value: Any = None


@op
def rotate_and_store(  # type: ignore[no-untyped-def]
    qkv, stride, rows, heads, kv_heads, head_dim, positions, sequence, cos, sin, pairs, interleaved, scale: float,
    query_norm, key_norm, eps: float, pages, page_bytes, page_positions, tables, table_stride, ring, team, thread,
):  # fmt: skip
    """Norms and rotates queries (in place, times `scale`) and keys, and stores keys and values in their pages. Where these are of
    8 bits, queries and keys are mixed, see `kv_bytes`.

    qkv: float32 rows, heads + 2 · kv_heads of head_dim values each, `stride` bytes apart; positions, sequence: int32 [rows];
    cos, sin: float32 [positions, pairs], the rotary table (a YaRN concentration is part of it), for the first 2 · pairs values
    of a head, of which halves are paired, or neighbours if interleaved; query_norm, key_norm: float32 [head_dim], the weights
    of RMSNorm on each head, or 0 for none; pages: the layer's pages, page_bytes each; tables: int32 page numbers, one row of
    table_stride bytes for each sequence. A piece of work is one head of one row; where there are many, it is LANES rows, so that
    threads do not write keys beside each other's, and wait for each other less often.
    """
    value_stride = (head_dim + LANES - 1) // LANES * LANES * WIDTH
    head_bytes = page_positions * (head_dim * WIDTH + value_stride + 2 * SCALE)
    all_heads = heads + 2 * kv_heads
    each = all_heads * LANES if rows >= FEW * LANES * thread_count(team) else 1
    piece = take(team)
    while piece * each < rows * all_heads:
        for item in range(piece * each, min(piece * each + each, rows * all_heads)):
            row = item // all_heads
            head = item - row * all_heads
            position = get_i32(positions + 4 * row)
            at = qkv + row * stride + head * head_dim * 4
            angle = position * pairs * 4
            if head < heads:
                if query_norm:
                    norm_head(at, query_norm, head_dim, eps)
                rotate(at, cos + angle, sin + angle, pairs, interleaved, head_dim, scale)
                if MIXED:
                    mix(at, head_dim)
            else:
                table = tables + get_i32(sequence + 4 * row) * table_stride
                page = page_of(position, pages, page_bytes, page_positions, table, ring)
                slot = slot_of(position, page_positions)
                if head < heads + kv_heads:
                    if key_norm:
                        norm_head(at, key_norm, head_dim, eps)
                    rotate(at, cos + angle, sin + angle, pairs, interleaved, head_dim, np.float32(1))
                    if MIXED:
                        mix(at, head_dim)
                    store_key(page + (head - heads) * head_bytes, slot, at, head_dim, page_positions)
                else:
                    values = page + (head - heads - kv_heads) * head_bytes + page_positions * (head_dim * WIDTH + SCALE)
                    store_value(values, slot, at, head_dim, page_positions)
        piece = take(team)


@maker
def store_op(element: str = "bf16") -> Op:
    """The operation `rotate_and_store` for caches of this element."""
    constants: dict[str, Any] = {"WIDTH": ELEMENTS[element], "SCALE": SCALES.get(element, 0)}
    if element in SCALES:
        return rotate_and_store.bind(**constants, MIXED=1, store_key=store_key_bytes, store_value=store_value_bytes)
    compiled = {
        name: inner(specialize(f, f"{name}_{element}", **constants, store_row=row_storing(element)))
        for name, f in (("store_key", store_key_row), ("store_value", store_value_row))
    }
    return rotate_and_store.bind(**constants, **compiled)
