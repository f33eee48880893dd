"""The kernels against the torch backend on models composed of any of the operations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from composed import CONTEXT, Composed, InMemory, Parts, latents, usual
from drawn import parts

from oss_tools.engine.backend import Options
from oss_tools.engine.engine import Engine
from oss_tools.engine.numba_backend import NumbaBackend
from oss_tools.errors import BadRequest
from oss_tools.models.operations import Heads, Latent

FEW = settings(deadline=None, max_examples=12)
MANY = settings(deadline=None, max_examples=100)
TOLERANCE = 2e-4  # of the largest logit


def tokens_for(model: Parts, count: int) -> list[int]:
    return np.random.default_rng(count).integers(0, model.vocabulary, count).tolist()


def assert_backends_agree(model: Parts, lengths: list[int], form: str = "f32") -> None:
    """On logits after every token, in one pass and in several."""
    tokens = tokens_for(model, min(sum(lengths), CONTEXT))
    with Engine.load(InMemory(Composed(model), form), backend="torch", threads=1) as engine:
        wanted = engine.logits(tokens)
    with Engine.load(InMemory(Composed(model), form), activations="f32", threads=2) as engine:
        whole = engine.logits(tokens)
        sequence, found, edges = engine.open(tokens, reuse=0), [], []
        for n in lengths:
            if piece := tokens[len(sequence.tokens) : len(sequence.tokens) + n]:
                found.append(engine.prefill(sequence, piece).copy())
                edges.append(len(sequence.tokens) - 1)
    largest = np.abs(wanted).max()
    assert np.abs(whole - wanted).max() <= TOLERANCE * largest
    np.testing.assert_array_equal(np.array(found), whole[edges])


@FEW
@given(usual(), parts())
def test_usual_attention(model: Parts, lengths: list[int]) -> None:
    assert_backends_agree(model, lengths)


@FEW
@given(latents(), parts())
def test_latent_attention(model: Parts, lengths: list[int]) -> None:
    assert_backends_agree(model, lengths)


@FEW
@given(st.one_of(usual(), latents()), st.sampled_from(["q8_0", "q4_0", "bf16"]))
def test_formats(model: Parts, form: str) -> None:
    assert_backends_agree(model, [20, 1, 1], form)


@FEW
@given(st.one_of(usual(), latents()).filter(lambda model: not model.router), st.sampled_from(["q8_0", "f32"]))
def test_quantized_activations(model: Parts, form: str) -> None:
    """Nearly the same. Not for routers, which may choose other experts."""
    tokens = tokens_for(model, 30)
    with Engine.load(InMemory(Composed(model), form), backend="torch", threads=1) as engine:
        wanted = engine.logits(tokens)
    with Engine.load(InMemory(Composed(model), form), threads=2) as engine:
        assert np.abs(engine.logits(tokens) - wanted).mean() <= 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_steps_into_new_pages_equal_one_pass(activations: str) -> None:
    model = Parts(48, 40, 90, 2, Latent(0, 3, 16, 8, 20, 40), pairs=4, interleaved=True)
    tokens = tokens_for(model, 200)
    with Engine.load(InMemory(Composed(model)), activations=activations, threads=2) as engine:
        wanted = engine.logits(tokens)
        sequence = engine.open(tokens[:5], reuse=0)
        engine.prefill(sequence, tokens[:5])
        found = [engine.step([sequence], [token])[0].copy() for token in tokens[5:]]
    np.testing.assert_array_equal(found, wanted[5:])


@FEW
@given(st.one_of(usual(), latents()), parts(), st.sampled_from(["int8", "f32"]), st.data())
def test_the_same_bits_in_any_pieces(model: Parts, lengths: list[int], activations: str, data: st.DataObject) -> None:
    """Whole, in pieces, after a fork, in company, and behind a beginning that was stored and came back from the store."""
    total = min(sum(lengths) + 1, CONTEXT)
    tokens = tokens_for(model, total)
    with Engine.load(InMemory(Composed(model)), activations=activations, threads=2, prefix_budget=1 << 24) as engine:
        wanted = engine.logits(tokens)
        sequence, edge = engine.open(tokens, reuse=0), 0
        for n in lengths:
            edge = min(edge + n, total - 1)
            if piece := tokens[len(sequence.tokens) : edge]:
                np.testing.assert_array_equal(engine.prefill(sequence, piece), wanted[edge - 1])
        first, second = engine.fork(sequence), engine.fork(sequence)
        both = engine.step([first, second], [tokens[edge], tokens[0]])
        np.testing.assert_array_equal(both[0], wanted[edge])
        engine.save(sequence)
        again = engine.open(tokens, reuse=data.draw(st.integers(0, edge), "tokens that may come from the store"))
        np.testing.assert_array_equal(engine.prefill(again, tokens[len(again.tokens) :]), wanted[-1])


def test_a_latent_cache_holds_the_latent_and_one_key() -> None:
    """576 values a position and a layer, as published models of this kind have them; less than ordinary heads would need."""
    model = Composed(Parts(64, 32, 50, 3, Latent(0, 16, 128, 64, 128, 512), pairs=32))
    each = NumbaBackend.position_bytes(model, Options())
    assert each == 3 * 576 * 2
    assert NumbaBackend.position_bytes(model, Options(activations="f32")) == 3 * 576 * 4
    with Engine.load(InMemory(model)) as engine:
        pool = engine.backend.pools[None]
        assert pool.pages.nbytes * 3 == each * 64
        sequence = engine.open([1, 2, 3], reuse=0)
        engine.prefill(sequence, [1, 2, 3])
        assert engine.backend.read_cache(sequence.cache, 0, 3).shape == (3, 3 * 576)


def test_a_table_of_positions_shorter_than_the_context_is_refused() -> None:
    model = Composed(Parts(16, 16, 20, 1, Heads(0, 2, 2, 8)))
    checkpoint = InMemory(model)
    entry = checkpoint.entries["places.weight"]
    checkpoint.entries["places.weight"] = replace(entry, spec=replace(entry.spec, shape=(CONTEXT - 1, 16)))
    with pytest.raises(BadRequest, match=f"has {CONTEXT - 1} positions; the context has {CONTEXT}"):
        Engine.load(checkpoint)


@pytest.mark.slow
@MANY
@given(st.one_of(usual(), latents()), parts())
def test_many(model: Parts, lengths: list[int]) -> None:
    assert_backends_agree(model, lengths)
