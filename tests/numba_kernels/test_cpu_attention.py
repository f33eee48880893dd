"""Paged attention against the NumPy reference: chunks, windows, rings, sinks, several sequences, divided work."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numba_kernels.cpu.attention import HAS_PAIRS, attention_op, attention_scratch
from numba_kernels.cpu.attention_steps import PART
from numba_kernels.cpu.kv_pages import MAX_HEAD, Pages, store_op
from numba_kernels.cpu.team import Program
from numba_kernels.reference import ops
from numba_kernels.simd.values import LANES

PRODUCTS = [pytest.param("f32", marks=pytest.mark.slow), "bf16"] if HAS_PAIRS else ["f32"]  # the usual ones are not slow


def bf16(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


class Case:
    """Sequences that grow by chunks through one layer's cache, with the reference beside them."""

    def __init__(
        self,
        team,
        heads,
        kv_heads,
        head_dim,
        *,
        window=0,
        sinks=False,
        ring=16,
        sequences=1,
        divided=False,
        page=32,
        element="bf16",
        pairs=None,
        interleaved=False,
        norms=False,
        pieces=512,
        products="f32",
    ):  # type: ignore[no-untyped-def]
        self.team, self.rng = team, np.random.default_rng(heads * 1000 + head_dim)
        self.heads, self.kv_heads, self.head_dim, self.window = heads, kv_heads, head_dim, window
        self.pages, self.element = Pages(kv_heads, head_dim, page, element), element
        self.stored = bf16 if element == "bf16" else np.asarray
        self.memory = self.pages.allocate(sequences * ring)
        self.memory.view(np.uint16)[:] = 0x7FC0 if element == "bf16" else 0x7FFF  # NaN: what is not written must not be read
        self.tables = self.rng.permutation(sequences * ring).astype(np.int32).reshape(sequences, ring)
        self.sinks = self.rng.normal(size=heads).astype(np.float32) if sinks else None
        self.pairs, self.interleaved = head_dim // 2 if pairs is None else pairs, interleaved
        self.cos, self.sin = ops.rope_table(ops.rope_frequencies(2 * self.pairs, 1e4), 2048)
        self.norms = [self.rng.normal(size=head_dim).astype(np.float32) if norms else None for _ in range(2)]
        self.keys = [np.zeros((0, kv_heads, head_dim), np.float32) for _ in range(sequences)]
        self.values = [np.zeros((0, kv_heads, head_dim), np.float32) for _ in range(sequences)]
        self.divided, self.pieces, self.products = divided, pieces, products

    def step(self, counts, qkv=None, rows=None, spare=None):  # type: ignore[no-untyped-def]
        """Appends counts[s] tokens to every sequence and compares their attention, which it returns: [tokens, heads, head_dim].

        qkv: their queries, keys and values, random by default; rows: heads of a tile, by default as many as there are; spare:
        values behind each of their rows, by default up to a multiple of 32.
        """
        h, k, d, n = self.heads, self.kv_heads, self.head_dim, sum(counts)
        width = (h + 2 * k) * d
        width += -width % 32 if spare is None else spare
        qkv = self.rng.normal(size=(n, h + 2 * k, d)).astype(np.float32) if qkv is None else qkv
        sequence = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
        positions = np.concatenate([len(self.keys[s]) + np.arange(c) for s, c in enumerate(counts)]).astype(np.int32)
        rounded = self.products == "bf16" and self.element == "bf16" and HAS_PAIRS
        expected, spans = [], []
        for s, count in enumerate(counts):
            mine, at = qkv[sequence == s], positions[sequence == s]
            q, new = mine[:, :h], mine[:, h : h + k]
            if self.norms[0] is not None:
                q, new = (ops.rms_norm(x, weight, 1e-6) for x, weight in zip((q, new), self.norms, strict=True))
            q, new = (ops.apply_rope(x, self.cos[at], self.sin[at], self.interleaved) for x in (q, new))
            first = len(self.keys[s])
            self.keys[s] = np.concatenate([self.keys[s], self.stored(new)])
            self.values[s] = np.concatenate([self.values[s], self.stored(mine[:, h + k :])])
            options = {"scale": d**-0.5, "window": self.window, "sinks": self.sinks}
            if count:
                spans.append((s, sequence == s, first))
                if not rounded:
                    expected.append(ops.attention(q, self.keys[s], self.values[s], first, **options))
        out = np.full((n, h, d), np.nan, np.float32)
        work = np.full((n, width), np.nan, np.float32)  # rows of a buffer are longer than what is in them
        work[:, : (h + 2 * k) * d] = qkv.reshape(n, -1)
        op = attention_op(rows or h // k * max(counts), self.element, d, products=self.products)
        scratch = attention_scratch(self.pieces, d)
        scratch["areas"][:] = np.nan
        cache = {
            "pages": self.memory, "page_bytes": self.pages.nbytes, "page_positions": self.pages.positions,
            "tables": self.tables, "table_stride": self.tables.strides[0], "ring": self.tables.shape[1],
        }  # fmt: skip
        program = Program()
        program.add(
            store_op(self.element), qkv=work, stride=work.strides[0], rows=n, heads=h, kv_heads=k, head_dim=d,
            positions=positions, sequence=sequence, cos=self.cos, sin=self.sin, scale=d**-0.5,
            pairs=self.pairs, interleaved=self.interleaved, query_norm=self.norms[0], key_norm=self.norms[1], eps=1e-6, **cache,
        )  # fmt: skip
        program.add(
            op, qkv=work, stride=work.strides[0], rows=n, value_dim=d, out=out, out_stride=out.strides[0], sequences=len(counts),
            first_row=np.cumsum([0, *counts[:-1]]).astype(np.int32), row_count=np.array(counts, np.int32),
            positions=positions, heads=h, kv_heads=k, head_dim=d, window=self.window, sinks=self.sinks,
            divided=self.divided, **scratch, **cache,
        )  # fmt: skip
        self.team.run(program)
        assert not scratch["counters"].any()
        if rounded:
            self.check_rounded(work[:, : h * d].reshape(n, h, d), spans, out)
            return out
        loose = self.norms[0] is not None and self.element == "bf16"  # a last bit of a norm can decide how a key is rounded
        np.testing.assert_allclose(out, np.concatenate(expected), rtol=1e-2 if loose else 1e-4, atol=1e-2 if loose else 2e-5)
        return out

    def check_rounded(self, queries, spans, out):  # type: ignore[no-untyped-def]
        """Compares with the reference that rounds as the kernel does, from the queries that the kernel was given. Where a score's
        last bits decide how a share is rounded, it may be its other neighbour: two shares of a number, at most."""
        options = {"window": self.window, "sinks": self.sinks}
        for s, mine, first in spans:
            given = queries[mine], self.keys[s], self.values[s], first
            expected, largest = ops.attention_of_bfloat16(*given, **options)
            error = np.abs(out[mine] - expected)
            assert (error <= 2e-5 + 1e-4 * np.abs(expected) + 2 * 2.0**-7 * largest).all(), error.max()
            # and nothing is further from the exact result of the same queries than rounded shares can bring it
            both = np.concatenate([self.values[s], np.abs(self.values[s])], -1)
            exact, sizes = np.split(
                ops.attention(bf16(queries[mine]), self.keys[s], both, first, scale=1.0, **options), 2, -1
            )
            assert (np.abs(out[mine] - exact) <= 1.01 * 2.0**-7 * sizes + 2e-5).all()


SHAPES = [(8, 1), (6, 2), (4, 4), (9, 3)]  # heads, of which keys have so many
USUAL = [(64, 8, 1), (64, 6, 2), (24, 9, 3)]  # head size, heads, key heads
ALL_SHAPES = [
    pytest.param(size, *heads, marks=() if (size, *heads) in USUAL else pytest.mark.slow)
    for size in (64, 24, 128)
    for heads in SHAPES
]


@pytest.mark.parametrize(("head_dim", "heads", "kv_heads"), ALL_SHAPES)
@pytest.mark.parametrize("products", PRODUCTS)
def test_prefill_then_decode(team, heads, kv_heads, head_dim, products):
    case = Case(team, heads, kv_heads, head_dim, products=products)
    for count in (1, 1, 30, 1, 65, 1, 200, 1):
        case.step([count])


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 24])
def test_float32_pages(team, head_dim):
    case = Case(team, 8, 2, head_dim, window=90, sinks=True, element="f32")
    for count in (1, 30, 1, 65, 1):
        case.step([count])


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("window", [0, 7, 128])
@pytest.mark.parametrize("products", PRODUCTS)
def test_window_sinks_and_divided_work(team, window, divided, products):
    case = Case(team, 16, 2, 64, window=window, sinks=True, divided=divided, ring=40, products=products)
    for count in (5, 1, 140, 1, 1, 33, 1, 900, 1):
        case.step([count])


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 1), (6, 2), pytest.param(3, 3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("products", PRODUCTS)
def test_a_row_does_not_depend_on_its_company(team, heads, kv_heads, window, products):
    """Bit for bit: token by token, in chunks, divided or not, in tiles of any size."""
    total = 1100  # three parts of the keys
    qkv = np.random.default_rng(heads).normal(size=(total, heads + 2 * kv_heads, 32)).astype(np.float32)
    results = []
    for divided, rows, chunks in ((False, None, [total]), (True, None, [1, 511, 2, 500, 86]), (True, 1, [130] * 8 + [60])):
        case = Case(team, heads, kv_heads, 32, window=window, sinks=True, divided=divided, ring=40, products=products)
        edges = np.cumsum([0, *chunks])
        parts = itertools.pairwise(edges)
        results.append(np.concatenate([case.step([b - a], qkv[a:b], rows) for a, b in parts]))
    last = Case(team, heads, kv_heads, 32, window=window, sinks=True, ring=40, products=products)
    last.step([total - 20], qkv[:-20])
    results.append(np.concatenate([results[0][:-20], *(last.step([1], qkv[i : i + 1]) for i in range(total - 20, total))]))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_ring_needs_only_the_window(team, products):
    """A window of 32 and chunks of up to 40 positions need 32 + 40 − 1 positions, rounded up to pages and one more."""
    case = Case(team, 8, 2, 64, window=32, sinks=True, ring=-(-71 // 16) + 1, page=16, products=products)
    for count in (40, 1, 1, 40, 17, 1, 40, 40, 1, 1, 40):
        case.step([count])


@pytest.mark.parametrize("pieces", [1, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 20))])
@pytest.mark.parametrize("products", PRODUCTS)
def test_scratch_that_is_too_small_is_left_alone(team, pieces, products):
    """Keys are divided where there is room for what is found, and not elsewhere; the results are the same bits."""
    given = np.random.default_rng(0).normal(size=(1200, 12, 64)).astype(np.float32)
    found = []
    for divided in (True, False):
        case = Case(team, 8, 2, 64, divided=divided, ring=40, pieces=pieces, products=products)
        found.append([case.step([len(part)], part) for part in np.split(given, [1198, 1199])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("products", PRODUCTS)
def test_several_sequences(team, divided, products):
    case = Case(team, 8, 2, 32, sequences=3, divided=divided, products=products)
    for counts in ([3, 50, 1], [1, 1, 1], [20, 1, 0], [1, 0, 1], [1, 1, 1]):
        case.step(counts)


@pytest.mark.parametrize("products", PRODUCTS)
def test_pages_can_be_shared(team, products):
    """Two sequences with the same first page read the same memory."""
    case = Case(team, 4, 1, 16, sequences=2, page=LANES, products=products)
    case.step([LANES, 0])
    case.tables[1, 0] = case.tables[0, 0]
    case.keys[1], case.values[1] = case.keys[0].copy(), case.values[0].copy()
    for counts in ([1, 1], [3, 9], [1, 1]):
        case.step(counts)


@pytest.mark.slow
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape(team, data):
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
        element=data.draw(st.sampled_from(["bf16", "f32"]), "element"),
        products=data.draw(st.sampled_from(["bf16", "f32"]), "products"),
        pairs=data.draw(st.integers(0, head_dim // 2), "pairs"),
        interleaved=data.draw(st.booleans(), "interleaved"),
        norms=data.draw(st.booleans(), "norms"),
    )
    for counts in passes:
        if any(counts):
            case.step(counts, spare=data.draw(st.integers(0, 40), "room behind a row"))


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("element", ["bf16", pytest.param("f32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(5, 1, 20), (3, 3, 6), (13, 1, 100), (6, 2, 72)])
def test_head_sizes_that_fill_no_vector_in_divided_work(team, heads, kv_heads, head_dim, element, products):
    case = Case(team, heads, kv_heads, head_dim, sinks=True, divided=True, ring=40, element=element, products=products)
    for count in (PART + 30, 1, 40, PART, 1):
        case.step([count])


@pytest.mark.parametrize(
    "head_dim", [80, *(pytest.param(size, marks=pytest.mark.slow) for size in (96, 256, 512, MAX_HEAD))]
)
@pytest.mark.parametrize("products", PRODUCTS)
def test_larger_heads(team, head_dim, products):
    case = Case(team, 2, 1, head_dim, products=products)
    for count in (1, 40, 1):
        case.step([count])


def test_impossible_pages_are_refused():
    for head_dim in (0, 25, MAX_HEAD + 2):
        with pytest.raises(ValueError, match=f"head_dim is {head_dim}; the kernels take even numbers up to {MAX_HEAD}"):
            Pages(1, head_dim)
    with pytest.raises(ValueError, match="does not divide"):
        Pages(1, 64, LANES + 1)
