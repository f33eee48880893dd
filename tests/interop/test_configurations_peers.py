"""Whatever a configuration says about positions, windows and clamps: a folder, its GGUF and the folder made from that compute
what transformers computes; llama.cpp computes it too, or we say that it will not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.engine.engine import Engine
from oss_tools.models import open_checkpoint
from tests.convert.helpers import convert
from tests.interop.peers import llama_cpp_logits, mean_kld, transformers_logits

pytestmark = pytest.mark.peers

COMMON = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 331,
    "max_position_embeddings": 2048,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "plain": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": YARN,
    "yarn, attention factor": YARN | {"attention_factor": 1.6},
    "yarn, mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.3},
    "yarn, other bounds": YARN | {"beta_fast": 8.0, "beta_slow": 2.0},
    "yarn, not truncated": YARN | {"truncate": False},
    "llama 3": LLAMA_3 | {"original_max_position_embeddings": 8192},
    "llama 3, 64 positions": LLAMA_3 | {"original_max_position_embeddings": 64},
    "llama 3, odd numbers": {
        "rope_type": "llama3",
        "factor": 5.5,
        "low_freq_factor": 1.5,
        "high_freq_factor": 3.1,
        "original_max_position_embeddings": 100,
    },
}
# What llama.cpp passes over; the rest it computes as transformers does.
PASSED_OVER = {"yarn, other bounds", "yarn, not truncated"}
FULL, SLIDING = "full_attention", "sliding_attention"
OTHERS: dict[str, dict[str, Any]] = {
    "all full": {"layer_types": [FULL] * 3},
    "full first": {"layer_types": [FULL, SLIDING, FULL]},
    "two slide": {"layer_types": [SLIDING, SLIDING, FULL]},
    "all slide": {"layer_types": [SLIDING] * 3},
    "another limit": {"swiglu_limit": 0.4},
    "one expert": {"num_experts_per_tok": 1},
    "epsilon": {"rms_norm_eps": 0.01},
}


def check(kind: str, config: dict[str, Any], tmp_path: Path, passed_over: bool) -> None:
    """Holds the model's four forms against transformers, over 300 tokens."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**COMMON | config))
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.5 if "bias" in name or "sinks" in name else 0.15)
    folder, gguf, back = tmp_path / "folder", tmp_path / "model.gguf", tmp_path / "back"
    model.save_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, 331, 300).tolist()
    reference = transformers_logits(folder, tokens, attn_implementation="eager")
    assert reference.std() > 0.3
    convert(folder, gguf, "gguf")
    convert(gguf, back, "hf")
    with open_checkpoint(folder) as a, open_checkpoint(gguf) as b, open_checkpoint(back) as c:
        assert a.architecture.computation() == b.architecture.computation() == c.architecture.computation()
        warned = any("llama.cpp" in text or "only oss-tools" in text for text in b.remarks)
    for path in (folder, gguf, back):
        with Engine.load(path, backend="torch", activations="f32") as engine:
            assert mean_kld(reference, np.asarray(engine.logits(tokens))) < 1e-6, path.name
    assert mean_kld(reference, transformers_logits(back, tokens, attn_implementation="eager")) < 1e-6
    divergence = mean_kld(reference, llama_cpp_logits(gguf, tokens))
    if passed_over:
        assert divergence > 1e-4
        assert warned
    else:
        assert divergence < 2e-4


@pytest.mark.parametrize("name", ROPES)
def test_positions_of_llama(name: str, tmp_path: Path) -> None:
    check("Llama", {"rope_parameters": ROPES[name] | {"rope_theta": 10000.0}}, tmp_path, name in PASSED_OVER)


@pytest.mark.parametrize("name", [n for n in ROPES if n != "yarn, not truncated"])
def test_positions_of_gpt_oss(name: str, tmp_path: Path) -> None:
    """llama.cpp has no divisors for gpt-oss, so that Llama 3's way is known to us alone."""
    words = ROPES[name] | {"rope_theta": 10000.0}
    check("GptOss", EXPERTS | {"rope_parameters": words}, tmp_path, name in PASSED_OVER or name.startswith("llama 3"))


@pytest.mark.parametrize("name", OTHERS)
def test_gpt_oss_as_it_was_not_published(name: str, tmp_path: Path) -> None:
    rope = {"rope_parameters": ROPES["yarn"] | {"rope_theta": 10000.0}}
    check("GptOss", EXPERTS | rope | OTHERS[name], tmp_path, name == "another limit")


@pytest.mark.parametrize(("kind", "kept"), [("Llama", "qkv"), ("Llama", ""), ("GptOss", "qk")])
def test_biases_on_some_projections_only(kind: str, kept: str, tmp_path: Path) -> None:
    """transformers takes those that the files lack as zero."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    torch.manual_seed(1)
    options = EXPERTS if kind == "GptOss" else {}
    model = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**COMMON | options | {"attention_bias": True})
    )
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.5 if "bias" in name or "sinks" in name else 0.15)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    lost = tuple(f"self_attn.{letter}_proj.bias" for letter in "qkvo" if letter not in kept)
    save_file({name: value for name, value in load_file(file).items() if not name.endswith(lost)}, file, {"format": "pt"})
    tokens = np.random.default_rng(0).integers(0, 331, 100).tolist()
    reference = transformers_logits(tmp_path, tokens, attn_implementation="eager")
    with open_checkpoint(tmp_path) as checkpoint:
        assert any(text.startswith("no bias of") for text in checkpoint.remarks)
    for backend in ("torch", "numba"):
        with Engine.load(tmp_path, backend=backend, activations="f32") as engine:
            assert mean_kld(reference, np.asarray(engine.logits(tokens))) < 1e-5, backend
