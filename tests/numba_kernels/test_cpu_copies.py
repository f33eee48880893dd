"""Copies of keys and values: what comes back is what went in, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest

from numba_kernels.cpu.copies import copy_ops
from numba_kernels.cpu.kv_pages import ELEMENTS, Pages

HEADS, DIM, POSITIONS = 3, 24, 32


class Store:
    """Pages of several sequences, filled with random bytes."""

    def __init__(self, team, element, ring, sequences, seed):  # type: ignore[no-untyped-def]
        rng = np.random.default_rng(seed)
        self.team, self.pages = team, Pages(HEADS, DIM, POSITIONS, element)
        self.memory = self.pages.allocate(ring * sequences)
        self.memory[:] = rng.integers(0, 120, self.memory.shape)
        self.tables = rng.permutation(ring * sequences).astype(np.int32).reshape(sequences, ring)
        self.geometry = {
            "kv_heads": HEADS, "head_dim": DIM, "page_bytes": self.pages.nbytes, "page_positions": POSITIONS,
        }  # fmt: skip
        self.ops = copy_ops(element)

    def move(self, op, sequence, first, rows):  # type: ignore[no-untyped-def]
        table = self.tables[sequence]
        self.team.call(
            op, pages=self.memory, table=table, ring=len(table), rows=rows, row_stride=rows.strides[0], first=first,
            count=len(rows), **self.geometry,
        )  # fmt: skip

    def rows(self, sequence, first, count):  # type: ignore[no-untyped-def]
        out = np.zeros((count, self.pages.row_bytes), np.uint8)
        self.move(self.ops[0], sequence, first, out)
        return out

    @property
    def side(self):  # type: ignore[no-untyped-def]
        return self.memory, self.tables, self.tables.strides[0], self.tables.shape[1]


@pytest.mark.parametrize("element", ELEMENTS)
def test_rows_come_back(team, element):
    store = Store(team, element, 5, 2, 0)
    rng = np.random.default_rng(1)
    width = store.pages.row_bytes
    expected = np.concatenate([store.rows(0, 40, 160)])
    for first, count in ((40, 1), (41, 30), (90, 70), (199, 1)):
        rows = rng.integers(0, 256, (count, width), dtype=np.uint8)
        store.move(store.ops[1], 0, first, rows)
        expected[first - 40 : first - 40 + count] = rows
        np.testing.assert_array_equal(store.rows(0, 40, 160), expected)
    np.testing.assert_array_equal(store.rows(1, 0, 160), Store(team, element, 5, 2, 0).rows(1, 0, 160))


@pytest.mark.parametrize("element", ELEMENTS)
def test_positions_go_from_one_store_to_another(team, element):
    """A window out of a ring of its own size, and back: positions one ring apart lie in one panel."""
    small, large = Store(team, element, 2, 3, 0), Store(team, element, 9, 3, 1)
    ranges = [(7, 70), (100, 164), (33, 33)]
    first, last = (np.array(v, np.int32) for v in zip(*ranges, strict=True))

    def copy(source, target):  # type: ignore[no-untyped-def]
        sides = zip(("source", "target"), (source.side, target.side), strict=True)
        arguments = {
            f"{n}{p}": v for n, side in sides for p, v in zip(("", "_tables", "_stride", "_ring"), side, strict=True)
        }
        team.call(small.ops[2], first=first, last=last, sequences=3, **arguments, **small.geometry)

    before = [large.rows(s, 0, 9 * POSITIONS) for s in range(3)]
    wanted = [small.rows(s, a, b - a) for s, (a, b) in enumerate(ranges)]
    copy(small, large)
    for s, (a, b) in enumerate(ranges):
        before[s][a:b] = wanted[s]
        np.testing.assert_array_equal(large.rows(s, 0, 9 * POSITIONS), before[s])
    ring = [small.rows(s, 128, 64) for s in range(3)]
    for s, (a, b) in enumerate(ranges):
        ring[s][np.arange(a, b) % 64] = wanted[s]
    small.memory[:] = 7
    untouched = np.full_like(ring[0], 7)
    copy(large, small)
    for s, (a, b) in enumerate(ranges):
        untouched[:] = 7
        untouched[np.arange(a, b) % 64] = ring[s][np.arange(a, b) % 64]
        np.testing.assert_array_equal(small.rows(s, 128, 64), untouched)
