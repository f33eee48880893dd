"""The kernels for many tokens against the plain definitions on what bfloat16 leaves of their inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from carry_out import poison, run, where
from cuda_problems import assert_near, bf16, floats, matrix, rest_slow

from numba_kernels.cuda.attention import Attention
from numba_kernels.cuda.attention_many import attend_many_kernel, store_many_kernel, tile_tokens
from numba_kernels.cuda.blocks import LAYOUTS, Shape
from numba_kernels.cuda.matmul import matmul_grid, matmul_kernel
from numba_kernels.cuda.matmul_few import matmul_few_kernel
from numba_kernels.cuda.prefill import combine_kernel, group_kernel, most_tiles, round_kernel
from numba_kernels.cuda.seam import Kernel
from numba_kernels.cuda.token_tiles import ADD, SILU, STORE, SWIGLU
from numba_kernels.reference import formats as reference
from numba_kernels.reference import ops

pytestmark = pytest.mark.slow

EPSILON = np.float32(1e-5)
LIMITS = np.float32(7), np.float32(1.702)
SLOW = where() == "simulator"
WARPS = 1 if SLOW else 2
NO_INTS, NO_WORDS = np.zeros(1, np.int32), np.zeros(1, np.uint32)


def words(x: np.ndarray) -> np.ndarray:
    """Rows of bfloat16, padded to 8 columns."""
    padded = np.zeros((len(x), -(-x.shape[1] // 8) * 8), np.float32)
    padded[:, : x.shape[1]] = x
    return reference.encode_bfloat16(padded).view(np.uint32)


def values(out: np.ndarray, columns: int) -> np.ndarray:
    """What words of bfloat16 stand for."""
    return reference.decode_bfloat16(out.view(np.uint16))[:, :columns]


CASES = [("mxfp4", 288, 8)] if SLOW else [(f, {"int8_g128": 384}.get(f, 352), n) for f in LAYOUTS for n in (8, 64)]
QUICK = [("mxfp4", 352, 64), ("q8_0", 352, 8), ("bf16", 352, 8)]


@pytest.mark.parametrize(("format", "columns", "tokens"), rest_slow(CASES, *QUICK))
@pytest.mark.parametrize("make", [matmul_kernel, matmul_few_kernel])
def test_matmul(make: Callable[..., Kernel], format: str, columns: int, tokens: int, rng: np.random.Generator) -> None:
    """Rows and tokens that end within a block; slabs of columns, the last of which is not full."""
    tokens = min(tokens, 32) if make is matmul_few_kernel else tokens
    rows, count = 37, tokens + 3
    m, x, bias = matrix(format, rows, columns, rng), floats(rng, count, columns), floats(rng, rows)
    kernel = make(Shape(format, columns, "f32"), finish=STORE, bias=True, tokens=tokens, warps=WARPS)
    out, grid = poison(count, rows + 3), matmul_grid(kernel, 2, rows)
    run(
        kernel, grid, m.codes, m.scales, bias, words(x).reshape(-1), words(x).shape[1], NO_INTS, NO_INTS, NO_INTS, count, rows,
        *LIMITS, out.reshape(-1), NO_WORDS, rows + 3,
    )  # fmt: skip
    assert_near(out[:, :rows], ops.linear(bf16(x), bf16(m.values), bias), 1e-5)
    assert np.isnan(out[:, rows:]).all()


@pytest.mark.parametrize("columns", [8, 20, 130])
@pytest.mark.parametrize("make", [matmul_kernel, matmul_few_kernel])
def test_odd_columns_are_added(make: Callable[..., Kernel], columns: int, rng: np.random.Generator) -> None:
    m, x, out = matrix("bf16", 5, columns, rng), floats(rng, 3, columns), floats(rng, 3, 5)
    wanted = out + bf16(x) @ m.values.T
    kernel = make(Shape("bf16", columns, "f32"), finish=ADD, bias=False, tokens=8, warps=WARPS)
    run(
        kernel, (1, 1), m.codes, m.scales, out.reshape(-1), words(x).reshape(-1), words(x).shape[1], NO_INTS, NO_INTS, NO_INTS, 3,
        5, *LIMITS, out.reshape(-1), NO_WORDS, 5,
    )  # fmt: skip
    assert_near(out, wanted, 1e-5)


@pytest.mark.parametrize("rows", [12, 70])
@pytest.mark.parametrize("make", [matmul_kernel, matmul_few_kernel])
def test_gated(make: Callable[..., Kernel], rows: int, rng: np.random.Generator) -> None:
    m, x = matrix("bf16", rows, 64, rng), floats(rng, 9, 64)
    kernel = make(Shape("bf16", 64, "f32"), finish=SILU, bias=False, tokens=16, warps=WARPS)
    stride = -(-rows // 16) * 4
    out = np.zeros((9, stride), np.uint32)
    run(
        kernel, matmul_grid(kernel, 1, rows), m.codes, m.scales, floats(rng, 1), words(x).reshape(-1), 32, NO_INTS, NO_INTS,
        NO_INTS, 9, rows, *LIMITS, floats(rng, 1), out.reshape(-1), stride,
    )  # fmt: skip
    both = bf16(x) @ m.values.T
    assert_near(values(out, rows // 2), ops.silu_gate(both[:, ::2], both[:, 1::2]), 5e-3)


@pytest.mark.parametrize(("format", "experts", "tokens"), rest_slow([("mxfp4", 5, 11), ("bf16", 3, 4)], ("mxfp4", 5, 11)))
@pytest.mark.parametrize("make", [matmul_kernel, matmul_few_kernel])
def test_experts(make: Callable[..., Kernel], format: str, experts: int, tokens: int, rng: np.random.Generator) -> None:
    """The whole layer: sorting, both projections with tiles of 8, and putting together. Some experts get nothing."""
    top, hidden, inner = 2, 64, 96
    first, second = matrix(format, experts * 2 * inner, hidden, rng), matrix(format, experts * hidden, inner, rng)
    x, first_bias, second_bias = floats(rng, tokens, hidden), floats(rng, experts, 2 * inner), floats(rng, experts, hidden)
    ids = np.stack([rng.permutation(experts - 1)[:top] for _ in range(tokens)]).astype(np.int32)
    shares = ops.softmax(floats(rng, tokens, top))
    pairs = tokens * top
    order, place = poison(pairs, dtype=np.int32), poison(pairs, dtype=np.int32)
    bound = most_tiles(pairs, experts, 8)
    tiles, count = poison(3 * bound, dtype=np.int32), poison(1, dtype=np.int32)
    run(group_kernel(experts, top, 8, WARPS), 1, ids.reshape(-1), pairs, order, place, tiles, count)
    assert sorted(place.tolist()) == list(range(pairs))
    assert order[place].tolist() == [p // top for p in range(pairs)]
    assert tiles.reshape(-1, 3)[: count[0], 2].sum() == pairs
    common = {"bias": True, "tokens": 8, "grouped": True, "warps": WARPS}
    kernel = make(Shape(format, hidden, "f32"), finish=SWIGLU, indexed=True, **common)
    between = np.zeros((pairs, inner // 2), np.uint32)
    run(
        kernel, matmul_grid(kernel, bound, 2 * inner), first.codes, first.scales, first_bias.reshape(-1), words(x).reshape(-1),
        hidden // 2, order, tiles, count, 0, 2 * inner, *LIMITS, floats(rng, 1), between.reshape(-1), inner // 2,
    )  # fmt: skip
    kernel = make(Shape(format, inner, "f32"), finish=STORE, indexed=False, **common)
    parts, out = poison(pairs, hidden), floats(rng, tokens, hidden)
    run(
        kernel, matmul_grid(kernel, bound, hidden), second.codes, second.scales, second_bias.reshape(-1), between.reshape(-1),
        inner // 2, NO_INTS, tiles, count, 0, hidden, *LIMITS, parts.reshape(-1), NO_WORDS, hidden,
    )  # fmt: skip
    up, down = bf16(first.values).reshape(experts, 2 * inner, hidden), bf16(second.values).reshape(experts, hidden, inner)
    wanted = out + ops.expert_mlp(bf16(x), ids, shares, up, first_bias, down, second_bias)
    run(
        combine_kernel(hidden, top, 2), (1, tokens), parts.reshape(-1), hidden, shares.reshape(-1), place, out.reshape(-1), hidden
    )  # fmt: skip
    assert_near(out, wanted, 5e-3)


@pytest.mark.parametrize("columns", [64, 21])
def test_rounding(columns: int, rng: np.random.Generator) -> None:
    x, weight, stride = floats(rng, 3, columns), floats(rng, columns), -(-columns // 8) * 4
    for norm in (True, False):
        out = np.full((3, stride), 0x7FC07FC0, np.uint32)
        run(round_kernel(columns, norm=norm, warps=2), 3, x.reshape(-1), columns, weight, EPSILON, out.reshape(-1), stride)
        np.testing.assert_allclose(values(out, columns), ops.rms_norm(x, weight, EPSILON) if norm else x, rtol=5e-3)
        assert (values(out, 2 * stride)[:, columns:] == 0).all()


HEADS = [(8, 2, 32, None, True), (3, 1, 16, None, False), (8, 1, 64, 20, True), (4, 4, 48, 70, True),
         (5, 1, 80, None, True), (13, 1, 112, 7, False)]  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in (HEADS[0], HEADS[2]) else pytest.mark.slow, id=str(c)) for c in HEADS]
)
def test_attention(case: tuple, rng: np.random.Generator) -> None:
    """Two sequences at once, one that begins and one that goes on, over pages that lie anywhere and held NaN before."""
    queries, kv, size, window, sinks = case
    context, warps = 300, 1
    ring = -(-context // 64) if window is None else 4
    shape = Attention(queries, kv, size, window, ring, "bf16", sinks)
    cos, sin = ops.rope_table(ops.rope_frequencies(size, 1e4), context, 1.1)
    cache = np.full(2 * ring * shape.page_words, 0x7FC07FC0, np.uint32)
    tables = rng.permutation(2 * ring).astype(np.int32).reshape(2, ring)
    places = cache.reshape(2 * ring, 2, kv, 64, shape.value_words)
    counts, starts = ([3, 5], [0, 62]) if SLOW else ([13, 70], [0, 90])
    everything, held, tiles = [], [], []
    for s, (count, start) in enumerate(zip(counts, starts, strict=True)):
        q, k, v = floats(rng, count, queries, size), *(floats(rng, start + count, kv, size) for _ in range(2))
        rotated = ops.apply_rope(k, cos[: start + count], sin[: start + count])
        for p in range(max(0, start - (ring - 2) * 64), start):
            for half, x in enumerate((rotated, v)):
                places[tables[s, p // 64 % ring], half, :, p % 64] = reference.encode_bfloat16(x[p]).view(np.uint32)
        held.append((ops.apply_rope(q, cos[start : start + count], sin[start : start + count]), bf16(rotated), bf16(v)))
        everything.append(
            np.concatenate([q.reshape(count, -1), k[start:].reshape(count, -1), v[start:].reshape(count, -1)], 1)
        )
        step = tile_tokens(shape, warps)
        first = sum(counts[:s])
        tiles += [(first + i, min(step, count - i), start + i, s) for i in range(0, count, step)]
    total = sum(counts)
    qkv = np.concatenate(everything)
    positions = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, counts, strict=True)]).astype(np.int32)
    sequences = np.repeat([0, 1], counts).astype(np.int32)
    words_out = queries * size // 2
    q_words, out = np.full((total, words_out), 0x7FC07FC0, np.uint32), np.full((total, words_out), 0x7FC07FC0, np.uint32)
    logits, scale = floats(rng, queries), np.float32(size**-0.5)
    run(
        store_many_kernel(shape, 2), total, qkv.reshape(-1), qkv.shape[1], cos.reshape(-1), sin.reshape(-1), scale, cache,
        tables.reshape(-1), positions, sequences, q_words.reshape(-1),
    )  # fmt: skip
    run(
        attend_many_kernel(shape, warps), (len(tiles), kv), q_words.reshape(-1), logits, cache, tables.reshape(-1),
        np.array(tiles, np.int32).reshape(-1), out.reshape(-1),
    )  # fmt: skip
    at = 0
    for (q, k, v), start in zip(held, starts, strict=True):
        wanted = ops.attention(q, k, v, start, scale=float(scale), window=window or 0, sinks=logits if sinks else None)
        assert_near(values(out[at : at + len(q)], 2 * words_out), wanted.reshape(len(q), -1), 2e-2)
        at += len(q)
