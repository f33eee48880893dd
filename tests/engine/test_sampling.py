"""Sampling rules against their definitions, on distributions small enough to write down."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.engine.sampling import Sampler, Sampling, distribution, log_softmax, penalized
from oss_tools.errors import BadRecipe

PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def kept(**rules: float) -> dict[int, float]:
    tokens, shares = distribution(LOGITS, Sampling(temperature=1.0, **rules))  # type: ignore[arg-type]
    return dict(zip(tokens.tolist(), shares.round(6).tolist(), strict=True))


def test_without_rules_the_distribution_is_the_softmax() -> None:
    assert kept() == {1: 0.4, 3: 0.3, 4: 0.15, 0: 0.1, 2: 0.05}


def test_top_k_keeps_the_likeliest() -> None:
    assert kept(top_k=2) == {1: round(0.4 / 0.7, 6), 3: round(0.3 / 0.7, 6)}


def test_top_p_keeps_the_token_that_crosses_the_threshold() -> None:
    assert list(kept(top_p=0.69)) == [1, 3]
    assert list(kept(top_p=0.71)) == [1, 3, 4]


def test_min_p_is_relative_to_the_likeliest() -> None:
    assert list(kept(min_p=0.3)) == [1, 3, 4]


def test_temperature_divides_the_logits() -> None:
    _, shares = distribution(LOGITS, Sampling(temperature=0.5))
    expected = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    np.testing.assert_allclose(shares, expected, rtol=1e-6)


def test_repetition_penalty_moves_logits_towards_unlikely() -> None:
    out = penalized(np.array([2.0, -2.0, 1.0], np.float32), {0, 1}, 2.0)
    assert out.tolist() == [1.0, -4.0, 1.0]


def test_drawn_frequencies_follow_the_distribution() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=3))
    counts = np.bincount([sampler(LOGITS) for _ in range(4000)], minlength=5) / 4000
    np.testing.assert_allclose(counts, PROBABILITIES, atol=0.03)


def test_the_same_seed_draws_the_same_tokens() -> None:
    draws = [[Sampler(Sampling(temperature=1.5, seed=s))(LOGITS) for _ in range(1)] for s in range(50)]
    again = [[Sampler(Sampling(temperature=1.5, seed=s))(LOGITS) for _ in range(1)] for s in range(50)]
    assert draws == again
    assert len({tuple(d) for d in draws}) > 1


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 5), st.integers(0, 12), st.floats(0, 1), st.floats(0, 1))
def test_any_rule_leaves_a_distribution_that_holds_the_likeliest(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(0, 5, 9).astype(np.float32)
    tokens, shares = distribution(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    assert logits.argmax() in tokens
    assert len(set(tokens.tolist())) == len(tokens) == len(shares)
    assert shares.sum() == pytest.approx(1)
    if top_k or top_p < 1:
        assert (np.diff(logits[tokens]) <= 0).all()
    left_out = np.setdiff1d(np.arange(9), tokens)
    assert not len(left_out) or logits[left_out].max() <= logits[tokens].min()


def test_top_p_of_a_large_flat_vocabulary() -> None:
    logits = np.zeros(10000, np.float32)
    tokens, _ = distribution(logits, Sampling(temperature=1.0, top_p=0.5))
    assert tokens.tolist() == list(range(5000))  # among equals the lower number first


def test_log_softmax_survives_large_logits() -> None:
    out = log_softmax(np.array([[1e4, 1e4, -1e4]], np.float32))
    np.testing.assert_allclose(out[0, :2], np.log(0.5), rtol=1e-6)
    assert np.exp(out).sum() == pytest.approx(1)


@pytest.mark.parametrize("rule", [{"temperature": -1.0}, {"top_p": 1.5}, {"top_k": -1}, {"repetition_penalty": 0.0}])
def test_impossible_rules_are_refused(rule: dict[str, float]) -> None:
    with pytest.raises(BadRecipe, match=next(iter(rule))):
        Sampling(**rule)  # type: ignore[arg-type]
