"""The kernels against the torch backend on models whose shapes nobody chose: heads, groups, head sizes, widths, vocabularies,
experts, windows, layers, and how a prompt is cut into passes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from drawn import ALL, CONTEXT, USUAL, checkpoint, gpt_osses, llamas, parts, recipes, with_whole_blocks

from numba_kernels import simd
from oss_tools.convert.recipe import Recipe, Rule
from oss_tools.convert.synth import load_shape
from oss_tools.engine.engine import Engine

FEW = settings(deadline=None, max_examples=12)
MANY = settings(deadline=None, max_examples=100)
CONTAINERS = st.sampled_from(["hf", "gguf"])
TOLERANCE = 1e-4  # of the largest logit


def assert_equal_logits(config: dict[str, Any], lengths: list[int]) -> None:
    """After every pass over the next so many tokens, with float32 activations."""
    total = min(sum(lengths), CONTEXT)
    tokens = np.random.default_rng(total).integers(0, config["vocab_size"], total).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint(config, Path(folder) / "model")
        with Engine.load(path, backend="torch", context=CONTEXT, threads=1) as engine:
            wanted = engine.logits(tokens)
        with Engine.load(path, context=CONTEXT, activations="f32", threads=2) as engine:
            sequence, found, edges = engine.open(tokens, reuse=0), [], []
            for n in lengths:
                piece = tokens[len(sequence.tokens) : len(sequence.tokens) + n]
                if piece:
                    found.append(engine.prefill(sequence, piece).copy())
                    edges.append(len(sequence.tokens) - 1)
            whole = engine.logits(tokens)
    largest = np.abs(wanted).max()
    assert np.abs(whole - wanted).max() <= TOLERANCE * largest
    assert np.abs(np.array(found) - wanted[edges]).max() <= TOLERANCE * largest


@FEW
@given(llamas(), parts())
def test_llamas(config: dict[str, Any], lengths: list[int]) -> None:
    assert_equal_logits(config, lengths)


@FEW
@given(gpt_osses(), parts())
def test_gpt_osses(config: dict[str, Any], lengths: list[int]) -> None:
    assert_equal_logits(config, lengths)


@pytest.mark.slow
@FEW
@given(st.one_of(llamas(), gpt_osses()), parts(), st.sampled_from(["int8", "f32"]), st.data())
def test_the_same_bits_in_any_pieces(
    config: dict[str, Any], lengths: list[int], activations: str, data: st.DataObject
) -> None:
    """Whole, in pieces, after a fork, and behind a beginning that was stored and came back from the store."""
    total = min(sum(lengths) + 1, CONTEXT)
    tokens = np.random.default_rng(total).integers(0, config["vocab_size"], total).tolist()
    with (
        tempfile.TemporaryDirectory() as folder,
        Engine.load(
            checkpoint(config, Path(folder) / "model"), context=CONTEXT, activations=activations, prefix_budget=1 << 24
        ) as engine,
    ):
        wanted = engine.logits(tokens)
        sequence, edge = engine.open(tokens, reuse=0), 0
        for n in lengths:
            edge = min(edge + n, total - 1)
            if piece := tokens[len(sequence.tokens) : edge]:
                np.testing.assert_array_equal(engine.prefill(sequence, piece), wanted[edge - 1])
        other = engine.fork(sequence)
        np.testing.assert_array_equal(engine.step([other], tokens[edge : edge + 1])[0], wanted[edge])
        engine.save(sequence)
        again = engine.open(tokens, reuse=data.draw(st.integers(0, edge), "tokens that may come from the store"))
        np.testing.assert_array_equal(engine.prefill(again, tokens[len(again.tokens) :]), wanted[-1])


def assert_formats_are_used_as_they_are(config: dict[str, Any], container: str, recipe: Recipe) -> None:
    """To float32's rounding with float32 activations, and nearly with others.

    A token has every expert: of some, rounding may choose others."""
    if "num_local_experts" in config:
        config = config | {"num_experts_per_tok": config["num_local_experts"]}
    tokens = np.random.default_rng(0).integers(0, config["vocab_size"], 30).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint(config, Path(folder) / ("model.gguf" if container == "gguf" else "model"), recipe, container)
        logits = {}
        for backend, activations in (("torch", "f32"), ("numba", "f32"), ("numba", "int8")):
            with Engine.load(path, backend=backend, activations=activations, context=64, threads=2) as engine:
                logits[backend, activations] = engine.logits(tokens)
    wanted, exact, rounded = logits.values()
    largest = np.abs(wanted).max()
    assert np.abs(exact - wanted).max() <= TOLERANCE * largest
    assert np.abs(rounded - wanted).mean() <= 0.1 * largest


@FEW
@given(st.one_of(llamas(), gpt_osses()), st.booleans(), CONTAINERS, st.data())
def test_formats(config: dict[str, Any], whole: bool, container: str, data: st.DataObject) -> None:
    config = with_whole_blocks(config) if whole else config
    assert_formats_are_used_as_they_are(config, container, data.draw(recipes(USUAL[container])))


@pytest.mark.parametrize("hidden", [64, 40])
def test_gate_and_up_of_two_formats(hidden: int, tmp_path: Path) -> None:
    """They are kept as one matrix, in a format that holds both well."""
    config = load_shape("llama-tiny").config | {"hidden_size": hidden}
    recipe = Recipe("two", (Rule("int8", role="mlp.gate"),))
    path, tokens = checkpoint(config, tmp_path / "model", recipe), [1, 2, 3, 4]
    with Engine.load(path, backend="torch", context=64) as engine:
        wanted = engine.logits(tokens)
    with Engine.load(path, activations="f32", context=64) as engine:
        assert np.abs(engine.logits(tokens) - wanted).max() <= 0.02 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("path", [name for name in simd.executable_paths() if name != simd.path()])
def test_on_other_paths(path: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    done = subprocess.run(command, env={**os.environ, "OSS_TOOLS_SIMD": path}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.slow
@MANY
@given(llamas(), parts())
def test_many_llamas(config: dict[str, Any], lengths: list[int]) -> None:
    assert_equal_logits(config, lengths)


@pytest.mark.slow
@MANY
@given(gpt_osses(), parts())
def test_many_gpt_osses(config: dict[str, Any], lengths: list[int]) -> None:
    assert_equal_logits(config, lengths)


@pytest.mark.slow
@MANY
@given(st.one_of(llamas(), gpt_osses()), st.booleans(), CONTAINERS, st.data())
def test_many_formats(config: dict[str, Any], whole: bool, container: str, data: st.DataObject) -> None:
    config = with_whole_blocks(config) if whole else config
    assert_formats_are_used_as_they_are(config, container, data.draw(recipes(ALL[container])))
