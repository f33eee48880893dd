"""The pass as a graph: the same values as the plain pass, to the bit, whatever was changed and wherever it begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oss_tools.calibration.breadth_first import BreadthFirst
from oss_tools.convert.synth import load_shape, plan_synthesis, shape_names, synthesize
from oss_tools.formats import QTensor, get_format
from oss_tools.measure.overlay import Overlay
from oss_tools.models import open_checkpoint
from oss_tools.planning.graph import Graph


def halved(values: np.ndarray, matrix: int) -> QTensor:
    return get_format("f32").quantize(values / 2)


@pytest.mark.parametrize("shape", [name for name in shape_names() if name.endswith("-tiny")])
def test_a_changed_tensor_gives_what_a_whole_pass_gives(shape: str, tmp_path: Path) -> None:
    path = synthesize(plan_synthesis(load_shape(shape), "hf"), tmp_path / shape)
    with open_checkpoint(path) as checkpoint:
        graph = Graph(checkpoint.architecture)
        rng = np.random.default_rng(0)
        sequences = [rng.integers(0, 100, n) for n in (9, 5)]
        with BreadthFirst(checkpoint, sequences, threads=1) as ops:
            plain = ops.forward()
        with BreadthFirst(checkpoint, sequences, threads=1) as ops:
            assert np.array_equal(graph.run(ops), plain)
        matrices = [name for name, e in checkpoint.entries.items() if not e.spec.is_vector and name != "lm_head.weight"]
        for name in matrices:
            changed = Overlay(checkpoint, {name: halved})
            with BreadthFirst(changed, sequences, threads=1) as ops:
                whole = ops.forward()
            with BreadthFirst(changed, sequences, threads=1) as ops:
                assert np.array_equal(graph.run(ops, frozenset([name])), whole), name
        with BreadthFirst(checkpoint, sequences, threads=1) as ops:  # what was kept is as it was
            assert np.array_equal(graph.run(ops, frozenset([matrices[0]])), plain)


def test_what_lies_before_the_change_is_not_computed(tiny_llama: Path) -> None:
    class Counted(BreadthFirst):
        products = 0

        def linears(self, x: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
            Counted.products += 1
            return super().linears(x, names)

    with open_checkpoint(tiny_llama) as checkpoint:
        graph, tokens = Graph(checkpoint.architecture), [np.arange(4)]
        layers = len(checkpoint.architecture.attention_layers())
        with BreadthFirst(checkpoint, tokens) as ops:
            graph.run(ops)
        with Counted(checkpoint, tokens) as ops:
            last = f"model.layers.{layers - 1}.mlp.down_proj.weight"
            graph.run(ops, frozenset([last]))
            assert Counted.products == layers - 1 or Counted.products == 0
            Counted.products = 0
            graph.run(ops, frozenset(["model.embed_tokens.weight"]))
            assert Counted.products >= layers
