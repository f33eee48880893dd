"""Recipes with llama.cpp's names give every tensor the type that its own quantizer gives it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import load_recipe
from oss_tools.convert.synth import load_shape, plan_synthesis, synthesize
from oss_tools.formats import format_of_ggml
from oss_tools.measure.conversion import LLAMA_QUANTIZE
from oss_tools.models import open_checkpoint

pytest.importorskip("llama_cpp", reason="needs the extra `peers`")
pytestmark = pytest.mark.peers
FILE_TYPES = {"q3_k_m": 12, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18}  # llama_ftype
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, 33 layers": ("llama-tiny", WIDE | {"num_hidden_layers": 33}),
    "llama, tied": ("llama-tiny", WIDE | {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "llama, 80 layers": ("llama-tiny", WIDE | {"num_hidden_layers": 80}),
    "llama, 80 layers, keys of their own": ("llama-tiny", WIDE | {"num_hidden_layers": 80, "num_key_value_heads": 4}),
    "rows of 288": (
        "llama-tiny",
        WIDE | {"hidden_size": 288, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 32},
    ),
    "mixtral, 8 experts": ("mixtral-tiny", WIDE | {"num_local_experts": 8, "num_hidden_layers": 9}),
    "qwen3, 16 experts": (
        "qwen3-moe-tiny",
        WIDE | {"num_experts": 16, "moe_intermediate_size": 256, "num_hidden_layers": 8},
    ),
    "qwen2, shared experts": ("qwen2-moe-tiny", {}),
    "gpt-oss": ("gpt-oss-tiny", {}),
    "gpt2": ("gpt2-tiny", {}),
    "deepseek": ("deepseek-v3-tiny", {}),
}

SMALL = [model for model, (_, changes) in MODELS.items() if changes.get("num_hidden_layers", 1) < 8]


@pytest.mark.parametrize("model", [pytest.param(m, marks=() if m in SMALL else pytest.mark.slow) for m in MODELS])
def test_types_are_llama_quantizes(model: str, tmp_path: Path) -> None:
    name, changes = MODELS[model]
    shape = load_shape(name)
    shape = replace(shape, config=shape.config | changes)
    plain = synthesize(plan_synthesis(shape, "gguf", load_recipe("bf16")), tmp_path / "plain.gguf")
    for recipe, number in FILE_TYPES.items():
        path = tmp_path / f"{recipe}.gguf"
        subprocess.run([sys.executable, "-c", LLAMA_QUANTIZE, plain, path, str(number), "1"], check=True)
        theirs = {t.name: format_of_ggml(t.tensor_type).name for t in GGUFReader(path).tensors}
        with open_checkpoint(plain) as checkpoint:
            stored = make_plan(checkpoint, "gguf", load_recipe(recipe)).stored
        # halves of kv_b, of which one is transposed in GGUF, stay as they are here
        ours = {t.name: t.format.name for t in stored if "attn_k_b" not in t.name and "attn_v_b" not in t.name}
        assert {n: (f, theirs[n]) for n, f in ours.items() if f != theirs[n]} == {}, recipe
        path.unlink()
