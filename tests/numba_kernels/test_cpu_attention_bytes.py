"""Attention over keys and values of 8 bits: what pages hold against what went in, and the NumPy reference on what they hold."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numba_kernels.cpu.attention import attention_op, attention_scratch
from numba_kernels.cpu.attention_bytes import MOST_SUMMED
from numba_kernels.cpu.attention_steps import PART
from numba_kernels.cpu.copies import copy_ops
from numba_kernels.cpu.kv_pages import MAX_HEAD, Pages, store_op
from numba_kernels.cpu.team import Program
from numba_kernels.reference import ops
from numba_kernels.simd.values import LANES


class Case:
    """Sequences that grow by chunks through one layer's cache, with what it holds beside them."""

    def __init__(
        self,
        team: Any,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        window: int = 0,
        sinks: bool = False,
        ring: int = 16,
        sequences: int = 1,
        divided: bool = False,
        page: int = 32,
        products: str = "i16",
        pieces: int = 512,
    ) -> None:
        self.team, self.rng = team, np.random.default_rng(heads * 1000 + head_dim)
        self.heads, self.kv_heads, self.head_dim, self.window, self.products = heads, kv_heads, head_dim, window, products
        self.pages = Pages(kv_heads, head_dim, page, "q8")
        self.memory = self.pages.allocate(sequences * ring)
        self.memory.view(np.uint16)[:] = 0x7FFF  # NaN where scales are: what is not written must not be read
        self.tables = self.rng.permutation(sequences * ring).astype(np.int32).reshape(sequences, ring)
        self.sinks = self.rng.normal(size=heads).astype(np.float32) if sinks else None
        self.cos, self.sin = ops.rope_table(ops.rope_frequencies(head_dim, 1e4), 2048)
        self.kept = [[np.zeros((0, kv_heads, head_dim), np.float32)] * 2 for _ in range(sequences)]
        self.divided, self.pieces = divided, pieces

    @property
    def geometry(self) -> dict[str, Any]:
        return {"pages": self.memory, "page_bytes": self.pages.nbytes, "page_positions": self.pages.positions}

    def held(self, sequence: int, first: int, count: int) -> list[np.ndarray]:
        """Keys and values of positions, [count, kv_heads, head_dim], out of the pages."""
        rows = np.zeros((count, self.pages.row_bytes), np.uint8)
        table, k, d = self.tables[sequence], self.kv_heads, self.head_dim
        self.team.call(
            copy_ops("q8")[0], table=table, ring=len(table), rows=rows, row_stride=rows.strides[0], first=first, count=count,
            kv_heads=k, head_dim=d, **self.geometry,
        )  # fmt: skip
        codes, scales = rows[:, : 2 * k * d].view(np.int8), rows[:, 2 * k * d :].copy().view(np.float32)
        return list((codes.reshape(count, 2, k, d) * scales.reshape(count, 2, k, 1)).swapaxes(0, 1))

    def step(self, counts: list[int], qkv: np.ndarray | None = None, rows: int | None = None, spare: int = 0) -> np.ndarray:
        """Appends counts[s] tokens to every sequence and compares their attention, which it returns: [tokens, heads, head_dim].

        qkv: their queries, keys and values, random by default; rows: heads of a tile, by default as many as there are; spare:
        values behind each of their rows.
        """
        h, k, d, n = self.heads, self.kv_heads, self.head_dim, sum(counts)
        qkv = self.rng.normal(size=(n, h + 2 * k, d)).astype(np.float32) if qkv is None else qkv
        sequence = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
        before = [len(keys) for keys, _ in self.kept]
        positions = np.concatenate([before[s] + np.arange(c) for s, c in enumerate(counts)]).astype(np.int32)
        out = np.full((n, h, d), np.nan, np.float32)
        work = np.full((n, (h + 2 * k) * d + spare), np.nan, np.float32)
        work[:, : (h + 2 * k) * d] = qkv.reshape(n, -1)
        scratch = attention_scratch(self.pieces, d)
        scratch["areas"][:] = np.nan
        cache = self.geometry | {
            "tables": self.tables, "table_stride": self.tables.strides[0], "ring": self.tables.shape[1],
        }  # fmt: skip
        program = Program()
        program.add(
            store_op("q8"), qkv=work, stride=work.strides[0], rows=n, heads=h, kv_heads=k, head_dim=d,
            positions=positions, sequence=sequence, cos=self.cos, sin=self.sin, scale=d**-0.5, pairs=d // 2, interleaved=False,
            query_norm=None, key_norm=None, eps=1e-6, **cache,
        )  # fmt: skip
        op = attention_op(rows or h // k * max(counts), "q8", d, None, self.products)
        program.add(
            op, qkv=work, stride=work.strides[0], rows=n, value_dim=d, out=out, out_stride=out.strides[0], sequences=len(counts),
            first_row=np.cumsum([0, *counts[:-1]]).astype(np.int32), row_count=np.array(counts, np.int32),
            positions=positions, heads=h, kv_heads=k, head_dim=d, window=self.window, sinks=self.sinks,
            divided=self.divided, **scratch, **cache,
        )  # fmt: skip
        self.team.run(program)
        assert not scratch["counters"].any()
        for s, count in enumerate(counts):
            if not count:
                continue
            mine, at = qkv[sequence == s], positions[sequence == s]
            both = (ops.apply_rope(x, self.cos[at], self.sin[at]) for x in (mine[:, :h], mine[:, h : h + k]))
            q, keys = (ops.mixed(x) for x in both)
            held = self.held(s, before[s], count)
            for exact, found in zip((keys, mine[:, h + k :]), held, strict=True):
                wanted = ops.cached_in_8_bits(exact)
                np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
                step = np.abs(exact).max(-1, keepdims=True) / 127
                missed = np.nan_to_num(np.abs(found - wanted))
                assert (missed <= 1.001 * step).all() or not np.isfinite(step).all()
                assert (missed > 1e-4).mean() < 1e-2, "a last bit decides how a value is rounded, and seldom"
            self.kept[s] = [np.concatenate(both) for both in zip(self.kept[s], held, strict=True)]
            options = {"scale": d**-0.5, "window": self.window, "sinks": self.sinks}
            wanted = ops.attention(q, *self.kept[s], before[s], **options)
            wanted = np.where(np.isnan(wanted), out[sequence == s], wanted)  # NumPy's 0 · NaN; see the last test
            bound = 2e-5 if self.products == "f32" or d > MOST_SUMMED else 5e-4
            largest = max(1, np.nanmax(np.abs(self.kept[s][1])))
            np.testing.assert_allclose(out[sequence == s], wanted, rtol=1e-4, atol=bound * largest)
        return out


SHAPES = [(8, 1), (6, 2), (4, 4), (9, 3)]  # heads, of which keys have so many
USUAL = [(64, 8, 1), (64, 6, 2), (24, 9, 3)]  # head size, heads, key heads
ALL_SHAPES = [
    pytest.param(size, *heads, marks=() if (size, *heads) in USUAL else pytest.mark.slow)
    for size in (64, 24, 128)
    for heads in SHAPES
]


@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), ALL_SHAPES)
@pytest.mark.parametrize("products", ["i16", pytest.param("f32", marks=pytest.mark.slow)])
def test_prefill_then_decode(team: Any, heads: int, kv_heads: int, head_dim: int, products: str) -> None:
    case = Case(team, heads, kv_heads, head_dim, products=products)
    for count in (1, 1, 30, 1, 65, 1, 200, 1):
        case.step([count])


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("window", [0, 7, 128])
def test_window_sinks_and_divided_work(team: Any, window: int, divided: bool) -> None:
    case = Case(team, 16, 2, 64, window=window, sinks=True, divided=divided, ring=40)
    for count in (5, 1, 140, 1, 1, 33, 1, 900, 1):
        case.step([count])


@pytest.mark.parametrize("products", ["i16", pytest.param("f32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 1), (6, 2), pytest.param(3, 3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("window", [0, 100])
def test_a_row_does_not_depend_on_its_company(team: Any, heads: int, kv_heads: int, window: int, products: str) -> None:
    """Bit for bit: token by token, in chunks, divided or not, in tiles of any size."""
    total = 1100  # three parts of the keys
    qkv = np.random.default_rng(heads).normal(size=(total, heads + 2 * kv_heads, 32)).astype(np.float32)
    results = []
    for divided, rows, chunks in ((False, None, [total]), (True, None, [1, 511, 2, 500, 86]), (True, 1, [130] * 8 + [60])):
        case = Case(team, heads, kv_heads, 32, window=window, sinks=True, divided=divided, ring=40, products=products)
        parts = itertools.pairwise(np.cumsum([0, *chunks]))
        results.append(np.concatenate([case.step([b - a], qkv[a:b], rows) for a, b in parts]))
    last = Case(team, heads, kv_heads, 32, window=window, sinks=True, ring=40, products=products)
    last.step([total - 20], qkv[:-20])
    results.append(np.concatenate([results[0][:-20], *(last.step([1], qkv[i : i + 1]) for i in range(total - 20, total))]))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_a_ring_needs_only_the_window(team: Any) -> None:
    case = Case(team, 8, 2, 64, window=32, sinks=True, ring=-(-71 // 16) + 1, page=16)
    for count in (40, 1, 1, 40, 17, 1, 40, 40, 1, 1, 40):
        case.step([count])


@pytest.mark.parametrize("divided", [False, True])
def test_several_sequences(team: Any, divided: bool) -> None:
    case = Case(team, 8, 2, 32, sequences=3, divided=divided)
    for counts in ([3, 50, 1], [1, 1, 1], [20, 1, 0], [1, 0, 1], [1, 1, 1]):
        case.step(counts)


@pytest.mark.slow
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape(team: Any, data: st.DataObject) -> None:
    """Heads, groups, head sizes, windows, pages, sequences, chunks, and room behind the rows, all as they are drawn."""
    kv_heads, group = data.draw(st.integers(1, 4), "kv_heads"), data.draw(st.integers(1, 13), "group")
    head_dim = 2 * data.draw(st.one_of(st.integers(1, 70), st.sampled_from([128, 150])), "half a head")
    page = LANES * data.draw(st.integers(1, 4), "panels of a page")
    sequences, chunk = data.draw(st.integers(1, 3), "sequences"), data.draw(st.sampled_from([1, 9, 80]), "longest chunk")
    passes = data.draw(
        st.lists(st.lists(st.integers(0, chunk), min_size=sequences, max_size=sequences), max_size=5), "passes"
    )
    window = data.draw(st.one_of(st.just(0), st.integers(1, 100)), "window")
    kept = window + chunk - 1 if window else 1 + sum(map(max, passes))
    case = Case(
        team,
        kv_heads * group,
        kv_heads,
        head_dim,
        window=window,
        sinks=data.draw(st.booleans(), "sinks"),
        ring=-(-kept // page) + 1,
        sequences=sequences,
        page=page,
        products=data.draw(st.sampled_from(["i16", "f32"]), "products"),
    )
    for counts in passes:
        if any(counts):
            case.step(counts, spare=data.draw(st.integers(0, 40), "room behind a row"))


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(5, 1, 20), (3, 3, 6), (13, 1, 100), (6, 2, 72)])
def test_head_sizes_that_fill_no_vector_in_divided_work(team: Any, heads: int, kv_heads: int, head_dim: int) -> None:
    case = Case(team, heads, kv_heads, head_dim, sinks=True, divided=True, ring=40)
    for count in (PART + 30, 1, 40, PART, 1):
        case.step([count])


@pytest.mark.parametrize(
    "head_dim",
    [
        pytest.param(300, marks=pytest.mark.slow),
        MOST_SUMMED,
        pytest.param(MOST_SUMMED + 2, marks=pytest.mark.slow),
        pytest.param(MAX_HEAD, marks=pytest.mark.slow),
    ],
)
def test_large_heads(team: Any, head_dim: int) -> None:
    case = Case(team, 2, 1, head_dim)
    for count in (1, 40, 1):
        case.step([count])


@pytest.mark.slow
def test_the_largest_sums_fit(team: Any) -> None:
    """Every product is as large as it can be, and all have one sign."""
    case = Case(team, 1, 1, MOST_SUMMED)
    case.cos[:], case.sin[:] = 1, 0
    ones = np.ones((200, 3, MOST_SUMMED), np.float32)
    found = case.step([200], ones)
    np.testing.assert_allclose(found, 1, rtol=1e-4)
    opposite = ones[:1] * np.array([-1, 1, -1], np.float32)[:, None]  # a query that every key is against
    np.testing.assert_allclose(case.step([1], opposite), 199 / 201, rtol=1e-3)


@pytest.mark.parametrize("products", ["i16", pytest.param("f32", marks=pytest.mark.slow)])
@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1e3, 1e15])
def test_keys_and_values_of_any_size(team: Any, size: float, products: str) -> None:
    """What is zero stays zero; very small and very large values come out as they went in."""
    case = Case(team, 4, 2, 32, products=products)
    qkv = case.rng.normal(size=(40, 8, 32)).astype(np.float32)
    qkv[:, 6:] *= np.float32(size)
    qkv[7, 6:] = 0
    out = case.step([40], qkv)
    unit = Case(team, 4, 2, 32, products=products).step([40], np.concatenate([qkv[:, :6], qkv[:, 6:] / np.float32(size)], 1))
    np.testing.assert_allclose(out / np.float32(size), unit, rtol=0.02, atol=0.02)
    case.step([1], np.full((1, 8, 32), 1e-38, np.float32))


def test_what_is_no_number_shows(team: Any) -> None:
    """A key or a value that is not finite makes its head's results NaN from its position on, and none before or elsewhere."""
    for where in (2, 4):  # the first of two keys, the first of two values, behind two queries
        case = Case(team, 2, 2, 16)
        qkv = case.rng.normal(size=(40, 6, 16)).astype(np.float32)
        for value in (np.nan, np.inf, -np.inf):
            qkv[20, where, 3] = value
            case.kept = [[np.zeros((0, 2, 16), np.float32)] * 2]
            with np.errstate(invalid="ignore"):
                out = case.step([40], qkv)
            assert np.isnan(out[20:, 0]).all()
            assert np.isfinite(out[:20]).all()
            assert np.isfinite(out[:, 1]).all()
