"""gpt-oss: OpenAI's open-weight mixture-of-experts models (https://arxiv.org/abs/2508.10925).

Name maps after openai/gpt-oss (`gpt_oss/torch/weights.py`), transformers (`models/gpt_oss`) and llama.cpp (`gpt-oss`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from oss_tools.checkpoints import Reader
from oss_tools.models import base, gpt_oss_places
from oss_tools.models.base import Architecture, Placement, TensorSpec, whole
from oss_tools.models.operations import Heads, Operations, Rope, Value
from oss_tools.models.rope import yarn


@dataclass(frozen=True)
class GptOssConfig:
    """The dimensions of a gpt-oss model; names as in Hugging Face's config.json. Defaults are those of the 20b."""

    num_hidden_layers: int = 24
    num_local_experts: int = 32
    num_experts_per_tok: int = 4
    hidden_size: int = 2880
    intermediate_size: int = 2880
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 64
    vocab_size: int = 201088
    sliding_window: int = 128  # a key is visible on even layers when query - key < sliding_window
    swiglu_limit: float = 7.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    rope_theta: float = 150000.0
    rope_factor: float = 32.0  # YaRN; 1 turns it off
    rope_original_context: int = 4096
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    tie_word_embeddings: bool = False
    hf: Mapping[str, Any] = field(default_factory=dict, compare=False)  # config.json as read, if it came from there


LIMITS: dict[str, tuple[type, float, float]] = {
    "num_hidden_layers": (int, 1, 4096),
    "num_local_experts": (int, 1, 65536),
    "num_experts_per_tok": (int, 1, 65536),
    "hidden_size": (int, 1, 1 << 20),
    "intermediate_size": (int, 1, 1 << 20),
    "num_attention_heads": (int, 1, 65536),
    "num_key_value_heads": (int, 1, 65536),
    "head_dim": (int, 2, 65536),
    "vocab_size": (int, 1, 1 << 28),
    "sliding_window": (int, 1, 1 << 30),
    "max_position_embeddings": (int, 1, 1 << 30),
    "swiglu_limit": (float, 0, 1e6),
    "rms_norm_eps": (float, 0, 1),
    "rope_theta": (float, 1e-3, 1e12),
    "rope_factor": (float, 1e-3, 1e6),
    "rope_original_context": (int, 1, 1 << 30),
    "rope_beta_fast": (float, 0, 1e6),
    "rope_beta_slow": (float, 0, 1e6),
}

# original config.json field -> ours
ORIGINAL_FIELDS = {
    "num_hidden_layers": "num_hidden_layers",
    "num_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "swiglu_limit": "swiglu_limit",
    "head_dim": "head_dim",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "sliding_window": "sliding_window",
    "initial_context_length": "rope_original_context",
    "rope_theta": "rope_theta",
    "rope_scaling_factor": "rope_factor",
    "rope_ntk_alpha": "rope_beta_slow",
    "rope_ntk_beta": "rope_beta_fast",
}

# GGUF key, after "gpt-oss." -> ours
GGUF_FIELDS = {
    "block_count": "num_hidden_layers",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "embedding_length": "hidden_size",
    "expert_feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
    "attention.sliding_window": "sliding_window",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "rope.scaling.factor": "rope_factor",
    "rope.scaling.original_context_length": "rope_original_context",
    "rope.scaling.yarn_beta_fast": "rope_beta_fast",
    "rope.scaling.yarn_beta_slow": "rope_beta_slow",
}


class GptOss(Architecture):
    """gpt-oss with its configuration in `config`."""

    model_type = "gpt_oss"
    gguf_name = "gpt-oss"
    containers = ("hf", "original", "gguf")

    def __init__(self, config: GptOssConfig) -> None:
        self.config = config

    # ---- configuration ----------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, container: str, raw: Mapping[str, Any], reader: Reader | None = None) -> GptOss:
        where = {"hf": "config.json", "original": "config.json", "gguf": "metadata gpt-oss.*"}[container]
        fields = {"hf": _from_hf, "original": _from_original, "gguf": _from_gguf}[container](raw)
        if container == "gguf" and reader:
            fields["tie_word_embeddings"] = "output.weight" not in reader.tensors
        for key, (kind, low, high) in LIMITS.items():
            fields[key] = base.field(fields, key, kind, where, low, high)
        config = GptOssConfig(**fields, hf=dict(raw) if container == "hf" else {})
        if config.num_attention_heads % config.num_key_value_heads or config.num_experts_per_tok > config.num_local_experts:
            raise base.BadCheckpoint(
                f"{where}: {config.num_attention_heads} query heads over {config.num_key_value_heads} key-value heads, "
                f"{config.num_experts_per_tok} of {config.num_local_experts} experts: not a possible model"
            )
        return cls(config)

    def hf_config(self) -> dict[str, Any]:
        c = self.config
        if c.hf:
            return {k: v for k, v in c.hf.items() if k != "quantization_config"}
        rope_scaling = {
            "rope_type": "yarn",
            "factor": c.rope_factor,
            "beta_fast": c.rope_beta_fast,
            "beta_slow": c.rope_beta_slow,
            "original_max_position_embeddings": c.rope_original_context,
            "truncate": False,
        }
        return {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "attention_bias": True,
            "attention_dropout": 0.0,
            "experts_per_token": c.num_experts_per_tok,
            "head_dim": c.head_dim,
            "hidden_act": "silu",
            "hidden_size": c.hidden_size,
            "initial_context_length": c.rope_original_context,
            "intermediate_size": c.intermediate_size,
            "layer_types": _layer_types(c.num_hidden_layers),
            "max_position_embeddings": c.max_position_embeddings,
            "num_attention_heads": c.num_attention_heads,
            "num_experts_per_tok": c.num_experts_per_tok,
            "num_hidden_layers": c.num_hidden_layers,
            "num_key_value_heads": c.num_key_value_heads,
            "num_local_experts": c.num_local_experts,
            "rms_norm_eps": c.rms_norm_eps,
            "rope_scaling": rope_scaling if c.rope_factor != 1.0 else None,
            "rope_theta": c.rope_theta,
            "sliding_window": c.sliding_window,
            "swiglu_limit": c.swiglu_limit,
            "tie_word_embeddings": c.tie_word_embeddings,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": c.vocab_size,
        }

    def container_config(self, container: str) -> dict[str, Any]:
        c = self.config
        if container == "original":
            self._refuse_what_original_cannot_say()
            return {theirs: getattr(c, ours) for theirs, ours in ORIGINAL_FIELDS.items()}
        if container == "gguf":
            keys: dict[str, Any] = {"general.architecture": self.gguf_name}
            keys |= {f"gpt-oss.{theirs}": getattr(c, ours) for theirs, ours in GGUF_FIELDS.items()}
            keys["gpt-oss.attention.value_length"] = c.head_dim
            keys["gpt-oss.feed_forward_length"] = c.intermediate_size
            if c.rope_factor != 1.0:
                keys["gpt-oss.rope.scaling.type"] = "yarn"
            else:
                keys = {k: v for k, v in keys.items() if ".rope.scaling." not in k}
            return keys
        return {}

    def _refuse_what_original_cannot_say(self) -> None:
        c = self.config
        for key, only in (("rms_norm_eps", 1e-5), ("tie_word_embeddings", False)):
            if getattr(c, key) != only:
                raise base.BadCheckpoint(
                    f"the container original cannot hold this model: {key} is {getattr(c, key)}, always {only} there"
                )

    def computation(self) -> dict[str, Any]:
        return {field.name: getattr(self.config, field.name) for field in fields(self.config) if field.compare}

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
                    TensorSpec(f"{attention}{name}_proj.bias", (rows,), "bias", layer),
                ]
            specs += [
                TensorSpec(attention + "o_proj.weight", (hidden, queries), "attention.out", layer),
                TensorSpec(attention + "o_proj.bias", (hidden,), "bias", layer),
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
        c = self.config
        return yarn(c.head_dim, c.rope_theta, c.rope_factor, c.rope_original_context, c.rope_beta_fast, c.rope_beta_slow)

    def attention_layers(self) -> list[Heads]:
        c = self.config
        return [
            Heads(
                layer,
                c.num_attention_heads,
                c.num_key_value_heads,
                c.head_dim,
                window=None if layer % 2 else c.sliding_window,
                sinks=f"model.layers.{layer}.self_attn.sinks",
            )
            for layer in range(c.num_hidden_layers)
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
        routing = ops.route(normed, f"{at}.mlp.router", self.config.num_experts_per_tok)
        return ops.experts(normed, routing, f"{at}.mlp.experts", self.config.swiglu_limit)


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


def _layer_types(layers: int) -> list[str]:
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]


def _from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    fields = {key: raw.get(key) for key in LIMITS}
    types = raw.get("layer_types")
    if types and (not isinstance(types, list) or types != _layer_types(len(types))):
        raise base.BadCheckpoint("config.json: layer_types do not alternate, sliding_attention first, as gpt-oss's do")
    if raw.get("swiglu_alpha", 1.702) != 1.702:
        raise base.BadCheckpoint(f"config.json: swiglu_alpha is {base.shown(raw['swiglu_alpha'])}, always 1.702 in gpt-oss")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise base.BadCheckpoint(f"config.json: rope_scaling is {base.shown(rope)}, expected an object")
    yarn = rope.get("rope_type", rope.get("type")) == "yarn"
    fields["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta"))
    fields |= {
        "swiglu_limit": raw.get("swiglu_limit", 7.0),
        "max_position_embeddings": raw.get("max_position_embeddings", 131072),
        "rope_factor": rope.get("factor", 1.0) if yarn else 1.0,
        "rope_original_context": rope.get("original_max_position_embeddings") or raw.get("initial_context_length", 4096),
        "rope_beta_fast": rope.get("beta_fast") or 32.0,
        "rope_beta_slow": rope.get("beta_slow") or 1.0,
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
    }
    if yarn and rope.get("truncate", True):
        raise base.BadCheckpoint("config.json: rope_scaling.truncate is not false; no gpt-oss model is made so")
    return fields


def _from_original(raw: Mapping[str, Any]) -> dict[str, Any]:
    defaults = GptOssConfig()
    fields = {ours: raw.get(theirs, getattr(defaults, ours)) for theirs, ours in ORIGINAL_FIELDS.items()}
    context, factor = fields["rope_original_context"], fields["rope_factor"]
    if isinstance(context, int) and isinstance(factor, (int, float)) and 1 <= factor <= LIMITS["rope_factor"][2]:
        fields["max_position_embeddings"] = int(context * factor)
    return {"max_position_embeddings": context} | fields | {"rms_norm_eps": defaults.rms_norm_eps}


def _from_gguf(raw: Mapping[str, Any]) -> dict[str, Any]:
    defaults = GptOssConfig()
    optional = ("rope_factor", "rope_original_context", "rope_beta_fast", "rope_beta_slow", "max_position_embeddings")
    fields = {key: getattr(defaults, key) for key in ("swiglu_limit", *optional)}
    fields |= {ours: raw[f"gpt-oss.{theirs}"] for theirs, ours in GGUF_FIELDS.items() if f"gpt-oss.{theirs}" in raw}
    if "rope.scaling.type" not in {k.removeprefix("gpt-oss.") for k in raw}:
        fields["rope_factor"] = 1.0
    fields.setdefault("vocab_size", len(raw.get("tokenizer.ggml.tokens", ())) or None)
    return fields
