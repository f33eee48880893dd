"""Copies of cached keys and values: between pages, and between pages and plain rows.

Pages are laid out as in `kv_pages`. A piece of work is one key-value head of one sequence, or of PIECE positions.
"""

from __future__ import annotations

from numba_kernels.cpu.kv_bytes import SCALE_BYTES, key_at, value_at
from numba_kernels.cpu.kv_pages import page_of
from numba_kernels.cpu.op import inner, op
from numba_kernels.cpu.team import take
from numba_kernels.simd.memory import get_i32, get_u8, get_u16, load_floats, set_i32, set_u8, set_u16, store_floats
from numba_kernels.simd.values import LANES

PIECE = 64  # positions
TO_ROWS = 1


@inner
def head_bytes_of(head_dim, width, page_positions):  # type: ignore[no-untyped-def]
    """Bytes of a head's keys and values in a page."""
    return page_positions * (head_dim + (head_dim + LANES - 1) // LANES * LANES) * width


@inner
def copy_words(source, target, size):  # type: ignore[no-untyped-def]
    """Copies `size` bytes, a multiple of 4."""
    whole = size // (4 * LANES) * (4 * LANES)
    for i in range(0, whole, 4 * LANES):
        store_floats(target + i, load_floats(source + i))
    for i in range(whole, size, 4):
        set_i32(target + i, get_i32(source + i))


@op
def copy_pages(  # type: ignore[no-untyped-def]
    source, source_tables, source_stride, source_ring, target, target_tables, target_stride, target_ring,
    first, last, sequences, kv_heads, head_dim, width, page_bytes, page_positions, team, thread,
):  # fmt: skip
    """Copies the positions first[s] … last[s] − 1 (int32) of each sequence from its pages in one store to those in another.

    source, target: a layer's pages, with tables and rings as in `rotate_and_store`; width: bytes of a value.
    """
    head_bytes = head_bytes_of(head_dim, width, page_positions)
    value_stride = head_bytes // page_positions - head_dim * width
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
            slot = p % page_positions
            panel = slot // LANES * LANES * head_dim * width
            if end - p == LANES:
                copy_words(here + panel, there + panel, LANES * head_dim * width)
            else:
                for i in range(head_dim * width // 4):
                    for lane in range(p % LANES, p % LANES + end - p):
                        at = panel + 4 * (i * LANES + lane)
                        set_i32(there + at, get_i32(here + at))
            values = page_positions * head_dim * width + slot * value_stride
            copy_words(here + values, there + values, (end - p) * value_stride)
            p = end
        item = take(team)


@op
def _copy_rows(  # type: ignore[no-untyped-def]
    pages, table, ring, rows, row_stride, first, count, kv_heads, head_dim, width, page_bytes, page_positions, team, thread
):
    """Copies positions first … first + count − 1 of a sequence's pages to or from rows, `row_stride` bytes apart: the keys of
    all heads, then their values."""
    head_bytes = head_bytes_of(head_dim, width, page_positions)
    value_stride = head_bytes // page_positions - head_dim * width
    size = head_dim * width
    item = take(team)
    while item // kv_heads * PIECE < count:
        head = item % kv_heads
        begin = item // kv_heads * PIECE
        for n in range(begin, min(begin + PIECE, count)):
            p = first + n
            slot = p % page_positions
            at = page_of(p, pages, page_bytes, page_positions, table, ring) + head * head_bytes
            key = at + slot // LANES * LANES * size + slot % LANES * 4
            value = at + page_positions * size + slot * value_stride
            row = rows + n * row_stride + head * size
            for i in range(size // 4):
                if TO_ROWS:
                    set_i32(row + 4 * i, get_i32(key + 4 * LANES * i))
                else:
                    set_i32(key + 4 * LANES * i, get_i32(row + 4 * i))
            if TO_ROWS:
                copy_words(value, row + kv_heads * size, size)
            else:
                copy_words(row + kv_heads * size, value, size)
        item = take(team)


# ---- of 8 bits ----------------------------------------------------------------------------------------------------------


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


@op
def copy_byte_pages(  # type: ignore[no-untyped-def]
    source, source_tables, source_stride, source_ring, target, target_tables, target_stride, target_ring,
    first, last, sequences, kv_heads, head_dim, page_bytes, page_positions, team, thread,
):  # fmt: skip
    """`copy_pages` for keys and values of 8 bits."""
    padded = (head_dim + LANES - 1) // LANES * LANES
    of_values = page_positions * (head_dim + SCALE_BYTES)
    head_bytes = of_values + page_positions * (padded + SCALE_BYTES)
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
            slot = p % page_positions
            if end - p == LANES:
                copy_words(here + slot * head_dim, there + slot * head_dim, LANES * head_dim)
                scales = page_positions * head_dim + slot * SCALE_BYTES
                copy_words(here + scales, there + scales, LANES * SCALE_BYTES)
                copy_words(here + of_values + slot * padded, there + of_values + slot * padded, LANES * padded)
                scales = of_values + page_positions * padded + slot * SCALE_BYTES
                copy_words(here + scales, there + scales, LANES * SCALE_BYTES)
            else:
                for q in range(slot, slot + end - p):
                    copy_position(here, there, q, head_dim, padded, page_positions)
            p = end
        item = take(team)


@op
def _copy_byte_rows(  # type: ignore[no-untyped-def]
    pages, table, ring, rows, row_stride, first, count, kv_heads, head_dim, page_bytes, page_positions, team, thread
):
    """`_copy_rows` for keys and values of 8 bits: the keys of all heads, their values, the keys' scales, the values' scales."""
    padded = (head_dim + LANES - 1) // LANES * LANES
    of_values = page_positions * (head_dim + SCALE_BYTES)
    head_bytes = of_values + page_positions * (padded + SCALE_BYTES)
    item = take(team)
    while item // kv_heads * PIECE < count:
        head = item % kv_heads
        begin = item // kv_heads * PIECE
        for n in range(begin, min(begin + PIECE, count)):
            p = first + n
            slot = p % page_positions
            at = page_of(p, pages, page_bytes, page_positions, table, ring) + head * head_bytes
            key, value = key_at(at, slot, head_dim), value_at(at + of_values, slot, padded)
            key_scale = at + page_positions * head_dim + slot * SCALE_BYTES
            value_scale = at + of_values + page_positions * padded + slot * SCALE_BYTES
            row = rows + n * row_stride + head * head_dim
            scales = rows + n * row_stride + 2 * kv_heads * head_dim + head * SCALE_BYTES
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
        item = take(team)


read_rows, write_rows = _copy_rows.bind(TO_ROWS=1), _copy_rows.bind(TO_ROWS=0)
read_byte_rows, write_byte_rows = _copy_byte_rows.bind(TO_ROWS=1), _copy_byte_rows.bind(TO_ROWS=0)
