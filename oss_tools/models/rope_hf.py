"""Rotary positions in the words of config.json, as transformers reads them: `rope_scaling`, `rope_theta`, `rope_parameters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oss_tools.errors import BadCheckpoint
from oss_tools.models.fields import field, number, shown, single
from oss_tools.models.rope import KINDS, PLAIN, Scaling, magnitude

COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
KNOWN = {  # what transformers obeys, by rope_type
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
}
FACTORS = (1e-3, 1e6)
CONTEXTS = (1, 1 << 30)


def rope_words(raw: Mapping[str, Any], default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """The object that holds them: `rope_scaling`, else `rope_parameters`, else what an architecture takes without either.
    Raises BadCheckpoint."""
    for key in ("rope_scaling", "rope_parameters"):
        words = raw.get(key)
        if words is not None and not isinstance(words, Mapping):
            raise BadCheckpoint(f"config.json: {key} is {shown(words)}, expected an object")
        if words or (words is not None and key == "rope_parameters"):
            return words
    return default or {}


def read_rope(
    raw: Mapping[str, Any], theta: float, context: int, default: Mapping[str, Any] | None = None
) -> tuple[float, Scaling, tuple[str, ...]]:
    """theta, scaling and remarks.

    Args:
        raw: config.json's content.
        theta: what the architecture takes where none is given.
        context: `max_position_embeddings`.
        default: the architecture's `rope_parameters` where none are given.

    Raises BadCheckpoint naming a kind that is not supported, or a field that is missing or absurd.
    """
    words = rope_words(raw, default)
    where = f"config.json: {'rope_scaling' if raw.get('rope_scaling') else 'rope_parameters'}"
    if nested := [key for key, value in words.items() if isinstance(value, Mapping)]:
        raise BadCheckpoint(f"{where}: rotary positions of their own for {', '.join(map(shown, nested))} are not supported")
    kind = words.get("rope_type", words.get("type", "default"))
    if kind not in KINDS:
        raise BadCheckpoint(f"{where}: rope_type {shown(kind)} is not supported; supported: {', '.join(KINDS)}")
    if words.get("partial_rotary_factor", raw.get("partial_rotary_factor")) not in (None, 1):
        raise BadCheckpoint(f"{where}: partial_rotary_factor is not supported: every dimension of a head is turned")
    base = words["rope_theta"] if "rope_theta" in words else raw.get("rope_theta", theta)
    turned = number({"rope_theta": base}, "rope_theta", where, 1e-3, 1e12)
    strange = sorted(set(map(str, words)) - COMMON - KNOWN[kind])
    remarks = [
        f"{where}: {key} is {shown(words[key])}; transformers does not obey it for rope_type {kind}, nor is it obeyed here"
        for key in strange
        if words[key] is not None
    ]
    if kind == "dynamic":
        remarks += [f"{where}: rope_type dynamic is plain rope up to {context} positions; a longer context is refused"]
    return turned, _scaling(kind, words, raw, context, where).for_base(turned), tuple(remarks)


def _scaling(kind: str, words: Mapping[str, Any], raw: Mapping[str, Any], context: int, where: str) -> Scaling:
    if kind == "default":
        return PLAIN
    if kind in ("linear", "dynamic"):
        factor = number(words, "factor", where, *FACTORS)
        return Scaling(kind, factor) if factor != 1 else PLAIN
    original = dict(words) | {"original_max_position_embeddings": words.get("original_max_position_embeddings", context)}
    if raw.get("original_max_position_embeddings") is not None:  # beside the object it counts more, as in transformers
        original["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    positions = field(original, "original_max_position_embeddings", int, where, *CONTEXTS)
    if kind == "llama3":
        low, high = (number(words, key, where, *FACTORS) for key in ("low_freq_factor", "high_freq_factor"))
        if low >= high:
            raise BadCheckpoint(f"{where}: low_freq_factor {low:g} is not below high_freq_factor {high:g}")
        factor = number(words, "factor", where, *FACTORS)
        return Scaling(kind, factor, positions, low_freq_factor=low, high_freq_factor=high)
    return _yarn(words, context, positions, where)


def _yarn(words: Mapping[str, Any], context: int, original: int, where: str) -> Scaling:
    by_length = "factor" in words and words["factor"] is None
    factor = single(context / original) if by_length else number(words, "factor", where, *FACTORS)
    optional: dict[str, float | None] = {
        key: None if words.get(key) is None else number(words, key, where, 0, 1e6)
        for key in ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")
    }
    truncate = words.get("truncate", True)
    if not isinstance(truncate, bool):
        raise BadCheckpoint(f"{where}: truncate is {shown(truncate)}, expected true or false")
    attention, mscale, over = (optional[key] for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if attention is None and mscale and over:
        attention = single(magnitude(factor, mscale) / magnitude(factor, over))
    if attention is not None and single(attention) == single(magnitude(factor)):
        attention = None
    if factor == 1 and attention is None:
        return PLAIN
    return Scaling(
        "yarn",
        factor,
        original,
        beta_fast=optional["beta_fast"] or 32.0,
        beta_slow=optional["beta_slow"] or 1.0,
        truncate=truncate,
        attention_factor=attention,
    )


def rope_scaling(scaling: Scaling) -> dict[str, Any] | None:
    """`rope_scaling` of a config.json, without theta; None for plain positions. What transformers has no words for is given as a
    rope_type that it refuses."""
    s = scaling
    if (s.divisors and s.kind != "llama3") or (s.kind != "yarn" and s.attention_factor is not None):
        return {"rope_type": "rope_freqs" if s.divisors else f"{s.kind} with attention_factor", "factor": s.factor}
    if s.kind == "default":
        return None
    words: dict[str, Any] = {"rope_type": s.kind, "factor": s.factor}
    if s.kind == "yarn":
        words |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow}
        words |= {"original_max_position_embeddings": s.original_context, "truncate": s.truncate}
        words |= {} if s.attention_factor is None else {"attention_factor": s.attention_factor}
    if s.kind == "llama3":
        words |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
        words |= {"original_max_position_embeddings": s.original_context}
    return words
