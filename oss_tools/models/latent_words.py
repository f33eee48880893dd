"""The configuration of decoders with latent attention (DeepSeek) in GGUF, where they are `deepseek2`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from oss_tools.errors import BadCheckpoint
from oss_tools.models import fields as check
from oss_tools.models import rope_gguf, rope_hf
from oss_tools.models.configuration import own_remarks
from oss_tools.models.decoder_words import MODEL_TYPE
from oss_tools.models.keys import NEUTRAL_IN_GGUF, PASSED_OVER_IN_GGUF, ROPE_IN_GGUF, Keys, check_keys, one_value
from oss_tools.models.latent_config import (
    HF_LIMITS,
    LATENT_EPSILON,
    LatentConfig,
    LatentFamily,
    checked,
    common_fields,
    computation_of,
    concentration,
    to_hf,
)
from oss_tools.models.own_keys import PREFIX, own_keys, own_words
from oss_tools.models.stored import Stored

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
    concentrated = (
        check.single(10 * check.number(named, log, where, 0, 1e6)) if log in named and rope.kind == "yarn" else 0.0
    )
    peer = LatentConfig(
        **common_fields(numbers | {"qk_nope_head_dim": nope, "v_head_dim": value}),
        rope_theta=theta,
        rope=replace(rope, attention_factor=1.0) if concentrated else rope,
        tie_word_embeddings=stored.names is not None and "output.weight" not in stored.names,
        norm_topk_prob=check.flag(named, f"{prefix}expert_weights_norm", False, where),
        mlp_only_layers=tuple(range(check.field(named, dense, int, where, 0, layers) if dense in named else 0)),
        q_lora_rank=check.field(named, rank, int, where, 1, 1 << 20) if rank in named else 0,
        routed_scaling_factor=(check.number(named, scale, where, 0, 1e6) if scale in named else 0.0) or 1.0,
        mscale_all_dim=concentrated,
    )
    own = own_words(raw, (MODEL_TYPE, "rope_scaling", "rope_interleave"))
    config = peer
    if "rope_scaling" in own:
        words = {"rope_scaling": own["rope_scaling"]}
        _, scaling, _ = rope_hf.read_rope(words, theta, config.max_position_embeddings)
        config = replace(config, rope=scaling, mscale_all_dim=concentration(words, scaling, where))
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
    said = raw.get(f"{PREFIX}{MODEL_TYPE}")
    if said is not None:
        return bool(said == f'"{model_type}"')
    return (raw.get(f"{ARCH}.expert_gating_func") == GATING["sigmoid"]) == (score == "sigmoid")
