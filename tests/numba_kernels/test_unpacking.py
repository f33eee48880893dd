"""Panels back to planes: whatever was packed comes out as it was, and sizes are those that the kernels' own class has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels.cpu.geometry import BYTES, K_QUANTS, Geometry, divides
from numba_kernels.cpu.packed import Packed, all_formats, fits
from numba_kernels.cpu.packing import pack
from numba_kernels.cpu.unpacking import restore_zero_scales, unpack, zero_scales
from numba_kernels.simd.path import ACTIVE
from oss_tools.formats import get_format


def random_planes(name: str, rows: int, columns: int, seed: int) -> dict[str, np.ndarray]:
    """Any bytes at all."""
    rng = np.random.default_rng(seed)
    kinds = get_format(name).planes(columns)
    return {
        plane: rng.integers(0, 256, (rows, kind.columns * kind.dtype.itemsize), np.uint8).view(kind.dtype)
        for plane, kind in kinds.items()
    }


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_every_format_comes_out_of_panels_as_it_went_in(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(all_formats()))
    free = name in ("int8", "bf16", "f16", "f32")
    columns = data.draw(st.integers(1, 200)) if free else (256 if name in K_QUANTS else 128) * data.draw(st.integers(1, 4))
    rows, step = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 3))
    first = data.draw(st.integers(0, 20))
    height = first + (rows - 1) * step + 1 + data.draw(st.integers(0, 9))
    planes = random_planes(name, rows, columns, data.draw(st.integers(0, 1000)))
    packed = Packed(name, 1, height, columns)
    pack(packed, planes, first=first, step=step)
    found = {plane: np.empty_like(array) for plane, array in planes.items()}
    shape = Geometry(name, height, columns, ACTIVE.lanes)
    unpack(packed.data[0], shape, found, biased=ACTIVE.biased_bytes, first=first, step=step)
    if name == "mxfp4":
        restore_zero_scales(found["scales"], zero_scales(planes["scales"]))
    for plane, array in planes.items():
        assert found[plane].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", all_formats())
def test_sizes_are_those_of_the_kernels(name: str) -> None:
    for columns in (1, 31, 32, 96, 128, 130, 384, 2304, 2880):
        assert divides(name, columns) == fits(name, columns)
        if fits(name, columns):
            packed, shape = Packed(name, 1, 37, columns), Geometry(name, 37, columns, ACTIVE.lanes)
            assert (shape.panels, shape.panel_bytes, shape.blocks) == (packed.panels, packed.panel_bytes, packed.blocks)
            assert (shape.scales_at, shape.groups if shape.groups else packed.groups) == (packed.scales_at, packed.groups)
            assert shape.nbytes == packed.matrix_bytes
            assert (name in BYTES) == packed.layout.is_byte


def test_panels_may_lie_apart_and_are_looked_at() -> None:
    shape = Geometry("q8_0", 20, 64, ACTIVE.lanes)
    memory = np.zeros((3, 2, shape.panels, shape.panel_bytes), np.uint8)
    packed = Packed("q8_0", 3, 20, 64, memory[:, 1])
    assert packed.matrix_bytes == 2 * shape.nbytes
    planes = random_planes("q8_0", 20, 64, 1)
    pack(packed, planes, matrix=2)
    assert memory[2, 1].any()
    assert not memory[:2].any()
    assert not memory[2, 0].any()
    for wrong in (memory, memory[:2, 1], memory[:, 1].view(np.int8), memory[:, 1, :, ::2]):
        with pytest.raises(ValueError, match="for panels uint8"):
            Packed("q8_0", 3, 20, 64, wrong)
    with pytest.raises(ValueError, match="do not lie in"):
        unpack(memory[0, 1], shape, random_planes("q8_0", 20, 64, 1), biased=True, first=20)
