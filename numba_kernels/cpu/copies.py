"""Copies of cached keys and values: between pages, and between pages and plain rows.

Pages are laid out as in `kv_pages`, those of 8 bits as in `kv_bytes`. A piece of work is one key-value head of one sequence, or
of PIECE positions.
"""

from __future__ import annotations

from typing import Any

from numba_kernels.cpu.kv_bytes import SCALE_BYTES, key_at, value_at
from numba_kernels.cpu.kv_pages import ELEMENTS, page_of, slot_of
from numba_kernels.cpu.op import Op, inner, maker, specialize
from numba_kernels.cpu.team import take
from numba_kernels.simd.memory import get_i32, get_u8, get_u16, load_floats, set_i32, set_u8, set_u16, store_floats
from numba_kernels.simd.values import LANES

PIECE = 64  # positions
TO_ROWS = 1
WIDTH = 2  # bytes of a value


@inner
def copy_words(source, target, size):  # type: ignore[no-untyped-def]
    """Copies `size` bytes, a multiple of 4."""
    whole = size // (4 * LANES) * (4 * LANES)
    for i in range(0, whole, 4 * LANES):
        store_floats(target + i, load_floats(source + i))
    for i in range(whole, size, 4):
        set_i32(target + i, get_i32(source + i))


# ---- of floats ----------------------------------------------------------------------------------------------------------


def float_head_bytes(head_dim, page_positions):  # type: ignore[no-untyped-def]
    """Bytes of a head's keys and values in a page."""
    return page_positions * (head_dim + (head_dim + LANES - 1) // LANES * LANES) * WIDTH


def copy_floats(source, target, slot, count, head_dim, page_positions):  # type: ignore[no-untyped-def]
    """Copies `count` positions of a head, which lie in one panel, from page to page, each to its own place in it."""
    value_stride = (head_dim + LANES - 1) // LANES * LANES * WIDTH
    panel = slot // LANES * LANES * head_dim * WIDTH
    if count == LANES:
        copy_words(source + panel, target + panel, LANES * head_dim * WIDTH)
    else:
        for i in range(head_dim * WIDTH // 4):
            for lane in range(slot % LANES, slot % LANES + count):
                at = panel + 4 * (i * LANES + lane)
                set_i32(target + at, get_i32(source + at))
    values = page_positions * head_dim * WIDTH + slot * value_stride
    copy_words(source + values, target + values, count * value_stride)


def copy_float_row(head_at, slot, row, head, kv_heads, head_dim, page_positions):  # type: ignore[no-untyped-def]
    """Copies a position of a head from its page to a row, or back: the row has the keys of all heads, then their values."""
    size = head_dim * WIDTH
    key = head_at + slot // LANES * LANES * size + slot % LANES * 4
    value = head_at + page_positions * size + slot * ((head_dim + LANES - 1) // LANES * LANES * WIDTH)
    row += head * size
    for i in range(size // 4):
        if TO_ROWS:
            set_i32(row + 4 * i, get_i32(key + 4 * LANES * i))
        else:
            set_i32(key + 4 * LANES * i, get_i32(row + 4 * i))
    if TO_ROWS:
        copy_words(value, row + kv_heads * size, size)
    else:
        copy_words(row + kv_heads * size, value, size)


# ---- of 8 bits ----------------------------------------------------------------------------------------------------------


def byte_head_bytes(head_dim, page_positions):  # type: ignore[no-untyped-def]
    """`float_head_bytes` with the scales of keys and values."""
    return page_positions * (head_dim + SCALE_BYTES + (head_dim + LANES - 1) // LANES * LANES + SCALE_BYTES)


@inner
def copy_position(source, target, slot, head_dim, padded, page_positions):  # type: ignore[no-untyped-def]
    """Copies one position of a head from page to page, each at its own place in it."""
    of_keys, of_values = page_positions * head_dim, page_positions * (head_dim + SCALE_BYTES)
    key, value = key_at(0, slot, head_dim), of_values + value_at(0, slot, padded)
    for i in range(0, head_dim * LANES, 2 * LANES):
        set_u16(target + key + i, get_u16(source + key + i))
    for i in range(0, 2 * padded, 2):
        set_u8(target + value + i, get_u8(source + value + i))
    for scale in (of_keys + slot * SCALE_BYTES, of_values + page_positions * padded + slot * SCALE_BYTES):
        set_i32(target + scale, get_i32(source + scale))


def copy_bytes(source, target, slot, count, head_dim, page_positions):  # type: ignore[no-untyped-def]
    """`copy_floats` for keys and values of 8 bits."""
    padded = (head_dim + LANES - 1) // LANES * LANES
    of_values = page_positions * (head_dim + SCALE_BYTES)
    if count == LANES:
        copy_words(source + slot * head_dim, target + slot * head_dim, LANES * head_dim)
        scales = page_positions * head_dim + slot * SCALE_BYTES
        copy_words(source + scales, target + scales, LANES * SCALE_BYTES)
        copy_words(source + of_values + slot * padded, target + of_values + slot * padded, LANES * padded)
        scales = of_values + page_positions * padded + slot * SCALE_BYTES
        copy_words(source + scales, target + scales, LANES * SCALE_BYTES)
    else:
        for q in range(slot, slot + count):
            copy_position(source, target, q, head_dim, padded, page_positions)


def copy_byte_row(head_at, slot, row, head, kv_heads, head_dim, page_positions):  # type: ignore[no-untyped-def]
    """`copy_float_row` for keys and values of 8 bits: the keys of all heads, their values, the keys' scales, the values'."""
    padded = (head_dim + LANES - 1) // LANES * LANES
    of_values = page_positions * (head_dim + SCALE_BYTES)
    key, value = key_at(head_at, slot, head_dim), value_at(head_at + of_values, slot, padded)
    key_scale = head_at + page_positions * head_dim + slot * SCALE_BYTES
    value_scale = head_at + of_values + page_positions * padded + slot * SCALE_BYTES
    scales = row + 2 * kv_heads * head_dim + head * SCALE_BYTES
    row += head * head_dim
    for i in range(0, head_dim, 2):
        if TO_ROWS:
            set_u16(row + i, get_u16(key + i * LANES))
        else:
            set_u16(key + i * LANES, get_u16(row + i))
    row += kv_heads * head_dim
    for i in range(head_dim):
        if TO_ROWS:
            set_u8(row + i, get_u8(value + 2 * i))
        else:
            set_u8(value + 2 * i, get_u8(row + i))
    if TO_ROWS:
        set_i32(scales, get_i32(key_scale))
        set_i32(scales + kv_heads * SCALE_BYTES, get_i32(value_scale))
    else:
        set_i32(key_scale, get_i32(scales))
        set_i32(value_scale, get_i32(scales + kv_heads * SCALE_BYTES))


# ---- the operations -----------------------------------------------------------------------------------------------------

head_bytes_of: Any = float_head_bytes
copy_positions: Any = copy_floats
copy_row: Any = copy_float_row


def copy_pages(  # type: ignore[no-untyped-def]
    source, source_tables, source_stride, source_ring, target, target_tables, target_stride, target_ring,
    first, last, sequences, kv_heads, head_dim, page_bytes, page_positions, team, thread,
):  # fmt: skip
    """Copies the positions first[s] … last[s] − 1 (int32) of each sequence from its pages in one store to those in another.

    source, target: a layer's pages, with tables and rings as in `rotate_and_store`.
    """
    head_bytes = head_bytes_of(head_dim, page_positions)
    item = take(team)
    while item < sequences * kv_heads:
        s = item // kv_heads
        head = (item - s * kv_heads) * head_bytes
        p = get_i32(first + 4 * s)
        stop = get_i32(last + 4 * s)
        while p < stop:
            end = min(p // LANES * LANES + LANES, stop)
            here = page_of(p, source, page_bytes, page_positions, source_tables + s * source_stride, source_ring) + head
            there = page_of(p, target, page_bytes, page_positions, target_tables + s * target_stride, target_ring) + head
            copy_positions(here, there, slot_of(p, page_positions), end - p, head_dim, page_positions)
            p = end
        item = take(team)


def copy_rows(  # type: ignore[no-untyped-def]
    pages, table, ring, rows, row_stride, first, count, kv_heads, head_dim, page_bytes, page_positions, team, thread
):
    """Copies positions first … first + count − 1 of a sequence's pages to or from rows, `row_stride` bytes apart."""
    head_bytes = head_bytes_of(head_dim, page_positions)
    item = take(team)
    while item // kv_heads * PIECE < count:
        head = item % kv_heads
        begin = item // kv_heads * PIECE
        for n in range(begin, min(begin + PIECE, count)):
            p = first + n
            head_at = page_of(p, pages, page_bytes, page_positions, table, ring) + head * head_bytes
            copy_row(head_at, slot_of(p, page_positions), rows + n * row_stride, head, kv_heads, head_dim, page_positions)
        item = take(team)


@maker
def copy_ops(element: str = "bf16") -> tuple[Op, Op, Op]:
    """The operations that read rows from pages, that write them there, and that copy positions from page to page, for caches of
    this element."""
    of_bytes = element == "q8"

    def compiled(function: Any, **more: int) -> Any:
        name = "_".join([function.__name__, *map(str, more.values()), element])
        return inner(specialize(function, name, WIDTH=ELEMENTS[element], **more))

    head_bytes = compiled(byte_head_bytes if of_bytes else float_head_bytes)
    row = copy_byte_row if of_bytes else copy_float_row
    reading, writing = (
        Op(copy_rows, ELEMENT=element, TO_ROWS=n, head_bytes_of=head_bytes, copy_row=compiled(row, TO_ROWS=n))
        for n in (1, 0)
    )
    positions = compiled(copy_bytes if of_bytes else copy_floats)
    return reading, writing, Op(copy_pages, ELEMENT=element, head_bytes_of=head_bytes, copy_positions=positions)
