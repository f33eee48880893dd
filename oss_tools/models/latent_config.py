"""The configuration of decoders with latent attention (DeepSeek), and how config.json and GGUF say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from oss_tools.errors import BadCheckpoint
from oss_tools.models import fields as check
from oss_tools.models import rope_hf
from oss_tools.models.configuration import hf_biases
from oss_tools.models.decoder_config import LIMITS, ExpertsConfig, Family, computation, possible
from oss_tools.models.fields import shown
from oss_tools.models.keys import (
    NEUTRAL_IN_CONFIG,
    PASSED_OVER_IN_CONFIG,
    ROPE_IN_CONFIG,
    Keys,
    check_keys,
)
from oss_tools.models.rope import Scaling, magnitude
from oss_tools.models.stored import Stored

BIASED = ("q_a_proj", "kv_a_proj_with_mqa", "o_proj")  # by attention_bias
LATENT_EPSILON = 1e-6  # of the latents' norms: transformers' default, whatever rms_norm_eps is


@dataclass(frozen=True)
class LatentConfig(ExpertsConfig):
    """The dimensions of such a decoder. `head_dim` is that of the rotated part, for keys and queries."""

    q_lora_rank: int = 0  # 0: queries are projected at once
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    mscale_all_dim: float = 0.0  # yarn's concentration of attention's logits; 0 for none
    rope_interleave: bool = True  # whether neighbours make the pairs that are rotated

    @property
    def scale(self) -> float:
        """What attention's logits are multiplied by."""
        factor = magnitude(self.rope.factor, self.mscale_all_dim) if self.mscale_all_dim else 1.0
        return (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5 * factor**2


@dataclass(frozen=True)
class LatentFamily(Family):
    """What a family's configuration says otherwise.

    Attributes:
        score: what the router makes of its logits; sigmoid comes with a correction.
        dense: which layers have no experts: by `first_k_dense_replace`, or by `mlp_layer_types`.
    """

    score: Literal["softmax", "sigmoid"] = "sigmoid"
    dense: Literal["first_k_dense_replace", "mlp_layer_types"] = "first_k_dense_replace"

    @property
    def config(self) -> type[LatentConfig]:
        return LatentConfig

    @property
    def hf_keys(self) -> Keys:
        methods = ("noaux_tc",) if self.score == "sigmoid" else ("greedy", "group_limited_greedy")
        return Keys(
            "transformers",
            obeyed={
                *(
                    *HF_LIMITS,
                    *ROPE_IN_CONFIG,
                    "tie_word_embeddings",
                    "attention_bias",
                    "num_key_value_heads",
                    "q_lora_rank",
                ),
                *("first_k_dense_replace", "mlp_layer_types", "moe_layer_freq", "routed_scaling_factor", "rope_interleave"),
                *(("topk_method",) if self.score == "softmax" else ("norm_topk_prob",)),
                *("num_nextn_predict_layers", "num_mtp_layers"),
            },
            neutral=(
                *NEUTRAL_IN_CONFIG,
                "ep_size",
                "seq_aux",
                "qk_head_dim",
                "head_dim",
                "num_experts",
                "num_local_experts",
            ),
            refused={
                "hidden_act": ("silu", "swish"),
                "scoring_func": (self.score,),
                "topk_method": methods,
                "norm_topk_prob": (False,),
                "mlp_bias": (False,),
                "index_topk": (),
            },
            passed_over={k: v for k, v in PASSED_OVER_IN_CONFIG.items() if k not in ("n_shared_experts", "scoring_func")}
            | {"sliding_window": (), "max_window_layers": ()},
        )


HF_LIMITS: check.Limits = {
    **{key: limit for key, limit in LIMITS.items() if key not in ("num_key_value_heads", "head_dim")},
    "num_attention_heads": (int, 1, 1024),  # each has places of its own in GGUF
    "n_routed_experts": (int, 1, 65536),
    "num_experts_per_tok": (int, 1, 65536),
    "moe_intermediate_size": (int, 1, 1 << 20),
    "n_shared_experts": (int, 0, 1024),
    "n_group": (int, 1, 65536),
    "topk_group": (int, 1, 65536),
    "kv_lora_rank": (int, 1, 1 << 20),
    "qk_nope_head_dim": (int, 1, 65536),
    "qk_rope_head_dim": (int, 2, 65536),
    "v_head_dim": (int, 1, 65536),
}
NUMBERS = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_group", "topk_group")
OTHERS = ("routed_scaling_factor", "mscale_all_dim", "rope_interleave")

# Part of the computation -> keys of config.json, where GGUF may lack words: see own_keys.
OWN_KEYS = {"rope": "rope_scaling", "mscale_all_dim": "rope_scaling"}


# ---- config.json ----------------------------------------------------------------------------------------------------


def from_hf(family: LatentFamily, raw: Mapping[str, Any], stored: Stored) -> tuple[LatentConfig, tuple[str, ...]]:
    """The configuration and remarks. Raises BadCheckpoint."""
    where = "config.json"
    remarks = list(check_keys(family.hf_keys, raw, where))
    values = {**family.defaults, **raw}
    for key in ("n_group", "topk_group"):
        values[key] = 1 if values.get(key) is None or values.get("topk_method") == "greedy" else values[key]
    numbers = {key: check.field(values, key, kind, where, low, high) for key, (kind, low, high) in HF_LIMITS.items()}
    heads, layers = numbers["num_attention_heads"], numbers["num_hidden_layers"]
    if (keys := raw.get("num_key_value_heads")) not in (None, heads):
        raise BadCheckpoint(f"{where}: num_key_value_heads is {shown(keys)}, but all {heads} heads share one latent")
    theta, rope, more = rope_hf.read_rope(raw, family.theta, numbers["max_position_embeddings"])
    rank = values.get("q_lora_rank")
    said = check.flag(raw, "attention_bias", False, where)
    config = LatentConfig(
        **common_fields(numbers),
        rope_theta=theta,
        rope=rope,
        tie_word_embeddings=check.flag(raw, "tie_word_embeddings", False, where) and not stored.has_own_head,
        biases=tuple(hf_biases(stored, "self_attn", BIASED if rank else BIASED[1:], said, f"{where}: attention_bias")),
        norm_topk_prob=family.score == "sigmoid" and check.flag(values, "norm_topk_prob", True, where),
        mlp_only_layers=_dense(family, values, layers, where),
        q_lora_rank=0 if rank is None else check.field(values, "q_lora_rank", int, where, 1, 1 << 20),
        routed_scaling_factor=check.number(values, "routed_scaling_factor", where, 0, 1e6),
        mscale_all_dim=concentration(raw, rope, where),
        rope_interleave=check.flag(raw, "rope_interleave", True, where),
        hf=dict(raw),
    )
    if any(name.startswith(f"model.layers.{layers}.") for name in stored.names or ()):
        more += (f"model.layers.{layers} and those behind it predict further tokens (MTP); they are left out",)
    return checked(config, where), (*remarks, *more)


def common_fields(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of config.json as fields of LatentConfig."""
    fields = {key: numbers[key] for key in HF_LIMITS if key not in ("n_routed_experts", "n_shared_experts")}
    return fields | {
        "num_key_value_heads": numbers["num_attention_heads"],
        "head_dim": numbers["qk_rope_head_dim"],
        "num_local_experts": numbers["n_routed_experts"],
        "shared_expert_intermediate_size": numbers["moe_intermediate_size"] * numbers["n_shared_experts"],
    }


def _dense(family: LatentFamily, values: Mapping[str, Any], layers: int, where: str) -> tuple[int, ...]:
    """The layers without experts. Raises BadCheckpoint."""
    kinds = values.get("mlp_layer_types")
    if kinds is not None and family.dense == "mlp_layer_types":
        if not isinstance(kinds, list | tuple) or len(kinds) != layers or any(k not in ("dense", "sparse") for k in kinds):
            raise BadCheckpoint(
                f"{where}: mlp_layer_types is {shown(kinds)}, expected dense or sparse for each of {layers} layers"
            )
        return tuple(n for n, kind in enumerate(kinds) if kind == "dense")
    first = check.field(values, "first_k_dense_replace", int, where, 0, 4096)
    every = check.field({"moe_layer_freq": 1} | dict(values), "moe_layer_freq", int, where, 1, 4096)
    return tuple(n for n in range(layers) if n < first or n % every)


def concentration(raw: Mapping[str, Any], rope: Scaling, where: str) -> float:
    """`mscale_all_dim`, where positions are stretched."""
    words = rope_hf.rope_words(raw)
    if rope.kind == "default" or words.get("mscale_all_dim") is None:
        return 0.0
    return check.number(words, "mscale_all_dim", where, 0, 1e6)


def checked(c: LatentConfig, where: str) -> LatentConfig:
    """The configuration itself, without groups that exclude nothing. Raises BadCheckpoint for a model that cannot be."""
    possible(c, where)
    if c.num_local_experts % c.n_group or c.topk_group > c.n_group:
        raise BadCheckpoint(
            f"{where}: {c.topk_group} of {c.n_group} groups of {c.num_local_experts} experts: not a possible model"
        )
    if c.topk_group * (c.num_local_experts // c.n_group) < c.num_experts_per_tok:
        raise BadCheckpoint(f"{where}: {c.topk_group} groups do not have {c.num_experts_per_tok} experts to choose")
    return replace(c, n_group=1, topk_group=1) if c.topk_group == c.n_group else c


def computation_of(c: LatentConfig) -> dict[str, Any]:
    """What decides about logits, in common terms: see Architecture.computation."""
    return computation(c) | {key: getattr(c, key) for key in (*NUMBERS, *OTHERS)}


def to_hf(family: LatentFamily, model_type: str, c: LatentConfig) -> dict[str, Any]:
    """config.json's content."""
    shared = c.shared_expert_intermediate_size // c.moe_intermediate_size
    words: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": model_type,
        "attention_bias": bool(c.biases),
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        **{key: getattr(c, key) for key in HF_LIMITS if key not in ("n_routed_experts", "n_shared_experts")},
        "n_routed_experts": c.num_local_experts,
        "n_shared_experts": shared,
        "num_key_value_heads": c.num_attention_heads,
        "q_lora_rank": c.q_lora_rank or None,
        "routed_scaling_factor": c.routed_scaling_factor,
        "norm_topk_prob": c.norm_topk_prob,
        "rope_interleave": c.rope_interleave,
        "rope_scaling": rope_words(c),
        "rope_theta": c.rope_theta,
        "scoring_func": family.score,
        "tie_word_embeddings": c.tie_word_embeddings,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    grouped = "group_limited_greedy" if c.n_group > 1 else "greedy"
    words["topk_method"] = "noaux_tc" if family.score == "sigmoid" else grouped
    if family.dense == "mlp_layer_types":
        words["mlp_layer_types"] = ["dense" if n in c.mlp_only_layers else "sparse" for n in range(c.num_hidden_layers)]
    return words | {"first_k_dense_replace": len(c.mlp_only_layers), "moe_layer_freq": 1}


def rope_words(c: LatentConfig) -> dict[str, Any] | None:
    """`rope_scaling`, with the concentration of attention's logits."""
    words = rope_hf.rope_scaling(c.rope)
    if words is None or not c.mscale_all_dim:
        return words
    if words.get("attention_factor") == 1:
        del words["attention_factor"]
        return words | {"mscale": c.mscale_all_dim, "mscale_all_dim": c.mscale_all_dim}
    return words | {"attention_factor": c.rope.scale, "mscale_all_dim": c.mscale_all_dim}
