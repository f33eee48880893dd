"""What the configurations of all architectures have in common when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from oss_tools.errors import BadCheckpoint
from oss_tools.models import rope_gguf, rope_hf
from oss_tools.models.fields import Limits, field, shown
from oss_tools.models.keys import one_value
from oss_tools.models.own_keys import PREFIX
from oss_tools.models.rope import Scaling
from oss_tools.models.stored import Stored


def head_size(hidden: Any, heads: Any, where: str) -> Any:
    """hidden / heads, where a configuration leaves the size of a head out; None where it says neither. Raises BadCheckpoint."""
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in (hidden, heads)):
        return None
    if hidden % heads:
        raise BadCheckpoint(f"{where} {hidden} does not divide over {heads} heads")
    return hidden // heads


def check_heads(queries: int, keys: int, size: int, where: str) -> None:
    """Raises BadCheckpoint for attention that cannot be."""
    if queries % keys:
        raise BadCheckpoint(f"{where}: {queries} query heads do not divide over {keys} key-value heads")
    if size % 2:
        raise BadCheckpoint(f"{where}: heads of {size} values: rotary positions turn pairs, the size must be even")


def hf_biases(stored: Stored, block: str, names: tuple[str, ...], said: bool, where: str) -> list[str]:
    """The projections of a block of every layer that have a bias. Raises BadCheckpoint where the files hold one that the
    configuration denies.

    Args:
        stored: what the tensors tell; where they are not known, all or none have one.
        block: self_attn or mlp.
        names: the block's projections.
        said: what the configuration says.
        where: the configuration's key, for the message.
    """
    if stored.names is None:
        return list(names) if said else []
    has = [name for name in names if stored.has(f".{block}.{name}.bias")]
    if has and not said:
        raise BadCheckpoint(
            f"{where} is not true, yet the files hold {block}.{has[0]}.bias: transformers passes over it, llama.cpp adds it; "
            f"set {where.split()[-1]} to true, or leave the tensors out"
        )
    return has


def gguf_numbers(raw: Mapping[str, Any], prefix: str, names: Mapping[str, str], limits: Limits) -> dict[str, Any]:
    """The numbers of a GGUF file under our names, checked, with llama.cpp's defaults. Raises BadCheckpoint with GGUF's names.

    Args:
        raw: all keys of the file.
        prefix: of the architecture's keys.
        names: key without the prefix -> our name.
        limits: our name -> type and range.
    """
    where = "metadata"
    layers = raw.get(f"{prefix}block_count")
    values = {key: one_value(raw[key], layers, key, where) for name in names if (key := f"{prefix}{name}") in raw}
    heads, hidden = (values.get(f"{prefix}{name}") for name in ("attention.head_count", "embedding_length"))
    values.setdefault(f"{prefix}attention.head_count_kv", heads)
    values.setdefault(f"{prefix}vocab_size", len(raw.get("tokenizer.ggml.tokens", ())) or None)
    size = f"{prefix}attention.key_length"
    if size not in values:
        values[size] = head_size(hidden, heads, f"{where}: {size} is missing, and {prefix}embedding_length")
    values = {key: value for key, value in values.items() if value is not None}
    for name in ("attention.value_length", "rope.dimension_count"):
        key = f"{prefix}{name}"
        if key in raw and one_value(raw[key], layers, key, where) != values.get(size):
            raise BadCheckpoint(
                f"{where}: {key} is {shown(raw[key])}, but heads have {shown(values.get(size))} values ({size}); both must be one"
            )
    return {
        ours: field(values, f"{prefix}{theirs}", limits[ours][0], where, *limits[ours][1:]) for theirs, ours in names.items()
    }


def own_rope(own: Mapping[str, Any], theta: float, context: int, size: int, stored: Stored) -> Scaling:
    """The stretching of positions that our own key gives, with the file's divisors where there are some. Raises BadCheckpoint."""
    _, scaling, _ = rope_hf.read_rope({"rope_scaling": own["rope_scaling"]}, theta, context)
    if stored.divisors is None:
        return scaling
    if scaling.kind == "llama3" and not rope_gguf.fits(scaling, size, theta, stored.divisors):
        raise BadCheckpoint(f"{PREFIX}rope_scaling and the tensor rope_freqs.weight contradict each other; remove the key")
    return replace(scaling, divisors=tuple(np.asarray(stored.divisors, np.float32).tolist()))


def own_remarks(said: Mapping[str, Any], peer: Mapping[str, Any]) -> list[str]:
    """A sentence for each of our own keys that a program without them computes otherwise.

    Args:
        said: name -> what the model is, the keys obeyed.
        peer: the same as other programs read the file.
    """
    return [
        f"GGUF has no key for {name} {_of_layers(said[name])}: it stands under {PREFIX}*, which only oss-tools obeys; "
        f"others compute with {_of_layers(peer[name])}"
        for name in said
        if said[name] != peer[name]
    ]


def _of_layers(value: Any) -> str:
    """A value as a sentence names it; one of each layer at length only where they differ."""
    if isinstance(value, tuple) and len(set(value)) < 2:
        return f"{shown(value[0])} of every layer" if value else "none"
    return shown(value, 160)
