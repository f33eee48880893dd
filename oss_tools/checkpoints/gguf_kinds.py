"""GGUF files of other kinds and dialects: those that hold no model, each by its name, and Ollama's own layout of gpt-oss.

Source of the latter: ollama/ollama, `convert/convert_gptoss.go` and `model/models/gptoss/model.go`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf.constants import Keys

from oss_tools.checkpoints.gguf_header import OLLAMA_GPT_OSS

KINDS = {  # general.type, or the architecture of older files -> what the file is
    "adapter": "a LoRA adapter, not a model; `oss-tools merge MODEL ADAPTER DST` makes one of the two",
    "imatrix": "an importance matrix, not a model; it goes to --importance",
    "mmproj": "the projector of a model's images or sounds (mmproj), not a model; give the file of the model beside it",
    "clip": "the projector of a model's images (mmproj, clip), not a model; give the file of the model beside it",
    "controlvector": "a control vector, not a model",
}

OLLAMA_REMARK = "Ollama's own layout of gpt-oss (architecture gptoss), read as llama.cpp's"
OLLAMA_NAMES = {  # parts of names there -> llama.cpp's
    ".attn_out.": ".attn_output.",
    ".attn_sinks": ".attn_sinks.weight",
    ".ffn_norm.": ".post_attention_norm.",
    ".ffn_gate_up_exps.": ".ffn_gate_up_exps_interleaved.",  # llama.cpp's fused tensors have the gate's rows first
}
OLLAMA_SPLITTER = "gpt-4o"  # how that program splits text, whatever tokenizer.ggml.pre says


def no_model(keys: Mapping[str, Any]) -> str | None:
    """What a file is that holds no model; None if it seems to hold one."""
    for key in (Keys.General.TYPE, Keys.General.ARCHITECTURE):
        if isinstance(keys.get(key), str) and keys[key] in KINDS:
            return KINDS[keys[key]]
    return None


def is_ollama(keys: Mapping[str, Any]) -> bool:
    return keys.get(Keys.General.ARCHITECTURE) == OLLAMA_GPT_OSS


def ollama_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The key-values of an Ollama gpt-oss as llama.cpp has them: the rest of what Ollama's program takes for granted added."""
    found: dict[str, Any] = {}
    for key, value in keys.items():
        found[f"gpt-oss.{key.removeprefix('gptoss.')}" if key.startswith("gptoss.") else key] = value
    found[Keys.General.ARCHITECTURE] = "gpt-oss"
    found.setdefault("gpt-oss.expert_feed_forward_length", found.get("gpt-oss.feed_forward_length"))
    found.setdefault("gpt-oss.attention.layer_norm_rms_epsilon", 1e-5)
    if found.get("gpt-oss.rope.scaling.factor", 1.0) != 1.0:
        found.setdefault("gpt-oss.rope.scaling.type", "yarn")
    found["tokenizer.ggml.pre"] = OLLAMA_SPLITTER
    return found


def ollama_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    for theirs, ours in OLLAMA_NAMES.items():
        if theirs in name and ours not in name:
            name = name.replace(theirs, ours)
    return name
