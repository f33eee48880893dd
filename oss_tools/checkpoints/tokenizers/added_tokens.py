"""Tokens that tokenizer_config.json, added_tokens.json or special_tokens_map.json add to tokenizer.json.

The rules are those of transformers 5 (`tokenization_utils_base.py`, `tokenization_utils_tokenizers.py`) and of the tokenizers
library: added_tokens_decoder, where there is one, takes the place of the two older files; a special token that is named and not
there yet is added; a token that the vocabulary has keeps its number, and any other gets the next one behind the vocabulary.
Where that number is taken, since the vocabulary has gaps, the number that the file says is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oss_tools.errors import BadCheckpoint

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
MAX_ADDED = 1 << 20
MAX_REMARKS = 8

Token = dict[str, Any]  # as tokenizer.json writes it: content, id, and the flags


@dataclass
class Companions:
    """What stands beside tokenizer.json, each the content of its file."""

    config: Mapping[str, Any] = field(default_factory=dict)
    added: Mapping[str, Any] = field(default_factory=dict)
    special_map: Mapping[str, Any] = field(default_factory=dict)


def with_added_tokens(tokenizer: dict[str, Any], beside: Companions) -> tuple[dict[str, Any], list[str]]:
    """tokenizer.json's content with all tokens that belong to it, and remarks. Raises BadCheckpoint."""
    listed = tokenizer.get("added_tokens") or []
    vocabulary = _Vocabulary(tokenizer)
    if not isinstance(listed, list) or not vocabulary.known or not all(map(_is_token, listed)):
        return tokenizer, []  # damaged: whoever needs it says so
    for token in listed:
        vocabulary.add(token, "tokenizer.json")
    for token in _declared(beside):
        vocabulary.add(token, token.pop("where"))
    for token in _named_special(beside):
        vocabulary.add_special(token)
    added = list(vocabulary.added.values())
    if vocabulary.in_gaps:  # inside the vocabulary the library keeps the numbers of tokens
        vocab = {**vocabulary.numbers, **{token["content"]: token["id"] for token in added}}
        tokenizer = {**tokenizer, "model": {**tokenizer["model"], "vocab": vocab}}
    return (tokenizer if added == listed else {**tokenizer, "added_tokens": added}), _few(vocabulary.remarks)


def _few(remarks: list[str]) -> list[str]:
    """Remarks that a person can read, and how many more there are."""
    more = len(remarks) - MAX_REMARKS
    return remarks if more <= 0 else [*remarks[:MAX_REMARKS], f"and {more} more such tokens"]


class _Vocabulary:
    """The numbers of tokens, and the added ones among them, as the tokenizers library keeps them."""

    def __init__(self, tokenizer: Mapping[str, Any]) -> None:
        model = tokenizer.get("model")
        vocab = model.get("vocab") if isinstance(model, Mapping) else None
        self.known = isinstance(vocab, Mapping | list)
        self.numbers: Mapping[Any, Any] = {}
        if isinstance(vocab, Mapping):
            self.numbers = vocab
        elif isinstance(vocab, list):  # Unigram: pieces with scores
            pieces = [piece[0] if isinstance(piece, list) and piece else None for piece in vocab]
            self.numbers = {piece: number for number, piece in enumerate(pieces) if isinstance(piece, str)}
        self.size = len(vocab) if self.known and vocab is not None else 0
        self.added: dict[str, Token] = {}
        self.remarks: list[str] = []
        self.in_gaps = False  # whether a token has a number other than the library would give it
        self._next = self.size
        self._taken: set[int] | None = None  # numbers, once they are asked for

    def add(self, token: Token, where: str) -> None:
        name, said = token["content"], token.get("id")
        if not name:
            return
        before = self.added.get(name)
        number = before["id"] if before else self.numbers.get(name)
        if type(number) is not int:
            number = self._next
            if type(said) is int and said != number and self._fills_a_gap(number, said):
                number, self.in_gaps = said, True
        if type(said) is int and said != number:
            self.remarks.append(
                f"{where} gives the token {name[:80]!r} the number {said}; the vocabulary leads to {number}, which is taken, as "
                "transformers does"
            )
        self._next = max(self._next, number + 1)
        if self._taken is not None:
            self._taken.add(number)
        self.added[name] = {**token, "id": number}

    def _fills_a_gap(self, usual: int, said: int) -> bool:
        """Whether the usual number is another token's and the one that a file says is nobody's."""
        if not isinstance(self.numbers, dict):
            return False
        if self._taken is None:
            self._taken = {n for n in self.numbers.values() if type(n) is int}
            self._taken |= {token["id"] for token in self.added.values()}
        return usual in self._taken and said not in self._taken

    def add_special(self, token: Token) -> None:
        """A token that is special because it is named so."""
        before = self.added.get(token["content"])
        if before is None:
            self.add(token, "tokenizer_config.json")
        elif not before.get("special"):
            self.added[token["content"]] = {**before, "special": True}


def _is_token(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("content"), str)


def _declared(beside: Companions) -> list[Token]:
    """The tokens that the companions number, in order."""
    decoder = beside.config.get("added_tokens_decoder")
    if decoder is not None:
        where = "tokenizer_config.json's added_tokens_decoder"
        if not isinstance(decoder, Mapping) or len(decoder) > MAX_ADDED:
            raise BadCheckpoint(f"{where} is no table of tokens by number")
        tokens = [_numbered(number, entry, where) for number, entry in decoder.items()]
    else:
        special = {token["content"] for token in _named_special(beside)}
        tokens = []
        for name, number in beside.added.items():
            if type(number) is not int or number < 0:
                raise BadCheckpoint(f"added_tokens.json: the number of {str(name)[:80]!r} is no whole number")
            tokens.append(_token(name, name in special) | {"id": number, "where": "added_tokens.json"})
    return sorted(tokens, key=lambda token: token["id"])


def _numbered(number: str, entry: Any, where: str) -> Token:
    content = entry.get("content") if isinstance(entry, Mapping) else None
    if not isinstance(content, str) or not (number.isascii() and number.isdigit() and len(number) < 10):
        raise BadCheckpoint(f"{where}: the entry {number[:20]!r} is no token")
    plain = _token(content, bool(entry.get("special")))
    return plain | {flag: bool(entry[flag]) for flag in FLAGS if flag in entry} | {"id": int(number), "where": where}


def _named_special(beside: Companions) -> list[Token]:
    """The special tokens that have names or stand in lists, each once."""
    config = dict(beside.config)
    if "added_tokens_decoder" not in config:
        config |= beside.special_map
    found = [config.get(name) for name in NAMED]
    found += [v for k, v in config.items() if k.endswith("_token") and k not in NAMED]  # a model's own: image_token, …
    for name in LISTS:
        listed = config.get(name)
        found += listed if isinstance(listed, list) else list(listed.values()) if isinstance(listed, Mapping) else []
    tokens: dict[str, Token] = {}
    for entry in found:
        content = entry.get("content") if isinstance(entry, Mapping) else entry
        if isinstance(content, str) and content and content not in tokens:
            flags = entry if isinstance(entry, Mapping) else {}
            tokens[content] = _token(content, True) | {f: bool(flags[f]) for f in FLAGS[:-1] if f in flags}
    return list(tokens.values())


def _token(content: str, special: bool) -> Token:
    """With the flags that a token has if nothing is said of them."""
    return {
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": not special,
        "special": special,
    }
