"""Tokenizers between Hugging Face (tokenizer.json and its companions) and GGUF (`tokenizer.ggml.*` keys), both ways.

Two kinds exist in both: byte-level BPE (GGUF's model `gpt2`) and SentencePiece-style BPE with byte fallback (`llama`). GGUF
says by a name how text is split before merging, where tokenizer.json spells it out: see `gguf_splitters`. Keys and
conventions after llama.cpp (`src/llama-vocab.cpp`, `conversion/base.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import Keys, TokenType

from oss_tools.checkpoints import templates
from oss_tools.checkpoints.base import Metadata
from oss_tools.checkpoints.gguf_header import StringArray
from oss_tools.checkpoints.gguf_splitters import PRE_HINT, byte_level, pre_name, splitter_named
from oss_tools.errors import BadCheckpoint

MAX_TOKENS = 1 << 24
SPACE = "\u2581"  # how SentencePiece writes a space
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
USER_DEFINED_SCORE, PADDING_SCORE = -1000.0, -10000.0  # never looked at; the values that llama.cpp's converter writes
HARMONY_STOPS = ("<|return|>", "<|endoftext|>", "<|call|>")  # any of them ends a generation of gpt-oss

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

# ---- from Hugging Face to GGUF --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A tokenizer.json with its companions, checked as far as both kinds need it."""

    tokens: list[str]
    types: np.ndarray
    model: Mapping[str, Any]
    special: dict[str, int]


def from_hf(metadata: Metadata, architecture: str) -> dict[str, Any]:
    """The `tokenizer.*` keys of a GGUF file. Without a tokenizer: the keys that let llama.cpp load the model all the same.

    Raises BadCheckpoint, naming the fault, for a tokenizer that GGUF cannot express.
    """
    tokenizer = metadata.tokenizer
    if tokenizer is None:
        other = next((name for name in metadata.files if name in ("tokenizer.model", "vocab.json")), None)
        if other:
            raise BadCheckpoint(
                f"{other} alone cannot be written to GGUF: save the tokenizer as tokenizer.json, with transformers"
            )
        size = metadata.config.get("vocab_size")
        count = {f"{architecture}.vocab_size": size} if isinstance(size, int) else {}
        return {Keys.Tokenizer.MODEL: "none", **count, **templates.to_gguf(metadata)}
    model = tokenizer.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, Mapping) else model
        raise BadCheckpoint(f"tokenizer.json: a model of type {kind!r} cannot be written to GGUF, only BPE")
    for field in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(field):
            raise BadCheckpoint(f"tokenizer.json: model.{field} has no counterpart in GGUF")
    if _sentencepiece(tokenizer):
        keys, source = _sentencepiece_keys(metadata, tokenizer)
    else:
        keys, source = _byte_level_keys(metadata, tokenizer)
    keys |= {SPECIAL[name]: number for name, number in source.special.items()}
    return keys | _added_ends(metadata, tokenizer, source) | templates.to_gguf(metadata)


def _sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    return bool(tokenizer["model"].get("byte_fallback"))


def _byte_level_keys(metadata: Metadata, tokenizer: Mapping[str, Any]) -> tuple[dict[str, Any], _Source]:
    normalizer = tokenizer.get("normalizer")
    if normalizer and normalizer not in ({"type": "NFC"}, {"type": "Sequence", "normalizers": []}):
        raise BadCheckpoint("tokenizer.json: its normalizer has no counterpart in GGUF")
    source = _read_source(metadata, tokenizer)
    pairs = _pairs(source.model)
    spaced = next((p for p in pairs if " " in p[0] or " " in p[1]), None)
    if spaced:
        raise BadCheckpoint(f"tokenizer.json: the merge {spaced} holds a space, which GGUF cannot express")
    keys = {
        Keys.Tokenizer.MODEL: "gpt2",
        Keys.Tokenizer.PRE: pre_name(tokenizer, metadata.tokenizer_config.get(PRE_HINT)),
        Keys.Tokenizer.LIST: source.tokens,
        Keys.Tokenizer.TOKEN_TYPE: source.types,
        Keys.Tokenizer.MERGES: [f"{left} {right}" for left, right in pairs],
    }
    return keys, source


def _sentencepiece_keys(metadata: Metadata, tokenizer: Mapping[str, Any]) -> tuple[dict[str, Any], _Source]:
    source = _read_source(metadata, tokenizer)
    types = source.types
    for number, token in enumerate(source.tokens):
        if types[number] == TokenType.NORMAL and BYTE_TOKEN.fullmatch(token):
            types[number] = TokenType.BYTE
    if source.model.get("unk_token") in source.tokens:
        types[source.tokens.index(source.model["unk_token"])] = TokenType.UNKNOWN
    for user_defined in np.flatnonzero(types == TokenType.USER_DEFINED):  # llama.cpp seeks them in the text as it came
        source.tokens[user_defined] = source.tokens[user_defined].replace(SPACE, " ")
    keys = {
        Keys.Tokenizer.MODEL: "llama",
        Keys.Tokenizer.PRE: "default",
        Keys.Tokenizer.LIST: source.tokens,
        Keys.Tokenizer.SCORES: _scores(source),
        Keys.Tokenizer.TOKEN_TYPE: types,
        Keys.Tokenizer.ADD_PREFIX: _adds_space_prefix(tokenizer),
    }
    return keys, source


def _scores(source: _Source) -> np.ndarray:
    """float32 [tokens]: falling in the order in which merges make tokens, as SentencePiece's do; single characters last."""
    made = dict.fromkeys(left + right for left, right in _pairs(source.model))
    rank = {token: index for index, token in enumerate(made)}
    scores = np.zeros(len(source.tokens), np.float32)
    for number in np.flatnonzero(source.types == TokenType.NORMAL).tolist():
        scores[number] = -rank.setdefault(source.tokens[number], len(rank))
    scores[source.types == TokenType.USER_DEFINED] = USER_DEFINED_SCORE
    scores[source.types == TokenType.UNUSED] = PADDING_SCORE
    return scores


def _adds_space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space goes before the text. Raises BadCheckpoint for other steps than SentencePiece's."""
    normalizer, splitter = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    if splitter is None:
        parts = normalizer.get("normalizers") if isinstance(normalizer, Mapping) else None
        if parts is None:
            parts = [normalizer] if normalizer else []
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        prepend = {"type": "Prepend", "prepend": SPACE}
        if parts in ([replace], [prepend, replace]):
            return prepend in parts
    elif normalizer is None and isinstance(splitter, Mapping) and splitter.get("type") == "Metaspace":
        scheme = splitter.get("prepend_scheme", "always" if splitter.get("add_prefix_space", True) else "never")
        if not splitter.get("split", True) and scheme in ("first", "always", "never"):
            return scheme != "never"
    raise BadCheckpoint("tokenizer.json: its normalizer and pre_tokenizer are not SentencePiece's, GGUF cannot express them")


def _read_source(metadata: Metadata, tokenizer: Mapping[str, Any]) -> _Source:
    """The tokens by number, padded to the embedding's rows, with their types."""
    model = tokenizer["model"]
    vocab, added = model.get("vocab"), tokenizer.get("added_tokens") or []
    if not isinstance(vocab, Mapping) or not isinstance(added, list):
        raise BadCheckpoint("tokenizer.json: model.vocab or added_tokens is of the wrong kind")
    numbers = dict(vocab)
    kinds: dict[str, TokenType] = {}
    for entry in added:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str):
            raise BadCheckpoint("tokenizer.json: an entry of added_tokens is no token")
        if entry.get("lstrip") or entry.get("rstrip") or entry.get("single_word"):
            raise BadCheckpoint(
                f"tokenizer.json: added token {entry['content']!r} strips spaces or wants whole words, "
                "which GGUF cannot say; set lstrip, rstrip and single_word to false if that does no harm"
            )
        numbers[entry["content"]] = entry.get("id")
        kinds[entry["content"]] = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
    tokens = _by_number(numbers, metadata.config.get("vocab_size"))
    types = np.full(len(tokens), TokenType.UNUSED, np.int32)
    types[list(numbers.values())] = TokenType.NORMAL
    for token, kind in kinds.items():
        types[numbers[token]] = kind
    special = _special_numbers(metadata, {token: number for number, token in enumerate(tokens)})
    return _Source(tokens, types, model, special)


def _by_number(numbers: Mapping[str, Any], size: Any) -> list[str]:
    """The tokens in order of their numbers; numbers without a token get `[PADn]`, as in llama.cpp's own files."""
    if not all(type(n) is int and n >= 0 for n in numbers.values()):
        raise BadCheckpoint("tokenizer.json: a token's number is no whole number")
    highest = max(numbers.values(), default=-1)
    size = highest + 1 if not isinstance(size, int) else size
    if highest >= min(size, MAX_TOKENS) or not numbers:
        raise BadCheckpoint(f"tokenizer.json: holds token number {highest}, but config.json has a vocab_size of {size}")
    tokens = [f"[PAD{n}]" for n in range(size)]
    for token, number in numbers.items():
        tokens[number] = token
    if len(set(numbers.values())) < len(numbers) or len(set(tokens)) < size:
        raise BadCheckpoint("tokenizer.json: two tokens have the same number or the same text")
    return tokens


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges in order; tokenizer.json has them as lists of two, or as one text with a space between."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise BadCheckpoint("tokenizer.json: model.merges is no list")
    pairs = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
            raise BadCheckpoint(f"tokenizer.json: the merge {str(merge)[:80]!r} is no pair")
        pairs.append((pair[0], pair[1]))
    return pairs


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


def _added_ends(metadata: Metadata, tokenizer: Mapping[str, Any], source: _Source) -> dict[str, Any]:
    """Whether encoding puts bos before and eos after a text. Said in any case: llama.cpp's defaults vary."""
    processor = tokenizer.get("post_processor")
    listed = processor.get("processors", [processor]) if isinstance(processor, Mapping) else []
    processors = listed if isinstance(listed, list) else []
    templates = [p for p in processors if isinstance(p, Mapping) and p.get("type") == "TemplateProcessing"]
    if not templates:
        bos, eos = (bool(metadata.tokenizer_config.get(f"add_{e}_token", False)) for e in ("bos", "eos"))
        return {Keys.Tokenizer.ADD_BOS: bos} | ({Keys.Tokenizer.ADD_EOS: True} if eos else {})
    pieces = templates[0].get("single")
    ends = [_end_of(piece) for piece in pieces] if isinstance(pieces, list) else []
    if ends.count(None) != 1 or len(ends) > 3:
        raise BadCheckpoint("tokenizer.json: its post_processor does more than add bos and eos, GGUF cannot express it")
    text = ends.index(None)
    before, after = ends[:text], ends[text + 1 :]
    names = {name: source.tokens[number] for name, number in source.special.items()}
    if before not in ([], [names.get("bos_token")]) or after not in ([], [names.get("eos_token")]):
        raise BadCheckpoint(f"tokenizer.json: its post_processor adds {before + after}, not bos and eos; GGUF cannot say so")
    return {Keys.Tokenizer.ADD_BOS: bool(before)} | ({Keys.Tokenizer.ADD_EOS: True} if after else {})


def _end_of(piece: Any) -> str | None:
    """The special token that a piece of a template adds; None for the text itself."""
    if isinstance(piece, Mapping) and "Sequence" in piece:
        return None
    token = piece.get("SpecialToken") if isinstance(piece, Mapping) else None
    return str(token.get("id") if isinstance(token, Mapping) else token)


# ---- from GGUF to Hugging Face --------------------------------------------------------------------------------------


class _Keys:
    """A GGUF file's keys, each checked when it is asked for."""

    def __init__(self, keys: Mapping[str, Any], where: str) -> None:
        self.keys, self.where = keys, where

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

    def number_of(self, key: str, tokens: Sequence[str]) -> int | None:
        """A token's number; None if the key is missing. llama.cpp passes over a number that no token has; so do we."""
        number = self.get(key, int)
        return number if number is not None and 0 <= number < len(tokens) else None


def to_hf(raw: Mapping[str, Any], config: dict[str, Any], general: dict[str, Any], where: str) -> Metadata:
    """A GGUF file's tokenizer and templates in Hugging Face terms.

    Args:
        raw: all keys of the file.
        config: the content of config.json.
        general: descriptive facts, passed through.
        where: the file, for messages.

    Raises BadCheckpoint.
    """
    keys = _Keys(raw, where)
    kind = keys.get(Keys.Tokenizer.MODEL, str)
    if kind in (None, "none", "no_vocab"):
        return Metadata(config, general=general, **templates.fields(templates.of_gguf(raw, where)))
    if kind not in ("gpt2", "llama"):
        raise BadCheckpoint(f"{where}: a tokenizer of kind {kind!r} cannot be read, only gpt2 and llama")
    tokens = keys.strings(Keys.Tokenizer.LIST)
    types = keys.numbers(Keys.Tokenizer.TOKEN_TYPE, "iu", len(tokens))
    types = np.full(len(tokens), TokenType.NORMAL, np.int32) if types is None else types
    if len(set(tokens)) < len(tokens):
        raise BadCheckpoint(f"{where}: two tokens have the same text")
    special = {name: n for name, key in SPECIAL.items() if (n := keys.number_of(key, tokens)) is not None}
    make = _byte_level_tokenizer if kind == "gpt2" else _sentencepiece_tokenizer
    tokenizer, adds_bos = make(keys, tokens, types)
    adds_bos = keys.get(Keys.Tokenizer.ADD_BOS, bool, adds_bos) and "bos_token" in special
    adds_eos = keys.get(Keys.Tokenizer.ADD_EOS, bool, False) and "eos_token" in special
    tokenizer["post_processor"] = _post_processor(tokenizer, tokens, special, adds_bos, adds_eos)
    ids = {f"{name}_id": special[name] for name in ("bos_token", "eos_token", "pad_token") if name in special}
    return Metadata(
        config={**ids, **config},
        tokenizer=tokenizer,
        tokenizer_config=_tokenizer_config(keys, tokens, special, config),
        generation_config=ids | _stops(tokens, special),
        **templates.fields(templates.of_gguf(raw, where)),
        general=general,
    )


def _tokenizer_json(tokens: list[str], types: np.ndarray, **parts: Any) -> dict[str, Any]:
    """tokenizer.json around the given parts: vocabulary and added tokens are filled in."""
    padding = {tokens[n] for n in np.flatnonzero(types == TokenType.UNUSED) if tokens[n] == f"[PAD{n}]"}
    numbers = {token: n for n, token in enumerate(tokens) if token not in padding}
    marked = np.flatnonzero(np.isin(types, (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": int(n), "content": tokens[n], **flags, "special": bool(types[n] != TokenType.USER_DEFINED)} for n in marked
    ]
    parts["model"]["vocab"] = numbers
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts}


def _bpe(merges: list[list[str]], **options: Any) -> dict[str, Any]:
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


def _byte_level_tokenizer(keys: _Keys, tokens: list[str], types: np.ndarray) -> tuple[dict[str, Any], bool]:
    """(tokenizer.json without its post-processor, whether bos comes before a text by default)."""
    name = keys.get(Keys.Tokenizer.PRE, str, "default")
    splitter = splitter_named(name)
    if splitter is None:
        raise BadCheckpoint(f"{keys.where}: how the pre-tokenizer {name!r} splits text is not known to this program")
    known = set(tokens)
    merges = []
    for index, merge in enumerate(keys.strings(Keys.Tokenizer.MERGES)):
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        if space < 0 or not right or left not in known or right not in known or left + right not in known:
            raise BadCheckpoint(f"{keys.where}: merge {index} ({merge[:80]!r}) is no pair of tokens that makes a token")
        merges.append([left, right])
    tokenizer = _tokenizer_json(
        tokens,
        types,
        normalizer={"type": "NFC"} if splitter.nfc else None,
        pre_tokenizer=splitter.pre_tokenizer(),
        post_processor=None,
        decoder=byte_level(use_regex=True),
        model=_bpe(merges, ignore_merges=splitter.ignore_merges),
    )
    return tokenizer, splitter.ignore_merges  # the same splitters imply bos in llama.cpp


def _sentencepiece_tokenizer(keys: _Keys, tokens: list[str], types: np.ndarray) -> tuple[dict[str, Any], bool]:
    """(tokenizer.json without its post-processor, whether bos comes before a text by default)."""
    scores = keys.numbers(Keys.Tokenizer.SCORES, "fiu", len(tokens))
    if scores is None:
        raise BadCheckpoint(f"{keys.where}: key {Keys.Tokenizer.SCORES} is missing")
    prefix = keys.get(Keys.Tokenizer.ADD_PREFIX, bool, True)
    unknown = np.flatnonzero(types == TokenType.UNKNOWN)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    normalizers = [{"type": "Prepend", "prepend": SPACE}, replace] if prefix else [replace]
    tokenizer = _tokenizer_json(
        tokens,
        types,
        normalizer={"type": "Sequence", "normalizers": normalizers},
        pre_tokenizer=None,
        post_processor=None,
        decoder={"type": "Sequence", "decoders": [*back, strip] if prefix else back},
        model=_bpe(
            merges_of_scores(tokens, types, scores),
            unk_token=tokens[unknown[0]] if len(unknown) else None,
            fuse_unk=True,
            byte_fallback=True,
        ),
    )
    return tokenizer, True


def merges_of_scores(tokens: Sequence[str], types: np.ndarray, scores: np.ndarray) -> list[list[str]]:
    """The merges that a SentencePiece BPE's scores amount to: all ways to make a token of two, best scores first.

    Ties are ordered as transformers' `generate_merges` orders them: the longer left part first.
    """
    usable = {tokens[n]: n for n in np.flatnonzero(types == TokenType.NORMAL).tolist()}
    found = []
    for token, number in usable.items():
        splits = [(token[:i], token[i:]) for i in range(1, min(len(token), 256))]
        pairs = [p for p in splits if p[0] in usable and p[1] in usable]
        pairs.sort(key=lambda p: (usable[p[0]], usable[p[1]]))
        found += [(float(scores[number]), *p) for p in pairs]
    found.sort(key=lambda m: (m[0], len(m[1]), len(m[2])), reverse=True)
    return [[left, right] for _, left, right in found]


def _post_processor(
    tokenizer: Mapping[str, Any], tokens: Sequence[str], special: Mapping[str, int], bos: bool, eos: bool
) -> dict[str, Any] | None:
    plain = byte_level(use_regex=True) if not _sentencepiece(tokenizer) else None
    if not bos and not eos:
        return plain
    before, after = ["bos_token"] * bos, ["eos_token"] * eos

    def ends(names: list[str], sequence: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": tokens[special[name]], "type_id": sequence}} for name in names]

    def around(letter: str, sequence: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": letter, "type_id": sequence}}
        return [*ends(before, sequence), text, *ends(after, sequence)]

    entries = {}
    for name in before + after:
        token = tokens[special[name]]
        entries[token] = {"id": token, "ids": [special[name]], "tokens": [token]}
    template = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": entries,
    }
    return {"type": "Sequence", "processors": [plain, template]} if plain else template


def _tokenizer_config(
    keys: _Keys, tokens: Sequence[str], special: Mapping[str, int], config: Mapping[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{name: tokens[number] for name, number in special.items()},
    }
    length = config.get("max_position_embeddings")
    if isinstance(length, int):
        found["model_max_length"] = length
    if keys.get(Keys.Tokenizer.MODEL, str) == "gpt2" and Keys.Tokenizer.PRE in keys.keys:
        found[PRE_HINT] = keys.get(Keys.Tokenizer.PRE, str)
    return found


def _stops(tokens: Sequence[str], special: Mapping[str, int]) -> dict[str, Any]:
    """Where several tokens end a generation: their numbers, as generation_config.json lists them."""
    stops = [special[name] for name in ("eos_token", "eot_token", "eom_token") if name in special]
    if set(HARMONY_STOPS) <= set(tokens[-4096:]):
        stops += [tokens.index(token) for token in HARMONY_STOPS]
    stops = list(dict.fromkeys(stops))
    return {"eos_token_id": stops} if len(stops) > 1 else {}
