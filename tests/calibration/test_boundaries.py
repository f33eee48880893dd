"""Where a pass can be taken up again: found without knowing layers, and the pass goes on from each place to the same bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))

from composed import Composed, InMemory, Parts, latents, usual

from oss_tools.calibration.boundaries import Steps, boundaries
from oss_tools.calibration.breadth_first import BreadthFirst
from oss_tools.convert.synth import load_shape, plan_synthesis, shape_names
from oss_tools.models.operations import Operations


@settings(deadline=None, max_examples=25)
@given(st.one_of(usual(), latents()))
def test_a_pass_goes_on_from_each_boundary_to_the_same_bits(model: Parts) -> None:
    checkpoint = InMemory(Composed(model))
    sequences = [np.arange(7) % model.vocabulary, np.arange(40)[::-1] % model.vocabulary]
    found: dict[int, np.ndarray] = {}
    bounds = boundaries(checkpoint.architecture)
    with BreadthFirst(checkpoint, sequences) as ops:
        whole = Steps(ops, bounds, lambda number, x: found.__setitem__(number, x.copy())).forward(checkpoint.architecture)
        assert list(found) == bounds
        assert len(bounds) >= 2 * model.layers
        for number, x in found.items():
            again = Steps(ops, bounds, lambda *_: None, (number, x.copy())).forward(checkpoint.architecture)
            np.testing.assert_array_equal(again, whole)


@pytest.mark.parametrize("shape", [name for name in shape_names() if name.endswith("-tiny")])
def test_every_layer_of_every_family_ends_at_a_boundary(shape: str) -> None:
    architecture = plan_synthesis(load_shape(shape), "hf").architecture
    assert len(boundaries(architecture)) >= 2 * len(architecture.attention_layers())


class Crossing:
    """Keeps the first value until the end, so that only the last operation is a boundary."""

    def forward(self, ops: Operations[Any]) -> Any:
        first = ops.embed("a")
        second = ops.rms_norm(first, "b", 1e-6)
        third, fourth = ops.linears(second, ("c", "d"))
        return ops.add(ops.add(third, fourth), first)


def test_a_value_that_is_still_needed_forbids_a_boundary() -> None:
    assert boundaries(Crossing()) == [1, 5]  # type: ignore[arg-type]
