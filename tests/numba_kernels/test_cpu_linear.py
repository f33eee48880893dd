"""Matrix × vector and matrix × matrix of every format against float64 on the values that other code dequantized."""

from __future__ import annotations

import numpy as np
import pytest
from problems import FORMATS, K_QUANTS, padded, records, weights

from numba_kernels.cpu.groups import expert_groups, one_group
from numba_kernels.cpu.linear import add_linear, panels_at_once
from numba_kernels.cpu.packed import Packed
from numba_kernels.cpu.packing import pack
from numba_kernels.cpu.team import Program

TOLERANCE = 3e-6  # of the largest result: float32 sums over the blocks of a row
# One of each layout; compiling for the others takes its time.
USUAL = ("mxfp4", "q4_0", "q8_0", "q4_k", "int8_g32", "bf16")
WITH_FLOATS = ("mxfp4",)
KINDS = [
    pytest.param(
        name, activations, marks=() if name in (USUAL if activations == "int8" else WITH_FLOATS) else pytest.mark.slow
    )
    for name in FORMATS
    for activations in ("int8", "f32")
]


def some(*names):
    """Of these formats, those that are tested in any case; the others are slow."""
    return [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in names]


def packed_of(name, rows, columns, rng, threads=1):
    planes, values = weights(name, rows, columns, rng)
    packed = Packed(name, 1, rows, columns)
    pack(packed, planes, threads=threads)
    return packed, values


def multiply(team, packed, x, activations, **options):
    """The kernel's result on poisoned memory, and the activations that it was given."""
    given, meant = records(team, x) if activations == "int8" and packed.layout.decode else (padded(x), padded(x))
    out = np.full((len(x), packed.rows), np.nan, np.float32)
    program = Program()
    add_linear(program, packed, one_group(len(x)), given, out, activations=activations, threads=team.threads, **options)
    team.run(program)
    return out, meant[:, : packed.columns]


def close(out, expected, tolerance=TOLERANCE):
    return np.abs(out - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("name", "activations"), KINDS)
def test_vector(team, name, activations):
    rng = np.random.default_rng(1)
    for rows, columns in ((77, 256), (16, 512), (5, 768)) if name in K_QUANTS else ((77, 256), (16, 128), (5, 384)):
        packed, values = packed_of(name, rows, columns, rng)
        out, x = multiply(team, packed, rng.normal(size=(1, columns)).astype(np.float32), activations)
        assert close(out, x.astype(np.float64) @ values.T)


@pytest.mark.parametrize(("name", "activations"), KINDS)
def test_matrix(team, name, activations):
    rng = np.random.default_rng(2)
    packed, values = packed_of(name, 83, 256, rng, threads=2)
    for tokens in (2, 3, 4, 5, 7, 12, 13, 29, 61):
        out, x = multiply(team, packed, rng.normal(size=(tokens, 256)).astype(np.float32), activations)
        assert close(out, x.astype(np.float64) @ values.T), tokens


@pytest.mark.parametrize(("name", "activations"), KINDS)
def test_a_row_does_not_depend_on_its_company(team, name, activations):
    """Bit for bit: alone, in tiles of every size, and at every place in them."""
    rng = np.random.default_rng(9)
    packed, _ = packed_of(name, 115, 256, rng)  # more than four panels, and a rest
    x = rng.normal(size=(61, 256)).astype(np.float32)
    alone = np.concatenate([multiply(team, packed, row[None], activations)[0] for row in x])
    for count in (*range(2, 14), 31, 61):
        np.testing.assert_array_equal(multiply(team, packed, x[:count], activations)[0], alone[:count])


@pytest.mark.parametrize("name", some("bf16", "f16", "f32", "int8"))
def test_columns_that_fill_no_block(team, name):
    rng = np.random.default_rng(3)
    packed, values = packed_of(name, 20, 77, rng)
    out, x = multiply(team, packed, rng.normal(size=(3, 77)).astype(np.float32), "int8")
    assert close(out, x.astype(np.float64) @ values.T)


def test_bias_and_residual(team):
    rng = np.random.default_rng(4)
    packed, values = packed_of("q8_0", 37, 64, rng)
    bias, residual = (rng.normal(size=s).astype(np.float32) for s in (37, (5, 37)))
    out, x = multiply(team, packed, rng.normal(size=(5, 64)).astype(np.float32), "int8", bias=bias, residual=residual)
    assert close(out, x.astype(np.float64) @ values.T + bias + residual)


def test_nothing_is_written_beyond_the_rows(team):
    rng = np.random.default_rng(5)
    packed, values = packed_of("mxfp4", 37, 64, rng)
    given, x = records(team, rng.normal(size=(5, 64)).astype(np.float32))
    out = np.full((5, 64), np.nan, np.float32)
    program = Program()
    add_linear(program, packed, one_group(5), given, out, threads=team.threads)
    team.run(program)
    assert close(out[:, :37], x.astype(np.float64) @ values.T)
    assert np.isnan(out[:, 37:]).all()


def test_extreme_codes(team):
    """The largest products: what would saturate a 16-bit sum."""
    codes = np.full((16, 64), -128, np.int8)
    packed = Packed("int8", 1, 16, 64)
    pack(packed, {"codes": codes, "scales": np.full((16, 1), 0x3F80, np.uint16)})
    x = np.ones((1, 64), np.float32)
    x[0, ::2] = -1
    for sign in (x, np.abs(x), -np.abs(x)):
        out, meant = multiply(team, packed, sign, "int8")
        np.testing.assert_allclose(out, meant.astype(np.float64) @ codes.T.astype(np.float64), atol=1e-3)


class Filled:
    """A generator whose bytes are all the same; scales are random."""

    def __init__(self, byte):
        self.byte, self.rng = byte, np.random.default_rng(byte)
        self.uniform = self.rng.uniform

    def integers(self, low, high, shape, dtype):
        return self.rng.integers(low, high, shape, dtype) if low > 0 else np.full(shape, self.byte, np.uint8).view(dtype)


@pytest.mark.parametrize("name", some(*(n for n in FORMATS if n not in ("bf16", "f16", "f32"))))
def test_extreme_codes_against_extreme_activations(team, name):
    """The least and the greatest code in all columns, and activations of which each is 127 or −127: sums have room for both."""
    parts = [weights(name, 5, 256, Filled(byte)) for byte in (0x00, 0x77, 0x80, 0x88, 0xFF, 0x7F, 0x0F)]
    packed = Packed(name, 1, 35, 256)
    pack(packed, {plane: np.concatenate([planes[plane] for planes, _ in parts]) for plane in parts[0][0]})
    values = np.concatenate([v for _, v in parts]).astype(np.float64)
    x = np.ones((13, 256), np.float32)
    x[1], x[2, ::2], x[3, 2::4], x[3, 3::4], x[4, 16:] = -1, -1, -1, -1, -1
    x[5:] = np.random.default_rng(0).choice([-1, 1], (8, 256))
    for rows in (x[:1], x[1:2], x[:4], x):
        out, meant = multiply(team, packed, rows, "int8")
        assert close(out, meant.astype(np.float64) @ values.T)


@pytest.mark.parametrize("name", some("mxfp4", "q8_0", "q6_k", "f16"))
def test_more_rows_and_columns_than_a_block_holds(team, name):
    rng = np.random.default_rng(8)
    packed, values = packed_of(name, 155, 1792, rng)  # an odd number of panels on every path
    out, x = multiply(team, packed, rng.normal(size=(201, 1792)).astype(np.float32), "int8")
    assert close(out, x.astype(np.float64) @ values.T, 2 * TOLERANCE)
    last, _ = multiply(team, packed, x[-1:], "int8")
    again, _ = multiply(team, packed, x, "int8")
    np.testing.assert_array_equal(again[-1:], last)


@pytest.mark.parametrize("name", some("mxfp4", *K_QUANTS))
@pytest.mark.parametrize("single", [False, True])
def test_groups_of_experts(team, single, name):
    """Each row meets its group's matrix, rows are gathered by the index, and matrices without rows are not touched."""
    rng = np.random.default_rng(6)
    columns = 256 if name in K_QUANTS else 96
    packed = Packed(name, 5, 40, columns)
    values = []
    for matrix in range(5):
        planes, v = weights(name, 40, columns, rng)
        pack(packed, planes, matrix=matrix)
        values.append(v)
    bias = rng.normal(size=(5, 40)).astype(np.float32)
    given, x = records(team, rng.normal(size=(6, columns)).astype(np.float32))
    groups = expert_groups(36, 1, 5)
    sizes = {0: 1, 2: 1, 4: 1} if single else {0: 3, 2: 14, 4: 19}
    n = sum(sizes.values())
    groups.count[0] = len(sizes)
    groups.matrix[:3] = list(sizes)
    groups.start[:4] = np.cumsum([0, *sizes.values()])
    groups.index[:n] = rng.integers(0, 6, n)
    out = np.full((36, 40), np.nan, np.float32)
    program = Program()
    add_linear(program, packed, groups, given, out, bias=bias, single=single, threads=team.threads)
    team.run(program)
    for i, matrix in enumerate(m for m, count in sizes.items() for _ in range(count)):
        assert close(out[i], values[matrix].astype(np.float64) @ x[groups.index[i]] + bias[matrix])
    assert np.isnan(out[n:]).all()


@pytest.mark.parametrize("name", FORMATS)
def test_row_ranges_make_the_same_panels(name):
    rng = np.random.default_rng(7)
    planes, _ = weights(name, 90, 256, rng)
    whole, parts = Packed(name, 1, 90, 256), Packed(name, 1, 90, 256)
    pack(whole, planes)
    for first, last in ((0, 7), (7, 50), (50, 90)):
        pack(parts, {k: v[first:last] for k, v in planes.items()}, first=first, threads=2)
    np.testing.assert_array_equal(whole.data, parts.data)
    interleaved = Packed(name, 1, 90, 256)
    for first in (0, 1):
        pack(interleaved, {k: v[first::2] for k, v in planes.items()}, first=first, step=2)
    np.testing.assert_array_equal(whole.data, interleaved.data)


def test_wrong_planes_are_refused():
    packed = Packed("mxfp4", 1, 32, 64)
    rows = {"blocks": np.zeros((4, 32), np.uint8), "scales": np.zeros((4, 2), np.uint8)}
    with pytest.raises(ValueError, match="do not lie in"):
        pack(packed, rows, first=30)
    with pytest.raises(ValueError, match="columns, expected 32"):
        pack(packed, {**rows, "blocks": np.zeros((4, 31), np.uint8)})
    with pytest.raises(ValueError, match="no kernels"):
        Packed("iq4_xs", 1, 32, 64)
    with pytest.raises(ValueError, match="no multiple"):
        Packed("q8_0", 1, 32, 65)
    with pytest.raises(ValueError, match="no multiple of 256"):
        Packed("q4_k", 1, 32, 128)


def test_activations_that_are_not_finite_show(team):
    rng = np.random.default_rng(8)
    packed, _ = packed_of("q8_0", 16, 64, rng)
    x = rng.normal(size=(3, 64)).astype(np.float32)
    x[0, 3], x[1, 40] = np.nan, np.inf
    out, _ = multiply(team, packed, x, "int8")
    assert np.isnan(out[:2]).all()
    assert np.isfinite(out[2]).all()


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("groups", [1, 6, 16])
@pytest.mark.parametrize("height", [5, 500, 6000])
def test_every_thread_has_a_piece_of_work(threads, groups, height):
    """Several matrices that one row meets are divided together, into larger pieces than one matrix alone."""
    packed = Packed("q8_0", 1, height, 256)
    size = panels_at_once(packed, threads, 1, groups)
    assert panels_at_once(packed, threads, 1) <= size <= packed.panels
    assert groups * -(-packed.panels // size) >= min(threads, groups * packed.panels)
