"""What holds for k-quants alone: their groups' numbers, other codes under the same scales, and weights that count for nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.formats import QTensor, get_format

NAMES = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(NAMES), st.integers(0, 2**32 - 1))
def test_a_lattice_says_what_every_code_means(name: str, seed: int) -> None:
    """Of any bytes at all, whose scales are finite."""
    rng, format = np.random.default_rng(seed), get_format(name)
    blocks = rng.integers(0, 256, (3, format.bytes_per_row(512)), np.uint8)
    tensor = QTensor(format, (3, 512), {"blocks": blocks})
    with np.errstate(all="ignore"):
        lattice = format.lattice(tensor)
    assert format.lattice_block == 256
    finite = np.isfinite(lattice.scale).repeat(lattice.width, 1)
    if lattice.offset is not None:
        finite &= np.isfinite(lattice.offset).repeat(lattice.width, 1)
    codes = rng.integers(0, len(lattice.levels), (3, 512)).astype(np.uint8)
    other = format.with_codes(tensor, codes)
    with np.errstate(all="ignore"):
        values = lattice.scale.repeat(lattice.width, 1) * lattice.levels[codes]
        if lattice.offset is not None:
            values = values + lattice.offset.repeat(lattice.width, 1)
        np.testing.assert_array_equal(other.dequantize()[finite], values[finite])
        np.testing.assert_array_equal(format.lattice(other).scale, lattice.scale)
    np.testing.assert_array_equal(format.with_codes(other, codes).planes["blocks"], other.planes["blocks"])


@pytest.mark.parametrize("name", NAMES)
def test_every_code_is_used_and_kept(name: str) -> None:
    format = get_format(name)
    tensor = format.quantize(np.random.default_rng(1).standard_normal((16, 1024), np.float32))
    lattice, values = format.lattice(tensor), tensor.dequantize()
    scale = lattice.scale.repeat(lattice.width, 1)
    offset = 0 if lattice.offset is None else lattice.offset.repeat(lattice.width, 1)
    nearest = np.abs(values[..., None] - (scale[..., None] * lattice.levels + np.expand_dims(offset, -1))).argmin(-1)
    assert set(np.unique(nearest)) == set(range(len(lattice.levels)))
    np.testing.assert_array_equal(format.with_codes(tensor, nearest.astype(np.uint8)).dequantize(), values)


@pytest.mark.parametrize("name", NAMES)
def test_values_of_no_weight_do_not_count(name: str) -> None:
    values = np.random.default_rng(2).standard_normal((8, 512)).astype(np.float32)
    weights = np.ones(512, np.float32)
    weights[1::2] = 0
    values[:, 1::2] *= 50  # outliers that nobody looks at
    format = get_format(name)
    seen, unseen = (
        np.square(format.quantize(values, importance=w).dequantize() - values)[:, ::2].sum() for w in (weights, None)
    )
    assert seen < 0.9 * unseen
    np.testing.assert_array_equal(
        format.quantize(values, importance=np.zeros(512, np.float32)).planes["blocks"],
        format.quantize(values, rule="plain").planes["blocks"],
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", ["search", "plain"])
def test_values_all_below_or_all_above_zero(name: str, rule: str) -> None:
    for sign in (1, -1):
        values = sign * np.random.default_rng(3).uniform(1, 2, (4, 256)).astype(np.float32)
        decoded = get_format(name).quantize(values, rule=rule).dequantize()
        step = 2 / (2 ** int(name[1]) - 1)
        assert np.abs(decoded - values).max() < 1.6 * step
