"""The CUDA kernels against the plain definitions, wherever `carry_out` runs them: odd sizes, fresh numbers, poisoned outputs."""

from __future__ import annotations

import numpy as np
import pytest
from carry_out import poison, run, where
from cuda_problems import as_the_kernel_sees, floats, matrix, rest_slow

from numba_kernels.cuda.attend import attend_kernel
from numba_kernels.cuda.attention import Attention, partial_size
from numba_kernels.cuda.attention_ahead import attend_ahead_kernel, reads_ahead
from numba_kernels.cuda.attention_tiles import attend_tiles_kernel, fits_tiles
from numba_kernels.cuda.blocks import LAYOUTS, Shape
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.experts import down_kernel, gate_up_coded_kernel, gate_up_kernel, may_choose, takes_codes
from numba_kernels.cuda.matvec import ADD, SILU, STORE, matvec_kernel
from numba_kernels.cuda.routing import route_kernel
from numba_kernels.cuda.rows import choose_kernel, embed_kernel
from numba_kernels.reference import formats as reference
from numba_kernels.reference import ops

WARPS = 2
EPSILON = np.float32(1e-5)
NO_MORE = np.zeros(1, np.float32), np.float32(1), np.float32(0)  # of a router: correction, scale, epsilon
FORMATS = [(f, a) for f in LAYOUTS for a in (("f32",) if LAYOUTS[f].is_float else ("int8", "f32"))]
QUICK = [(f, "int8") for f in ("mxfp4", "int8", "q8_0", "q4_0")] + [("bf16", "f32")]
SLOW = where() == "simulator"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def assert_near(got: np.ndarray, wanted: np.ndarray, tolerance: float = 3e-6) -> None:
    """Largest difference beside the largest value."""
    assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()


# ---- matrix × vector ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "activations"), rest_slow(FORMATS, *QUICK))
def test_matvec(format: str, activations: str, rng: np.random.Generator) -> None:
    """Rows that are odd in number and columns that end within a warp's chunks; 1 and 5 blocks."""
    for rows, columns, grid in [(5, 384, 1)] if SLOW else [(21, 384, 1), (37, 1152, 5)]:
        kernel = matvec_kernel(Shape(format, columns, activations), norm=True, bias=True, finish=STORE, warps=WARPS)
        m, x, weight, bias = matrix(format, rows, columns, rng), *(floats(rng, n) for n in (columns, columns, rows))
        out = poison(rows)
        run(kernel, grid, m.codes, m.scales, bias, x, weight, EPSILON, rows, out)
        normed = ops.rms_norm(x[None], weight, EPSILON)
        assert_near(out, ops.linear(as_the_kernel_sees(normed, format, activations), m.values, bias)[0], 1e-5)


@pytest.mark.parametrize(("format", "columns"), [("bf16", 24), ("bf16", 130), ("f16", 100), ("f32", 7)])
def test_floats_need_no_blocks(format: str, columns: int, rng: np.random.Generator) -> None:
    kernel = matvec_kernel(Shape(format, columns, "int8"), norm=False, bias=False, finish=ADD, warps=WARPS)
    m, x, out = matrix(format, 3, columns, rng), floats(rng, columns), floats(rng, 3)
    wanted = out + m.values @ x
    run(kernel, 1, m.codes, m.scales, x, x, x, EPSILON, 3, out)
    assert_near(out, wanted, 1e-5)


def test_gated(rng: np.random.Generator) -> None:
    kernel = matvec_kernel(Shape("q8_0", 64, "f32"), norm=True, bias=False, finish=SILU, warps=WARPS)
    m, x, weight = matrix("q8_0", 14, 64, rng), floats(rng, 64), floats(rng, 64)
    out = poison(7)
    run(kernel, 2, m.codes, m.scales, x, x, weight, EPSILON, 14, out)
    both = ops.linear(ops.rms_norm(x[None], weight, EPSILON), m.values)[0]
    assert_near(out, ops.silu_gate(both[::2], both[1::2]), 1e-5)


def test_trouble_is_not_hidden(rng: np.random.Generator) -> None:
    """NaN and infinity in the vector, and MXFP4's scale for NaN, come out as NaN."""
    kernel = matvec_kernel(Shape("mxfp4", 64, "int8"), norm=False, bias=False, finish=STORE, warps=WARPS)
    for wrong in (np.nan, np.inf, -np.inf):
        m, x, out = matrix("mxfp4", 2, 64, rng), floats(rng, 64), poison(2)
        x[40] = wrong
        run(kernel, 1, m.codes, m.scales, x, x, x, EPSILON, 2, out)
        assert np.isnan(out).all()
    m.scales[1] = 255
    ones = np.ones(64, np.float32)
    run(kernel, 1, m.codes, m.scales, ones, ones, ones, EPSILON, 2, out)
    assert np.isnan(out).tolist() == [True, False]


def test_the_least_scale_of_mxfp4(rng: np.random.Generator) -> None:
    """2^−127 is not a normal number."""
    kernel = matvec_kernel(Shape("mxfp4", 32, "f32"), norm=False, bias=False, finish=STORE, warps=WARPS)
    m, out = matrix("mxfp4", 1, 32, rng), poison(1)
    values = m.values * np.float32(2.0) ** (127 - m.scales[0].astype(np.float32))
    m.scales[:] = 0
    x = np.full(32, 2.0**100, np.float32)
    run(kernel, 1, m.codes, m.scales, x, x, x, EPSILON, 1, out)
    assert_near(out, (values.astype(np.float64) @ x * 2.0**-127).astype(np.float32), 1e-5)


# ---- experts --------------------------------------------------------------------------------------------------------


ROUTERS = [
    ("bf16", 72, 40, 4, 3),
    ("bf16", 1060, 5, 3, 2),
    ("q8_0", 96, 21, 3, 2),
    ("bf16", 72, 2, 2, 3),
    ("f16", 520, 7, 2, 4),
    ("bf16", 2040, 6, 1, 1),
    ("bf16", 2056, 6, 2, 1),
    ("f16", 70, 4, 2, 2),
]


@pytest.mark.parametrize(("format", "columns", "experts", "top", "grid"), rest_slow(ROUTERS, *ROUTERS[:3]))
def test_route(format: str, columns: int, experts: int, top: int, grid: int, rng: np.random.Generator) -> None:
    """Rows taken by a warp, or by a block, with 1 to 4 chunks for each thread; more blocks than rows, and fewer."""
    kernel = route_kernel(Shape(format, columns, "f32"), Choice(experts, top), norm=True, bias=True, warps=WARPS)
    m, x, weight, bias = (
        matrix(format, experts, columns, rng),
        floats(rng, columns),
        floats(rng, columns),
        floats(rng, experts),
    )
    logits, normed, ids, shares = poison(experts), poison(columns), poison(top, dtype=np.int32), poison(top)
    counter = np.zeros(1, np.int32)
    run(kernel, grid, m.codes, m.scales, bias, x, columns, weight, EPSILON, logits, counter, normed, ids, shares, *NO_MORE)
    wanted = ops.rms_norm(x[None], weight, EPSILON)
    wanted_ids, wanted_shares = ops.route(ops.linear(wanted, m.values, bias), top)
    assert ids.tolist() == wanted_ids[0].tolist()
    assert_near(shares, wanted_shares[0], 1e-5)
    assert_near(normed, wanted[0])
    assert counter[0] == 0


def test_equal_logits_and_nan_give_experts_that_exist(rng: np.random.Generator) -> None:
    kernel = route_kernel(Shape("f32", 8, "f32"), Choice(6, 3), norm=False, bias=True, warps=WARPS)
    codes, scales = np.zeros(48, np.uint32), np.zeros(1, np.uint16)
    for bias, wanted in (
        (np.array([0, 1, 1, 0, 1, 1], np.float32), [1, 2, 4]),
        (np.array([0, np.nan, 1, 0, np.nan, -np.inf], np.float32), None),
        (np.full(6, np.nan, np.float32), None),
        (np.full(6, -np.inf, np.float32), None),
    ):
        logits, normed, ids, shares = poison(6), poison(8), poison(3, dtype=np.int32), poison(3)
        x, counter = floats(rng, 8), np.zeros(1, np.int32)
        run(kernel, 2, codes, scales, bias, x, 8, x, EPSILON, logits, counter, normed, ids, shares, *NO_MORE)
        assert ids.tolist() == wanted if wanted else set(ids.tolist()) <= set(range(6))
        assert len(set(ids.tolist())) == 3


EXPERTS = [("mxfp4", "int8", 3), ("mxfp4", "f32", 4), ("bf16", "f32", 3), ("q8_0", "int8", 1), ("int8", "int8", 2)]


@pytest.mark.parametrize(("format", "activations", "top"), rest_slow(EXPERTS, EXPERTS[0], EXPERTS[2]))
def test_experts(format: str, activations: str, top: int, rng: np.random.Generator) -> None:
    experts, hidden, inner = 5, 64, 96
    first, second = matrix(format, experts * 2 * inner, hidden, rng), matrix(format, experts * hidden, inner, rng)
    x, first_bias, second_bias = floats(rng, hidden), floats(rng, experts, 2 * inner), floats(rng, experts, hidden)
    ids = rng.permutation(experts)[:top].astype(np.int32)
    shares = ops.softmax(floats(rng, top))
    gate_up = gate_up_kernel(Shape(format, hidden, activations), top=top, bias=True, warps=WARPS)
    down = down_kernel(Shape(format, inner, activations), top=top, bias=True, warps=WARPS)
    between = poison(top * inner)
    limits = np.float32(7), np.float32(1.702)
    run(gate_up, 3, first.codes, first.scales, first_bias.reshape(-1), x, ids, inner, inner, *limits, between)
    seen = as_the_kernel_sees(x[None], format, activations)[0]
    both = np.stack([first.values.reshape(experts, -1, hidden)[e] @ seen + first_bias[e] for e in ids])
    assert_near(between, ops.clamped_swiglu(both[:, ::2], both[:, 1::2]).reshape(-1), 1e-5)
    out = floats(rng, hidden)
    wanted = out.copy()
    for e, share, h in zip(ids, shares, as_the_kernel_sees(between.reshape(top, inner), format, activations), strict=True):
        wanted += share * (second.values.reshape(experts, hidden, inner)[e] @ h + second_bias[e])
    given = second.codes, second.scales, second_bias.reshape(-1)
    before = out.copy()
    run(down, 3, *given, between, between, inner, x, EPSILON, ids, shares, hidden, out)
    assert_near(out, wanted, 1e-5)
    shape = Shape(format, inner, activations)
    if takes_codes(shape, WARPS):
        quads, out = shape.quads, before
        codes, scales = np.zeros(top * 4 * quads, np.uint32), np.zeros(top * quads, np.float32)
        gate_up = gate_up_coded_kernel(Shape(format, hidden, activations), shape, top=top, bias=True, warps=WARPS)
        down = down_kernel(shape, top=top, bias=True, coded=True, warps=WARPS)
        for grid in (3, 2):  # what was there before is written over
            run(
                gate_up,
                grid,
                first.codes,
                first.scales,
                first_bias.reshape(-1),
                x,
                x,
                EPSILON,
                x,
                ids,
                inner,
                *limits,
                codes,
                scales,
            )
        run(down, 3, *given, codes, scales, inner, x, EPSILON, ids, shares, hidden, out)
        assert_near(out, wanted, 1e-3)  # a code may be another where the value is halfway between two


@pytest.mark.parametrize(("experts", "top"), [(5, 2), (32, 4), (100, 3)])
def test_experts_that_blocks_choose_for_themselves(experts: int, top: int, rng: np.random.Generator) -> None:
    """A router that leaves its logits, and projections that normalize and choose: against the plain definitions."""
    hidden, inner = 64, 32
    router, choice = matrix("bf16", experts, hidden, rng), Choice(experts, top)
    first, second = matrix("mxfp4", experts * 2 * inner, hidden, rng), matrix("mxfp4", experts * hidden, inner, rng)
    x, weight = floats(rng, hidden), floats(rng, hidden)
    bias, first_bias, second_bias = floats(rng, experts), floats(rng, experts, 2 * inner), floats(rng, experts, hidden)
    logits, normed, nothing = poison(experts), poison(hidden), np.zeros(top, np.int32)
    route = route_kernel(Shape("bf16", hidden, "int8"), choice, norm=True, bias=True, warps=WARPS, chooses=False)
    run(
        route, 2, router.codes, router.scales, bias, x, hidden, weight, EPSILON, logits, np.zeros(1, np.int32), normed, nothing,
        x, *NO_MORE,
    )  # fmt: skip
    wanted_x = ops.rms_norm(x[None], weight, EPSILON)
    wanted_logits = ops.linear(wanted_x, router.values, bias)
    assert_near(logits, wanted_logits[0], 1e-5)
    (ids,), (shares,) = ops.route(wanted_logits, top)
    shape, second_shape = Shape("mxfp4", hidden, "int8"), Shape("mxfp4", inner, "int8")
    assert may_choose(choice, shape, second_shape, WARPS)
    codes, scales = np.zeros(top * 4 * second_shape.quads, np.uint32), np.zeros(top * second_shape.quads, np.float32)
    gate_up = gate_up_coded_kernel(shape, second_shape, top=top, bias=True, warps=WARPS, choice=choice)
    down = down_kernel(second_shape, top=top, bias=True, coded=True, warps=WARPS, choice=choice)
    limits, out = (np.float32(7), np.float32(1.702)), floats(rng, hidden)
    wanted = out.copy()
    seen = as_the_kernel_sees(wanted_x, "mxfp4", "int8")[0]
    both = np.stack([first.values.reshape(experts, -1, hidden)[e] @ seen + first_bias[e] for e in ids])
    between = ops.clamped_swiglu(both[:, ::2], both[:, 1::2])
    for e, share, h in zip(ids, shares, as_the_kernel_sees(between, "mxfp4", "int8"), strict=True):
        wanted += share * np.float32(1.5) * (second.values.reshape(experts, hidden, inner)[e] @ h + second_bias[e])
    given = first.codes, first.scales, first_bias.reshape(-1)
    run(gate_up, 3, *given, x, weight, EPSILON, logits, nothing, inner, *limits, codes, scales)
    given = second.codes, second.scales, second_bias.reshape(-1)
    run(down, 3, *given, codes, scales, inner, logits, np.float32(1.5), nothing, x, hidden, out)
    assert_near(out, wanted, 2e-3)  # a code may be another where the value is halfway between two


def test_whose_experts_are_chosen_late() -> None:
    """Those of the largest logits alone, where the values between are passed on as codes of vectors that are held together."""
    codes, floats_ = Shape("mxfp4", 64, "int8"), Shape("bf16", 64, "int8")
    assert may_choose(Choice(8, 3), codes, codes)
    assert not may_choose(Choice(8, 3, renormalized=False), codes, codes)
    assert not may_choose(Choice(8, 3, sigmoid=True), codes, codes)
    assert not may_choose(Choice(8, 3), codes, floats_)
    assert not may_choose(Choice(64, 33), codes, codes)
    assert not may_choose(Choice(64, 16), codes, Shape("q8_0", 2880, "int8"))


def test_blocks_choose_what_exists(rng: np.random.Generator) -> None:
    """Of equal logits those with the lowest numbers; with NaN and infinities, distinct experts that exist: the second projection
    adds its bias only."""
    shape, choice, top = Shape("mxfp4", 32, "int8"), Choice(6, 3), 3
    down = down_kernel(shape, top=top, bias=True, coded=True, warps=WARPS, choice=choice)
    codes, scales = np.zeros(top * 4 * shape.quads, np.uint32), np.zeros(top * shape.quads, np.float32)
    m, bias = matrix("mxfp4", 6 * 2, 32, rng), np.repeat(2.0 ** np.arange(6), 2).astype(np.float32)
    nothing = np.zeros(top, np.int32), np.zeros(top, np.float32)
    for logits, wanted in (
        (np.array([0, 1, 1, 0, 1, 1], np.float32), 2 + 4 + 16),
        (np.array([-3, -1, -np.inf, -2, -np.inf, -np.inf], np.float32), None),
        (np.array([0, np.nan, 1, 0, np.nan, -np.inf], np.float32), np.nan),
        (np.full(6, -np.nan, np.float32), np.nan),
    ):
        out = np.zeros(2, np.float32)
        run(down, 1, m.codes, m.scales, bias, codes, scales, 32, logits, np.float32(3), *nothing, 2, out)
        if wanted is None:
            e = np.exp([0.0, -1, -2])
            wanted = 3 * (e / e.sum()) @ [2, 8, 1]
        np.testing.assert_allclose(out, np.full(2, wanted), rtol=1e-5)


# ---- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", rest_slow(list(LAYOUTS), "mxfp4", "q4_0", "int8", "bf16"))
def test_embed(format: str, rng: np.random.Generator) -> None:
    """Tokens that do not exist read no memory that does not."""
    columns = 128 if format == "int8_g128" else 96
    kernel = embed_kernel(format, columns, WARPS)
    m, out = matrix(format, 7, columns, rng), poison(5, columns)
    tokens = np.array([3, 0, 6, 99, -5], np.int32)
    run(kernel, (2, 5), m.codes, m.scales, tokens, 7, columns, out.reshape(-1))
    np.testing.assert_array_equal(out, m.values[[3, 0, 6, 6, 0]])


def test_the_largest_logit_is_chosen(rng: np.random.Generator) -> None:
    kernel = choose_kernel(WARPS)
    for count in (1, 63, 300):
        logits, state, counter = floats(rng, count), np.array([5, 1], np.int32), np.zeros(1, np.int32)
        logits[rng.integers(count)] = logits.max()  # of equals, the first
        best, numbers, tokens, history = (
            poison(3),
            poison(3, dtype=np.int32),
            poison(1, dtype=np.int32),
            np.zeros(9, np.int32),
        )
        run(kernel, 3, logits, count, state, np.zeros(1, np.float32), best, numbers, counter, tokens, history)
        assert tokens[0] == history[5] == logits.argmax()
        assert state.tolist() == [6, 1]
        assert counter[0] == 0


@pytest.mark.skipif(SLOW, reason="hundreds of draws")
def test_draws_follow_the_softmax() -> None:
    kernel = choose_kernel(WARPS)
    logits, counter = np.array([0, 1, 2, -1, 0.5], np.float32), np.zeros(1, np.int32)
    state, history = np.array([0, 12345], np.int32), np.zeros(200, np.int32)
    best, numbers, tokens = poison(1), poison(1, dtype=np.int32), poison(1, dtype=np.int32)
    for _ in range(200):
        run(kernel, 1, logits, 5, state, np.full(1, 2, np.float32), best, numbers, counter, tokens, history)
    frequencies = np.bincount(history, minlength=5) / 200
    assert np.abs(frequencies - ops.softmax(2 * logits)).max() < 0.12


# ---- attention ------------------------------------------------------------------------------------------------------


def bf16(x: np.ndarray) -> np.ndarray:
    return reference.decode_bfloat16(reference.encode_bfloat16(x))


def cache_words(x: np.ndarray, element: str) -> np.ndarray:
    x = np.ascontiguousarray(x)
    return reference.encode_bfloat16(x).view(np.uint32) if element == "bf16" else x.view(np.uint32)


CASES = [
    (8, 2, 32, None, "bf16", True),
    (3, 1, 16, None, "f32", False),
    (8, 1, 64, 20, "bf16", True),
    (4, 4, 48, 70, "f32", True),
    (5, 1, 80, None, "bf16", True),
    (13, 1, 112, 7, "f32", False),
    (10, 2, 64, None, "bf16", False),
]


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in (CASES[0], CASES[2]) else pytest.mark.slow, id=str(c)) for c in CASES]
)
@pytest.mark.parametrize("position", [5, 64] if SLOW else rest_slow([0, 5, 63, 64, 200, 333], 0, 64, 200))
@pytest.mark.parametrize("how", ["", "ahead", "tiles"])
def test_attend(case: tuple, position: int, how: str, rng: np.random.Generator) -> None:
    """Around pages' ends, with windows that begin within a page, over pages that lie anywhere and held NaN before."""
    queries, kv, size, window, element, sinks = case
    context, splits = 400, 3
    ring = -(-context // 64) if window is None else 3
    shape = Attention(queries, kv, size, window, ring, element, sinks)
    if (how == "ahead" and not reads_ahead(shape)) or (how == "tiles" and not fits_tiles(shape)):
        pytest.skip("not for such heads")
    q, keys, values = floats(rng, queries, size), *(floats(rng, position + 1, kv, size) for _ in range(2))
    cos, sin = ops.rope_table(ops.rope_frequencies(size, 1e4), context, 1.1)
    held = [ops.apply_rope(keys, cos[: position + 1], sin[: position + 1]), values]
    if element == "bf16":
        held = [bf16(x) for x in held]
    cache = np.full((ring + 2) * shape.page_words, 0x7FC07FC0, np.uint32)
    table = rng.permutation(ring + 2)[:ring].astype(np.int32)
    places = cache.reshape(ring + 2, 2, kv, 64, shape.value_words)
    for p in range(max(0, position - (ring - 1) * 64), position):
        for half in range(2):
            places[table[p // 64 % ring], half, :, p % 64] = cache_words(held[half][p], element)
    logits = floats(rng, queries)
    out, partial, counters = poison(queries * size), poison(partial_size(shape, splits)), np.zeros(kv, np.int32)
    qkv = np.concatenate([q.reshape(-1), keys[position].reshape(-1), values[position].reshape(-1)])
    state, scale = np.array([position, 0], np.int32), np.float32(size**-0.5)
    kernel = {"": attend_kernel, "ahead": attend_ahead_kernel, "tiles": attend_tiles_kernel}[how](shape, splits)
    run(
        kernel, (kv, splits), qkv, cos.reshape(-1), sin.reshape(-1), scale, logits, cache, table, state, partial, counters, out
    )  # fmt: skip
    wanted = ops.attention(
        ops.apply_rope(q[None], cos[position][None], sin[position][None]), *held, position, scale=float(scale),
        window=window or 0, sinks=logits if sinks else None,
    )  # fmt: skip
    assert_near(out, wanted.reshape(-1), 1e-5)
    assert (counters == 0).all()
    place = places[table[position // 64 % ring], :, :, position % 64]
    np.testing.assert_allclose(  # what was appended; the kernel fuses multiply and add
        place.view(np.uint16).astype(np.int64),
        np.stack([cache_words(x[position], element) for x in held]).view(np.uint16),
        atol=1,
    ) if element == "bf16" else assert_near(place.view(np.float32), np.stack([x[position] for x in held]))
