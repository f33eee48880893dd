"""The CUDA backend on an emulated device, on small models of every family, held against the engine on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda")
sys.path.insert(0, str(Path(__file__).parent.parent / "numba_kernels" / "cuda"))
sys.path.insert(0, str(Path(__file__).parent.parent / "models"))

from composed import InMemory
from emulated_device import EmulatedDevice
from small_families import CONFIGS

from oss_tools.engine import cuda_backend
from oss_tools.engine.engine import Engine
from oss_tools.engine.sampling import log_softmax
from oss_tools.models.base import architecture_of

CONTEXT = 128


@pytest.fixture(scope="module", autouse=True)
def emulated() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(cuda_backend, "open_device", EmulatedDevice)
    patch.setattr(cuda_backend, "check_device", lambda: None)
    patch.setattr(cuda_backend, "CHOOSERS", 2)
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


QUICK = [("qwen3", "usual"), ("deepseek_v3", "usual")]
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
