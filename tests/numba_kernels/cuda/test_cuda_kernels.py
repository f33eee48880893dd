"""The CUDA kernels against the plain definitions, wherever `carry_out` runs them: odd sizes, fresh numbers, poisoned outputs."""

from __future__ import annotations

import numpy as np
import pytest
from carry_out import poison, run, where
from cuda_problems import as_the_kernel_sees, assert_near, floats, matrix, rest_slow

from numba_kernels.cuda.blocks import LAYOUTS, Shape
from numba_kernels.cuda.matvec import ADD, SILU, STORE, matvec_kernel
from numba_kernels.cuda.rows import choose_kernel, embed_kernel
from numba_kernels.reference import ops

WARPS = 2
EPSILON = np.float32(1e-5)
FORMATS = [(f, a) for f in LAYOUTS for a in (("f32",) if LAYOUTS[f].is_float else ("int8", "f32"))]
QUICK = [(f, "int8") for f in ("mxfp4", "int8", "q8_0", "q4_0")] + [("bf16", "f32")]
SLOW = where() == "simulator"


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
