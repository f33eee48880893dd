"""GPTQ against the paper's own algorithm in plain NumPy, on odd shapes, for every format that it serves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels.reference.gptq import damped, output_error
from numba_kernels.reference.gptq import gptq as by_the_paper
from oss_tools.calibration.gptq import DAMPING, Factor, factored, gptq
from oss_tools.formats import Format, QTensor, all_formats, get_format

FORMATS = [f for f in all_formats().values() if f.lattice_block is not None and f.rules]
ids = [f.name for f in FORMATS]


def inputs_of(columns: int, seed: int, count: int = 0) -> np.ndarray:
    """Inputs whose columns depend on each other and differ in size, as activations do."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((columns, columns)) * (0.2 + random.random(columns)) + 2 * np.eye(columns)
    sizes = np.exp(random.normal(0, 1, columns))
    return (random.standard_normal((count or 3 * columns, columns)) @ mixed * sizes).astype(np.float32)


def moments_of(inputs: np.ndarray) -> np.ndarray:
    return (inputs.T @ inputs / np.float32(len(inputs))).astype(np.float32)


def factor_of(format: Format, moments: np.ndarray, damping: float = DAMPING) -> Factor:
    block = format.lattice_block or len(moments)
    return factored(moments, block, damping, min(format.block or block, block))


def rounded(format: Format, weight: np.ndarray, factor: Factor, threads: int = 1) -> QTensor:
    return gptq(weight, factor, format, amax=float(np.abs(weight).max()), threads=threads)


def columns_of(format: Format, blocks: int) -> int:
    return blocks * (format.lattice_block or 32)


@pytest.mark.parametrize("format", FORMATS, ids=ids)
@settings(max_examples=6, deadline=None)
@given(rows=st.integers(1, 150), blocks=st.integers(1, 7), seed=st.integers(0, 2**32))
def test_codes_are_the_papers(format: Format, rows: int, blocks: int, seed: int) -> None:
    """With the scales that were chosen, column after column in the same order: the same values, but for what lies within
    float32's rounding of a tie, after which a row goes its own way."""
    columns = columns_of(format, min(blocks, 3) if format.lattice_block and format.lattice_block > 64 else blocks)
    weight = np.random.default_rng(seed).standard_t(5, (rows, columns)).astype(np.float32)
    moments = moments_of(inputs_of(columns, seed))
    factor = factor_of(format, moments)
    tensor = rounded(format, weight, factor)
    lattice, decoded = format.lattice(tensor), tensor.dequantize()

    def nearest(k: int, values: np.ndarray) -> np.ndarray:
        column = factor.order[k] // lattice.width
        offset = np.zeros(rows, np.float32) if lattice.offset is None else lattice.offset[:, column]
        points = lattice.scale[:, column, None].astype(np.float64) * lattice.levels + offset[:, None]
        return points[np.arange(rows), np.abs(values[:, None] - points).argmin(1)]

    assert factor.damping == DAMPING
    order = factor.order
    theirs = by_the_paper(weight[:, order], damped(moments, DAMPING)[np.ix_(order, order)], nearest)
    same = np.isclose(theirs, decoded[:, order], rtol=1e-5, atol=1e-6).all(1)
    assert same.mean() >= 0.8
    ours, paper = (
        output_error(weight[:, order], q, moments[np.ix_(order, order)]).sum() for q in (decoded[:, order], theirs)
    )
    assert ours == pytest.approx(paper, rel=0.05)


@pytest.mark.parametrize("format", FORMATS, ids=ids)
def test_outputs_change_less_than_by_rounding_with_importance(format: Format) -> None:
    columns = columns_of(format, 8 if (format.lattice_block or 32) <= 64 else 2)
    weight = np.random.default_rng(5).standard_normal((64, columns)).astype(np.float32)
    inputs = inputs_of(columns, 5, 4096)
    moments, unseen = moments_of(inputs[:3072]), moments_of(inputs[3072:])
    alone = format.quantize(weight, importance=np.diagonal(moments).copy())
    ours = rounded(format, weight, factor_of(format, moments))
    errors = [output_error(weight, t.dequantize(), unseen).sum() for t in (alone, ours)]
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("name", ["mxfp4", "q4_1", "int8", "nvfp4"])
def test_threads_and_pieces_of_rows_change_nothing(name: str) -> None:
    format = get_format(name)
    weight = np.random.default_rng(2).standard_normal((2203, 192)).astype(np.float32)
    factor = factor_of(format, moments_of(inputs_of(192, 2)))
    whole = rounded(format, weight, factor)
    several = rounded(format, weight, factor, threads=3)
    for plane in whole.planes:
        np.testing.assert_array_equal(whole.planes[plane], several.planes[plane])


def test_the_order_keeps_blocks_and_what_shares_a_scale_together() -> None:
    moments = moments_of(inputs_of(256, 9))
    squares = np.diagonal(moments)
    order = factored(moments, 64, 0.01, 16).order
    assert sorted(order) == list(range(256))
    blocks = order.reshape(4, 64) // 64
    assert (blocks == blocks[:, :1]).all()
    assert (order.reshape(16, 16) // 16 == order.reshape(16, 16)[:, :1] // 16).all()
    assert (np.diff([squares[64 * b : 64 * b + 64].sum() for b in blocks[:, 0]]) <= 0).all()
    assert (np.diff(squares[order].reshape(16, 16), axis=1) <= 0).all()


def test_the_factor_is_of_the_moments() -> None:
    moments = moments_of(inputs_of(96, 3))
    factor = factored(moments, 32, 0.02)
    assert factor.feedback is not None
    unit = factor.feedback.astype(np.float64) + np.eye(96)
    made = unit @ np.diag(factor.costs) @ unit.T * np.diagonal(moments).mean()
    np.testing.assert_allclose(made, damped(moments, 0.02)[np.ix_(factor.order, factor.order)], rtol=1e-4, atol=1e-4)


def test_moments_that_cannot_be_factored_get_more_damping() -> None:
    """Two inputs of opposite sign in float32, whose moments are no longer positive definite."""
    moments = np.eye(64, dtype=np.float32)
    moments[0, 1] = moments[1, 0] = 1.3
    factor = factored(moments, 32, 0.01)
    assert factor.feedback is not None
    assert factor.damping > 0.3


@pytest.mark.parametrize(
    "moments", [np.zeros((64, 64), np.float32), -np.eye(64, dtype=np.float32), np.full((64, 64), np.nan)]
)
def test_without_usable_moments_values_are_rounded_by_themselves(moments: np.ndarray) -> None:
    weight = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    factor = factored(moments, 32)
    assert factor.feedback is None
    found = gptq(weight, factor, get_format("q4_0")).dequantize()
    searched = get_format("q4_0").quantize(weight).dequantize()
    assert np.square(found - weight).sum() <= np.square(searched - weight).sum() * 1.0001


def test_inputs_that_are_always_zero() -> None:
    """Their weights are rounded as they are, and take no part in making up for others."""
    inputs = inputs_of(64, 4)
    inputs[:, [3, 40]] = 0
    weight = np.random.default_rng(4).standard_normal((16, 64)).astype(np.float32)
    factor = factored(moments_of(inputs), 32)
    assert factor.feedback is not None
    dead = np.isin(factor.order, [3, 40])
    np.testing.assert_allclose(factor.feedback[dead], 0, atol=1e-6)
    np.testing.assert_allclose(factor.feedback[:, dead], 0, atol=1e-6)
    assert np.isfinite(rounded(get_format("mxfp4"), weight, factor).dequantize()).all()
