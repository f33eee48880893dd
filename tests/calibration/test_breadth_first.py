"""The pass that goes through a model breadth first: it gives the torch backend's logits, and visitors see what matrices meet."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))

from composed import CONTEXT, Composed, InMemory, Parts, latents, usual

from oss_tools.calibration.breadth_first import BreadthFirst
from oss_tools.calibration.visitor import Visitor
from oss_tools.convert.synth import load_shape, plan_synthesis, shape_names, synthesize
from oss_tools.engine.engine import Engine
from oss_tools.models import Checkpoint, open_checkpoint
from oss_tools.models.operations import Gate, Heads, Router

TINY = [name for name in shape_names() if name.endswith("-tiny")]
TOLERANCE = 1e-5  # of the largest logit


def drawn(vocabulary: int, lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(0, vocabulary, n) for n in lengths]


def assert_logits(checkpoint: Checkpoint, lengths: list[int], tolerance: float = TOLERANCE) -> None:
    vocabulary = next(e.spec.shape[0] for e in checkpoint.entries.values() if e.spec.role == "embedding")
    sequences = drawn(vocabulary, lengths)
    with BreadthFirst(checkpoint, sequences) as ops:
        found = ops.logits(ops.forward())
    with Engine.load(checkpoint, backend="torch", threads=1) as engine:
        wanted = np.concatenate([engine.logits(tokens.tolist()) for tokens in sequences])
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("shape", TINY)
def test_tiny_models(shape: str, tmp_path: Path) -> None:
    folder = synthesize(plan_synthesis(load_shape(shape), "hf"), tmp_path / shape)
    with open_checkpoint(folder) as checkpoint:
        assert_logits(checkpoint.held(), [3, 100, 61])


@settings(deadline=None, max_examples=25)
@given(st.one_of(usual(), latents()), st.lists(st.integers(1, CONTEXT), min_size=1, max_size=4))
def test_composed_models(model: Parts, lengths: list[int]) -> None:
    assert_logits(InMemory(Composed(model)), lengths, 1e-4)


class Noting(Visitor):
    """Takes note of everything that it is told; doubles the matrices in `doubled`."""

    def __init__(self, doubled: str = "") -> None:
        self.doubled = doubled
        self.inputs: dict[tuple[tuple[str, ...], int | None], np.ndarray] = {}
        self.shapes: dict[tuple[str, int | None], tuple[int, ...]] = {}

    def multiplies(self, names: tuple[str, ...], matrix: int | None, x: np.ndarray) -> None:
        assert (names, matrix) not in self.inputs
        self.inputs[names, matrix] = x.copy()

    def linear(self, name: str, matrix: int | None, x: np.ndarray, read: Callable[[], np.ndarray]) -> np.ndarray | None:
        (given,) = [seen for (names, m), seen in self.inputs.items() if name in names and m == matrix]
        np.testing.assert_array_equal(given, x)
        assert (name, matrix) not in self.shapes
        self.shapes[name, matrix] = read().shape
        return 2 * read() if name == self.doubled else None


MIXTURE = Parts(
    24, 20, 50, 2, Heads(0, 4, 2, 6), pairs=3, mlp="experts", router=Router(40, 2), gate=Gate("swiglu_oai", 0.5), biases=True
)


def test_a_visitor_sees_every_matrix_once() -> None:
    """Each with as many columns as its inputs have values; experts that no token was routed to with no inputs at all."""
    checkpoint, visitor = InMemory(Composed(MIXTURE)), Noting()
    sequences = drawn(50, [9, 4])
    with BreadthFirst(checkpoint, sequences, visitor) as ops:
        ops.visit_output(ops.forward())
    matrices = {
        name: e.spec for name, e in checkpoint.entries.items() if not e.spec.is_vector and e.spec.role != "embedding"
    }
    matrices.pop("places.weight", None)
    wanted = {
        (name, m if len(spec.shape) > 2 else None): spec.shape[-2:]
        for name, spec in matrices.items()
        for m in range(spec.matrices[0])
    }
    assert visitor.shapes == wanted
    experts = [visitor.inputs[("0.experts.gate_up_proj",), expert] for expert in range(40)]
    assert sum(len(x) for x in experts) == 2 * 13
    assert min(len(x) for x in experts) == 0
    whole = visitor.inputs[("0.experts.gate_up_proj",), None]
    assert {x.tobytes() for rows in experts for x in rows} == {x.tobytes() for x in whole}
    assert [len(visitor.inputs[("0.experts.down_proj",), expert]) for expert in range(40)] == [len(x) for x in experts]


@pytest.mark.parametrize("name", ["0.q.weight", "1.experts.down_proj", "0.router.weight", "0.experts.gate_up_proj"])
def test_the_pass_goes_on_with_the_weights_that_a_visitor_gives(name: str) -> None:
    checkpoint, sequences = InMemory(Composed(MIXTURE)), drawn(50, [9, 4])
    with BreadthFirst(checkpoint, sequences, Noting(doubled=name)) as ops:
        found = ops.logits(ops.forward())
    changed = InMemory(Composed(MIXTURE))
    changed._held[name].planes["values"][...] *= 2
    with BreadthFirst(changed, sequences) as ops:
        wanted = ops.logits(ops.forward())
    np.testing.assert_array_equal(found, wanted)
    with BreadthFirst(checkpoint, sequences) as ops:
        assert np.abs(ops.logits(ops.forward()) - wanted).max() > 1e-3
