"""The CUDA backend on an emulated device, on small models of every family, held against the engine on the CPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda")
sys.path.insert(0, str(Path(__file__).parent.parent / "numba_kernels" / "cuda"))
sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from composed import Composed, InMemory, Parts, latents, usual
from emulated_device import EmulatedDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from small_families import CONFIGS

from oss_tools.engine import cuda_backend, cuda_one_token, cuda_sampling
from oss_tools.engine.cuda_weights import CudaWeights, device_bytes
from oss_tools.engine.engine import Engine
from oss_tools.engine.sampling import log_softmax
from oss_tools.errors import BadRequest
from oss_tools.models.base import architecture_of
from oss_tools.models.operations import Heads

CONTEXT = 128


@pytest.fixture(scope="module", autouse=True)
def emulated() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(cuda_backend, "open_device", EmulatedDevice)
    patch.setattr(cuda_backend, "check_device", lambda: None)
    patch.setattr(cuda_sampling, "CHOOSERS", 2)
    yield
    patch.undo()


def small(model_type: str, which: str, form: str = "f32") -> InMemory:
    """Random weights and biases of a small configuration, with fewer layers and words: the emulator is slow."""
    config = CONFIGS[model_type, which]
    layers = "n_layer" if model_type == "gpt2" else "num_hidden_layers"
    config = config | {"vocab_size": 47, layers: min(config[layers], 2)}
    if (model_type, which) == ("qwen2", "odd"):
        config |= {"hidden_size": 224}  # heads of 16 values: the kernels take multiples of that
    if "mlp_layer_types" in config:
        config |= {"mlp_layer_types": config["mlp_layer_types"][:2]}
    return InMemory(architecture_of(model_type).from_config("hf", config), form)


# (family, configuration) -> tokens of the prompt: beyond the window, where there is one
KINDS = {
    ("mistral", "odd"): 36,
    ("mixtral", "usual"): 5,
    ("mixtral", "odd"): 5,
    ("qwen2", "odd"): 24,
    ("qwen3", "usual"): 5,
    ("qwen3", "odd"): 5,
    ("qwen2_moe", "usual"): 5,
    ("qwen2_moe", "odd"): 5,
    ("qwen3_moe", "usual"): 5,
    ("qwen3_moe", "odd"): 26,
    ("gpt2", "usual"): 5,
    ("gpt2", "odd"): 5,
    ("deepseek_v2", "usual"): 5,
    ("deepseek_v2", "odd"): 5,
    ("deepseek_v3", "usual"): 5,
    ("deepseek_v3", "odd"): 5,
    ("glm4_moe_lite", "usual"): 5,
}


QUICK = [("qwen3", "usual")]
EVERY = [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow, id="-".join(kind)) for kind in KINDS]


@pytest.mark.parametrize("kind", EVERY)
def test_float32_is_exact(kind: tuple[str, str]) -> None:
    """Token by token: the same log-probabilities as on the CPU."""
    model = small(*kind)
    tokens = np.random.default_rng(3).integers(0, 47, KINDS[kind]).tolist()
    with Engine.load(model, activations="f32", context=CONTEXT, threads=1) as engine:
        wanted = engine.logits(tokens)
    with Engine.load(model, backend="cuda", activations="f32", context=CONTEXT) as engine:
        found = engine.logits(tokens)
    assert np.abs(log_softmax(found) - log_softmax(wanted)).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY)
def test_prompts_and_steps_agree(kind: tuple[str, str]) -> None:
    """A prompt at once, in bfloat16, then steps, of matrices in q8_0 where they divide into its blocks: near to what the CPU says
    in float32; and what is cached of a beginning serves again."""
    model, count = small(*kind, form="q8_0"), KINDS[kind]
    tokens = np.random.default_rng(4).integers(0, 47, count + 3).tolist()
    with Engine.load(model, activations="f32", context=CONTEXT, threads=1) as engine:
        wanted = log_softmax(engine.logits(tokens))
    with Engine.load(small(*kind, form="q8_0"), backend="cuda", context=CONTEXT) as engine:
        sequence = engine.open(tokens, room=1, reuse=0)
        found = [engine.prefill(sequence, tokens[:count]).copy()]
        found += [engine.step([sequence], [token])[0].copy() for token in tokens[count:]]
        cached = engine.backend.read_cache(sequence.cache, 0, count + 2)
        other = engine.open(tokens, room=1, reuse=0)
        engine.backend.write_cache(other.cache, 0, cached)
        np.testing.assert_array_equal(engine.backend.read_cache(other.cache, 0, count + 2), cached)
        assert engine.likeliest([engine.fork(sequence)], [5]).shape == (1,)
    off = np.abs(log_softmax(np.array(found)) - wanted[count - 1 :])
    assert off.mean() < 0.05


# ---- launches and refusals ------------------------------------------------------------------------------------------

LAUNCHES = {  # (of a layer, of another), beside the embedding; the last norm, or the head's own, is the head's
    ("mistral", "usual"): (5, 5),
    ("mixtral", "usual"): (6, 6),
    ("qwen2", "usual"): (5, 5),
    ("qwen3", "usual"): (6, 6),
    ("qwen2_moe", "usual"): (10, 10),
    ("qwen3_moe", "usual"): (7, 7),
    ("deepseek_v2", "usual"): (9, 12),
    ("deepseek_v3", "usual"): (10, 13),
}


@pytest.mark.parametrize("kind", LAUNCHES, ids="-".join)
def test_launches_of_a_step(kind: tuple[str, str]) -> None:
    """Nothing is launched; a prompt of many tokens is written down as well."""
    with Engine.load(small(*kind), backend="cuda", context=CONTEXT) as engine:
        backend: Any = engine.backend
        assert len(backend._one.launches) == 1 + sum(LAUNCHES[kind])
        assert backend._many.launches
        assert backend.device.launches == 0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["f32", "bf16", "q8_0"])
def test_rows_too_long_for_shared_memory(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a float format, without a norm: the vector stays in the device's memory, with biases, added and stored. Other formats
    have no such kernel."""
    monkeypatch.setattr(cuda_one_token, "fits_shared", lambda shape, norm: False)
    model, tokens = small("gpt2", "usual", form), [3, 1, 4]
    with Engine.load(model, activations="f32", context=CONTEXT, threads=1) as engine:
        wanted = engine.logits(tokens)
    with Engine.load(model, backend="cuda", activations="f32", context=CONTEXT) as engine:
        assert np.abs(engine.logits(tokens) - wanted).max() < 1e-4
        used = {name.split("_")[0] for name in engine.backend._kernels}  # type: ignore[attr-defined]
        assert ("products" in used) == (form != "q8_0")


def test_rows_of_gate_and_up_in_turn() -> None:
    """Of every expert, not of the first one only."""
    model = small("mixtral", "usual")
    weights = CudaWeights(EmulatedDevice(), model, lambda n: None, lambda line: None)
    names = tuple(f"model.layers.0.mlp.experts.{part}_proj" for part in ("gate", "up"))
    (stack,) = weights.stacks(names, interleave=True)
    both = stack.codes.view(np.float32).reshape(8, 2 * 96, 64)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(both[:, i::2], model.read_tensor(name).dequantize().reshape(8, 96, 64))


def test_launches_of_gpt2() -> None:
    """Embedding, positions; seven for a layer; the last norm."""
    with Engine.load(small("gpt2", "usual"), backend="cuda", context=CONTEXT) as engine:
        assert len(engine.backend._one.launches) == 2 + 2 * 7 + 1  # type: ignore[attr-defined]


def test_more_positions_than_there_are() -> None:
    model = small("gpt2", "usual")
    with pytest.raises(BadRequest, match=r"position"):
        Engine.load(model, backend="cuda", context=512)


def test_memory_of_latents() -> None:
    """A position takes its latent and its key, padded to 16 values, in two bytes each; weights what loading takes."""
    model = small("deepseek_v3", "usual")
    with Engine.load(model, backend="cuda", context=CONTEXT) as engine:
        backend: Any = engine.backend
        assert backend.position_bytes(model.architecture, backend.options) == 2 * 2 * 48
        (pool,) = backend.pools.values()
        assert pool.shape.page_words == 64 * 48 // 2
        loaded = sum(backend.weights.bytes_by_format().values())
        assert (
            loaded <= device_bytes(small("deepseek_v3", "usual")) <= loaded + 4 * 10_000
        )  # and norms, biases, a correction


# ---- models of any parts --------------------------------------------------------------------------------------------


def fitting(parts: Parts) -> Parts:
    """With heads of sizes that the kernels take, and few words."""
    heads = parts.heads
    if isinstance(heads, Heads):
        size = -(-heads.size // 16) * 16
        heads = replace(
            heads, size=size, queries=min(heads.queries // heads.keys, 3) * min(heads.keys, 2), keys=min(heads.keys, 2)
        )
    return replace(parts, heads=heads, vocabulary=min(parts.vocabulary, 60), layers=1)


@pytest.mark.slow
@settings(deadline=None, max_examples=6)
@given(st.one_of(usual(), latents()))
def test_any_parts(parts: Parts) -> None:
    """Token by token in float32, as the CPU; and a prompt at once."""
    parts = fitting(parts)
    model = Composed(parts)
    tokens = np.random.default_rng(0).integers(0, parts.vocabulary, 7).tolist()
    with Engine.load(InMemory(model), activations="f32", context=64, threads=1) as engine:
        wanted = engine.logits(tokens)
    with Engine.load(InMemory(model), backend="cuda", activations="f32", context=64) as engine:
        found = engine.logits(tokens)
    assert np.abs(found - wanted).max() <= 2e-4 * np.abs(wanted).max()
    with Engine.load(InMemory(model), backend="cuda", context=64) as engine:
        whole = engine.logits(tokens)
    assert np.median(np.abs(whole - wanted)) <= 0.05 * np.abs(wanted).max()  # rounding may choose other experts
