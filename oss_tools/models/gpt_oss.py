"""gpt-oss: OpenAI's open-weight mixture-of-experts models (https://arxiv.org/abs/2508.10925).

Name maps after openai/gpt-oss (`gpt_oss/torch/weights.py`), transformers (`models/gpt_oss`) and llama.cpp (`gpt-oss`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from oss_tools.models import gpt_oss_places
from oss_tools.models.base import Architecture
from oss_tools.models.gpt_oss_config import GptOssConfig, computation, from_hf, to_hf
from oss_tools.models.gpt_oss_words import OWN_KEYS, from_gguf, from_original, to_gguf, to_original
from oss_tools.models.operations import Gate, Heads, Operations, Rope, Router, Value
from oss_tools.models.stored import Stored
from oss_tools.models.tensors import Placement, TensorSpec, whole

__all__ = ["GptOss", "GptOssConfig"]


class GptOss(Architecture):
    """gpt-oss with its configuration in `config`."""

    model_type = "gpt_oss"
    gguf_name = "gpt-oss"
    containers = ("hf", "original", "gguf")

    def __init__(self, config: GptOssConfig) -> None:
        self.config = config

    # ---- configuration ----------------------------------------------------------------------------------------------

    @classmethod
    def from_words(cls, container: str, raw: Mapping[str, Any], stored: Stored) -> GptOss:
        read = {"hf": from_hf, "original": from_original, "gguf": from_gguf}[container]
        config, remarks = read(raw, stored)
        model = cls(config)
        model.remarks = remarks
        return model

    def hf_config(self) -> dict[str, Any]:
        if self.config.hf:
            return {key: value for key, value in self.config.hf.items() if key != "quantization_config"}
        return to_hf(self.config)

    def words(self, container: str) -> dict[str, Any]:
        return {"original": to_original, "gguf": to_gguf}[container](self.config)

    def said(self, names: Iterable[str]) -> dict[str, Any]:
        return {key: to_hf(self.config)[key] for name in names for key in OWN_KEYS.get(name, (name,))}

    def form(self, name: str) -> Any:
        return self.config.rope.form if name == "rope" else None

    def computation(self) -> dict[str, Any]:
        return computation(self.config)

    # ---- tensors ----------------------------------------------------------------------------------------------------

    def tensors(self) -> list[TensorSpec]:
        c = self.config
        hidden, inner, experts = c.hidden_size, c.intermediate_size, c.num_local_experts
        queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        specs = [TensorSpec("model.embed_tokens.weight", (c.vocab_size, hidden), "embedding")]
        for layer in range(c.num_hidden_layers):
            at = f"model.layers.{layer}."
            attention, mlp = at + "self_attn.", at + "mlp."
            specs += [TensorSpec(at + "input_layernorm.weight", (hidden,), "norm", layer)]
            for name, rows in (("q", queries), ("k", keys), ("v", keys)):
                specs += [
                    TensorSpec(f"{attention}{name}_proj.weight", (rows, hidden), f"attention.{name}", layer),
                    *(
                        [TensorSpec(f"{attention}{name}_proj.bias", (rows,), "bias", layer)]
                        if f"{name}_proj" in c.biases
                        else []
                    ),
                ]
            specs += [
                TensorSpec(attention + "o_proj.weight", (hidden, queries), "attention.out", layer),
                *([TensorSpec(attention + "o_proj.bias", (hidden,), "bias", layer)] if "o_proj" in c.biases else []),
                TensorSpec(attention + "sinks", (c.num_attention_heads,), "sinks", layer),
                TensorSpec(at + "post_attention_layernorm.weight", (hidden,), "norm", layer),
                TensorSpec(mlp + "router.weight", (experts, hidden), "router", layer),
                TensorSpec(mlp + "router.bias", (experts,), "bias", layer),
                TensorSpec(mlp + "experts.gate_up_proj", (experts, 2 * inner, hidden), "experts.gate_up", layer),
                TensorSpec(mlp + "experts.gate_up_proj_bias", (experts, 2 * inner), "bias", layer),
                TensorSpec(mlp + "experts.down_proj", (experts, hidden, inner), "experts.down", layer),
                TensorSpec(mlp + "experts.down_proj_bias", (experts, hidden), "bias", layer),
            ]
        specs += [
            TensorSpec("model.norm.weight", (hidden,), "norm"),
            TensorSpec("lm_head.weight", (c.vocab_size, hidden), "output", optional=c.tie_word_embeddings),
        ]
        return specs

    def placements(self, container: str, spec: TensorSpec, is_float: bool) -> list[Placement]:
        return {"hf": self._hf, "original": self._original, "gguf": self._gguf}[container](spec, is_float)

    def _hf(self, spec: TensorSpec, is_float: bool) -> list[Placement]:
        if spec.role.startswith("experts.") and is_float:  # unquantized experts are [experts, in, out]
            experts, out, inner = spec.shape
            return whole(spec.name, (experts, inner, out), spec, transposed=True)
        return whole(spec.name, spec.shape, spec)

    def _original(self, spec: TensorSpec, is_float: bool) -> list[Placement]:
        c = self.config
        name = spec.name.replace("model.layers.", "block.")
        for theirs, ours in ORIGINAL_NAMES.items():
            name = name.replace(theirs, ours)
        for letter, first, heads in (
            ("q", 0, c.num_attention_heads),
            ("k", c.num_attention_heads, c.num_key_value_heads),
            ("v", c.num_attention_heads + c.num_key_value_heads, c.num_key_value_heads),
        ):
            if f"self_attn.{letter}_proj" in name:
                rows = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
                stored = name.replace(f"self_attn.{letter}_proj", "attn.qkv")
                shape = (rows, *spec.shape[1:])
                return [Placement(stored, shape, heads * c.head_dim, rows, offset=first * c.head_dim)]
        return whole(name, spec.shape, spec)

    def _gguf(self, spec: TensorSpec, is_float: bool) -> list[Placement]:
        name = spec.name.replace("model.layers.", "blk.")
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        if "experts.gate_up_proj" in name:  # even rows are the gate, odd rows the up projection
            _, rows, _ = spec.matrices
            shape = (spec.shape[0], rows // 2, *spec.shape[2:])
            suffix = "bias" if name.endswith("_bias") else "weight"
            layer = f"blk.{spec.layer}."
            return [
                Placement(f"{layer}ffn_gate_exps.{suffix}", shape, rows // 2, rows // 2, first=0, step=2),
                Placement(f"{layer}ffn_up_exps.{suffix}", shape, rows // 2, rows // 2, first=1, step=2),
            ]
        return whole(name, spec.shape, spec)

    def other_placements(self, container: str, spec: TensorSpec, is_float: bool) -> Iterator[list[Placement]]:
        ways = {"hf": gpt_oss_places.hugging_face, "gguf": gpt_oss_places.gguf}
        if container in ways:
            yield from ways[container](self.config, spec, is_float)

    def active_parameters(self) -> int:
        c = self.config
        total = 0
        for spec in self.tensors():
            expert = spec.shape[0] == c.num_local_experts and "experts." in spec.name
            total += spec.size * c.num_experts_per_tok // c.num_local_experts if expert else spec.size
        return total - c.vocab_size * c.hidden_size  # the embedding is looked up, not multiplied

    # ---- forward pass -----------------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        return self.config.max_position_embeddings

    def rope(self) -> Rope:
        return self.config.rope.rope(self.config.head_dim, self.config.rope_theta)

    def attention_layers(self) -> list[Heads]:
        c = self.config
        return [
            Heads(
                layer,
                c.num_attention_heads,
                c.num_key_value_heads,
                c.head_dim,
                window=window,
                sinks=f"model.layers.{layer}.self_attn.sinks",
            )
            for layer, window in enumerate(c.windows)
        ]

    def forward(self, ops: Operations[Value]) -> Value:
        rope = self.rope()
        x = ops.embed("model.embed_tokens.weight")
        for layer, heads in enumerate(self.attention_layers()):
            at = f"model.layers.{layer}"
            x = ops.add(x, self._attention(ops, x, at, heads, rope))
            x = ops.add(x, self._experts(ops, x, at))
        return ops.rms_norm(x, "model.norm.weight", self.config.rms_norm_eps)

    def _attention(self, ops: Operations[Value], x: Value, at: str, heads: Heads, rope: Rope) -> Value:
        normed = ops.rms_norm(x, f"{at}.input_layernorm.weight", self.config.rms_norm_eps)
        query, key, value = ops.linears(normed, tuple(f"{at}.self_attn.{letter}_proj" for letter in "qkv"))
        query, key = ops.rope(query, heads.queries, rope), ops.rope(key, heads.keys, rope)
        return ops.linear(ops.attention(query, key, value, heads), f"{at}.self_attn.o_proj")

    def _experts(self, ops: Operations[Value], x: Value, at: str) -> Value:
        normed = ops.rms_norm(x, f"{at}.post_attention_layernorm.weight", self.config.rms_norm_eps)
        router = Router(self.config.num_local_experts, self.config.num_experts_per_tok)
        routing = ops.route(normed, f"{at}.mlp.router", router)
        return ops.experts(normed, routing, f"{at}.mlp.experts", Gate("swiglu_oai", self.config.swiglu_limit))


ORIGINAL_NAMES = {
    "model.embed_tokens.weight": "embedding.weight",
    "lm_head.weight": "unembedding.weight",
    "model.norm.weight": "norm.scale",
    "input_layernorm.weight": "attn.norm.scale",
    "post_attention_layernorm.weight": "mlp.norm.scale",
    "self_attn.o_proj": "attn.out",
    "self_attn.sinks": "attn.sinks",
    "mlp.router": "mlp.gate",
    "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias",
    "mlp.experts.gate_up_proj": "mlp.mlp1_weight",
    "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
    "mlp.experts.down_proj": "mlp.mlp2_weight",
}

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.sinks": "attn_sinks.weight",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.down_proj_bias": "ffn_down_exps.bias",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}
