"""What GGUF files say of tokenizers, each key checked when it is asked for; parts of a tokenizer.json made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gguf.constants import TokenType

from oss_tools.checkpoints.gguf_values import StringArray
from oss_tools.checkpoints.json_files import parse_json
from oss_tools.checkpoints.tokenizers.gguf_source import OWN_KEY
from oss_tools.errors import BadCheckpoint


class TokenizerKeys:
    """A GGUF file's keys, each checked when it is asked for. Every method raises BadCheckpoint."""

    def __init__(self, keys: Mapping[str, Any], where: str) -> None:
        self.keys, self.where = keys, where
        self.remarks: list[str] = []

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.keys.get(key, default)
        if value is not default and type(value) is not kind:
            raise BadCheckpoint(f"{self.where}: key {key} is of the wrong type")
        return value

    def strings(self, key: str) -> list[str]:
        value = self.keys.get(key)
        if not isinstance(value, StringArray):
            raise BadCheckpoint(f"{self.where}: key {key} is missing or no list of texts")
        return value.strings

    def numbers(self, key: str, kind: str, count: int) -> np.ndarray | None:
        """An array of at least `count` numbers, cut to that; None if the key is missing."""
        value = self.keys.get(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kind or len(value) < count:
            raise BadCheckpoint(f"{self.where}: key {key} is not a list of {count} numbers")
        return value[:count]

    def number_of(self, key: str, tokens: Sequence[str], default: int | None = None) -> int | None:
        """A token's number; `default` if the key is missing. llama.cpp passes over a number that no token has; so do we."""
        number = self.get(key, int, default)
        if number is not None and not 0 <= number < len(tokens):
            number = default
        return number if number is not None and number < len(tokens) else None

    def own(self) -> dict[str, Any]:
        """What this program wrote there because GGUF has no key for it."""
        text = self.get(OWN_KEY, str)
        return parse_json(text.encode(), f"{self.where}: key {OWN_KEY}") if text else {}


def tokenizer_json(tokens: list[str], types: np.ndarray, strips: Any, **parts: Any) -> dict[str, Any]:
    """tokenizer.json around the given parts: vocabulary and added tokens are filled in.

    `strips`: names of tokens -> which of lstrip, rstrip and single_word they have, where that is known.
    """
    strips = strips if isinstance(strips, Mapping) else {}
    padding = {tokens[n] for n in np.flatnonzero(types == TokenType.UNUSED) if tokens[n] == f"[PAD{n}]"}
    numbers = {token: n for n, token in enumerate(tokens) if token not in padding}
    marked = np.flatnonzero(np.isin(types, (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)))
    added = []
    for n in marked:
        has = strips.get(tokens[n])
        flags = {f: isinstance(has, list) and f in has for f in ("single_word", "lstrip", "rstrip")} | {"normalized": False}
        added.append({"id": int(n), "content": tokens[n], **flags, "special": bool(types[n] != TokenType.USER_DEFINED)})
    parts["model"]["vocab"] = numbers
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts}


def bpe(merges: list[list[str]], **options: Any) -> dict[str, Any]:
    """A BPE model without its vocabulary."""
    plain = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**plain, **options, "vocab": {}, "merges": merges}
