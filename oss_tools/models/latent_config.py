"""The configuration of decoders with latent attention (DeepSeek), and how config.json and GGUF say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from oss_tools.errors import BadCheckpoint
from oss_tools.models import fields as check
from oss_tools.models import rope_gguf, rope_hf
from oss_tools.models.base import Stored
from oss_tools.models.configuration import hf_biases, own_remarks
from oss_tools.models.decoder_config import LIMITS, ExpertsConfig, Family, computation, possible
from oss_tools.models.decoder_words import MODEL_TYPE
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
    one_value,
)
from oss_tools.models.own_keys import own_keys, own_words
from oss_tools.models.rope import Scaling, magnitude

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
        concentration = magnitude(self.rope.factor, self.mscale_all_dim) if self.mscale_all_dim else 1.0
        return (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5 * concentration**2


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
        **_common(numbers),
        rope_theta=theta,
        rope=rope,
        tie_word_embeddings=check.flag(raw, "tie_word_embeddings", False, where) and not stored.has_own_head,
        biases=tuple(hf_biases(stored, "self_attn", BIASED if rank else BIASED[1:], said, f"{where}: attention_bias")),
        norm_topk_prob=family.score == "sigmoid" and check.flag(values, "norm_topk_prob", True, where),
        mlp_only_layers=_dense(family, values, layers, where),
        q_lora_rank=0 if rank is None else check.field(values, "q_lora_rank", int, where, 1, 1 << 20),
        routed_scaling_factor=check.number(values, "routed_scaling_factor", where, 0, 1e6),
        mscale_all_dim=_concentration(raw, rope, where),
        rope_interleave=check.flag(raw, "rope_interleave", True, where),
        hf=dict(raw),
    )
    if any(name.startswith(f"model.layers.{layers}.") for name in stored.names or ()):
        more += (f"model.layers.{layers} and those behind it predict further tokens (MTP); they are left out",)
    return checked(config, where), (*remarks, *more)


def _common(numbers: Mapping[str, Any]) -> dict[str, Any]:
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


def _concentration(raw: Mapping[str, Any], rope: Scaling, where: str) -> float:
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


# ---- GGUF -----------------------------------------------------------------------------------------------------------

ARCH = "deepseek2"
GGUF_FIELDS = {  # key, after "deepseek2." -> of config.json
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "vocab_size": "vocab_size",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
}
LENGTHS = tuple(f"attention.{part}_length{suffix}" for part in ("key", "value") for suffix in ("", "_mla"))
LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"  # a tenth of mscale_all_dim
GATING = {"softmax": 1, "sigmoid": 2}
GGUF_KEYS = Keys(
    "llama.cpp",
    obeyed={
        *(*GGUF_FIELDS, *ROPE_IN_GGUF, *LENGTHS, "attention.head_count_kv", "attention.q_lora_rank"),
        *("leading_dense_block_count", "expert_weights_scale", "expert_weights_norm", "expert_gating_func"),
        *(LOG_MULTIPLIER, "nextn_predict_layers"),
    },
    neutral=NEUTRAL_IN_GGUF,
    refused={"attention.causal": (True,)},
    passed_over=PASSED_OVER_IN_GGUF | {"rope.dimension_sections": (0,), "attention.sliding_window": (0,)},
    prefix=f"{ARCH}.",
)


def from_gguf(family: LatentFamily, raw: Mapping[str, Any], stored: Stored) -> tuple[LatentConfig, tuple[str, ...]]:
    """The configuration and remarks. Raises BadCheckpoint."""
    where, prefix = "metadata", f"{ARCH}."
    remarks = check_keys(GGUF_KEYS, raw, where)
    keys = {key.removeprefix(prefix): value for key, value in raw.items() if key.startswith(prefix)}
    blocks = keys.get("block_count")
    keys = {key: one_value(value, blocks, f"{prefix}{key}", where) for key, value in keys.items()}
    keys = {"expert_group_count": 1, "expert_group_used_count": 1, "expert_shared_count": 0} | keys
    keys.setdefault("vocab_size", len(raw.get("tokenizer.ggml.tokens", ())))
    nope, value = _lengths(keys, where)
    named = {f"{prefix}{key}": value for key, value in keys.items()}
    limits = HF_LIMITS
    numbers = {
        ours: check.field(named, f"{prefix}{theirs}", limits[ours][0], where, *limits[ours][1:])
        for theirs, ours in GGUF_FIELDS.items()
    }
    numbers["num_hidden_layers"] -= (
        check.field(named, f"{prefix}nextn_predict_layers", int, where, 0, numbers["num_hidden_layers"] - 1)
        if "nextn_predict_layers" in keys
        else 0
    )
    dense, layers = f"{prefix}leading_dense_block_count", numbers["num_hidden_layers"]
    rank, scale, log = (f"{prefix}{key}" for key in ("attention.q_lora_rank", "expert_weights_scale", LOG_MULTIPLIER))
    theta, rope, more = rope_gguf.read_rope(
        raw,
        ARCH,
        numbers["qk_rope_head_dim"],
        numbers["max_position_embeddings"],
        True,
        None,
    )
    concentration = (
        check.single(10 * check.number(named, log, where, 0, 1e6)) if log in named and rope.kind == "yarn" else 0.0
    )
    peer = LatentConfig(
        **_common(numbers | {"qk_nope_head_dim": nope, "v_head_dim": value}),
        rope_theta=theta,
        rope=replace(rope, attention_factor=1.0) if concentration else rope,
        tie_word_embeddings=stored.names is not None and "output.weight" not in stored.names,
        norm_topk_prob=check.flag(named, f"{prefix}expert_weights_norm", False, where),
        mlp_only_layers=tuple(range(check.field(named, dense, int, where, 0, layers) if dense in named else 0)),
        q_lora_rank=check.field(named, rank, int, where, 1, 1 << 20) if rank in named else 0,
        routed_scaling_factor=(check.number(named, scale, where, 0, 1e6) if scale in named else 0.0) or 1.0,
        mscale_all_dim=concentration,
    )
    own = own_words(raw, (MODEL_TYPE, "rope_scaling", "rope_interleave"))
    config = peer
    if "rope_scaling" in own:
        words = {"rope_scaling": own["rope_scaling"]}
        _, scaling, _ = rope_hf.read_rope(words, theta, config.max_position_embeddings)
        config = replace(config, rope=scaling, mscale_all_dim=_concentration(words, scaling, where))
    config = replace(config, rope_interleave=check.flag(own, "rope_interleave", True, where))
    if config.rms_norm_eps != check.single(LATENT_EPSILON):
        more += (
            f"llama.cpp takes {config.rms_norm_eps:g} for the norms of latents too, not {LATENT_EPSILON:g} as transformers",
        )
    if not config.q_lora_rank and config.num_hidden_layers not in (26, 27):
        more += ("llama.cpp reads a deepseek2 without q_lora_rank only if it has 26 or 27 layers",)
    if config.n_group > 1 and family.score == "softmax":
        more += ("llama.cpp ranks groups of experts by their two best, not by their best as DeepSeek-V2 does",)
    return checked(config, where), (*remarks, *more, *own_remarks(computation_of(config), computation_of(peer)))


def _lengths(keys: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """A head's values without position, and of its value: of today's files (`_mla`) and of older ones. Raises BadCheckpoint."""
    suffix = "_mla" if "attention.key_length_mla" in keys else ""
    names = {f"{ARCH}.{key}": keys[key] for key in LENGTHS if key in keys}
    whole = check.field(names, f"{ARCH}.attention.key_length{suffix}", int, where, 2, 65536)
    value = check.field(names, f"{ARCH}.attention.value_length{suffix}", int, where, 1, 65536)
    rotated = check.field({"rope.dimension_count": 0, **keys}, "rope.dimension_count", int, where, 2, 65536)
    if whole <= rotated:
        raise BadCheckpoint(
            f"{where}: {ARCH}.attention.key_length{suffix} is {whole}, of which {rotated} values are rotated"
        )
    return whole - rotated, value


def to_gguf(family: LatentFamily, model_type: str, c: LatentConfig) -> dict[str, Any]:
    """GGUF's key-values, in today's form. Raises BadCheckpoint for a model that llama.cpp cannot load."""
    cannot = "the container gguf cannot hold this model"
    if c.biases:
        raise BadCheckpoint(
            f"{cannot}: it has a bias of {', '.join(c.biases)}, which llama.cpp has no place for in {model_type}"
        )
    if c.mlp_only_layers != tuple(range(len(c.mlp_only_layers))):
        raise BadCheckpoint(
            f"{cannot}: layers without experts lie between others, and llama.cpp knows them only at the beginning"
        )
    words = to_hf(family, model_type, c)
    keys: dict[str, Any] = {"general.architecture": ARCH}
    keys |= {
        f"{ARCH}.{theirs}": words[ours] for theirs, ours in GGUF_FIELDS.items() if c.n_group > 1 or "_group_" not in theirs
    }
    keys |= {
        f"{ARCH}.attention.head_count_kv": 1,
        f"{ARCH}.attention.key_length": c.kv_lora_rank + c.qk_rope_head_dim,
        f"{ARCH}.attention.value_length": c.kv_lora_rank,
        f"{ARCH}.attention.key_length_mla": c.qk_nope_head_dim + c.qk_rope_head_dim,
        f"{ARCH}.attention.value_length_mla": c.v_head_dim,
        f"{ARCH}.leading_dense_block_count": len(c.mlp_only_layers),
        f"{ARCH}.expert_weights_scale": c.routed_scaling_factor,
        f"{ARCH}.expert_weights_norm": c.norm_topk_prob,
        f"{ARCH}.expert_gating_func": GATING[family.score],
    }
    if c.q_lora_rank:
        keys[f"{ARCH}.attention.q_lora_rank"] = c.q_lora_rank
    if c.mscale_all_dim and c.rope.scale == 1 and c.rope.kind == "yarn":
        keys |= rope_gguf.rope_keys(replace(c.rope, attention_factor=None), c.rope_theta, ARCH)
        keys[f"{ARCH}.{LOG_MULTIPLIER}"] = 0.1 * c.mscale_all_dim
    else:
        keys |= rope_gguf.rope_keys(c.rope, c.rope_theta, ARCH)
    return keys | own_keys({MODEL_TYPE: model_type})


def is_in_gguf(raw: Mapping[str, Any], model_type: str, score: str) -> bool:
    """Whether a file with these keys holds a model of this type: it says so, or its router has this score."""
    said = raw.get(f"oss-tools.{MODEL_TYPE}")
    if said is not None:
        return bool(said == f'"{model_type}"')
    return (raw.get(f"{ARCH}.expert_gating_func") == GATING["sigmoid"]) == (score == "sigmoid")
