"""Divergence statistics against plain formulas, and two engines side by side."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.engine.engine import Engine
from oss_tools.errors import BadRequest
from oss_tools.measure import fidelity


def made_up(seed: int, rows: int, vocabulary: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    base = random.normal(0, 4, (rows, vocabulary)).astype(np.float32)
    other = (base + random.normal(0, noise, base.shape)).astype(np.float32)
    return base, other, random.integers(0, vocabulary, rows)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 60), st.floats(0, 3))
def test_positions_are_what_the_formulas_say(seed: int, rows: int, vocabulary: int, noise: float) -> None:
    base, other, tokens = made_up(seed, rows, vocabulary, noise)
    found = fidelity.measure_rows(base, other, tokens)
    for i in range(rows):
        p, q = (np.exp(x[i].astype(np.longdouble)) for x in (base, other))
        p, q = p / p.sum(), q / q.sum()
        assert found.kld[i] == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-12)
        assert found.nll[i] == pytest.approx(-math.log(q[tokens[i]]), rel=1e-12)
        assert found.delta_p[i] == pytest.approx(float(q[tokens[i]] - p[tokens[i]]), abs=1e-12)
        assert found.same_top[i] == (p.argmax() == q.argmax())


def test_a_model_does_not_diverge_from_itself() -> None:
    base, _, tokens = made_up(3, 50, 70, 0)
    summary = fidelity.summarize([fidelity.measure_rows(base, base, tokens)] * 2)
    assert summary["kld"] == {**dict.fromkeys(summary["kld"], 0.0), "stderr": 0.0}
    assert summary["same_top"]["mean"] == 1
    assert summary["perplexity"]["model"] == summary["perplexity"]["base"]


def test_the_summary_is_of_all_positions() -> None:
    chunks = [fidelity.measure_rows(*made_up(seed, 30 + seed, 50, 0.7)) for seed in range(5)]
    kld, delta = (np.concatenate([getattr(c, name) for c in chunks]) for name in ("kld", "delta_p"))
    summary = fidelity.summarize(chunks)
    assert summary["positions"] == len(kld) == 160
    assert summary["kld"]["mean"] == pytest.approx(kld.mean())
    ordered = np.sort(kld)
    at = 0.999 * (len(ordered) - 1)  # llama.cpp's rule, written out
    low = int(at)
    assert summary["kld"]["p99.9"] == pytest.approx((1 - (at - low)) * ordered[low] + (at - low) * ordered[low + 1])
    assert summary["kld"]["max"] == kld.max()
    assert summary["delta_p"]["rms"] == pytest.approx(math.sqrt((delta**2).mean()))
    ratio = summary["perplexity"]["model"] / summary["perplexity"]["base"]
    assert math.exp(summary["log_perplexity_ratio"]["mean"]) == pytest.approx(ratio)


def test_standard_errors_know_that_chunks_hang_together() -> None:
    """Against the spread of the mean over many samples of chunks whose positions share an offset."""
    random = np.random.default_rng(5)

    def chunks() -> list[np.ndarray]:
        return [random.normal(random.normal(), 0.1, 20) for _ in range(60)]

    means = [float(np.concatenate(chunks()).mean()) for _ in range(2000)]
    told = [fidelity.clustered_error(chunks()) or 0.0 for _ in range(200)]
    assert np.mean(told) == pytest.approx(np.std(means), rel=0.1)
    naive = np.concatenate(chunks()).std() / math.sqrt(1200)
    assert naive < np.mean(told) / 3
    single = [np.array([value]) for value in random.normal(0, 1, 500)]  # chunks of one: the ordinary formula
    assert fidelity.clustered_error(single) == pytest.approx(np.concatenate(single).std(ddof=1) / math.sqrt(500))


def test_engines_side_by_side(tiny_llama: Path) -> None:
    """Chunks read anew, their second halves scored: as with all logits at once."""
    with Engine.load(tiny_llama, threads=1, activations="f32") as base, Engine.load(tiny_llama, threads=1) as other:
        tokens = list(np.random.default_rng(0).integers(0, base.backend.vocabulary, 150))
        found = fidelity.compare_engines(base, other, tokens, chunk=64)
        assert [len(chunk) for chunk in found] == [31, 31]
        part = tokens[64:128]
        rows = slice(32, 63)
        whole = fidelity.measure_rows(base.logits(part)[rows], other.logits(part)[rows], np.array(part[33:64]))
        np.testing.assert_allclose(found[1].kld, whole.kld, atol=1e-6)
        np.testing.assert_allclose(found[1].nll, whole.nll, atol=1e-4)
        assert 0 < fidelity.summarize(found)["kld"]["mean"] < 0.01
        with pytest.raises(BadRequest, match="too few"):
            fidelity.compare_engines(base, other, tokens[:3])


def test_other_vocabularies_are_refused(tiny_llama: Path, tiny_gpt_oss: Path) -> None:
    with (
        Engine.load(tiny_llama, threads=1) as base,
        Engine.load(tiny_gpt_oss, threads=1) as other,
        pytest.raises(BadRequest, match="one tokenizer"),
    ):
        fidelity.compare_engines(base, other, list(range(100)))
