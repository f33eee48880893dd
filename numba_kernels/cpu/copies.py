"""Copies of cached keys and values: between pages, and between pages and plain rows.

Pages are laid out as in `kv_pages`. A piece of work is one key-value head of one sequence, or of PIECE positions.
"""

from __future__ import annotations

from numba_kernels.cpu.kv_pages import page_of
from numba_kernels.cpu.op import inner, op
from numba_kernels.cpu.team import take
from numba_kernels.simd.values import LANES, get_i32, load_floats, set_i32, store_floats

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


read_rows, write_rows = _copy_rows.bind(TO_ROWS=1), _copy_rows.bind(TO_ROWS=0)
