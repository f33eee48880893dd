"""The Llama family: Llama 2 (https://arxiv.org/abs/2307.09288), Llama 3 with its rope scaling
(https://arxiv.org/abs/2407.21783), SmolLM2 and others of model_type `llama`.

Name maps and the rotary row order after transformers (`models/llama`) and llama.cpp (`llama`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from oss_tools.checkpoints import Reader
from oss_tools.models import base
from oss_tools.models.base import Architecture, Placement, TensorSpec, whole
from oss_tools.models.operations import Heads, Operations, Rope, Value
from oss_tools.models.rope import plain


@dataclass(frozen=True)
class LlamaConfig:
    """The dimensions of a Llama model; names as in Hugging Face's config.json."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None  # Llama 3's: factor, low_freq_factor, high_freq_factor, original context
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hf: Mapping[str, Any] = field(default_factory=dict, compare=False)  # config.json as read, if it came from there


LIMITS: dict[str, tuple[type, float, float]] = {
    "num_hidden_layers": (int, 1, 4096),
    "hidden_size": (int, 1, 1 << 20),
    "intermediate_size": (int, 1, 1 << 20),
    "num_attention_heads": (int, 1, 65536),
    "num_key_value_heads": (int, 1, 65536),
    "head_dim": (int, 2, 65536),
    "vocab_size": (int, 1, 1 << 28),
    "rms_norm_eps": (float, 0, 1),
    "max_position_embeddings": (int, 1, 1 << 30),
    "rope_theta": (float, 1e-3, 1e12),
}

ROPE_LIMITS: dict[str, tuple[type, float, float]] = {
    "factor": (float, 1, 1e6),
    "low_freq_factor": (float, 1e-3, 1e6),
    "high_freq_factor": (float, 1e-3, 1e6),
    "original_max_position_embeddings": (int, 1, 1 << 30),
}

# GGUF key, after "llama." -> ours
GGUF_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.dimension_count": "head_dim",
    "vocab_size": "vocab_size",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class Llama(Architecture):
    """A Llama model with its configuration in `config`."""

    model_type = "llama"
    gguf_name = "llama"

    def __init__(self, config: LlamaConfig) -> None:
        self.config = config

    # ---- configuration ----------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, container: str, raw: Mapping[str, Any], reader: Reader | None = None) -> Llama:
        where = "config.json" if container == "hf" else "metadata llama.*"
        fields = _from_hf(raw) if container == "hf" else _from_gguf(raw, reader)
        for key, (kind, low, high) in LIMITS.items():
            fields[key] = base.field(fields, key, kind, where, low, high)
        if fields["num_attention_heads"] % fields["num_key_value_heads"]:
            raise base.BadCheckpoint(
                f"{where}: {fields['num_attention_heads']} query heads do not divide over "
                f"{fields['num_key_value_heads']} key-value heads"
            )
        if fields.get("rope_scaling"):
            for key, (kind, low, high) in ROPE_LIMITS.items():
                base.field(fields["rope_scaling"], key, kind, f"{where}: rope_scaling", low, high)
        return cls(LlamaConfig(**fields, hf=dict(raw) if container == "hf" else {}))

    def hf_config(self) -> dict[str, Any]:
        c = self.config
        if c.hf:
            return {k: v for k, v in c.hf.items() if k != "quantization_config"}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": c.attention_bias,
            "attention_dropout": 0.0,
            "head_dim": c.head_dim,
            "hidden_act": "silu",
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "max_position_embeddings": c.max_position_embeddings,
            "mlp_bias": c.mlp_bias,
            "num_attention_heads": c.num_attention_heads,
            "num_hidden_layers": c.num_hidden_layers,
            "num_key_value_heads": c.num_key_value_heads,
            "rms_norm_eps": c.rms_norm_eps,
            "rope_scaling": dict(c.rope_scaling) if c.rope_scaling else None,
            "rope_theta": c.rope_theta,
            "tie_word_embeddings": c.tie_word_embeddings,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": c.vocab_size,
        }

    def container_config(self, container: str) -> dict[str, Any]:
        if container != "gguf":
            return {}
        c = self.config
        keys: dict[str, Any] = {"general.architecture": self.gguf_name}
        keys |= {f"llama.{theirs}": getattr(c, ours) for theirs, ours in GGUF_FIELDS.items()}
        keys["llama.attention.key_length"] = keys["llama.attention.value_length"] = c.head_dim
        return keys

    def derived_tensors(self, container: str) -> dict[str, np.ndarray]:
        return {"rope_freqs.weight": rope_factors(self.config)} if container == "gguf" and self.config.rope_scaling else {}

    def computation(self) -> dict[str, Any]:
        return {field.name: getattr(self.config, field.name) for field in fields(self.config) if field.compare}

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def tensors(self) -> list[TensorSpec]:
        c = self.config
        hidden, inner = c.hidden_size, c.intermediate_size
        queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        specs = [TensorSpec("model.embed_tokens.weight", (c.vocab_size, hidden), "embedding")]
        for layer in range(c.num_hidden_layers):
            at = f"model.layers.{layer}."
            specs += [TensorSpec(at + "input_layernorm.weight", (hidden,), "norm", layer)]
            for name, role, shape, bias in (
                ("self_attn.q_proj", "attention.q", (queries, hidden), c.attention_bias),
                ("self_attn.k_proj", "attention.k", (keys, hidden), c.attention_bias),
                ("self_attn.v_proj", "attention.v", (keys, hidden), c.attention_bias),
                ("self_attn.o_proj", "attention.out", (hidden, queries), c.attention_bias),
                ("mlp.gate_proj", "mlp.gate", (inner, hidden), c.mlp_bias),
                ("mlp.up_proj", "mlp.up", (inner, hidden), c.mlp_bias),
                ("mlp.down_proj", "mlp.down", (hidden, inner), c.mlp_bias),
            ):
                specs += [TensorSpec(f"{at}{name}.weight", shape, role, layer)]
                if bias:
                    specs += [TensorSpec(f"{at}{name}.bias", shape[:1], "bias", layer)]
            specs += [TensorSpec(at + "post_attention_layernorm.weight", (hidden,), "norm", layer)]
        return [
            *specs,
            TensorSpec("model.norm.weight", (hidden,), "norm"),
            TensorSpec("lm_head.weight", (c.vocab_size, hidden), "output", optional=c.tie_word_embeddings),
        ]

    def placements(self, container: str, spec: TensorSpec, is_float: bool) -> list[Placement]:
        if container == "hf":
            return whole(spec.name, spec.shape, spec)
        name = spec.name.replace("model.layers.", "blk.")
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        rotated = ".attn_q." in name or ".attn_k." in name
        return whole(name, spec.shape, spec, rotary=self.config.head_dim if rotated else 0)

    def other_placements(self, container: str, spec: TensorSpec, is_float: bool) -> Iterator[list[Placement]]:
        if container == "hf" and spec.role == "embedding" and self.config.tie_word_embeddings:
            yield whole("lm_head.weight", spec.shape, spec)

    def is_ignored(self, stored: str) -> bool:
        return stored == "rope_freqs.weight"

    def active_parameters(self) -> int:
        c = self.config
        table = c.vocab_size * c.hidden_size
        return sum(spec.size for spec in self.tensors()) - table  # the embedding is looked up, not multiplied

    # ---- forward pass -----------------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        return self.config.max_position_embeddings

    def rope(self) -> Rope:
        c = self.config
        return plain(c.head_dim, c.rope_theta, rope_factors(c) if c.rope_scaling else None)

    def attention_layers(self) -> list[Heads]:
        c = self.config
        return [
            Heads(layer, c.num_attention_heads, c.num_key_value_heads, c.head_dim) for layer in range(c.num_hidden_layers)
        ]

    def forward(self, ops: Operations[Value]) -> Value:
        rope = self.rope()
        x = ops.embed("model.embed_tokens.weight")
        for layer, heads in enumerate(self.attention_layers()):
            at = f"model.layers.{layer}"
            x = ops.add(x, self._attention(ops, x, at, heads, rope))
            x = ops.add(x, self._mlp(ops, x, at))
        return ops.rms_norm(x, "model.norm.weight", self.config.rms_norm_eps)

    def _attention(self, ops: Operations[Value], x: Value, at: str, heads: Heads, rope: Rope) -> Value:
        normed = ops.rms_norm(x, f"{at}.input_layernorm.weight", self.config.rms_norm_eps)
        query, key, value = ops.linears(normed, tuple(f"{at}.self_attn.{letter}_proj" for letter in "qkv"))
        query, key = ops.rope(query, heads.queries, rope), ops.rope(key, heads.keys, rope)
        return ops.linear(ops.attention(query, key, value, heads), f"{at}.self_attn.o_proj")

    def _mlp(self, ops: Operations[Value], x: Value, at: str) -> Value:
        normed = ops.rms_norm(x, f"{at}.post_attention_layernorm.weight", self.config.rms_norm_eps)
        return ops.linear(ops.gated(normed, f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")


def rope_factors(config: LlamaConfig) -> np.ndarray:
    """Llama 3's frequency divisors, float32 [head_dim / 2] (the `rope_freqs` tensor of GGUF files).

    Source: transformers' `_compute_llama3_parameters`; divisors are 1 for short wavelengths and `factor` for long ones.
    """
    scaling = config.rope_scaling or {}
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi * config.rope_theta ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    smooth = np.clip((context / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    fields = {key: raw.get(key) for key in LIMITS}
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise base.BadCheckpoint(f"config.json: rope_scaling is {base.shown(rope)}, expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        supported = "supported: default, llama3"
        raise base.BadCheckpoint(f"config.json: rope_type {base.shown(kind)} is not supported for llama; {supported}")
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        act = base.shown(raw["hidden_act"])
        raise base.BadCheckpoint(f"config.json: hidden_act {act} is not supported for llama; supported: silu")
    heads = raw.get("num_attention_heads")
    if fields["head_dim"] is None and isinstance(heads, int) and isinstance(raw.get("hidden_size"), int) and heads > 0:
        fields["head_dim"] = raw["hidden_size"] // heads
    fields["num_key_value_heads"] = raw.get("num_key_value_heads") or heads
    fields["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    fields["max_position_embeddings"] = raw.get("max_position_embeddings", 2048)
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    return fields | {
        "rope_scaling": scaling if kind == "llama3" else None,
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "attention_bias": bool(raw.get("attention_bias", False)),
        "mlp_bias": bool(raw.get("mlp_bias", False)),
    }


def _from_gguf(raw: Mapping[str, Any], reader: Reader | None) -> dict[str, Any]:
    fields = {ours: raw[f"llama.{theirs}"] for theirs, ours in GGUF_FIELDS.items() if f"llama.{theirs}" in raw}
    heads, hidden = fields.get("num_attention_heads"), fields.get("hidden_size")
    fields["head_dim"] = raw.get("llama.attention.key_length", fields.get("head_dim"))
    if fields["head_dim"] is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        fields["head_dim"] = hidden // heads
    fields.setdefault("num_key_value_heads", heads)
    fields.setdefault("rope_theta", 10000.0)
    fields.setdefault("vocab_size", len(raw.get("tokenizer.ggml.tokens", ())) or None)
    if reader:
        fields["tie_word_embeddings"] = "output.weight" not in reader.tensors
        fields["attention_bias"] = "blk.0.attn_q.bias" in reader.tensors
        fields["mlp_bias"] = "blk.0.ffn_gate.bias" in reader.tensors
        fields["rope_scaling"] = _rope_scaling_of(reader)
    return fields


def _rope_scaling_of(reader: Reader) -> dict[str, Any] | None:
    """Llama 3's rope scaling from a GGUF file, which holds only the divisors that it amounts to. The largest one is the
    factor; the other three parameters are those of every published Llama 3."""
    stored = reader.tensors.get("rope_freqs.weight")
    if stored is None:
        return None
    factors = reader.read(stored.name, 0, stored.size, 1).dequantize()
    return {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
