"""A gpt-oss model's configuration, and how config.json says it; for the other containers see `gpt_oss_words.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oss_tools.errors import BadCheckpoint
from oss_tools.models import fields as check
from oss_tools.models import rope_hf
from oss_tools.models.configuration import check_heads, head_size, hf_biases
from oss_tools.models.fields import shown
from oss_tools.models.keys import (
    NEUTRAL_IN_CONFIG,
    PASSED_OVER_IN_CONFIG,
    ROPE_IN_CONFIG,
    Keys,
    check_keys,
)
from oss_tools.models.rope import Positions, Scaling
from oss_tools.models.stored import Stored

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
SLIDING, FULL = "sliding_attention", "full_attention"
ROPE = Scaling("yarn", 32.0, 4096, truncate=False)  # of the published models, and what transformers takes without a word


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
    sliding_window: int | None = 128  # a key is visible when query - key < sliding_window, on layers of that type
    layer_types: tuple[str, ...] = ()  # SLIDING or FULL; () for alternating ones, SLIDING first
    swiglu_limit: float = 7.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    rope_theta: float = 150000.0
    rope: Scaling = ROPE
    tie_word_embeddings: bool = False
    biases: tuple[str, ...] = ATTENTION  # the projections of attention that have one
    hf: Mapping[str, Any] = field(default_factory=dict, compare=False)  # config.json as read, if it came from there

    @property
    def types(self) -> tuple[str, ...]:
        """Each layer's type."""
        return self.layer_types or alternating(self.num_hidden_layers)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer; None for those that see everything."""
        return tuple(self.sliding_window if kind == SLIDING else None for kind in self.types)


def alternating(layers: int) -> tuple[str, ...]:
    """The layers' types of the published models."""
    return tuple(FULL if layer % 2 else SLIDING for layer in range(layers))


LIMITS: check.Limits = {
    "num_hidden_layers": (int, 1, 4096),
    "num_local_experts": (int, 1, 65536),
    "num_experts_per_tok": (int, 1, 65536),
    "hidden_size": (int, 1, 1 << 20),
    "intermediate_size": (int, 1, 1 << 20),
    "num_attention_heads": (int, 1, 65536),
    "num_key_value_heads": (int, 1, 65536),
    "head_dim": (int, 2, 65536),
    "vocab_size": (int, 1, 1 << 28),
    "max_position_embeddings": (int, 1, 1 << 30),
    "rms_norm_eps": (float, 0, 1),
    "swiglu_limit": (float, 0, 1e6),
}
WINDOWS = (1, 1 << 30)

# What transformers takes where config.json says nothing; said to the user where files usually say it.
DEFAULTS = {"num_experts_per_tok": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "sliding_window": 128}
SILENT_DEFAULTS = {"head_dim": 64, "num_key_value_heads": 8, "swiglu_limit": 7.0}
THETA = 150000.0

HF_KEYS = Keys(
    "transformers",
    obeyed={
        *(*LIMITS, *ROPE_IN_CONFIG, "tie_word_embeddings", "attention_bias", "sliding_window", "layer_types"),
        *("num_experts", "experts_per_token"),
    },
    neutral=(*NEUTRAL_IN_CONFIG, "initial_context_length"),
    refused={"swiglu_alpha": (1.702,), "per_layer_config": (), "block_configs": ()},
    passed_over=PASSED_OVER_IN_CONFIG | {"hidden_act": ("silu", "swish"), "mlp_bias": (True,), "n_routed_experts": (0,)},
)

# ---- config.json ----------------------------------------------------------------------------------------------------


def from_hf(raw: Mapping[str, Any], stored: Stored) -> tuple[GptOssConfig, tuple[str, ...]]:
    """The configuration and remarks. Raises BadCheckpoint."""
    where = "config.json"
    remarks = list(check_keys(HF_KEYS, raw, where))
    values = dict(raw)
    if "num_experts" in raw:  # transformers' other name
        values["num_local_experts"] = _one_of(raw, "num_local_experts", "num_experts")
    if "experts_per_token" in raw:  # OpenAI's word, which published files repeat and transformers does not obey
        if "num_experts_per_tok" not in raw:
            _one_of(
                {"num_experts_per_tok": DEFAULTS["num_experts_per_tok"]} | values, "num_experts_per_tok", "experts_per_token"
            )
        elif raw["experts_per_token"] != raw["num_experts_per_tok"]:
            theirs, counts = shown(raw["experts_per_token"]), shown(raw["num_experts_per_tok"])
            remarks += [
                f"{where}: experts_per_token is {theirs}, num_experts_per_tok {counts}; the latter counts, as in transformers"
            ]
    for key in [key for key in DEFAULTS if key not in values]:
        remarks += [f"{where}: {key} is missing; {DEFAULTS[key]:g} is taken, as transformers does"]
    values = DEFAULTS | SILENT_DEFAULTS | values
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    if values["head_dim"] is None:
        hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
        values["head_dim"] = head_size(hidden, heads, f"{where}: head_dim is null, and hidden_size")
    numbers = {key: check.field(values, key, kind, where, low, high) for key, (kind, low, high) in LIMITS.items()}
    theta, rope, more = rope_hf.read_rope(raw, THETA, numbers["max_position_embeddings"], rope_hf.rope_scaling(ROPE))
    window, types = read_layers(values, numbers["num_hidden_layers"], where)
    said = check.flag(raw, "attention_bias", True, where)
    biases = hf_biases(stored, "self_attn", ATTENTION, said, f"{where}: attention_bias")
    if missing := [f"self_attn.{name}" for name in ATTENTION if said and name not in biases]:
        remarks += [f"no bias of {', '.join(missing)} in the files: it is taken as zero, as transformers does"]
    config = GptOssConfig(
        **numbers,
        sliding_window=window,
        layer_types=types,
        rope_theta=theta,
        rope=rope,
        tie_word_embeddings=check.flag(raw, "tie_word_embeddings", False, where) and not stored.has_own_head,
        biases=tuple(biases),
        hf=dict(raw),
    )
    return possible(config, where), (*remarks, *more)


def _one_of(raw: Mapping[str, Any], name: str, other: str) -> Any:
    """A field that has two names. Raises BadCheckpoint where they contradict each other."""
    if raw.get(name, raw[other]) != raw[other]:
        raise BadCheckpoint(
            f"config.json: {name} is {shown(raw.get(name))}, but {other} is {shown(raw[other])}; remove the wrong one"
        )
    return raw[other]


def read_layers(values: Mapping[str, Any], layers: int, where: str) -> tuple[int | None, tuple[str, ...]]:
    """The sliding window and the layers' types. Raises BadCheckpoint."""
    types = values.get("layer_types")
    if types is None:
        types = list(alternating(layers))
    if not isinstance(types, list | tuple) or any(kind not in (SLIDING, FULL) for kind in types):
        raise BadCheckpoint(f"{where}: layer_types is {shown(types)}, expected a list of {SLIDING} and {FULL}")
    if len(types) != layers:
        raise BadCheckpoint(f"{where}: layer_types has {len(types)} entries, for {layers} layers")
    if values["sliding_window"] is None:
        if SLIDING in types:
            raise BadCheckpoint(f"{where}: sliding_window is null, but layer_types has {SLIDING}; say how wide, or {FULL}")
        window = None
    else:
        window = check.field(values, "sliding_window", int, where, *WINDOWS)
    return window, () if tuple(types) == alternating(layers) else tuple(types)


def to_hf(c: GptOssConfig) -> dict[str, Any]:
    """config.json's content."""
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "attention_bias": bool(c.biases),
        "attention_dropout": 0.0,
        "experts_per_token": c.num_experts_per_tok,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "initial_context_length": c.rope.original_context or c.max_position_embeddings,
        "intermediate_size": c.intermediate_size,
        "layer_types": list(c.types),
        "max_position_embeddings": c.max_position_embeddings,
        "num_attention_heads": c.num_attention_heads,
        "num_experts_per_tok": c.num_experts_per_tok,
        "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_key_value_heads,
        "num_local_experts": c.num_local_experts,
        "rms_norm_eps": c.rms_norm_eps,
        # Without a word transformers takes the published models' scaling.
        "rope_scaling": rope_hf.rope_scaling(c.rope) or {"rope_type": "default"},
        "rope_theta": c.rope_theta,
        "sliding_window": c.sliding_window
        or DEFAULTS["sliding_window"],  # transformers wants one, also where no layer slides
        "swiglu_limit": c.swiglu_limit,
        "tie_word_embeddings": c.tie_word_embeddings,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": c.vocab_size,
    }


# ---- all containers -------------------------------------------------------------------------------------------------


def computation(c: GptOssConfig) -> dict[str, Any]:
    """What decides about logits, in common terms: see Architecture.computation."""
    return {
        **{key: getattr(c, key) for key in LIMITS},
        "rope": Positions(c.rope_theta, c.head_dim, c.rope),
        # of each layer; one as wide as the longest context hides nothing
        "sliding_window": tuple(w if w and w < c.max_position_embeddings else None for w in c.windows),
        "tie_word_embeddings": c.tie_word_embeddings,
        "biases": ", ".join(c.biases) or "none",
    }


def possible(c: GptOssConfig, where: str) -> GptOssConfig:
    """The configuration itself. Raises BadCheckpoint for a model that cannot be."""
    check_heads(c.num_attention_heads, c.num_key_value_heads, c.head_dim, where)
    if c.num_experts_per_tok > c.num_local_experts:
        raise BadCheckpoint(f"{where}: {c.num_experts_per_tok} of {c.num_local_experts} experts: not a possible model")
    return c
