"""The kernels that other families than gpt-oss need, against the plain definitions: odd sizes, poisoned outputs."""

from __future__ import annotations

import numpy as np
import pytest
from carry_out import poison, run, where
from cuda_problems import bf16, floats, matrix, rest_slow

from numba_kernels.cuda.attend import attend_kernel
from numba_kernels.cuda.attention import Attention, partial_size
from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.experts import SILU as SILU_GATE
from numba_kernels.cuda.experts import gate_up_kernel
from numba_kernels.cuda.heads import turn_heads_kernel
from numba_kernels.cuda.latent import attend_latents_kernel, latent_shape, store_latents_kernel
from numba_kernels.cuda.matmul import matmul_grid, matmul_kernel
from numba_kernels.cuda.matvec import matvec_kernel
from numba_kernels.cuda.packing import packed_rows
from numba_kernels.cuda.products import products_kernel
from numba_kernels.cuda.routing import route_kernel
from numba_kernels.cuda.rows import add_rows_kernel, embed_kernel, layer_norm_kernel
from numba_kernels.cuda.seam import NoKernel
from numba_kernels.cuda.token_tiles import GELU
from numba_kernels.reference import formats as reference
from numba_kernels.reference import ops

pytestmark = pytest.mark.slow

WARPS = 2
EPSILON = np.float32(1e-5)
SLOW = where() == "simulator"


def assert_near(got: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()


# ---- the choice of experts ------------------------------------------------------------------------------------------

CHOICES = [
    Choice(6, 2, renormalized=False),
    Choice(40, 5, corrected=True, groups=8, groups_chosen=3),
    Choice(40, 6, renormalized=False, groups=5, groups_chosen=2, group_best=1),
    Choice(12, 4, sigmoid=True, corrected=True, groups=4, groups_chosen=2),
    Choice(70, 7, sigmoid=True, renormalized=False),
    Choice(9, 9, sigmoid=True, groups=3, groups_chosen=3),
]


@pytest.mark.parametrize("choice", rest_slow(CHOICES, CHOICES[1], CHOICES[3]), ids=lambda c: c.name)
def test_choices(choice: Choice, rng: np.random.Generator) -> None:
    tokens = 1 if SLOW else 4
    kernel = route_kernel(Shape("f32", 8, "f32"), choice, norm=False, bias=False, warps=WARPS)
    m, x = matrix("f32", choice.experts, 8, rng), floats(rng, tokens, 8)
    correction, scale, epsilon = floats(rng, choice.experts) / 4, np.float32(2.5), np.float32(1e-20)
    logits, normed, counters = poison(tokens, choice.experts), poison(tokens, 8), np.zeros(tokens, np.int32)
    ids, shares = poison(tokens, choice.top, dtype=np.int32), poison(tokens, choice.top)
    run(
        kernel, (2, tokens), m.codes, m.scales, x.reshape(-1), x.reshape(-1), 8, x.reshape(-1), EPSILON, logits.reshape(-1),
        counters, normed.reshape(-1), ids.reshape(-1), shares.reshape(-1), correction, scale, epsilon,
    )  # fmt: skip
    wanted_ids, wanted_shares = ops.route_by_score(
        logits, choice.top, sigmoid_scores=choice.sigmoid, renormalized=choice.renormalized,
        correction=correction if choice.corrected else None, groups=choice.groups, groups_chosen=choice.groups_chosen,
        group_best=choice.group_best, epsilon=float(epsilon), scale=float(scale),
    )  # fmt: skip
    assert ids.tolist() == wanted_ids.tolist()
    assert_near(shares, wanted_shares)
    assert (counters == 0).all()


@pytest.mark.parametrize("choice", [CHOICES[1], CHOICES[3]], ids=lambda c: c.name)
def test_any_logits_give_experts_that_exist(choice: Choice) -> None:
    """NaN, infinities, equals, and scores that all are zero."""
    kernel = route_kernel(Shape("f32", 4, "f32"), choice, norm=False, bias=True, warps=WARPS)
    zeros, ones = np.zeros(4 * choice.experts, np.uint32), np.ones(4, np.float32)
    for bias in (0.0, np.nan, np.inf, -np.inf, -200.0):
        given = np.full(choice.experts, bias, np.float32)
        given[::3] = 0 if bias else 1
        ids, shares, counter = poison(choice.top, dtype=np.int32), poison(choice.top), np.zeros(1, np.int32)
        run(
            kernel, 2, zeros, np.zeros(1, np.uint16), given, ones, 4, ones, EPSILON, poison(choice.experts), counter, poison(4),
            ids, shares, np.zeros(choice.experts, np.float32), np.float32(1), np.float32(1e-20),
        )  # fmt: skip
        assert len(set(ids.tolist())) == choice.top
        assert set(ids.tolist()) <= set(range(choice.experts))


def test_more_experts_than_fit_are_refused() -> None:
    with pytest.raises(NoKernel, match="experts"):
        route_kernel(Shape("bf16", 11500, "f32"), Choice(512, 8, sigmoid=True), norm=True, bias=False)


@pytest.mark.parametrize(("format", "activations"), [("bf16", "f32"), ("q4_0", "f32")])
def test_silu_experts(format: str, activations: str, rng: np.random.Generator) -> None:
    experts, hidden, inner, top = 4, 64, 10, 3
    m, x, ids = matrix(format, experts * 2 * inner, hidden, rng), floats(rng, hidden), np.array([2, 0, 3], np.int32)
    kernel = gate_up_kernel(Shape(format, hidden, activations), top=top, bias=False, gate=SILU_GATE, warps=WARPS)
    out = poison(top * inner)
    none = np.float32(0)
    run(kernel, 2, m.codes, m.scales, x, x, ids, inner, inner, none, none, out)
    both = m.values.reshape(experts, 2 * inner, hidden)[ids] @ x
    assert_near(out, ops.silu_gate(both[:, ::2], both[:, 1::2]).reshape(-1))


# ---- GPT-2 ----------------------------------------------------------------------------------------------------------


def test_gelu(rng: np.random.Generator) -> None:
    """Of one vector and of several, far from zero as well."""
    m, x, bias = matrix("bf16", 21, 40, rng), bf16(3 * floats(rng, 3, 40)), floats(rng, 21)
    wanted = ops.gelu(ops.linear(x, m.values, bias))
    out = poison(21)
    kernel = matvec_kernel(Shape("bf16", 40, "f32"), norm=False, bias=True, finish=GELU, warps=WARPS)
    run(kernel, 2, m.codes, m.scales, bias, x[0], x[0], EPSILON, 21, out)
    assert_near(out, wanted[0])
    many, out = matmul_kernel(Shape("bf16", 40, "f32"), finish=GELU, bias=True, tokens=8, warps=WARPS), poison(3, 21)
    none, no = np.zeros(1, np.int32), np.float32(0)
    run(
        many, matmul_grid(many, 1, 21), m.codes, m.scales, bias, reference.encode_bfloat16(x).view(np.uint32).reshape(-1), 20,
        none, none, none, 3, 21, no, no, out.reshape(-1), np.zeros(1, np.uint32), 21,
    )  # fmt: skip
    assert_near(out, wanted)


def test_layer_norm(rng: np.random.Generator) -> None:
    x, weight, bias, out = floats(rng, 3, 77) + 5, floats(rng, 77), floats(rng, 77), poison(3, 80)
    run(layer_norm_kernel(77, WARPS), 3, x.reshape(-1), 77, weight, bias, EPSILON, out.reshape(-1), 80)
    assert_near(out[:, :77], ops.layer_norm(x, weight, bias, EPSILON))
    assert np.isnan(out[:, 77:]).all()


def test_positions_are_added(rng: np.random.Generator) -> None:
    m, out = matrix("f32", 9, 70, rng), floats(rng, 3, 70)
    wanted = out + m.values[[8, 0, 4]]
    places = np.array([8, 0, 4], np.int32)
    run(embed_kernel("f32", 70, WARPS, add=True), (2, 3), m.codes, m.scales, places, 9, 70, out.reshape(-1))
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize(("gated", "add"), [(True, True), (True, False), (False, True)])
def test_rows_are_added(gated: bool, add: bool, rng: np.random.Generator) -> None:
    x, gates, out = floats(rng, 3, 70), 3 * floats(rng, 3), floats(rng, 3, 75) if add else poison(3, 75)
    wanted = (out[:, :70] if add else 0) + x * (ops.sigmoid(gates)[:, None] if gated else 1)
    kernel = add_rows_kernel(70, gated=gated, add=add, warps=WARPS)
    run(kernel, (2, 3), x.reshape(-1), 70, gates, out.reshape(-1), 75)
    assert_near(out[:, :70], wanted)


# ---- heads ----------------------------------------------------------------------------------------------------------

TURNS = [  # (normed queries, normed keys), size, pairs, interleaved
    ((True, True), 48, 24, False),
    ((False, False), 48, 10, False),
    ((False, True), 34, 17, True),
    ((True, False), 80, 0, False),
]


@pytest.mark.parametrize(("norms", "size", "pairs", "interleaved"), TURNS)
def test_heads_are_normed_and_turned(
    norms: tuple[bool, bool], size: int, pairs: int, interleaved: bool, rng: np.random.Generator
) -> None:
    queries, keys, tokens, context = 5, 2, 3, 40
    stride = (queries + keys) * size + 7
    x, weights = floats(rng, tokens, stride), floats(rng, 2, size)
    positions = rng.integers(0, context, tokens).astype(np.int32)
    cos, sin = ops.rope_table(ops.rope_frequencies(2 * max(pairs, 1), 100.0), context, 1.1)
    wanted = x.copy()
    heads = wanted[:, : (queries + keys) * size].reshape(tokens, queries + keys, size).copy()
    for normed, part, weight in zip(norms, (np.s_[:, :queries], np.s_[:, queries:]), weights, strict=True):
        if normed:
            heads[part] = ops.rms_norm(heads[part], weight, EPSILON)
    if pairs:
        turned = heads[..., : 2 * pairs]
        heads[..., : 2 * pairs] = ops.apply_rope(turned, cos[positions], sin[positions], interleaved)
    wanted[:, : (queries + keys) * size] = heads.reshape(tokens, -1)
    held = np.concatenate([w for w, normed in zip(weights, norms, strict=True) if normed] or [np.ones(1, np.float32)])
    kernel = turn_heads_kernel(queries, keys, size, norms=norms, pairs=pairs, interleaved=interleaved, warps=WARPS)
    run(kernel, (4, tokens), x.reshape(-1), stride, held, EPSILON, cos.reshape(-1), sin.reshape(-1), positions)
    assert_near(x, wanted)


@pytest.mark.parametrize("position", [5] if SLOW else [0, 70])
def test_attention_without_rotation(position: int, rng: np.random.Generator) -> None:
    queries, size, splits = 4, 32, 2
    shape = Attention(queries, queries, size, None, 2, "f32", turned=False)
    q, keys, values = floats(rng, queries, size), *(floats(rng, position + 1, queries, size) for _ in range(2))
    cache = np.full(2 * shape.page_words, 0x7FC00000, np.uint32)
    places = cache.reshape(2, 2, queries, 64, size)
    for p in range(position):
        places[p // 64, :, :, p % 64] = np.stack([keys[p], values[p]]).view(np.uint32)
    out, partial, counters = poison(queries * size), poison(partial_size(shape, splits)), np.zeros(queries, np.int32)
    qkv = np.concatenate([q.reshape(-1), keys[position].reshape(-1), values[position].reshape(-1)])
    state, table, scale = np.array([position, 0], np.int32), np.arange(2, dtype=np.int32), np.float32(0.3)
    run(
        attend_kernel(shape, splits), (queries, splits), qkv, qkv, qkv, scale, qkv, cache, table, state, partial, counters, out
    )  # fmt: skip
    assert_near(out, ops.attention(q[None], keys, values, position, scale=0.3).reshape(-1))


# ---- latent attention -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "columns", "gap"), [("bf16", 41, 3), ("f16", 64, 0), ("f32", 8, 4), ("bf16", 264, 1)])
@pytest.mark.parametrize("add", [False, True])
def test_each_head_has_its_own_matrix(format: str, columns: int, gap: int, add: bool, rng: np.random.Generator) -> None:
    heads, rows, tokens, step = 3, 5, 2, columns + gap
    m, x, bias = matrix(format, heads * rows, columns, rng), floats(rng, tokens, heads, step), floats(rng, heads, rows)
    out = floats(rng, tokens, heads, rows + 1) if add else poison(tokens, heads, rows + 1)
    wanted = np.einsum("hrc,thc->thr", m.values.reshape(heads, rows, columns), x[..., :columns])
    wanted += out[..., :rows] + bias if add else 0
    kernel = products_kernel(format, heads, rows, columns, aligned=step % 4 == 0, bias=add, add=add, warps=WARPS)
    run(
        kernel, (8, tokens), m.codes, bias.reshape(-1), x.reshape(-1), heads * step, step, out.reshape(-1), heads * (rows + 1),
        rows + 1,
    )  # fmt: skip
    assert_near(out[..., :rows], wanted)
    assert add or np.isnan(out[..., rows:]).all()


LATENTS = [  # heads, rank, rope, nope, value, element, interleaved
    (3, 20, 8, 12, 10, "f32", True),
    (18, 32, 16, 24, 20, "bf16", False),
]


@pytest.mark.parametrize("case", LATENTS, ids=str)
def test_latent_attention(case: tuple, rng: np.random.Generator) -> None:
    """The whole layer: latents stored, queries absorbed, attention over pages that lie anywhere and held NaN before; of one
    token, and of several at once."""
    heads, rank, rope, nope, value, element, interleaved = case
    count, ring, splits = (3 if SLOW else 70), 2, 2
    shape = latent_shape(heads, rank, rope, ring, element)
    size, scale = shape.size, np.float32(0.2)
    query, latent, key = (floats(rng, count, n) for n in (heads * (nope + rope), rank, rope))
    weight, kv_b = floats(rng, rank), floats(rng, heads, nope + value, rank)
    cos, sin = ops.rope_table(ops.rope_frequencies(rope, 100.0), 128, 1.1)
    form = "bf16" if element == "bf16" else "f32"
    rounded = bf16 if element == "bf16" else np.copy
    positions, zeros, nothing = np.arange(count, dtype=np.int32), np.zeros(count, np.int32), np.zeros(1, np.float32)
    cache, table = np.full(4 * shape.page_words, 0x7FC07FC0, np.uint32), np.array([3, 1], np.int32)
    absorbed, sums, out = poison(count, heads, size), poison(count, heads, size), poison(count, heads, value)
    run(
        store_latents_kernel(shape, rank, rope, nope, pairs=rope // 2, interleaved=interleaved, norm=True, warps=WARPS), count,
        latent.reshape(-1), rank, weight, EPSILON, key.reshape(-1), rope, query.reshape(-1), heads * (nope + rope),
        cos.reshape(-1), sin.reshape(-1), cache, table, positions, zeros, absorbed.reshape(-1),
    )  # fmt: skip
    assert (absorbed[..., rank + rope :] == 0).all()
    assert np.isnan(absorbed[..., :rank]).all()
    to_latent, to_value = kv_b[:, :nope].transpose(0, 2, 1), kv_b[:, nope:]

    def codes(matrices: np.ndarray) -> np.ndarray:
        rows = matrices.reshape(-1, matrices.shape[-1])
        values = reference.encode_bfloat16(rows) if form == "bf16" else rows
        return packed_rows(form, {"values": values}, rows.shape[1])[0].reshape(-1)

    run(
        products_kernel(form, heads, rank, nope, aligned=True, warps=WARPS), (heads * rank // WARPS + 1, count), codes(to_latent),
        nothing, query.reshape(-1), heads * (nope + rope), nope + rope, absorbed.reshape(-1), heads * size, size,
    )  # fmt: skip
    kernel = attend_kernel(shape, splits)
    partial, counters = poison(partial_size(shape, splits)), np.zeros(shape.keys, np.int32)
    for t in {0, count - 1}:
        state = np.array([t, 0], np.int32)
        run(
            kernel, (shape.keys, splits), absorbed[t].reshape(-1), nothing, nothing, scale, nothing, cache, table, state,
            partial, counters, sums[t].reshape(-1),
        )  # fmt: skip
    alone = sums.copy()
    run(
        attend_latents_kernel(shape), (shape.keys, count), absorbed.reshape(-1), scale, cache, table, positions, zeros,
        sums.reshape(-1),
    )  # fmt: skip
    for t in {0, count - 1}:
        assert_near(sums[t], alone[t], 2e-5)
    kernel = products_kernel(form, heads, value, rank, aligned=True, warps=WARPS)
    run(
        kernel, (heads * value // WARPS + 1, count), codes(to_value), nothing, sums.reshape(-1), heads * size, size,
        out.reshape(-1), heads * value, value,
    )  # fmt: skip
    q = query.reshape(count, heads, nope + rope)
    q[..., nope:] = ops.apply_rope(q[..., nope:].copy(), cos[:count], sin[:count], interleaved)
    keys = ops.apply_rope(key[:, None].copy(), cos[:count], sin[:count], interleaved)[:, 0]
    wanted = ops.latent_attention(
        q, rounded(ops.rms_norm(latent, weight, EPSILON)), rounded(keys), rounded(kv_b), 0, nope=nope, scale=float(scale)
    )
    assert_near(out, wanted, 2e-5 if element == "f32" else 1e-3)


def test_latents_that_fit_nowhere_are_refused() -> None:
    with pytest.raises(NoKernel, match="latents of 8000 values"):
        latent_shape(4, 8000, 64, 1)
