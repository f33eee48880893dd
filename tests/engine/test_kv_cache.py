"""The KV cache in 8 bits: the same tokens however they are computed, half of the memory, and what does not have it says so."""

from __future__ import annotations

import itertools
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from oss_tools.checkpoints.safetensors import SafetensorsFile
from oss_tools.cli.main import app
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.engine.backend import CACHES, Options
from oss_tools.engine.engine import Engine
from oss_tools.engine.numba_backend import NumbaBackend
from oss_tools.engine.prompt_file import PromptFile
from oss_tools.engine.requests import Request
from oss_tools.errors import BadCheckpoint, BadRequest
from oss_tools.models import open_checkpoint

MODEL, COMPUTED = "0" * 64, "numba, activations int8, KV cache q8"


def loaded(path: Path, **options: object) -> Engine:
    settings = {"context": 1024, "threads": 2, "prefix_budget": 1 << 26, "cache": "q8"} | options
    return Engine.load(path, **settings)  # type: ignore[arg-type]


def tokens_of(engine: Engine, prompt: list[int]) -> list[int]:
    return [token.id for token in engine.generate(Request(prompt, 24, stop_tokens=frozenset()))]


@pytest.fixture(scope="module", params=["gpt_oss", "llama"])
def model(request: pytest.FixtureRequest, tiny_gpt_oss: Path, tiny_llama: Path) -> Path:
    return tiny_gpt_oss if request.param == "gpt_oss" else tiny_llama


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return loaded(model)


@pytest.fixture(scope="module")
def prompt(engine: Engine) -> list[int]:
    """400 tokens: past the sliding window of 128, and of several pages."""
    return np.random.default_rng(3).integers(0, engine.backend.vocabulary, 400).tolist()


def test_logits_are_close_to_those_of_an_exact_cache(model: Path, engine: Engine, prompt: list[int]) -> None:
    with loaded(model, activations="f32", cache="f32") as exact, loaded(model, activations="f32") as rounded:
        p, q = exact.logits(prompt), rounded.logits(prompt)
    spread = p.std()
    assert 0 < np.abs(p - q).mean() < 0.02 * spread
    assert engine.backend.facts()["kv_cache"] == "q8"


def test_a_tokens_logits_are_the_same_bits_in_any_pass(model: Path, engine: Engine, prompt: list[int]) -> None:
    """In one pass, in chunks of any size, token by token, beside another sequence, with one thread or two."""
    expected = engine.logits(prompt)
    for edges in ([0, 1, 130, 131, 399, 400], [0, 64, 65, 128, 300, 400]):
        sequence, found = engine.open(prompt, reuse=0), []
        other = engine.open(prompt[:50], reuse=0)
        for number, (first, last) in enumerate(itertools.pairwise(edges)):
            beside = [(other, prompt[number : number + 1])]
            engine.run([*beside, (sequence, prompt[first:last])])
            found += [rows.copy() for rows in engine.logits_of(np.arange(1, 1 + last - first))]
        np.testing.assert_array_equal(np.concatenate(found), expected)
    with loaded(model, threads=1) as alone:
        np.testing.assert_array_equal(alone.logits(prompt), expected)


def test_known_beginnings_and_guesses_change_no_token(model: Path, engine: Engine, prompt: list[int]) -> None:
    twice = [*prompt[:150], *prompt[:150]]
    with loaded(model, prefix_budget=0, speculate=False) as plain:
        expected, other = tokens_of(plain, twice), tokens_of(plain, [*twice[:200], 1, 2, 3])
    for _ in range(2):  # the second time the prefix cache knows all of it
        assert tokens_of(engine, twice) == expected
    before = engine.computed
    assert tokens_of(engine, [*twice[:200], 1, 2, 3]) == other
    assert engine.computed - before < 200


def test_sequences_that_fork_share_what_they_have(engine: Engine, prompt: list[int]) -> None:
    first = engine.open(prompt, room=8, reuse=0)
    engine.prefill(first, prompt[:-1])
    second = engine.fork(first, room=8)
    np.testing.assert_array_equal(engine.prefill(second, prompt[-1:]), engine.prefill(first, prompt[-1:]))


def test_a_prompt_in_a_file(model: Path, engine: Engine, prompt: list[int], tmp_path: Path) -> None:
    expected = tokens_of(engine, prompt)
    assert PromptFile(tmp_path / "kept", MODEL, COMPUTED).write(engine, prompt) == len(prompt)
    with closing(SafetensorsFile(tmp_path / "kept")) as file:
        stored = file.tensors["keys_and_values"]
        assert stored.dtype == "U8"
        assert stored.shape == (400, engine.backend.cache_row()[0])
    with loaded(model, prefix_budget=0) as other:
        assert PromptFile(tmp_path / "kept", MODEL, COMPUTED).read_into(other) == len(prompt)
        assert tokens_of(other, prompt) == expected
        assert other.computed < len(prompt)
    with (
        loaded(model, cache="bf16", prefix_budget=0) as wrong,
        pytest.raises(BadCheckpoint, match="no keys and values of this model"),
    ):
        PromptFile(tmp_path / "kept", MODEL, COMPUTED).read_into(wrong)
    with pytest.raises(BadRequest, match="computed with 'numba, activations int8, KV cache q8', and this run"):
        PromptFile(tmp_path / "kept", MODEL, "numba, activations int8")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_file_whose_scales_are_no_numbers_is_refused(
    model: Path, engine: Engine, prompt: list[int], tmp_path: Path, value: float
) -> None:
    """Any byte is a number; a scale need not be one."""
    engine.prefill(engine.open(prompt, reuse=0), prompt)
    width, _ = engine.backend.cache_row()
    _, blocks = engine.prefixes.longest(prompt[:300])
    block = np.concatenate(blocks) if blocks else np.zeros((300, width), np.uint8)
    assert engine.backend.is_finite(block)
    pools = engine.backend.pools.values()  # type: ignore[attr-defined]
    at = sum(pool.width for pool in pools) - 4  # the last scale of the last layer of the last pool
    broken = block.copy()
    broken[7, at : at + 4] = np.frombuffer(np.float32(value).tobytes(), np.uint8)
    assert not engine.backend.is_finite(broken)


def test_the_share_of_the_memory(tiny_gpt_oss: Path) -> None:
    """Of heads of 64: 64 bytes and a scale of 4 in place of 128."""
    shape = load_shape("gpt-oss-20b")
    with open_checkpoint(tiny_gpt_oss) as checkpoint:
        options = Options(cache="bf16")
        heads = replace(checkpoint.architecture.attention_layers()[0], size=64, window=None)
    assert shape.config["head_dim"] == heads.size

    class One:
        def attention_layers(self) -> list[object]:
            return [heads]

    sizes = {cache: NumbaBackend.position_bytes(One(), replace(options, cache=cache)) for cache in CACHES}  # type: ignore[arg-type]
    assert sizes["q8"] / sizes["bf16"] == 68 / 128
    assert sizes["f32"] == 2 * sizes["bf16"]


def test_caches_of_latents_say_that_they_have_none(tmp_path: Path) -> None:
    made = synthesize(plan_synthesis(load_shape("deepseek-v2-tiny"), "hf"), tmp_path / "deepseek")
    with pytest.raises(BadRequest, match="--kv-cache q8: this model caches latents"):
        loaded(made)


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(
    "verb", [("generate", "tiny", "1 + 1"), ("perplexity", "tiny"), ("bench", "tiny"), ("compare", "tiny"), ("fit", "tiny")]
)
def test_formats_that_there_are_not(verb: tuple[str, ...]) -> None:
    code, _, said = run(*verb, "--kv-cache", "q4")
    assert (code, len(said.strip().splitlines())) == (2, 1)
    assert "--kv-cache: no format named 'q4'" in said
    assert "bf16, f32, q8" in said


def test_other_backends_say_that_they_have_no_choice() -> None:
    code, _, said = run("generate", "tiny", "1 + 1", "--backend", "torch", "--kv-cache", "q8")
    assert (code, len(said.strip().splitlines())) == (2, 1)
    assert "--kv-cache is for the kernels on the CPU (--backend numba), not for torch" in said


@pytest.mark.slow
def test_fit_counts_it() -> None:
    found = {}
    for cache in ("bf16", "q8"):
        code, text, _ = run("fit", "gpt-oss-20b", "--context", "32768", "--kv-cache", cache, "--ram", "64GB", "--json")
        record = json.loads(text)
        assert (code, record["kv_cache"]) == (0, cache)
        found[cache] = record["rows"][0]
    assert found["q8"]["memory"]["cache"] / found["bf16"]["memory"]["cache"] == pytest.approx(68 / 128, rel=0.01)
    assert found["q8"]["bytes_per_token"][1] < found["bf16"]["bytes_per_token"][1]
