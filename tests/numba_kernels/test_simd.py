"""The vocabulary of the kernels against NumPy, exhaustively where the domain is small."""

from __future__ import annotations

import os
import subprocess
import sys

import ml_dtypes
import numba
import numpy as np
import pytest
from numba.core import types

from numba_kernels import simd
from numba_kernels.simd import instructions as emit
from numba_kernels.simd import memory, tiles, values
from numba_kernels.simd.amx import Amx
from numba_kernels.simd.path import ACTIVE, PATHS
from numba_kernels.simd.values import LANES, Address, Bytes, Void, Words, operation
from numba_kernels.simd.x86 import Avx512Bf16

njit = numba.njit(error_model="numpy")


def elementwise(function, *arrays):
    """Applies a function of addresses to whole float32 arrays, LANES at a time."""
    arrays = [np.ascontiguousarray(a, np.float32) for a in arrays]
    out = np.full_like(arrays[0], np.nan)

    @njit
    def run(addresses, out, n):
        for i in range(0, n, LANES):
            function(addresses, 4 * i, out + 4 * i)

    run(tuple(a.ctypes.data for a in arrays), out.ctypes.data, arrays[0].size)
    return out


def test_exp():
    @njit
    def body(a, i, out):
        memory.store_floats(out, values.exp(memory.load_floats(a[0] + i)))

    x = np.concatenate([np.linspace(-87.2, 88.2, 1 << 15), [0, -np.inf, -200, np.nan, 1e-8, -1e-8, -0.0, -88]])
    x = np.pad(x.astype(np.float32), (0, -len(x) % LANES))
    out, exact = elementwise(body, x), np.exp(x.astype(np.float64))
    finite = x > -87.3
    assert (np.abs(out - exact)[finite] <= 2.5e-7 * exact[finite]).all()
    assert (out[x < -87.3] == 0).all()
    assert np.isnan(out[np.isnan(x)]).all()


def test_every_half_precision_value():
    bits = np.arange(65536, dtype=np.uint16)
    out = np.empty(65536, np.float32)

    @njit
    def run(x, out):
        for i in range(0, 65536, LANES):
            memory.store_floats(out + 4 * i, memory.load_f16(x + 2 * i))

    run(bits.ctypes.data, out.ctypes.data)
    np.testing.assert_array_equal(out, bits.view(np.float16).astype(np.float32))
    assert (np.signbit(out) == (bits >= 0x8000))[~np.isnan(out)].all()


def test_every_bfloat16_value_and_rounding():
    bits = np.arange(65536, dtype=np.uint16)
    out, back = np.empty(65536, np.float32), np.empty(65536, np.uint16)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1 << 32, 65536, dtype=np.uint32).view(np.float32)
    x[:4] = [np.inf, -np.inf, np.nan, 3.3895314e38]

    @njit
    def run(bits, out, x, back):
        for i in range(0, 65536, LANES):
            memory.store_floats(out + 4 * i, memory.load_bf16(bits + 2 * i))
            memory.store_bf16(back + 2 * i, memory.load_floats(x + 4 * i))

    run(bits.ctypes.data, out.ctypes.data, x.ctypes.data, back.ctypes.data)
    np.testing.assert_array_equal(out, bits.view(ml_dtypes.bfloat16).astype(np.float32))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(
            back.view(ml_dtypes.bfloat16).astype(np.float32), x.astype(ml_dtypes.bfloat16).astype(np.float32)
        )


def bytes_operation(result, *operands):
    """A path's operation on vectors in memory, as a function of arrays."""

    def wrap(body):
        made = operation(Void, *[Address] * (1 + len(operands)))(body)

        @njit
        def one(out, a):
            made(out, a)

        @njit
        def three(out, a, b, c):
            made(out, a, b, c)

        return {1: one, 3: three}[len(operands)]

    return wrap


TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def test_lookup():
    @bytes_operation(Bytes, Bytes)
    def lookup(b, out, codes):
        emit.store(b, ACTIVE.lookup(b, TABLE, emit.load(b, codes, Bytes.llvm)), out)

    codes = np.random.default_rng(0).integers(0, 16, 4 * LANES, dtype=np.int8)
    codes[:16] = range(16)
    out = np.zeros(4 * LANES, np.int8)
    lookup(out.ctypes.data, codes.ctypes.data)
    np.testing.assert_array_equal(out, np.array(TABLE, np.int8)[codes])


@pytest.mark.parametrize("signed", [False, True])
def test_dot_products_at_the_extremes(signed):
    """Each 32-bit lane gains four products; nothing saturates within the promised ranges."""

    @bytes_operation(Words, Words, Bytes, Bytes)
    def dot(b, out, sums, codes, x):
        path_dot = ACTIVE.dot_signed if signed else ACTIVE.dot_unsigned
        given = [emit.load(b, at, kind.llvm) for at, kind in ((sums, Words), (codes, Bytes), (x, Bytes))]
        emit.store(b, path_dot(b, *given), out)

    rng = np.random.default_rng(1)
    top = 127 if signed else 255 if ACTIVE.biased_bytes else 31
    for codes in (
        rng.integers(-128 if signed else 0, top + 1, 4 * LANES),
        np.full(4 * LANES, top),
        np.full(4 * LANES, -128 if signed else 0),
    ):
        for x in (rng.integers(-127, 128, 4 * LANES), np.full(4 * LANES, 127), np.full(4 * LANES, -127)):
            sums, out = rng.integers(-(2**30), 2**30, LANES, dtype=np.int32), np.zeros(LANES, np.int32)
            stored = codes.astype(np.int8 if signed else np.uint8), x.astype(np.int8)
            dot(out.ctypes.data, sums.ctypes.data, *(s.ctypes.data for s in stored))
            np.testing.assert_array_equal(out, sums + (codes * x).reshape(-1, 4).sum(1))


def test_products_of_bfloat16_pairs():
    """Each 32-bit lane gains two products; infinities and NaN come through."""

    @bytes_operation(Words, Words, Words, Words)
    def dot(b, out, sums, pairs, x):
        given = [emit.load(b, at, kind.llvm) for at, kind in ((sums, values.Floats), (pairs, Words), (x, Words))]
        emit.store(b, ACTIVE.dot_pairs(b, *given), out)

    rng = np.random.default_rng(3)
    for scale in (1e-12, 1, 1e12):
        sums = (rng.normal(size=LANES) * scale * scale).astype(np.float32)
        p, x = ((scale * rng.normal(size=(LANES, 2))).astype(ml_dtypes.bfloat16) for _ in range(2))
        out = np.zeros(LANES, np.float32)
        dot(out.ctypes.data, sums.ctypes.data, p.ctypes.data, x.ctypes.data)
        exact = sums + (p.astype(np.float64) * x.astype(np.float64)).sum(1)
        size = np.abs(sums) + np.abs(p.astype(np.float64) * x.astype(np.float64)).sum(1)
        assert (np.abs(out - exact) <= 2.0**-23 * size).all()
    p[0, 0], p[1, 1], sums[2] = np.inf, np.nan, -np.inf
    dot(out.ctypes.data, sums.ctypes.data, p.ctypes.data, x.ctypes.data)
    assert np.isinf(out[[0, 2]]).all()
    assert np.isnan(out[1])


def test_arithmetic_and_reductions():
    @njit
    def body(a, i, out):
        x, y = memory.load_floats(a[0] + i), memory.load_floats(a[1] + i)
        larger, smaller = values.maximum(x, y), values.minimum(x, y)
        total = (x + y) * x - y / (x * x + values.splat(np.float32(1)))
        memory.store_floats(out, values.fma(larger, smaller, values.absolute(total)))

    @njit
    def ends(x):
        v = memory.load_floats(x)
        return values.sum_lanes(v), values.max_lanes(v), values.sum_words(values.round_to_words(v))

    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 8 * LANES)).astype(np.float32)
    expected = np.maximum(x, y) * np.minimum(x, y) + np.abs((x + y) * x - y / (x * x + 1))
    np.testing.assert_allclose(elementwise(body, x, y), expected, rtol=1e-5, atol=1e-6)
    few = np.array([0.5, 1.5, -2.5, *rng.uniform(-1e6, 1e6, LANES - 3)], np.float32)
    total, largest, rounded = ends(few.ctypes.data)
    np.testing.assert_allclose(total, few.sum(dtype=np.float64), rtol=1e-6, atol=1)
    assert largest == few.max()
    assert rounded == np.rint(few).astype(np.int64).sum()


@pytest.mark.parametrize("count", [0, 1, 3, LANES - 1, LANES])
def test_partial_loads_and_stores(count):
    """Memory beyond the lanes asked for is neither read nor written."""

    @njit
    def run(x, out):
        memory.store_first(out, memory.load_first(x, count), count)
        memory.store_floats(out + 8 * LANES, memory.load_first(x, count))

    import mmap

    page = np.frombuffer(mmap.mmap(-1, 4096), np.float32)
    x = page[1024 - count :]  # ends where the mapping ends
    x[:] = np.arange(1, count + 1)
    out = np.full(3 * LANES, np.nan, np.float32)
    run(page.ctypes.data + 4096 - 4 * count, out.ctypes.data)
    np.testing.assert_array_equal(out[:count], x)
    assert np.isnan(out[count : 2 * LANES]).all()
    np.testing.assert_array_equal(out[2 * LANES :], np.pad(x, (0, LANES - count)))


def test_lanes_are_kept_or_hidden():
    @njit
    def run(x, out, first, low, high):
        memory.store_floats(out, values.keep_between(first, low, high, memory.load_floats(x)))

    x, out = np.arange(LANES, dtype=np.float32), np.empty(LANES, np.float32)
    run(x.ctypes.data, out.ctypes.data, 100, 102, 105)
    np.testing.assert_array_equal(out, np.where((x >= 2) & (x < 5), x, -np.inf))


def test_interleaved_lanes_come_apart():
    @njit
    def run(x, out):
        low, high = memory.load_floats(x), memory.load_floats(x + 4 * LANES)
        memory.store_floats(out, values.evens(low, high))
        memory.store_floats(out + 4 * LANES, values.odds(low, high))

    x, out = np.arange(2 * LANES, dtype=np.float32), np.empty(2 * LANES, np.float32)
    run(x.ctypes.data, out.ctypes.data)
    np.testing.assert_array_equal(out, np.concatenate([x[0::2], x[1::2]]))


def test_lanes_interleave():
    @njit
    def run(x, out):
        left, right = memory.load_floats(x), memory.load_floats(x + 4 * LANES)
        memory.store_floats(out, values.lower_pairs(left, right))
        memory.store_floats(out + 4 * LANES, values.upper_pairs(left, right))

    x, out = np.arange(2 * LANES, dtype=np.float32), np.empty(2 * LANES, np.float32)
    run(x.ctypes.data, out.ctypes.data)
    np.testing.assert_array_equal(out, x.reshape(2, LANES).T.reshape(-1))


@pytest.mark.parametrize("count", [1, 3, 4, 6, 8])
def test_sums_of_tiles_are_those_of_their_vectors(count):
    """Bit for bit, wherever a vector stands; nothing else is written."""

    @njit
    def run(x, out, single):
        first = tiles.load_tile(count, x, 8 * LANES)
        second = tiles.load_tile(count, x + 4 * LANES, 8 * LANES)
        tiles.store_sums(out, 16, first, second)
        for i in range(2 * count):
            memory.set_f32(single + 4 * i, values.sum_lanes(memory.load_floats(x + i * 4 * LANES)))

    x = np.random.default_rng(4).normal(size=(2 * count, LANES)).astype(np.float32)
    out, single = np.full((count, 4), np.nan, np.float32), np.zeros((count, 2), np.float32)
    run(x.ctypes.data, out.ctypes.data, single.ctypes.data)
    np.testing.assert_array_equal(out[:, :2], single)
    np.testing.assert_allclose(single.reshape(-1), x.sum(1, dtype=np.float64), rtol=1e-4, atol=1e-5)
    assert np.isnan(out[:, 2:]).all()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_a_path_can_be_forced_to_a_lower_one():
    for name in simd.executable_paths():
        done = run_python("from numba_kernels import simd; print(simd.path())", OSS_TOOLS_SIMD=name)
        assert done.stdout.strip() == name, done.stderr


@pytest.mark.parametrize("permitted", [False, True])
def test_matrix_registers_need_the_systems_permission(monkeypatch, permitted):
    """Without it their instructions end the process. And vdpbf16ps is slow on the processors that have them."""
    path_module = sys.modules["numba_kernels.simd.path"]
    everything = frozenset().union(*(path.features for path in PATHS.values() if path.architecture == "x86"))
    monkeypatch.setattr(path_module, "permitted", lambda: permitted)
    monkeypatch.setattr(path_module, "_target_features", lambda: everything)
    monkeypatch.setattr(path_module, "_architecture", lambda: "x86")
    found = path_module._possible()
    assert found[:2] == (["amx", "avx512"] if permitted else ["avx512", "avx512bf16"])
    assert "avx512bf16" in found
    monkeypatch.setattr(path_module, "_target_features", lambda: everything - Amx.features | Avx512Bf16.features)
    assert path_module._possible()[0] == "avx512bf16"


@pytest.mark.parametrize("wish", ["neon", "sse9"])
def test_an_impossible_path_is_refused(wish):
    if wish in simd.executable_paths():
        pytest.skip("this machine has it")
    done = run_python("import numba_kernels.simd", OSS_TOOLS_SIMD=wish)
    assert done.returncode == 1
    assert "UnsupportedPath: OSS_TOOLS_SIMD=" in done.stderr


def test_a_lesser_target_cpu_lowers_the_path():
    """Numba compiles for the CPU that it is told: instructions that it lacks would abort the process."""
    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "OSS_TOOLS_SIMD": ""}
    assert run_python("from numba_kernels import simd; print(simd.path())", **generic).stdout.strip() == "portable"
    assert types.int64 is Address
