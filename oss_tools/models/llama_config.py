"""A Llama's configuration, and how config.json and GGUF say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from oss_tools.errors import BadCheckpoint
from oss_tools.models import fields as check
from oss_tools.models import rope_gguf, rope_hf
from oss_tools.models.base import Stored
from oss_tools.models.configuration import check_heads, gguf_numbers, head_size, hf_biases, own_remarks, own_rope
from oss_tools.models.fields import shown
from oss_tools.models.keys import (
    NEUTRAL_IN_CONFIG,
    NEUTRAL_IN_GGUF,
    PASSED_OVER_IN_CONFIG,
    PASSED_OVER_IN_GGUF,
    ROPE_IN_CONFIG,
    ROPE_IN_GGUF,
    Keys,
    check_keys,
)
from oss_tools.models.own_keys import own_words
from oss_tools.models.rope import PLAIN, Positions, Scaling

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


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
    rope: Scaling = PLAIN
    tie_word_embeddings: bool = False
    biases: tuple[str, ...] = ()  # the projections that have one, of ATTENTION and MLP
    hf: Mapping[str, Any] = field(default_factory=dict, compare=False)  # config.json as read, if it came from there


LIMITS: check.Limits = {
    "num_hidden_layers": (int, 1, 4096),
    "hidden_size": (int, 1, 1 << 20),
    "intermediate_size": (int, 1, 1 << 20),
    "num_attention_heads": (int, 1, 65536),
    "num_key_value_heads": (int, 1, 65536),
    "head_dim": (int, 2, 65536),
    "vocab_size": (int, 1, 1 << 28),
    "rms_norm_eps": (float, 0, 1),
    "max_position_embeddings": (int, 1, 1 << 30),
}

EPSILON, CONTEXT, THETA = 1e-6, 2048, 10000.0  # what transformers takes where config.json says nothing

HF_KEYS = Keys(
    "transformers",
    obeyed={*LIMITS, *ROPE_IN_CONFIG, "tie_word_embeddings", "attention_bias", "mlp_bias"},
    neutral=NEUTRAL_IN_CONFIG,
    refused={
        "hidden_act": ("silu", "swish"),
        "per_layer_config": (),
        "block_configs": (),  # layers that differ in shape
        "num_local_experts": (0,),  # a Mixtral's
        "num_experts": (0,),
        "n_routed_experts": (0,),
    },
    passed_over=PASSED_OVER_IN_CONFIG | {"sliding_window": (), "layer_types": ("full_attention",), "swiglu_limit": ()},
)

# GGUF key, after "llama." -> ours
GGUF_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
}

GGUF_KEYS = Keys(
    "llama.cpp",
    obeyed={*GGUF_FIELDS, *ROPE_IN_GGUF, "attention.value_length", "expert_count"},
    neutral=NEUTRAL_IN_GGUF,
    refused={"attention.causal": (True,)},
    passed_over=PASSED_OVER_IN_GGUF
    | {
        "attention.sliding_window": (0,),
        "attention.sliding_window_pattern": (),
        "rope.freq_base_swa": (),
        "rope.dimension_sections": (0,),
        "expert_used_count": (0,),
        "expert_feed_forward_length": (0,),
    },
    prefix="llama.",
)

OWN_KEYS = {"rope": "rope_scaling"}  # part of the computation -> key of config.json, where GGUF may lack words: see own_keys


def from_hf(raw: Mapping[str, Any], stored: Stored) -> tuple[LlamaConfig, tuple[str, ...]]:
    """The configuration and remarks. Raises BadCheckpoint."""
    where = "config.json"
    remarks = list(check_keys(HF_KEYS, raw, where))
    values = dict(raw)
    if "rms_norm_eps" not in values:
        values["rms_norm_eps"] = EPSILON
        remarks += [f"{where}: rms_norm_eps is missing; {EPSILON:g} is taken, as transformers does"]
    values.setdefault("max_position_embeddings", CONTEXT)
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if values.get("head_dim") is None:
        values["head_dim"] = head_size(hidden, heads, f"{where}: head_dim is missing, and hidden_size")
    numbers = {key: check.field(values, key, kind, where, low, high) for key, (kind, low, high) in LIMITS.items()}
    theta, rope, more = rope_hf.read_rope(raw, THETA, numbers["max_position_embeddings"])
    biases, missing = [], []
    for key, block, names in (("attention_bias", "self_attn", ATTENTION), ("mlp_bias", "mlp", MLP)):
        said = check.flag(raw, key, False, where)
        has = hf_biases(stored, block, names, said, f"{where}: {key}")
        biases += has
        missing += [f"{block}.{name}" for name in names if said and name not in has]
    if missing:
        remarks += [f"no bias of {', '.join(missing)} in the files: it is taken as zero, as transformers does"]
    tied = check.flag(raw, "tie_word_embeddings", False, where) and not stored.has_own_head
    config = LlamaConfig(
        **numbers, rope_theta=theta, rope=rope, tie_word_embeddings=tied, biases=tuple(biases), hf=dict(raw)
    )
    check_heads(config.num_attention_heads, config.num_key_value_heads, config.head_dim, where)
    return config, (*remarks, *more)


def from_gguf(raw: Mapping[str, Any], stored: Stored) -> tuple[LlamaConfig, tuple[str, ...]]:
    """The configuration and remarks. Raises BadCheckpoint."""
    where, prefix = "metadata", "llama."
    if raw.get("llama.expert_count"):
        experts = shown(raw["llama.expert_count"])
        raise BadCheckpoint(f"{where}: llama.expert_count is {experts}: this is a Mixtral, which is not supported")
    if stored.names and any(name.startswith("rope_factors_") for name in stored.names):
        raise BadCheckpoint("tensors rope_factors_long.weight and rope_factors_short.weight: longrope is not supported")
    remarks = check_keys(GGUF_KEYS, raw, where)
    numbers = gguf_numbers(raw, prefix, GGUF_FIELDS, LIMITS)
    theta, rope, more = rope_gguf.read_rope(
        raw, "llama", numbers["head_dim"], numbers["max_position_embeddings"], True, stored.divisors
    )
    config = LlamaConfig(
        **numbers,
        rope_theta=theta,
        rope=rope,
        tie_word_embeddings=stored.names is not None and "output.weight" not in stored.names,
        biases=tuple(ours for theirs, ours in GGUF_BIASES.items() if stored.has(f".{theirs}.bias")),
    )
    check_heads(config.num_attention_heads, config.num_key_value_heads, config.head_dim, where)
    own, peer = own_words(raw, OWN_KEYS.values()), config
    if "rope_scaling" in own:
        rope = own_rope(own, theta, config.max_position_embeddings, config.head_dim, stored)
        config = replace(config, rope=rope)
    return config, (*remarks, *more, *own_remarks(computation(config), computation(peer)))


GGUF_BIASES = {
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_output": "o_proj",
    "ffn_gate": "gate_proj",
    "ffn_up": "up_proj",
    "ffn_down": "down_proj",
}


def computation(c: LlamaConfig) -> dict[str, Any]:
    """What decides about logits, in common terms: see Architecture.computation."""
    return {
        **{key: getattr(c, key) for key in LIMITS},
        "rope": Positions(c.rope_theta, c.head_dim, c.rope),
        "tie_word_embeddings": c.tie_word_embeddings,
        "biases": ", ".join(c.biases) or "none",
    }


def to_hf(c: LlamaConfig) -> dict[str, Any]:
    """config.json's content."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": any(name in c.biases for name in ATTENTION),
        "attention_dropout": 0.0,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_position_embeddings,
        "mlp_bias": any(name in c.biases for name in MLP),
        "num_attention_heads": c.num_attention_heads,
        "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_key_value_heads,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_scaling": rope_hf.rope_scaling(c.rope),
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": c.tie_word_embeddings,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": c.vocab_size,
    }


def to_gguf(c: LlamaConfig) -> dict[str, Any]:
    """GGUF's key-values."""
    keys: dict[str, Any] = {"general.architecture": "llama"}
    keys |= {f"llama.{theirs}": getattr(c, ours) for theirs, ours in GGUF_FIELDS.items()}
    keys |= {"llama.attention.value_length": c.head_dim, "llama.rope.dimension_count": c.head_dim}
    return keys | rope_gguf.rope_keys(c.rope, c.rope_theta, "llama")
