"""The Llama family: Llama 2 (https://arxiv.org/abs/2307.09288), Llama 3 with its rope scaling
(https://arxiv.org/abs/2407.21783), SmolLM2 and others of model_type `llama`.

Name maps and the rotary row order after transformers (`models/llama`) and llama.cpp (`llama`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from oss_tools.models.base import ROPE_FREQS, Architecture, Placement, Stored, TensorSpec, whole
from oss_tools.models.llama_config import OWN_KEYS, LlamaConfig, computation, from_gguf, from_hf, to_gguf, to_hf
from oss_tools.models.operations import Heads, Operations, Rope, Value

__all__ = ["Llama", "LlamaConfig"]

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
    def from_words(cls, container: str, raw: Mapping[str, Any], stored: Stored) -> Llama:
        config, remarks = (from_hf if container == "hf" else from_gguf)(raw, stored)
        model = cls(config)
        model.remarks = remarks
        return model

    def hf_config(self) -> dict[str, Any]:
        if self.config.hf:
            return {key: value for key, value in self.config.hf.items() if key != "quantization_config"}
        return to_hf(self.config)

    def words(self, container: str) -> dict[str, Any]:
        return to_gguf(self.config)

    def said(self, names: Iterable[str]) -> dict[str, Any]:
        return {key: to_hf(self.config)[key] for key in (OWN_KEYS.get(name, name) for name in names)}

    def form(self, name: str) -> Any:
        return self.config.rope.form if name == "rope" else None

    def derived_tensors(self, container: str) -> dict[str, np.ndarray]:
        c = self.config
        divisors = c.rope.all_divisors(c.head_dim, c.rope_theta) if container == "gguf" else ()
        return {ROPE_FREQS: np.array(divisors, np.float32)} if divisors else {}

    def computation(self) -> dict[str, Any]:
        return computation(self.config)

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def tensors(self) -> list[TensorSpec]:
        c = self.config
        hidden, inner = c.hidden_size, c.intermediate_size
        queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        specs = [TensorSpec("model.embed_tokens.weight", (c.vocab_size, hidden), "embedding")]
        for layer in range(c.num_hidden_layers):
            at = f"model.layers.{layer}."
            specs += [TensorSpec(at + "input_layernorm.weight", (hidden,), "norm", layer)]
            for name, role, shape in (
                ("self_attn.q_proj", "attention.q", (queries, hidden)),
                ("self_attn.k_proj", "attention.k", (keys, hidden)),
                ("self_attn.v_proj", "attention.v", (keys, hidden)),
                ("self_attn.o_proj", "attention.out", (hidden, queries)),
                ("mlp.gate_proj", "mlp.gate", (inner, hidden)),
                ("mlp.up_proj", "mlp.up", (inner, hidden)),
                ("mlp.down_proj", "mlp.down", (hidden, inner)),
            ):
                specs += [TensorSpec(f"{at}{name}.weight", shape, role, layer)]
                if name.split(".")[-1] in c.biases:
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
        return stored == ROPE_FREQS

    def active_parameters(self) -> int:
        c = self.config
        table = c.vocab_size * c.hidden_size
        return sum(spec.size for spec in self.tensors()) - table  # the embedding is looked up, not multiplied

    # ---- forward pass -----------------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        return self.config.max_position_embeddings

    def rope(self) -> Rope:
        return self.config.rope.rope(self.config.head_dim, self.config.rope_theta)

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
