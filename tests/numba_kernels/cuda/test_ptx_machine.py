"""The interpreter of PTX refuses what a GPU would not notice."""

from __future__ import annotations

import numpy as np
import ptx_machine
import pytest
from carry_out import ptx

from numba_kernels.cuda.intrinsics import load_words, multiply_tiles, stream_words, warp_sum
from numba_kernels.cuda.plain import multiply_tiles as plain_multiply  # noqa: F401  (its definition is tested below)
from numba_kernels.cuda.seam import FLOATS, INT, SIMULATED, WORDS, Kernel, cuda, kernel, types

pytestmark = pytest.mark.skipif(SIMULATED, reason="needs PTX")


def launch(k: Kernel, grid: int, threads: int, *arguments: object) -> int:
    return ptx_machine.launch(ptx(k), grid, threads, arguments)


@kernel(FLOATS, INT, FLOATS)
def copy(x, shift, out):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    out[i] = x[i + shift]


def test_addresses_outside_of_an_array() -> None:
    x, out = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    launch(copy, 2, 32, x, 0, out)
    np.testing.assert_array_equal(out, x)
    with pytest.raises(ptx_machine.Fault, match="of array 0, which has 256"):
        launch(copy, 2, 32, x, 1, out)
    with pytest.raises(ptx_machine.Fault, match="of array 1, which has 128"):
        launch(copy, 2, 32, x, 0, out[:32].copy())


@kernel(WORDS, INT, WORDS)
def four(x, shift, out):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    a, b, c, d = load_words(x, 4 * i + shift)
    out[i] = a + b + c + d


def test_accesses_that_are_not_aligned() -> None:
    x, out = np.arange(140, dtype=np.uint32), np.zeros(32, np.uint32)
    launch(four, 1, 32, x, 4, out)
    np.testing.assert_array_equal(out, x[4:132].reshape(-1, 4).sum(1))
    with pytest.raises(ptx_machine.Fault, match="16 bytes at"):
        launch(four, 1, 32, x, 2, out)


@kernel(FLOATS, INT)
def reverse(x, wait):  # type: ignore[no-untyped-def]
    shared = cuda.shared.array(64, types.float32)
    i = cuda.threadIdx.x
    shared[i] = x[i]
    if wait > 0:
        cuda.syncthreads()
    x[i] = shared[63 - i]


def test_shared_memory_without_a_barrier() -> None:
    x = np.arange(64, dtype=np.float32)
    launch(reverse, 1, 64, x, 1)
    np.testing.assert_array_equal(x, np.arange(64)[::-1])
    with pytest.raises(ptx_machine.Fault, match="without a barrier"):
        launch(reverse, 1, 64, x, 0)


@kernel(FLOATS, INT)
def sums(x, limit):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < limit:
        x[i] = warp_sum(x[i])


def test_warps_that_are_not_whole() -> None:
    x = np.arange(64, dtype=np.float32)
    launch(sums, 1, 64, x, 32)
    assert x[0] == x[31] == sum(range(32))
    with pytest.raises(ptx_machine.Fault, match="some lanes of a warp are elsewhere"):
        launch(sums, 1, 64, x, 40)


@kernel(WORDS)
def in_place(x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    a, b, c, d = stream_words(x, 4 * i)
    x[4 * i] = a + b + c + d


def test_reading_past_the_cache_what_is_written() -> None:
    with pytest.raises(ptx_machine.Fault, match=r"ld.global.nc from arrays \[0\]"):
        launch(in_place, 1, 32, np.zeros(128, np.uint32))


@kernel(WORDS, WORDS, FLOATS)
def product(a, b, out):  # type: ignore[no-untyped-def]
    """A [16, 16] row by row, B [8, 16] column by column, both bfloat16; out [16, 8]."""
    g, t = cuda.threadIdx.x // 4, cuda.threadIdx.x % 4
    zero = np.float32(0)
    c = multiply_tiles(
        a[8 * g + t], a[8 * (g + 8) + t], a[8 * g + t + 4], a[8 * (g + 8) + t + 4], b[8 * g + t], b[8 * g + t + 4],
        zero, zero, zero, zero,
    )  # fmt: skip
    out[8 * g + 2 * t], out[8 * g + 2 * t + 1] = c[0], c[1]
    out[8 * (g + 8) + 2 * t], out[8 * (g + 8) + 2 * t + 1] = c[2], c[3]


def test_the_matrix_instruction() -> None:
    rng = np.random.default_rng()
    a, b = (
        (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        for shape in ((16, 16), (8, 16))
    )
    out = np.full(128, np.nan, np.float32)
    launch(product, 1, 32, a.view(np.uint32).reshape(-1), b.view(np.uint32).reshape(-1), out)
    x, y = ((m.astype(np.uint32) << 16).view(np.float32) for m in (a, b))
    np.testing.assert_allclose(out.reshape(16, 8), x @ y.T, rtol=1e-5, atol=1e-5)
