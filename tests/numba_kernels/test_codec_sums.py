"""The helpers beside the formats: counting and clamping what is not finite, error sums, row ranges in threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels.codec.error import error_sums
from numba_kernels.codec.finite import clamp_nonfinite, nonfinite_count
from numba_kernels.codec.low_rank import add_low_rank, kept_sums
from numba_kernels.codec.tables import FLOAT32_MAX
from numba_kernels.parallel import over_rows
from oss_tools.formats import all_formats, get_format


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
@settings(deadline=None, max_examples=40)
def test_nonfinite(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**32, (3, size), np.uint32).view(np.float32)
    values[rng.random(values.shape) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
    assert nonfinite_count(values) == (~np.isfinite(values)).sum()
    np.testing.assert_array_equal(
        clamp_nonfinite(values), np.nan_to_num(values, nan=0, posinf=FLOAT32_MAX, neginf=-FLOAT32_MAX)
    )
    np.testing.assert_array_equal(clamp_nonfinite(values, 2.5), np.clip(np.nan_to_num(values, nan=0), -2.5, 2.5))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([1, 7, 32, 96]), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=40)
def test_error_sums(seed: int, rows: int, block: int, blocks: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, block * blocks)).astype(np.float32)
    decoded = values + rng.standard_normal(values.shape).astype(np.float32) * np.float32(0.01)
    low, high = -rng.random((rows, blocks), np.float32), rng.random((rows, blocks), np.float32)
    squared, norm, largest, clipped = error_sums(values, decoded, low, high)
    error = values.astype(np.float64) - decoded
    assert squared == pytest.approx((error**2).sum(), rel=1e-12)
    assert norm == pytest.approx((values.astype(np.float64) ** 2).sum(), rel=1e-12)
    assert largest == np.abs(error).max()
    outside = (values < np.repeat(low, block, 1)) | (values > np.repeat(high, block, 1))
    assert clipped == outside.sum()
    assert error_sums(values, decoded) == pytest.approx((squared, norm, largest, 0), rel=1e-12)  # added in another order


@given(st.integers(0, 2**32 - 1), st.sampled_from([n for n, f in all_formats().items() if f.rules]), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=60)
def test_errors_that_quantizing_finds_are_those_of_what_it_wrote(seed: int, name: str, times: int) -> None:
    format, rng = get_format(name), np.random.default_rng(seed)
    columns = times * (format.block if format.block > 1 else 40) if name != "fp8_block" else times * 100
    values = (rng.standard_normal((5, columns)) * 10.0 ** rng.integers(-30, 25)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = 0
    rule = format.rules[seed % len(format.rules)]
    tensor, found = format.quantize_measured(values, rule=rule)
    for plane, again in zip(tensor.planes.values(), format.quantize(values, rule=rule).planes.values(), strict=True):
        np.testing.assert_array_equal(plane, again)
    exact, decoded = values.astype(np.float64), tensor.dequantize()
    assert found.squared_error == pytest.approx(((exact - decoded) ** 2).sum(), rel=1e-12)
    assert found.squared_norm == pytest.approx((exact**2).sum(), rel=1e-12)
    assert found.max_error == np.abs(exact - decoded).max()
    clipped = 0
    if bounds := format.representable_range(tensor):
        low, high = (b.repeat(columns // b.shape[1], axis=1) for b in bounds)
        clipped = ((values < low) | (values > high)).sum()
    assert found.clipped == clipped


def test_error_sums_do_not_hide_overflow() -> None:
    values = np.ones((1, 40), np.float32)
    for bad in (np.nan, np.inf):
        for at in (3, 39):
            decoded = values.copy()
            decoded[0, at] = bad
            assert not np.isfinite(error_sums(values, decoded)[0])


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 100])
def test_over_rows_covers_each_row_once_and_shares_single_rows(threads: int) -> None:
    def kernel(values: np.ndarray, shared: np.ndarray, out: np.ndarray, factor: int) -> None:
        assert not values.flags.writeable
        out += values * shared * factor

    values, out = np.arange(70.0).reshape(7, 10), np.zeros((7, 10))
    over_rows(kernel, [values, np.full((1, 10), 2.0)], [out], (3,), threads)
    np.testing.assert_array_equal(out, values * 6)
    assert values.flags.writeable


def test_over_rows_passes_errors_on() -> None:
    def kernel(values: np.ndarray, out: np.ndarray) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        over_rows(kernel, [np.zeros((4, 1))], [np.zeros((4, 1))], threads=2)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 64, 511, 513, 1100]))
@settings(deadline=None, max_examples=40)
def test_low_rank_updates(seed: int, rows: int, rank: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, rank), (rank, columns)))
    values = rng.standard_normal((rows, columns)).astype(np.float32)
    whole, total = values.copy(), np.zeros_like(values)
    add_low_rank(whole, left, right, 1.7)
    for r in range(rank):  # in this order, each rounded
        total += left[:, r : r + 1] * right[r]
    np.testing.assert_array_equal(whole, values + np.float32(1.7) * total)
    for row in range(rows):  # whatever is taken at a time
        one = values[row : row + 1].copy()
        add_low_rank(one, left[row : row + 1], right, 1.7)
        np.testing.assert_array_equal(one, whole[row : row + 1])


def test_what_is_kept_of_an_update() -> None:
    base, merged, rounded = np.random.default_rng(0).standard_normal((3, 7, 33)).astype(np.float32)
    update, change = (x.astype(np.float64) - base for x in (merged, rounded))
    sums = (update**2).sum(), (update * change).sum(), (change**2).sum(), (base.astype(np.float64) ** 2).sum()
    assert kept_sums(base, merged, rounded) == pytest.approx(sums, rel=1e-12)
