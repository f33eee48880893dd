"""Models of freely drawn shapes, saved by transformers and run by it in float32: the engine's logits."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest
from drawn import CONTEXT, gpt_osses, llamas
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.engine.engine import Engine

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

FEW = settings(deadline=None, max_examples=5)
MANY = settings(deadline=None, max_examples=60)
CLASSES = {"llama": ("LlamaConfig", "LlamaForCausalLM"), "gpt_oss": ("GptOssConfig", "GptOssForCausalLM")}


def assert_transformers_logits(config: dict[str, Any], length: int) -> None:
    """Weights with biases, norms and sinks that matter; to 1e-4 of the largest logit."""
    kind, model_kind = (getattr(transformers, name) for name in CLASSES[config["model_type"]])
    plain = {}
    if config["model_type"] == "llama":  # transformers wants this even where head_dim is given
        config |= {"hidden_size": config["num_attention_heads"] * -(-config["hidden_size"] // config["num_attention_heads"])}
    else:
        plain = {"experts_implementation": "eager"}  # the other one wants rows of 16 bytes
    torch.manual_seed(0)
    model = model_kind(kind.from_dict(config))
    for name, parameter in model.named_parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
        parameter.data.normal_(1.0 if "norm" in name else 0.0, spread)
    tokens = np.random.default_rng(length).integers(0, config["vocab_size"], length).tolist()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model = model_kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **plain)
        with torch.inference_mode():
            wanted = model(torch.tensor([tokens])).logits[0].numpy()
        with Engine.load(folder, activations="f32", context=CONTEXT, threads=2) as engine:
            found = engine.logits(tokens)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@FEW
@given(st.one_of(llamas(), gpt_osses()), st.integers(1, 200))
def test_drawn_shapes(config: dict[str, Any], length: int) -> None:
    assert_transformers_logits(config, length)


@pytest.mark.slow
@MANY
@given(st.one_of(llamas(), gpt_osses()), st.integers(1, 250))
def test_many_drawn_shapes(config: dict[str, Any], length: int) -> None:
    assert_transformers_logits(config, length)
