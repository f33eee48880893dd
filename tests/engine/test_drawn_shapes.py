"""The kernels against the torch backend on models whose shapes nobody chose: heads, groups, head sizes, widths, vocabularies,
experts, windows, layers, and how a prompt is cut into passes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from drawn import CONTEXT, checkpoint, gpt_osses, llamas, parts

from oss_tools.engine.engine import Engine

FEW = settings(deadline=None, max_examples=25)
MANY = settings(deadline=None, max_examples=400)
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


@FEW
@given(st.one_of(llamas(), gpt_osses()), parts(), st.sampled_from(["int8", "f32"]), st.data())
def test_the_same_bits_in_any_pieces(config: dict[str, Any], lengths: list[int], activations: str, data: st.DataObject) -> None:
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
