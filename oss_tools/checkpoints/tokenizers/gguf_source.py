"""A tokenizer.json with its companions as GGUF's lists: tokens, types, merges, special numbers; what is lost by it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf.constants import Keys, TokenType

from oss_tools.checkpoints.base import Metadata
from oss_tools.checkpoints.tokenizers.end_tokens import end_tokens
from oss_tools.errors import BadCheckpoint

MAX_TOKENS = 1 << 21  # the largest vocabularies have some 260,000
OWN_KEY = "oss_tools.tokenizer"  # JSON: what GGUF has no key for; read back by this program only
STRIPS = ("lstrip", "rstrip", "single_word")

# Hugging Face's name of a special token -> GGUF's key
SPECIAL = {
    "bos_token": Keys.Tokenizer.BOS_ID,
    "eos_token": Keys.Tokenizer.EOS_ID,
    "unk_token": Keys.Tokenizer.UNK_ID,
    "sep_token": Keys.Tokenizer.SEP_ID,
    "pad_token": Keys.Tokenizer.PAD_ID,
    "mask_token": Keys.Tokenizer.MASK_ID,
    "eot_token": Keys.Tokenizer.EOT_ID,
    "eom_token": Keys.Tokenizer.EOM_ID,
}


@dataclass(frozen=True)
class Source:
    """A tokenizer.json with its companions, checked as far as both kinds of GGUF tokenizers need it.

    Attributes:
        tokens: by number, padded to the embedding's rows.
        types: int32 [tokens], GGUF's.
        model: tokenizer.json's `model`.
        special: names of special tokens -> numbers.
        own: what GGUF has no key for, by our names, so that we read it back.
        remarks: what llama.cpp will do otherwise, a sentence each.
    """

    tokens: list[str]
    types: np.ndarray
    model: Mapping[str, Any]
    special: dict[str, int]
    own: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def read_source(metadata: Metadata, tokenizer: Mapping[str, Any]) -> Source:
    """Raises BadCheckpoint for what no GGUF file can say."""
    model = tokenizer["model"]
    vocab, added = model.get("vocab"), tokenizer.get("added_tokens") or []
    if not isinstance(vocab, Mapping) or not isinstance(added, list):
        raise BadCheckpoint("tokenizer.json: model.vocab or added_tokens is of the wrong kind")
    size = metadata.config.get("vocab_size")
    numbers = dict(vocab)
    kinds: dict[str, TokenType] = {}
    strips: dict[str, list[str]] = {}
    surplus: list[str] = []
    for entry in added:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str):
            raise BadCheckpoint("tokenizer.json: an entry of added_tokens is no token")
        name, number = entry["content"], entry.get("id")
        if isinstance(size, int) and type(number) is int and number >= size and name not in vocab:
            surplus.append(name)
            continue
        if flags := [flag for flag in STRIPS if entry.get(flag)]:
            strips[name] = flags
        numbers[name] = number
        kinds[name] = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
    tokens = _by_number(numbers, size)
    types = np.full(len(tokens), TokenType.UNUSED, np.int32)
    types[list(numbers.values())] = TokenType.NORMAL
    for token, kind in kinds.items():
        types[numbers[token]] = kind
    source = Source(tokens, types, model, _special_numbers(metadata, {token: n for n, token in enumerate(tokens)}))
    if strips:
        source.own["strips"] = strips
        source.remarks.append(
            f"{_listed(list(strips))}: spaces beside such a token go, or it must stand alone (lstrip, rstrip, single_word); "
            "GGUF has no word for it, and llama.cpp will not do so"
        )
    if surplus:
        source.remarks.append(
            f"{_listed(surplus)} {'are' if len(surplus) > 1 else 'is'} left out: numbered behind the {size} rows of the "
            "embedding, so that the model has nothing for it"
        )
    _find_room_for_ends(metadata, source)
    return source


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return f"added token{'s' if len(names) > 1 else ''} {shown}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _by_number(numbers: Mapping[str, Any], size: Any) -> list[str]:
    """The tokens in order of their numbers; numbers without a token get `[PADn]`, as in llama.cpp's own files."""
    wrong = next((token for token, n in numbers.items() if type(n) is not int or n < 0), None)
    if wrong is not None:
        raise BadCheckpoint(f"tokenizer.json: the number of the token {wrong[:80]!r} is no whole number")
    highest = max(numbers.values(), default=-1)
    size = highest + 1 if not isinstance(size, int) else size
    if highest >= min(size, MAX_TOKENS) or not numbers:
        raise BadCheckpoint(f"tokenizer.json: holds token number {highest}, but config.json has a vocab_size of {size}")
    tokens = [f"[PAD{n}]" for n in range(size)]
    taken: dict[int, str] = {}
    for token, number in numbers.items():
        other = taken.setdefault(number, token)
        if other != token:
            raise BadCheckpoint(
                f"tokenizer.json: the tokens {other[:80]!r} and {token[:80]!r} have the same number, {number}"
            )
        tokens[number] = token
    if len(set(tokens)) < size:
        twice = next(token for n, token in enumerate(tokens) if numbers.get(token, n) != n)
        raise BadCheckpoint(
            f"tokenizer.json: the token {twice!r} has the same text as one that fills up the embedding's rows"
        )
    return tokens


def pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges in order; tokenizer.json has them as lists of two, or as one text with a space between. Raises BadCheckpoint."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise BadCheckpoint("tokenizer.json: model.merges is no list")
    found = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
            raise BadCheckpoint(f"tokenizer.json: the merge {str(merge)[:80]!r} is no pair")
        found.append((pair[0], pair[1]))
    return found


def _special_numbers(metadata: Metadata, numbers: Mapping[str, int]) -> dict[str, int]:
    """Numbers of the special tokens, by Hugging Face's names: tokenizer_config.json's, else the configs' ids."""
    found = {}
    for name in SPECIAL:
        token = metadata.tokenizer_config.get(name)
        token = token.get("content") if isinstance(token, Mapping) else token
        number = numbers.get(token) if isinstance(token, str) else None
        for config in (metadata.config, metadata.generation_config):
            fallback = config.get(f"{name}_id")
            fallback = fallback[0] if isinstance(fallback, list) and fallback else fallback
            if number is None and type(fallback) is int and 0 <= fallback < len(numbers):
                number = fallback
        if number is not None:
            found[name] = number
    return found


def _find_room_for_ends(metadata: Metadata, source: Source) -> None:
    """GGUF names three tokens that end a text: eos, eot, eom. llama.cpp knows others by their texts. What is left over goes
    where there is room."""
    ids: list[int] = []
    for config in (metadata.generation_config, metadata.config):
        listed = config.get("eos_token_id")
        ids += [
            i for i in (listed if isinstance(listed, list) else [listed]) if type(i) is int and 0 <= i < len(source.tokens)
        ]
    ends = ("eos_token", "eot_token", "eom_token")
    known = {source.special[name] for name in ends if name in source.special}
    known.update(end_tokens({t: n for n, t in enumerate(source.tokens)}.get).values())
    rest = [i for i in dict.fromkeys(ids) if i not in known]
    for name in ends:
        if rest and name not in source.special:
            source.special[name] = rest.pop(0)
    if rest:
        source.own["ends"] = rest
        names = ", ".join(repr(source.tokens[i]) for i in rest[:3])
        source.remarks.append(f"{names}: more ends of a text than GGUF has keys for; llama.cpp will not stop there")


def does_look_special(token: str) -> bool:
    """Whether a token's text is a mark, not a word."""
    return bool(re.fullmatch(r"<.+>|\[[A-Z_]+\]", token))
