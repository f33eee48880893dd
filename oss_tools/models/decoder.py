"""Decoders that are built as Llama is: RMSNorm, rotary positions, grouped heads, a gated MLP. A family's file says what is its
own.

Source: transformers' `models/llama/modeling_llama.py`, which most others begin from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from oss_tools.models.base import Architecture
from oss_tools.models.decoder_config import DecoderConfig, Family, computation, from_hf, to_hf
from oss_tools.models.decoder_words import OWN_KEYS, from_gguf, to_gguf
from oss_tools.models.operations import Heads, Operations, Rope, Value
from oss_tools.models.stored import ROPE_FREQS, Stored
from oss_tools.models.tensors import Placement, TensorSpec, whole
from oss_tools.models.windows import types_of, width

GGUF_NAMES = {  # modules of the model, and of a layer
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}


class Decoder(Architecture):
    """Such a model, with its configuration in `config`.

    Attributes:
        family: what its configuration says beyond the common.
        head_norms: whether each head of queries and keys is normed before it is rotated.
    """

    family: ClassVar[Family]
    head_norms: ClassVar[bool] = False

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config

    def __init_subclass__(cls) -> None:
        if cls.model_type:
            cls.gguf_name = cls.family.gguf
        super().__init_subclass__()

    # ---- configuration ----------------------------------------------------------------------------------------------

    @classmethod
    def from_words(cls, container: str, raw: Mapping[str, Any], stored: Stored) -> Self:
        config, remarks = (from_hf if container == "hf" else from_gguf)(cls.family, raw, stored)
        model = cls(config)
        model.remarks = remarks
        return model

    def hf_config(self) -> dict[str, Any]:
        if self.config.hf:
            return {key: value for key, value in self.config.hf.items() if key != "quantization_config"}
        return to_hf(self.family, self.model_type, self.config)

    def words(self, container: str) -> dict[str, Any]:
        return to_gguf(self.family, self.model_type, self.config)

    def said(self, names: Iterable[str]) -> dict[str, Any]:
        words = to_hf(self.family, self.model_type, self.config)
        windows = self.config.sliding_window
        words |= {"sliding_window": width(windows), "layer_types": types_of(windows, self.config.num_hidden_layers)}
        return {key: words[key] for name in names for key in OWN_KEYS.get(name, (name,))}

    def form(self, name: str) -> Any:
        return self.config.rope.form if name == "rope" else None

    def derived_tensors(self, container: str) -> dict[str, np.ndarray]:
        c = self.config
        has_divisors = container == "gguf" and self.family.gguf_rotates
        divisors = c.rope.all_divisors(c.head_dim, c.rope_theta) if has_divisors else ()
        return {ROPE_FREQS: np.array(divisors, np.float32)} if divisors else {}

    def computation(self) -> dict[str, Any]:
        return computation(self.config)

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def tensors(self) -> list[TensorSpec]:
        c = self.config
        specs = [TensorSpec("model.embed_tokens.weight", (c.vocab_size, c.hidden_size), "embedding")]
        for layer in range(c.num_hidden_layers):
            at = f"model.layers.{layer}."
            specs += [
                TensorSpec(at + "input_layernorm.weight", (c.hidden_size,), "norm", layer),
                *self._attention_tensors(layer, at + "self_attn."),
                TensorSpec(at + "post_attention_layernorm.weight", (c.hidden_size,), "norm", layer),
                *self._mlp_tensors(layer, at + "mlp."),
            ]
        return [
            *specs,
            TensorSpec("model.norm.weight", (c.hidden_size,), "norm"),
            TensorSpec("lm_head.weight", (c.vocab_size, c.hidden_size), "output", optional=c.tie_word_embeddings),
        ]

    def _attention_tensors(self, layer: int, at: str) -> Iterator[TensorSpec]:
        c = self.config
        queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        for letter, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield from self._linear(layer, f"{at}{letter}_proj", f"attention.{letter}", (rows, c.hidden_size))
        if self.head_norms:
            for letter in "qk":
                yield TensorSpec(f"{at}{letter}_norm.weight", (c.head_dim,), "norm", layer)
        yield from self._linear(layer, f"{at}o_proj", "attention.out", (c.hidden_size, queries))

    def _mlp_tensors(self, layer: int, at: str) -> Iterator[TensorSpec]:
        yield from self._gated_tensors(layer, at, self.config.intermediate_size)

    def _gated_tensors(self, layer: int, at: str, inner: int) -> Iterator[TensorSpec]:
        """Of a gated MLP with so many inner values."""
        hidden = self.config.hidden_size
        for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            yield from self._linear(layer, f"{at}{part}_proj", f"mlp.{part}", shape)

    def _linear(self, layer: int, name: str, role: str, shape: tuple[int, int]) -> Iterator[TensorSpec]:
        yield TensorSpec(f"{name}.weight", shape, role, layer)
        if name.rpartition(".")[2] in self.config.biases:
            yield TensorSpec(f"{name}.bias", shape[:1], "bias", layer)

    def placements(self, container: str, spec: TensorSpec, is_float: bool) -> list[Placement]:
        if container == "hf":
            return whole(spec.name, spec.shape, spec)
        return whole(gguf_name(spec), spec.shape, spec, rotary=self.config.head_dim if self._is_rotated(spec) else 0)

    def _is_rotated(self, spec: TensorSpec) -> bool:
        """Whether GGUF holds this tensor's rows in the order in which llama.cpp turns pairs of them."""
        return self.family.gguf_rotates and spec.name.split(".")[-2] in ("q_proj", "k_proj")

    def other_placements(self, container: str, spec: TensorSpec, is_float: bool) -> Iterator[list[Placement]]:
        if container == "hf" and spec.role == "embedding" and self.config.tie_word_embeddings:
            yield whole("lm_head.weight", spec.shape, spec)

    def is_ignored(self, stored: str) -> bool:
        return stored == ROPE_FREQS and self.family.gguf_rotates

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
        windows = c.sliding_window or (None,) * c.num_hidden_layers
        return [
            Heads(layer, c.num_attention_heads, c.num_key_value_heads, c.head_dim, window=window)
            for layer, window in enumerate(windows)
        ]

    def forward(self, ops: Operations[Value]) -> Value:
        rope = self.rope()
        x = ops.embed("model.embed_tokens.weight")
        for layer, heads in enumerate(self.attention_layers()):
            at = f"model.layers.{layer}"
            normed = ops.rms_norm(x, f"{at}.input_layernorm.weight", self.config.rms_norm_eps)
            x = ops.add(x, self._attention(ops, normed, f"{at}.self_attn", heads, rope))
            normed = ops.rms_norm(x, f"{at}.post_attention_layernorm.weight", self.config.rms_norm_eps)
            x = ops.add(x, self._mlp(ops, normed, f"{at}.mlp", layer))
        return ops.rms_norm(x, "model.norm.weight", self.config.rms_norm_eps)

    def _attention(self, ops: Operations[Value], x: Value, at: str, heads: Heads, rope: Rope) -> Value:
        query, key, value = ops.linears(x, tuple(f"{at}.{letter}_proj" for letter in "qkv"))
        if self.head_norms:
            query = ops.head_norm(query, heads.queries, f"{at}.q_norm.weight", self.config.rms_norm_eps)
            key = ops.head_norm(key, heads.keys, f"{at}.k_norm.weight", self.config.rms_norm_eps)
        query, key = ops.rope(query, heads.queries, rope), ops.rope(key, heads.keys, rope)
        return ops.linear(ops.attention(query, key, value, heads), f"{at}.o_proj")

    def _mlp(self, ops: Operations[Value], x: Value, at: str, layer: int) -> Value:
        return ops.linear(ops.gated(x, f"{at}.gate_proj", f"{at}.up_proj"), f"{at}.down_proj")


def gguf_name(spec: TensorSpec) -> str:
    """The name that llama.cpp has for a tensor of one module."""
    module, _, part = spec.name.rpartition(".")
    if spec.layer is None:
        return f"{GGUF_NAMES[module]}.{part}"
    return f"blk.{spec.layer}.{GGUF_NAMES[module.removeprefix(f'model.layers.{spec.layer}.')]}.{part}"
