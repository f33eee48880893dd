"""Routers and expert layers on CUDA against the plain definitions, wherever `carry_out` runs them."""

from __future__ import annotations

import numpy as np
import pytest
from carry_out import poison, run
from cuda_problems import as_the_kernel_sees, assert_near, floats, matrix, rest_slow

from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.experts import down_kernel, gate_up_coded_kernel, gate_up_kernel, may_choose, takes_codes
from numba_kernels.cuda.routing import route_kernel
from numba_kernels.reference import ops

WARPS = 2
EPSILON = np.float32(1e-5)
NO_MORE = np.zeros(1, np.float32), np.float32(1), np.float32(0)  # of a router: correction, scale, epsilon


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


@pytest.mark.parametrize(("experts", "top"), rest_slow([(5, 2), (32, 4), (100, 3)], (32, 4)))
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
