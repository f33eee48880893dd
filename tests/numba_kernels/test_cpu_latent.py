"""Latent attention in its absorbed form against the expanded reference: shapes, chunks, sequences, divided work, copies."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numba_kernels.cpu.attention import attention_scratch
from numba_kernels.cpu.attention_steps import PART
from numba_kernels.cpu.kv_pages import MAX_HEAD
from numba_kernels.cpu.latent import LatentPages, copy_latents_ops, latent_attention_op, store_latents_op
from numba_kernels.cpu.team import Program
from numba_kernels.reference import ops
from numba_kernels.simd.values import LANES

NAN = {"bf16": 0x7FC0, "f32": 0x7FFF}


def stored(x: np.ndarray, element: str) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32) if element == "bf16" else x


class Case:
    """Sequences that grow by chunks through one layer's cache, with the reference beside them."""

    def __init__(
        self,
        team: Any,
        heads: int,
        nope: int,
        rope: int,
        value: int,
        rank: int,
        *,
        sequences: int = 1,
        ring: int = 20,
        page: int = 32,
        element: str = "bf16",
        interleaved: bool = False,
        divided: bool = False,
    ) -> None:
        self.team, self.element, self.interleaved, self.divided = team, element, interleaved, divided
        self.heads, self.nope, self.rope, self.value, self.rank = heads, nope, rope, value, rank
        self.rng = np.random.default_rng(heads * 1000 + rank)
        self.pages = LatentPages(rank, rope, page, element)
        self.memory = self.pages.allocate(sequences * ring)
        self.memory.view(np.uint16)[:] = NAN[element]  # what is not written must not be read
        self.tables = self.rng.permutation(sequences * ring).astype(np.int32).reshape(sequences, ring)
        self.turns = ops.rope_table(ops.rope_frequencies(rope, 1e4), 2048)
        self.kv_b = (self.rng.normal(size=(heads, nope + value, rank)) / rank**0.5).astype(np.float32)
        self.latents = [np.zeros((0, rank), np.float32) for _ in range(sequences)]
        self.keys = [np.zeros((0, rope), np.float32) for _ in range(sequences)]

    @property
    def cache(self) -> dict[str, Any]:
        return {
            "pages": self.memory, "page_bytes": self.pages.nbytes, "page_positions": self.pages.positions,
            "tables": self.tables, "table_stride": self.tables.strides[0], "ring": self.tables.shape[1],
        }  # fmt: skip

    def step(self, counts: list[int], given: tuple[np.ndarray, ...] | None = None, spare: int = 0) -> np.ndarray:
        """Appends counts[s] tokens to every sequence and compares their attention, which it returns: [tokens, heads, value].

        given: their queries, latents and keys; spare: values behind each of their rows.
        """
        n, scale = sum(counts), (self.nope + self.rope) ** -0.5
        shapes = ((n, self.heads, self.nope + self.rope), (n, self.rank), (n, self.rope))
        query, latent, key = given or (self.rng.normal(size=shape).astype(np.float32) for shape in shapes)
        sequence = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
        positions = np.concatenate([len(self.keys[s]) + np.arange(c) for s, c in enumerate(counts)]).astype(np.int32)
        expected = []
        for s, count in enumerate(counts):
            mine, first = sequence == s, len(self.keys[s])
            cos, sin = (table[positions[mine]] for table in self.turns)
            q = np.concatenate(
                [query[mine, :, : self.nope], ops.apply_rope(query[mine, :, self.nope :], cos, sin, self.interleaved)], -1
            )
            k = ops.apply_rope(key[mine, None], cos, sin, self.interleaved)[:, 0]
            self.latents[s] = np.concatenate([self.latents[s], stored(latent[mine], self.element)])
            self.keys[s] = np.concatenate([self.keys[s], stored(k, self.element)])
            if count:
                args = q, self.latents[s], self.keys[s], self.kv_b, first
                expected.append(ops.latent_attention(*args, nope=self.nope, scale=scale))
        rows = [np.pad(x.reshape(n, -1), ((0, 0), (0, spare)), constant_values=np.nan) for x in (query, latent, key)]
        wide = -(-self.pages.size // 32) * 32
        unrotated = np.full((self.heads, n, self.nope), np.nan, np.float32)
        absorbed = np.full((self.heads, n, wide), np.nan, np.float32)
        sums = np.full((self.heads, n, self.rank), np.nan, np.float32)
        program = Program()
        program.add(
            store_latents_op(self.element), query=rows[0], query_stride=rows[0].strides[0], latent=rows[1],
            latent_stride=rows[1].strides[0], key=rows[2], key_stride=rows[2].strides[0], rows=n, heads=self.heads,
            nope=self.nope, rope=self.rope, rank=self.rank, positions=positions, sequence=sequence, cos=self.turns[0],
            sin=self.turns[1], pairs=self.rope // 2, interleaved=self.interleaved, scale=scale, unrotated=unrotated,
            unrotated_stride=unrotated.strides[1], absorbed=absorbed, absorbed_stride=absorbed.strides[1], **self.cache,
        )  # fmt: skip
        self.team.run(program)
        absorbed[..., : self.rank] = np.einsum("htd,hdr->htr", unrotated, self.kv_b[:, : self.nope])
        op = latent_attention_op(self.element, self.rank)
        scratch = attention_scratch(512, self.rank)
        scratch["areas"][:] = np.nan
        program = Program()
        program.add(
            op, qkv=absorbed, stride=absorbed.strides[1], rows=n, out=sums, out_stride=sums.strides[1],
            sequences=len(counts), first_row=np.cumsum([0, *counts[:-1]]).astype(np.int32),
            row_count=np.array(counts, np.int32), positions=positions, heads=self.heads, kv_heads=1,
            head_dim=self.pages.size, value_dim=self.rank, window=0, sinks=None, divided=self.divided, **scratch,
            **self.cache,
        )  # fmt: skip
        self.team.run(program)
        out = np.einsum("htr,hdr->thd", sums, self.kv_b[:, self.nope :])
        np.testing.assert_allclose(out, np.concatenate(expected), rtol=1e-3, atol=3e-5)
        return out


@pytest.mark.slow
@pytest.mark.parametrize("divided", [False, True])
def test_the_published_shape(team, divided):
    case = Case(team, 16, 128, 64, 128, 512, interleaved=True, divided=divided, ring=24)
    for count in (5, 1, 100, 1, PART, 1):
        case.step([count])


@pytest.mark.slow
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape(team, data):
    sequences, chunk = data.draw(st.integers(1, 3), "sequences"), data.draw(st.sampled_from([1, 9, 80]), "longest chunk")
    lengths = st.lists(st.integers(0, chunk), min_size=sequences, max_size=sequences)
    passes = data.draw(st.lists(lengths, max_size=5), "passes")
    page = LANES * data.draw(st.integers(1, 4), "panels of a page")
    case = Case(
        team,
        data.draw(st.integers(1, 13), "heads"),
        data.draw(st.integers(1, 50), "nope"),
        2 * data.draw(st.integers(1, 20), "pairs"),
        data.draw(st.integers(1, 50), "value"),
        data.draw(st.one_of(st.integers(1, 90), st.sampled_from([128, 300])), "rank"),
        sequences=sequences,
        ring=-(-(1 + sum(map(max, passes))) // page),
        page=page,
        element=data.draw(st.sampled_from(["bf16", "f32"]), "element"),
        interleaved=data.draw(st.booleans(), "interleaved"),
        divided=data.draw(st.booleans(), "divided"),
    )
    for counts in passes:
        if any(counts):
            case.step(counts, spare=data.draw(st.integers(0, 40), "room behind a row"))


def test_a_row_does_not_depend_on_its_company(team):
    """Bit for bit: in one pass, in chunks, divided or not."""
    total, shape = PART + 90, (5, 10, 6, 12, 40)
    rng = np.random.default_rng(3)
    given = tuple(rng.normal(size=s).astype(np.float32) for s in ((total, 5, 16), (total, 40), (total, 6)))
    results = []
    for divided, chunks in ((False, [total]), (True, [1, 500, 2, 99])):
        case, at, parts = Case(team, *shape, divided=divided), 0, []
        for count in chunks:
            parts.append(case.step([count], tuple(x[at : at + count] for x in given)))
            at += count
        results.append(np.concatenate(parts))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-6)  # NumPy's own products come before and after


@pytest.mark.parametrize("element", ["bf16", "f32"])
def test_rows_go_out_of_pages_and_come_back(team, element):
    case = Case(team, 2, 4, 6, 5, 21, element=element, sequences=2)
    case.step([70, 75])
    read, write = copy_latents_ops(element)
    rows = np.zeros((50, 27), np.uint16 if element == "bf16" else np.float32)
    shared = {
        "pages": case.memory, "ring": case.tables.shape[1], "rows": rows, "row_stride": rows.strides[0], "count": 50,
        "size": 27, "page_bytes": case.pages.nbytes, "page_positions": case.pages.positions,
    }  # fmt: skip
    team.call(read, table=case.tables[0], first=13, **shared)
    values = rows.view(ml_dtypes.bfloat16).astype(np.float32) if element == "bf16" else rows
    expected = np.concatenate([case.latents[0], case.keys[0]], 1)[13:63]
    np.testing.assert_allclose(values, expected, rtol=1e-2 if element == "bf16" else 1e-5, atol=1e-5)
    team.call(write, table=case.tables[1], first=20, **shared)
    before = rows.copy()
    team.call(read, table=case.tables[1], first=20, **shared)
    np.testing.assert_array_equal(rows, before)


def test_impossible_pages_are_refused():
    with pytest.raises(ValueError, match=f"a latent has {MAX_HEAD + 1} values; the kernels take up to {MAX_HEAD}"):
        LatentPages(MAX_HEAD + 1, 64)
    with pytest.raises(ValueError, match="does not divide"):
        LatentPages(512, 64, LANES + 1)
