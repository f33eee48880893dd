"""A gpt-oss model's configuration in OpenAI's own config.json and in GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from oss_tools.errors import BadCheckpoint
from oss_tools.models import fields as check
from oss_tools.models import rope_gguf, rope_hf
from oss_tools.models.configuration import gguf_numbers, own_remarks, own_rope
from oss_tools.models.fields import shown
from oss_tools.models.gpt_oss_config import (
    ATTENTION,
    FULL,
    LIMITS,
    ROPE,
    SLIDING,
    WINDOWS,
    GptOssConfig,
    alternating,
    computation,
    possible,
    read_layers,
)
from oss_tools.models.keys import NEUTRAL_IN_GGUF, PASSED_OVER_IN_GGUF, ROPE_IN_GGUF, Keys, check_keys, one_value
from oss_tools.models.own_keys import own_words
from oss_tools.models.rope import PLAIN, Scaling
from oss_tools.models.stored import Stored

# ---- OpenAI's config.json -------------------------------------------------------------------------------------------

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
}
ORIGINAL_ROPE = {  # field -> what OpenAI's program takes without it
    "initial_context_length": 4096,
    "rope_theta": 150000.0,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1.0,
    "rope_ntk_beta": 32.0,
}

ORIGINAL_KEYS = Keys(
    "OpenAI's program", obeyed={*ORIGINAL_FIELDS, *ORIGINAL_ROPE, "sliding_window"}, neutral=("model_type", "torch_dtype")
)


def from_original(raw: Mapping[str, Any], stored: Stored) -> tuple[GptOssConfig, tuple[str, ...]]:
    """The configuration and remarks; what is missing is as OpenAI's program takes it. Raises BadCheckpoint."""
    where, usual = "config.json", GptOssConfig(num_hidden_layers=36, num_local_experts=128)
    remarks = check_keys(ORIGINAL_KEYS, raw, where)
    values = {theirs: getattr(usual, ours) for theirs, ours in ORIGINAL_FIELDS.items()} | {"sliding_window": 128}
    values |= ORIGINAL_ROPE | dict(raw)
    numbers = {
        ours: check.field(values, theirs, LIMITS[ours][0], where, *LIMITS[ours][1:])
        for theirs, ours in ORIGINAL_FIELDS.items()
    }
    context = check.field(values, "initial_context_length", int, where, *rope_hf.CONTEXTS)
    factor = check.number(values, "rope_scaling_factor", where, *rope_hf.FACTORS)
    slow, fast = (check.number(values, f"rope_ntk_{name}", where, 1e-6, 1e6) for name in ("alpha", "beta"))
    longest = int(context * factor) if factor > 1 else context
    window = check.field(values, "sliding_window", int, where, 0, WINDOWS[1])
    layers = numbers["num_hidden_layers"]
    theta = check.number(values, "rope_theta", where, 1e-3, 1e12)
    rope = Scaling("yarn", factor, context, fast, slow, truncate=False) if factor > 1 else PLAIN
    config = GptOssConfig(
        **numbers,
        sliding_window=window or None,  # 0: every layer sees everything
        layer_types=() if window else (FULL,) * layers,
        rms_norm_eps=usual.rms_norm_eps,
        max_position_embeddings=min(longest, rope_hf.CONTEXTS[1]),
        rope_theta=theta,
        rope=rope.for_base(theta),
    )
    return possible(config, where), remarks


def to_original(c: GptOssConfig) -> dict[str, Any]:
    """OpenAI's config.json, as far as its fields go."""
    words = {theirs: getattr(c, ours) for theirs, ours in ORIGINAL_FIELDS.items()}
    words["sliding_window"] = 0 if not any(c.windows) else c.sliding_window
    s = c.rope if c.rope.kind == "yarn" else replace(PLAIN, original_context=c.max_position_embeddings)
    return words | {
        "initial_context_length": s.original_context,
        "rope_theta": c.rope_theta,
        "rope_scaling_factor": s.factor,
        "rope_ntk_alpha": s.beta_slow,
        "rope_ntk_beta": s.beta_fast,
    }


# ---- GGUF -----------------------------------------------------------------------------------------------------------

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
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
}
WINDOW_KEY, PATTERN_KEY = "gpt-oss.attention.sliding_window", "gpt-oss.attention.sliding_window_pattern"

GGUF_KEYS = Keys(
    "llama.cpp",
    obeyed={
        *(*GGUF_FIELDS, *ROPE_IN_GGUF, "attention.value_length", "attention.sliding_window"),
        *("attention.sliding_window_pattern", "rope.freq_base_swa"),
    },
    neutral=(*NEUTRAL_IN_GGUF, "feed_forward_length"),
    refused={"attention.causal": (True,)},
    passed_over=PASSED_OVER_IN_GGUF | {"rope.dimension_sections": (0,)},
    prefix="gpt-oss.",
)

# Part of the computation -> keys of config.json, where GGUF may lack words: see own_keys.
OWN_KEYS = {
    "rope": ("rope_scaling",),
    "sliding_window": ("sliding_window", "layer_types"),
    "swiglu_limit": ("swiglu_limit",),
}


def from_gguf(raw: Mapping[str, Any], stored: Stored) -> tuple[GptOssConfig, tuple[str, ...]]:
    """The configuration and remarks. Raises BadCheckpoint."""
    where, prefix = "metadata", "gpt-oss."
    remarks = check_keys(GGUF_KEYS, raw, where)
    values = {f"{prefix}expert_used_count": None} | dict(raw)
    numbers = gguf_numbers(values, prefix, GGUF_FIELDS, {k: v for k, v in LIMITS.items() if k != "swiglu_limit"})
    layers, context = numbers["num_hidden_layers"], numbers["max_position_embeddings"]
    theta, rope, more = rope_gguf.read_rope(raw, "gpt-oss", numbers["head_dim"], context, ROPE.truncate, None)
    if (swa := raw.get(f"{prefix}rope.freq_base_swa")) is not None and np.float32(swa) != np.float32(theta):
        raise BadCheckpoint(
            f"{where}: {prefix}rope.freq_base_swa is {shown(swa)}, {prefix}rope.freq_base {theta:g}; both must be one"
        )
    window = check.field(
        {WINDOW_KEY: one_value(raw.get(WINDOW_KEY), layers, WINDOW_KEY, where)}, WINDOW_KEY, int, where, *WINDOWS
    )
    config = GptOssConfig(
        **numbers,
        sliding_window=window,
        layer_types=_pattern(raw.get(PATTERN_KEY), layers, where),
        rope_theta=theta,
        rope=rope,
        tie_word_embeddings=stored.names is not None and "output.weight" not in stored.names,
    )
    if config.layer_types:
        more += (f"{where}: {PATTERN_KEY} is obeyed; the first versions of llama.cpp for gpt-oss pass over it",)
    own = own_words(raw, [key for keys in OWN_KEYS.values() for key in keys])
    if not own:
        return possible(config, where), (*remarks, *more)
    peer = replace(config, rope=replace(rope, truncate=True))  # llama.cpp always rounds the bounds
    if "rope_scaling" in own:
        config = replace(config, rope=own_rope(own, theta, context, config.head_dim, stored))
    if "layer_types" in own:
        own_window, types = read_layers({"sliding_window": None} | own, layers, "metadata oss-tools.*")
        config = replace(config, sliding_window=own_window, layer_types=types)
    if "swiglu_limit" in own:
        config = replace(config, swiglu_limit=check.field(own, "swiglu_limit", float, "metadata oss-tools.*", 0, 1e6))
    said = computation(config)
    if "rope_scaling" not in own:
        peer = replace(peer, rope=config.rope)  # as in every file of a published model
    return possible(config, where), (*remarks, *more, *own_remarks(said, computation(peer)))


def _pattern(value: Any, layers: int, where: str) -> tuple[str, ...]:
    """The layers' types: from a list of whether each slides, or from a period n, whose last layer does not."""
    if value is None:
        return ()
    if isinstance(value, np.ndarray | list | tuple):
        slides = np.asarray(value).tolist()
        if len(slides) != layers or any(s not in (0, 1) for s in slides):
            raise BadCheckpoint(
                f"{where}: {PATTERN_KEY} is {shown(slides)}, expected a truth value for each of {layers} layers"
            )
    else:
        period = check.field({PATTERN_KEY: value}, PATTERN_KEY, int, where, 0, 4096)
        slides = [not period or layer % period < period - 1 for layer in range(layers)]
    types = tuple(SLIDING if s else FULL for s in slides)
    return () if types == alternating(layers) else types


def to_gguf(c: GptOssConfig) -> dict[str, Any]:
    """GGUF's key-values. Raises BadCheckpoint for a model that llama.cpp cannot load."""
    if missing := [name for name in ATTENTION if name not in c.biases]:
        raise BadCheckpoint(
            "the container gguf cannot hold this model: "
            f"it has no bias of {', '.join(missing)}, which llama.cpp demands of gpt-oss"
        )
    keys: dict[str, Any] = {"general.architecture": "gpt-oss"}
    keys |= {f"gpt-oss.{theirs}": getattr(c, ours) for theirs, ours in GGUF_FIELDS.items()}
    keys |= {"gpt-oss.attention.value_length": c.head_dim, "gpt-oss.feed_forward_length": c.intermediate_size}
    keys[WINDOW_KEY] = c.sliding_window
    if not any(c.windows):
        keys[WINDOW_KEY] = c.max_position_embeddings  # every layer sees everything
    elif c.layer_types:
        keys[PATTERN_KEY] = [kind == SLIDING for kind in c.types]
    return keys | rope_gguf.rope_keys(c.rope, c.rope_theta, "gpt-oss")
