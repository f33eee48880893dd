"""The configuration of decoders that are built as Llama is, and how config.json says it; for GGUF see `decoder_words.py`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from oss_tools.errors import BadCheckpoint
from oss_tools.models import fields as check
from oss_tools.models import rope_hf
from oss_tools.models.configuration import check_heads, head_size, hf_biases
from oss_tools.models.fields import shown
from oss_tools.models.keys import NEUTRAL_IN_CONFIG, PASSED_OVER_IN_CONFIG, ROPE_IN_CONFIG, Harmless, Keys, check_keys
from oss_tools.models.rope import PLAIN, Positions, Scaling
from oss_tools.models.stored import Stored
from oss_tools.models.windows import Layers, Windows

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
QKV = ATTENTION[:3]
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class DecoderConfig:
    """The dimensions of a decoder; names as in Hugging Face's config.json."""

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
    sliding_window: Layers = ()  # of each layer; () where none has one
    hf: Mapping[str, Any] = field(default_factory=dict, compare=False)  # config.json as read, if it came from there


@dataclass(frozen=True)
class ExpertsConfig(DecoderConfig):
    """The same with a mixture of experts in place of the MLP, in all layers or in some."""

    num_local_experts: int = 1
    num_experts_per_tok: int = 1
    moe_intermediate_size: int = 1
    shared_expert_intermediate_size: int = 0  # 0: there is no shared expert
    norm_topk_prob: bool = True  # whether the weights of a token's experts sum to 1
    mlp_only_layers: tuple[int, ...] = ()  # those with an MLP of intermediate_size


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
EXPERT_LIMITS: check.Limits = {
    "num_local_experts": (int, 1, 65536),
    "num_experts_per_tok": (int, 1, 65536),
    "moe_intermediate_size": (int, 1, 1 << 20),
    "shared_expert_intermediate_size": (int, 0, 1 << 20),
}
SAID_DEFAULTS = ("rms_norm_eps", "num_experts_per_tok", "norm_topk_prob", "sliding_window")  # a remark where they are taken


@dataclass(frozen=True)
class Family:
    """What a family's configuration says beyond, or otherwise than, what all of them say.

    Attributes:
        class_name: of transformers.
        gguf: the name in GGUF.
        defaults: what transformers takes where config.json has no such key.
        theta: the base of the rotary positions where config.json has none.
        bias_keys: key of config.json -> (block, its projections that have a bias if the key is true, the key's default).
        biased: projections of attention that always have a bias.
        gguf_biases: projections whose biases llama.cpp reads.
        windows: how config.json says sliding windows; None for a family without.
        experts: how many experts' keys there are: names of EXPERT_LIMITS and others of ExpertsConfig, as obeyed in config.json.
        refused, passed_over: further keys of config.json: see `Keys`.
        gguf_renormalizes: `norm_topk_prob` as llama.cpp takes it, which has no key for it.
        gguf_rotates: whether GGUF holds q and k with the halves of each head interleaved, and divisors of the rotary frequencies.
        gguf_name_is_shared: whether files say the model_type besides, in a key of our own.
    """

    class_name: str
    gguf: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    theta: float = 10000.0
    bias_keys: Mapping[str, tuple[str, tuple[str, ...], bool]] = field(default_factory=dict)
    biased: tuple[str, ...] = ()
    gguf_biases: tuple[str, ...] = ()
    windows: Windows | None = None
    experts: tuple[str, ...] = ()
    refused: Harmless = field(default_factory=dict)
    passed_over: Harmless = field(default_factory=dict)
    gguf_renormalizes: bool = True
    gguf_rotates: bool = False
    gguf_name_is_shared: bool = False

    @property
    def config(self) -> type[DecoderConfig]:
        return ExpertsConfig if self.experts else DecoderConfig

    @property
    def limits(self) -> check.Limits:
        """The numbers that config.json must say, or the defaults."""
        return {**LIMITS, **{name: EXPERT_LIMITS[name] for name in self.experts if name in EXPERT_LIMITS}}

    @property
    def hf_keys(self) -> Keys:
        refused: dict[str, Collection[Any]] = {"hidden_act": ("silu", "swish"), "per_layer_config": (), "block_configs": ()}
        if not self.experts:
            refused |= {"num_local_experts": (0,), "num_experts": (0,), "n_routed_experts": (0,)}
        return Keys(
            "transformers",
            obeyed={
                *(*self.limits, *ROPE_IN_CONFIG, *self.bias_keys, *self.experts, "tie_word_embeddings"),
                *(self.windows.keys if self.windows else ()),
                *(("num_experts",) if self.experts else ()),
            },
            neutral=NEUTRAL_IN_CONFIG,
            refused={**refused, **self.refused},
            passed_over={
                **PASSED_OVER_IN_CONFIG,
                "sliding_window": (),
                "layer_types": ("full_attention",),
                "swiglu_limit": (),
                **self.passed_over,
            },
        )


# ---- config.json ----------------------------------------------------------------------------------------------------


def from_hf(family: Family, raw: Mapping[str, Any], stored: Stored) -> tuple[DecoderConfig, tuple[str, ...]]:
    """The configuration and remarks. Raises BadCheckpoint."""
    where = "config.json"
    remarks = list(check_keys(family.hf_keys, raw, where))
    values = dict(raw)
    if family.experts:
        values |= _experts_named(raw, where)
    for key in [key for key in family.defaults if key not in values]:
        values[key] = family.defaults[key]
        if key in SAID_DEFAULTS:
            remarks += [f"{where}: {key} is missing; {_text(values[key])} is taken, as transformers does"]
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if values.get("head_dim") is None:
        values["head_dim"] = head_size(hidden, heads, f"{where}: head_dim is missing, and hidden_size")
    numbers = {key: check.field(values, key, kind, where, low, high) for key, (kind, low, high) in family.limits.items()}
    layers = numbers["num_hidden_layers"]
    theta, rope, more = rope_hf.read_rope(raw, family.theta, numbers["max_position_embeddings"])
    biases, missing = _biases(family, raw, stored, where)
    if missing:
        remarks += [f"no bias of {', '.join(missing)} in the files: it is taken as zero, as transformers does"]
    if family.experts:
        numbers |= _experts(family, values, numbers, where)
    config = family.config(
        **numbers,
        rope_theta=theta,
        rope=rope,
        tie_word_embeddings=check.flag(raw, "tie_word_embeddings", False, where) and not stored.has_own_head,
        biases=biases,
        sliding_window=family.windows.read(values, layers, where) if family.windows else (),
        hf=dict(raw),
    )
    return possible(config, where), (*remarks, *more)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _biases(family: Family, raw: Mapping[str, Any], stored: Stored, where: str) -> tuple[tuple[str, ...], list[str]]:
    """The projections that have a bias, and those that should have one and have none in the files. Raises BadCheckpoint."""
    keys = {
        f"{where}: {key}": (b, names, check.flag(raw, key, usual, where))
        for key, (b, names, usual) in family.bias_keys.items()
    }
    if family.biased:
        keys[where] = ("self_attn", family.biased, True)
    biases, missing = [], []
    for said_where, (block, names, said) in keys.items():
        has = hf_biases(stored, block, names, said, said_where)
        biases += has
        missing += [f"{block}.{name}" for name in names if said and name not in has]
    return tuple(biases), missing


def _experts_named(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`num_local_experts` under either of its names. Raises BadCheckpoint where they contradict each other."""
    said = {key: raw[key] for key in ("num_local_experts", "num_experts") if key in raw}
    if len(set(map(repr, said.values()))) > 1:
        first, second = (f"{key} is {shown(value)}" for key, value in said.items())
        raise BadCheckpoint(f"{where}: {first}, but {second}; remove the wrong one")
    return {"num_local_experts": next(iter(said.values()))} if said else {}


def _experts(family: Family, values: Mapping[str, Any], numbers: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of ExpertsConfig that are no plain numbers. Raises BadCheckpoint."""
    fields: dict[str, Any] = {}
    if "moe_intermediate_size" not in family.experts:
        fields["moe_intermediate_size"] = numbers["intermediate_size"]
    if "norm_topk_prob" in family.experts:
        fields["norm_topk_prob"] = check.flag(values, "norm_topk_prob", False, where)
    if "mlp_only_layers" in family.experts:
        layers = numbers["num_hidden_layers"]
        step = check.field({"decoder_sparse_step": 1} | dict(values), "decoder_sparse_step", int, where, 1, 1 << 20)
        listed = values.get("mlp_only_layers") or []
        if not isinstance(listed, list | tuple) or any(isinstance(n, bool) or not isinstance(n, int) for n in listed):
            raise BadCheckpoint(f"{where}: mlp_only_layers is {shown(listed)}, expected a list of layers")
        listed = set(listed)
        fields["mlp_only_layers"] = tuple(n for n in range(layers) if n in listed or (n + 1) % step)
    return fields


def to_hf(family: Family, model_type: str, c: DecoderConfig) -> dict[str, Any]:
    """config.json's content."""
    words: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": model_type,
        "attention_dropout": 0.0,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_position_embeddings,
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
    for key, (_, names, _) in family.bias_keys.items():
        words[key] = any(name in c.biases for name in names)
    if family.windows:
        words |= family.windows.write(c.sliding_window)
    if isinstance(c, ExpertsConfig):
        words |= _experts_words(family, c)
    return dict(sorted(words.items(), key=lambda item: (item[0] not in ("architectures", "model_type"), item[0])))


def _experts_words(family: Family, c: ExpertsConfig) -> dict[str, Any]:
    count = "num_experts" if "num_experts" in family.experts else "num_local_experts"
    words: dict[str, Any] = {count: c.num_local_experts}
    for name in family.experts:
        if name in EXPERT_LIMITS and name != "num_local_experts":
            words[name] = getattr(c, name)
    if "norm_topk_prob" in family.experts:
        words["norm_topk_prob"] = c.norm_topk_prob
    if "mlp_only_layers" in family.experts:
        words |= {"mlp_only_layers": list(c.mlp_only_layers), "decoder_sparse_step": 1}
    return words


# ---- all containers -------------------------------------------------------------------------------------------------


def computation(c: DecoderConfig) -> dict[str, Any]:
    """What decides about logits, in common terms: see Architecture.computation."""
    windows = tuple(w if w and w < c.max_position_embeddings else None for w in c.sliding_window)
    return {
        **{key: getattr(c, key) for key in LIMITS},
        "rope": Positions(c.rope_theta, c.head_dim, c.rope),
        "tie_word_embeddings": c.tie_word_embeddings,
        "biases": ", ".join(c.biases) or "none",
        "sliding_window": windows if any(windows) else (),  # of each layer; one as wide as the longest context hides nothing
        **({key: getattr(c, key) for key in EXPERT_LIMITS} if isinstance(c, ExpertsConfig) else {}),
        **({key: getattr(c, key) for key in ("norm_topk_prob", "mlp_only_layers")} if isinstance(c, ExpertsConfig) else {}),
    }


def possible(c: DecoderConfig, where: str) -> DecoderConfig:
    """The configuration itself. Raises BadCheckpoint for a model that cannot be."""
    check_heads(c.num_attention_heads, c.num_key_value_heads, c.head_dim, where)
    if isinstance(c, ExpertsConfig) and c.num_experts_per_tok > c.num_local_experts:
        raise BadCheckpoint(f"{where}: {c.num_experts_per_tok} of {c.num_local_experts} experts: not a possible model")
    return c
