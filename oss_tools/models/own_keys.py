"""Keys of our own in a GGUF file, `oss-tools.*`: what a model's configuration says and GGUF has no key for.

Each is named by a key of config.json. Numbers and truth values stand as they are, everything else as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from oss_tools.checkpoints.json_files import parse_value
from oss_tools.errors import BadCheckpoint
from oss_tools.models.fields import shown

PREFIX = "oss-tools."


def own_keys(words: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a file for words of config.json."""
    return {f"{PREFIX}{key}": v if isinstance(v, bool | int | float) else json.dumps(v) for key, v in words.items()}


def own_words(raw: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Words of config.json from a file's keys. Raises BadCheckpoint for one that is not `known` or is no JSON."""
    words = {}
    for key, value in raw.items():
        name = key.removeprefix(PREFIX)
        if name == key:
            continue
        if name not in known:
            raise BadCheckpoint(f"metadata: {key} is {shown(value)}: this version of oss-tools does not know the key")
        try:
            words[name] = parse_value(value.encode(), key) if isinstance(value, str) else value
        except BadCheckpoint:
            raise BadCheckpoint(f"metadata: {key} is {shown(value)}, expected JSON") from None
    return words


def check_agreement(said: Mapping[str, Any], raw: Mapping[str, Any]) -> None:
    """Raises BadCheckpoint where keys of our own in a GGUF file contradict GGUF's: another program changed these."""
    rope = tuple(f".rope.scaling.{name}" for name in ("type", "factor", "attn_factor") if f"{PREFIX}rope_scaling" in raw)
    for key in dict.fromkeys([*said, *(key for key in raw if key.endswith(rope))]):
        value: Any = said.get(key)
        if key in raw and not np.array_equal(np.asarray(raw[key]), np.asarray(value)):
            real = isinstance(value, float) and isinstance(raw[key], int | float)
            if not (real and np.isclose(value, raw[key], rtol=1e-6, atol=0)):
                raise BadCheckpoint(
                    f"metadata: {key} is {shown(raw[key])}, but the keys {PREFIX}* of the same file stand for {shown(value)}; "
                    f"remove those keys if another program changed this one"
                )
