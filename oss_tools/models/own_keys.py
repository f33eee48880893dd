"""Keys of our own in a GGUF file, `oss-tools.*`: what a model's configuration says and GGUF has no key for.

Each is named by a key of config.json. Numbers and truth values stand as they are, everything else as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from oss_tools.checkpoints.files import parse_value
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
