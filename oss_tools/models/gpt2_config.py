"""A GPT-2's configuration, and how config.json and GGUF say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from oss_tools.errors import BadCheckpoint
from oss_tools.models import fields as check
from oss_tools.models.configuration import gguf_numbers, head_size, own_remarks
from oss_tools.models.fields import shown
from oss_tools.models.keys import (
    NEUTRAL_IN_CONFIG,
    NEUTRAL_IN_GGUF,
    PASSED_OVER_IN_CONFIG,
    PASSED_OVER_IN_GGUF,
    Keys,
    check_keys,
)
from oss_tools.models.own_keys import own_words
from oss_tools.models.stored import Stored


@dataclass(frozen=True)
class Gpt2Config:
    """The dimensions of a GPT-2; names as of other families, config.json's beside. Defaults are those of the smallest."""

    num_hidden_layers: int = 12  # n_layer
    hidden_size: int = 768  # n_embd
    intermediate_size: int = 3072  # n_inner
    num_attention_heads: int = 12  # n_head
    vocab_size: int = 50257
    max_position_embeddings: int = 1024  # n_positions, the rows of the table of positions
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True  # whether attention's logits are divided by the root of a head's size
    scale_attn_by_inverse_layer_idx: bool = False  # whether they are divided by the layer's number besides, from 1 on
    tie_word_embeddings: bool = True
    hf: Mapping[str, Any] = field(default_factory=dict, compare=False)  # config.json as read, if it came from there

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


LIMITS: check.Limits = {
    "num_hidden_layers": (int, 1, 4096),
    "hidden_size": (int, 1, 1 << 20),
    "intermediate_size": (int, 1, 1 << 20),
    "num_attention_heads": (int, 1, 65536),
    "vocab_size": (int, 1, 1 << 28),
    "max_position_embeddings": (int, 1, 1 << 30),
    "layer_norm_epsilon": (float, 0, 1),
}
FLAGS = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}  # with transformers' defaults
OURS = {  # key of config.json -> ours, and what transformers takes without it
    "n_layer": ("num_hidden_layers", 12),
    "n_embd": ("hidden_size", 768),
    "n_head": ("num_attention_heads", 12),
    "vocab_size": ("vocab_size", 50257),
    "n_positions": ("max_position_embeddings", 1024),
    "layer_norm_epsilon": ("layer_norm_epsilon", 1e-5),
}
TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # transformers' names of one function

HF_KEYS = Keys(
    "transformers",
    obeyed={*OURS, *FLAGS, "n_inner", "tie_word_embeddings", "n_ctx"},
    neutral=(*NEUTRAL_IN_CONFIG, "summary_*", "reorder_and_upcast_attn", "gradient_checkpointing"),
    refused={"activation_function": TANH, **{ours: () for ours, _ in OURS.values() if ours not in OURS}},
    passed_over=PASSED_OVER_IN_CONFIG,
)

# GGUF key, after "gpt2." -> ours
GGUF_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
GGUF_KEYS = Keys(
    "llama.cpp",
    obeyed={*GGUF_FIELDS, "attention.head_count_kv", "attention.key_length", "attention.value_length"},
    neutral=NEUTRAL_IN_GGUF,
    refused={"attention.causal": (True,)},
    passed_over={key: v for key, v in PASSED_OVER_IN_GGUF.items() if key not in GGUF_FIELDS},
    prefix="gpt2.",
)


def from_hf(raw: Mapping[str, Any], stored: Stored) -> tuple[Gpt2Config, tuple[str, ...]]:
    """The configuration and remarks. Raises BadCheckpoint."""
    where = "config.json"
    remarks = check_keys(HF_KEYS, raw, where)
    values = {key: default for key, (_, default) in OURS.items()} | dict(raw)
    numbers = {ours: check.field(values, key, LIMITS[ours][0], where, *LIMITS[ours][1:]) for key, (ours, _) in OURS.items()}
    positions = numbers["max_position_embeddings"]
    if raw.get("n_ctx", positions) != positions:
        raise BadCheckpoint(f"{where}: n_ctx is {shown(raw['n_ctx'])}, but n_positions is {positions}; both must be one")
    if values.get("n_inner") is None:
        values["n_inner"] = 4 * numbers["hidden_size"]
    config = Gpt2Config(
        **numbers,
        intermediate_size=check.field(values, "n_inner", int, where, 1, 1 << 20),
        **{key: check.flag(raw, key, usual, where) for key, usual in FLAGS.items()},
        tie_word_embeddings=check.flag(raw, "tie_word_embeddings", True, where) and not stored.has("lm_head.weight"),
        hf=dict(raw),
    )
    return _possible(config, where), remarks


def from_gguf(raw: Mapping[str, Any], stored: Stored) -> tuple[Gpt2Config, tuple[str, ...]]:
    """The configuration and remarks. Raises BadCheckpoint."""
    where = "metadata"
    remarks = check_keys(GGUF_KEYS, raw, where)
    names = GGUF_FIELDS | {"attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim"}
    limits = {**LIMITS, "num_key_value_heads": LIMITS["num_attention_heads"], "head_dim": (int, 1, 65536)}
    numbers = gguf_numbers(raw, "gpt2.", names, limits)
    heads, size = numbers.pop("num_key_value_heads"), numbers.pop("head_dim")
    peer = Gpt2Config(**numbers, tie_word_embeddings=stored.names is not None and "output.weight" not in stored.names)
    if heads != peer.num_attention_heads or size * heads != peer.hidden_size:
        raise BadCheckpoint(f"{where}: {heads} key-value heads of {size} values, which no GPT-2 has")
    own = own_words(raw, FLAGS)
    flags: dict[str, Any] = {key: check.flag(own, key, usual, f"{where} oss-tools.*") for key, usual in FLAGS.items()}
    config = replace(peer, **flags)
    return _possible(config, where), (*remarks, *own_remarks(computation(config), computation(peer)))


def _possible(c: Gpt2Config, where: str) -> Gpt2Config:
    """The configuration itself. Raises BadCheckpoint for a model that cannot be."""
    head_size(c.hidden_size, c.num_attention_heads, f"{where}: a width of")
    return c


def computation(c: Gpt2Config) -> dict[str, Any]:
    """What decides about logits, in common terms: see Architecture.computation."""
    return {key: getattr(c, key) for key in (*LIMITS, *FLAGS, "tie_word_embeddings")}


def to_hf(c: Gpt2Config) -> dict[str, Any]:
    """config.json's content."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "n_ctx": c.max_position_embeddings,
        **{key: getattr(c, ours) for key, (ours, _) in OURS.items()},
        "n_inner": None if c.intermediate_size == 4 * c.hidden_size else c.intermediate_size,
        **{key: getattr(c, key) for key in FLAGS},
        "tie_word_embeddings": c.tie_word_embeddings,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def to_gguf(c: Gpt2Config) -> dict[str, Any]:
    """GGUF's key-values."""
    return {"general.architecture": "gpt2"} | {f"gpt2.{theirs}": getattr(c, ours) for theirs, ours in GGUF_FIELDS.items()}
