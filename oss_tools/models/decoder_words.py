"""The configuration of decoders that are built as Llama is, in GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from oss_tools.errors import BadCheckpoint
from oss_tools.models import fields as check
from oss_tools.models import rope_gguf
from oss_tools.models.configuration import gguf_numbers, own_remarks, own_rope
from oss_tools.models.decoder_config import (
    EXPERT_LIMITS,
    LIMITS,
    DecoderConfig,
    ExpertsConfig,
    Family,
    computation,
    possible,
)
from oss_tools.models.keys import NEUTRAL_IN_GGUF, PASSED_OVER_IN_GGUF, ROPE_IN_GGUF, Keys, check_keys
from oss_tools.models.own_keys import own_keys, own_words
from oss_tools.models.stored import Stored
from oss_tools.models.windows import SIZES, layers_of

# GGUF key, after "ARCH." -> ours
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
EXPERT_FIELDS = {
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
GGUF_BIASES = {
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_output": "o_proj",
    "ffn_gate": "gate_proj",
    "ffn_up": "up_proj",
    "ffn_down": "down_proj",
}

# Part of the computation -> keys of config.json, where GGUF may lack words: see own_keys.
OWN_KEYS = {
    "rope": ("rope_scaling",),
    "sliding_window": ("sliding_window", "layer_types"),
    "norm_topk_prob": ("norm_topk_prob",),
}
MODEL_TYPE = "model_type"


def fields_of(family: Family) -> dict[str, str]:
    """GGUF key, after the family's prefix -> ours."""
    return GGUF_FIELDS | {theirs: ours for theirs, ours in EXPERT_FIELDS.items() if ours in family.experts}


def gguf_keys(family: Family) -> Keys:
    """What a file's keys may say."""
    return Keys(
        "llama.cpp",
        obeyed={*fields_of(family), *ROPE_IN_GGUF, "attention.value_length"},
        neutral=NEUTRAL_IN_GGUF,
        refused={"attention.causal": (True,), **({} if family.experts else {"expert_count": (0,)})},
        passed_over=PASSED_OVER_IN_GGUF
        | {
            "attention.sliding_window": (0,),
            "attention.sliding_window_pattern": (),
            "rope.freq_base_swa": (),
            "rope.dimension_sections": (0,),
            "expert_used_count": (0,),
            "expert_feed_forward_length": (0,),
            "expert_shared_feed_forward_length": (0,),
            "expert_shared_count": (),
            "expert_group_count": (0, 1),
            "expert_group_used_count": (0, 1),
        },
        prefix=f"{family.gguf}.",
    )


def from_gguf(family: Family, raw: Mapping[str, Any], stored: Stored) -> tuple[DecoderConfig, tuple[str, ...]]:
    """The configuration and remarks. Raises BadCheckpoint."""
    where, prefix = "metadata", f"{family.gguf}."
    if stored.names and any(name.startswith("rope_factors_") for name in stored.names):
        raise BadCheckpoint("tensors rope_factors_long.weight and rope_factors_short.weight: longrope is not supported")
    remarks = check_keys(gguf_keys(family), raw, where)
    names = fields_of(family)
    limits = {**LIMITS, **EXPERT_LIMITS}
    numbers = gguf_numbers(_with_widths(raw, prefix, names), prefix, names, limits)
    divisors = stored.divisors if family.gguf_rotates else None
    theta, rope, more = rope_gguf.read_rope(
        raw, family.gguf, numbers["head_dim"], numbers["max_position_embeddings"], True, divisors
    )
    layers = numbers["num_hidden_layers"]
    if family.experts:
        numbers |= _experts(family, numbers)
    config = family.config(
        **numbers,
        rope_theta=theta,
        rope=rope,
        tie_word_embeddings=stored.names is not None and "output.weight" not in stored.names,
        biases=tuple(
            ours for theirs, ours in GGUF_BIASES.items() if ours in family.gguf_biases and stored.has(f".{theirs}.bias")
        ),
    )
    own, peer = own_words(raw, [MODEL_TYPE, *(key for keys in OWN_KEYS.values() for key in keys)]), config
    if "rope_scaling" in own:
        rope = own_rope(own, theta, config.max_position_embeddings, config.head_dim, replace(stored, divisors=divisors))
        config = replace(config, rope=rope)
    own_where = f"{where} oss-tools.*"
    if "layer_types" in own:
        size = own.get("sliding_window")
        size = None if size is None else check.field(own, "sliding_window", int, own_where, *SIZES)
        config = replace(config, sliding_window=layers_of(own["layer_types"], size, layers, own_where))
    if "norm_topk_prob" in own and isinstance(config, ExpertsConfig):
        config = replace(config, norm_topk_prob=check.flag(own, "norm_topk_prob", True, own_where))
    return possible(config, where), (*remarks, *more, *own_remarks(computation(config), computation(peer)))


def _with_widths(raw: Mapping[str, Any], prefix: str, names: Mapping[str, str]) -> dict[str, Any]:
    """A file's keys with the widths of the experts that the first files of their family leave out, as llama.cpp takes them."""
    values = dict(raw)
    inner, chosen = (raw.get(f"{prefix}{name}") for name in ("feed_forward_length", "expert_used_count"))
    if isinstance(inner, int) and "expert_shared_feed_forward_length" in names:
        values.setdefault(f"{prefix}expert_shared_feed_forward_length", inner)
    if isinstance(inner, int) and isinstance(chosen, int) and chosen > 0 and "expert_feed_forward_length" in names:
        values.setdefault(f"{prefix}expert_feed_forward_length", inner // chosen)
    return values


def _experts(family: Family, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ExpertsConfig that are no plain numbers of a file."""
    fields: dict[str, Any] = {}
    if "moe_intermediate_size" not in family.experts:
        fields["moe_intermediate_size"] = numbers["intermediate_size"]
    if "norm_topk_prob" in family.experts:
        fields["norm_topk_prob"] = family.gguf_renormalizes
    return fields


def to_gguf(family: Family, model_type: str, c: DecoderConfig) -> dict[str, Any]:
    """GGUF's key-values. Raises BadCheckpoint for a model that llama.cpp cannot load."""
    _check_loadable(family, model_type, c)
    arch = family.gguf
    keys: dict[str, Any] = {"general.architecture": arch}
    keys |= {f"{arch}.{theirs}": getattr(c, ours) for theirs, ours in fields_of(family).items()}
    keys |= {f"{arch}.attention.value_length": c.head_dim, f"{arch}.rope.dimension_count": c.head_dim}
    keys |= rope_gguf.rope_keys(c.rope, c.rope_theta, arch)
    return keys | (own_keys({MODEL_TYPE: model_type}) if family.gguf_name_is_shared else {})


def _check_loadable(family: Family, model_type: str, c: DecoderConfig) -> None:
    """Raises BadCheckpoint for a model that llama.cpp cannot load."""
    cannot = "the container gguf cannot hold this model"
    if missing := [name for name in family.biased if name not in c.biases]:
        raise BadCheckpoint(f"{cannot}: it has no bias of {', '.join(missing)}, which llama.cpp demands of {model_type}")
    if strange := [name for name in c.biases if name not in family.gguf_biases]:
        raise BadCheckpoint(
            f"{cannot}: it has a bias of {', '.join(strange)}, which llama.cpp has no place for in {model_type}"
        )
    if isinstance(c, ExpertsConfig) and c.mlp_only_layers:
        listed = ", ".join(map(str, c.mlp_only_layers[:8])) + (", …" if len(c.mlp_only_layers) > 8 else "")
        raise BadCheckpoint(f"{cannot}: its layers {listed} have no experts, which llama.cpp demands of every layer")
