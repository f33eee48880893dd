"""The values that a format's scales allow, and codes among them, for every format that rounding with compensation can use."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.formats import Format, all_formats

FORMATS = [f for f in all_formats().values() if f.lattice_block is not None]
ids = [f.name for f in FORMATS]


def values_of(format: Format, rows: int, blocks: int, seed: int, spread: float = 3.0) -> np.ndarray:
    columns = (format.block or 64) * blocks
    random = np.random.default_rng(seed)
    sizes = np.exp(random.normal(0, spread, (rows, 1)))
    return (random.standard_t(4, (rows, columns)) * sizes).astype(np.float32)


def grid(format: Format, tensor) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Every value of every block: float32 [R, K / width, L]."""
    lattice = format.lattice(tensor)
    offset = 0 if lattice.offset is None else lattice.offset[..., None]
    return (lattice.scale[..., None] * lattice.levels + offset).astype(np.float32)


def test_the_formats_that_have_one() -> None:
    names = {"mxfp4", "nvfp4", "int8", "int8_g128", "int8_g32", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl"}
    assert names <= set(ids)


@pytest.mark.parametrize("format", FORMATS, ids=ids)
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_the_nearest_of_the_lattice_is_what_a_tensor_holds(format: Format, rows: int, blocks: int, seed: int) -> None:
    """Each decoded value is on the grid, and the codes found by looking for it give the tensor back."""
    tensor = format.quantize(values_of(format, rows, blocks, seed))
    decoded, lattice = tensor.dequantize(), format.lattice(tensor)
    points = np.repeat(grid(format, tensor), lattice.width, 1)
    distance = np.abs(decoded[..., None] - points)
    codes = distance.argmin(-1).astype(np.uint8)
    assert lattice.scale.shape == (rows, decoded.shape[1] // lattice.width)
    assert (np.diff(lattice.levels) > 0).all()
    np.testing.assert_allclose(distance.min(-1), 0, atol=1e-6 * np.abs(decoded).max())
    np.testing.assert_array_equal(format.with_codes(tensor, codes).dequantize(), decoded)


@pytest.mark.parametrize("format", FORMATS, ids=ids)
def test_every_code_is_reached(format: Format) -> None:
    """Codes of one's own choice decode to the values that the lattice names."""
    tensor = format.quantize(values_of(format, 64, 2, 7))
    lattice = format.lattice(tensor)
    codes = np.random.default_rng(1).permuted(np.resize(np.arange(len(lattice.levels)), tensor.shape)).astype(np.uint8)
    assert len(np.unique(codes)) == len(lattice.levels)
    chosen = format.with_codes(tensor, codes)
    wanted = np.take_along_axis(np.repeat(grid(format, tensor), lattice.width, 1), codes[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(chosen.dequantize(), wanted, rtol=2e-6, atol=1e-6 * np.abs(wanted).max())
    assert {n: (p.shape, p.dtype) for n, p in chosen.planes.items()} == {
        n: (p.shape, p.dtype) for n, p in tensor.planes.items()
    }
    np.testing.assert_array_equal(format.lattice(chosen).scale, lattice.scale)


@pytest.mark.parametrize("format", FORMATS, ids=ids)
def test_other_scales_are_scales_of_the_format(format: Format) -> None:
    """They differ from the tensor's, decode to finite values, and leave the tensor as it is."""
    tensor = format.quantize(values_of(format, 16, 2, 3, 0.5))
    before = {name: plane.copy() for name, plane in tensor.planes.items()}
    for other in format.other_scales(tensor):
        assert other.shape == tensor.shape
        assert np.isfinite(other.dequantize()).all()
        ours, theirs = format.lattice(tensor), format.lattice(other)
        changed = ours.scale != theirs.scale
        if ours.offset is not None and theirs.offset is not None:
            changed |= ours.offset != theirs.offset
        assert changed.mean() > 0.9
    assert all((before[name] == plane).all() for name, plane in tensor.planes.items())
