"""Tokenizers between Hugging Face (tokenizer.json and its companions) and GGUF (`tokenizer.ggml.*` keys), both ways.

Two kinds exist in both: byte-level BPE (GGUF's model `gpt2`) and SentencePiece-style BPE with byte fallback (`llama`). GGUF
says by a name how text is split before merging, where tokenizer.json spells it out: see `gguf_splitters`. Keys and
conventions after llama.cpp (`src/llama-vocab.cpp`, `conversion/base.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gguf.constants import Keys, TokenType

from oss_tools.checkpoints import templates
from oss_tools.checkpoints.base import Metadata
from oss_tools.checkpoints.gguf_splitters import PRE_HINT, byte_level
from oss_tools.checkpoints.tokenizers.around_text import template_around, templates_of
from oss_tools.checkpoints.tokenizers.end_tokens import end_tokens
from oss_tools.checkpoints.tokenizers.folder import UNREAD, unread_vocabulary
from oss_tools.checkpoints.tokenizers.gguf_byte_level import byte_level_keys, byte_level_tokenizer
from oss_tools.checkpoints.tokenizers.gguf_keys import TokenizerKeys
from oss_tools.checkpoints.tokenizers.gguf_sentencepiece import is_sentencepiece, sentencepiece_keys, sentencepiece_tokenizer
from oss_tools.checkpoints.tokenizers.gguf_source import OWN_KEY, SPECIAL, Source, does_look_special
from oss_tools.errors import BadCheckpoint

HARMONY_STOPS = ("<|return|>", "<|endoftext|>", "<|call|>")  # any of them ends a generation of gpt-oss
# What llama.cpp takes where a file of model `llama` is silent
LLAMA_DEFAULTS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
OTHER_KINDS = {
    "t5": "SentencePiece Unigram",
    "bert": "WordPiece",
    "rwkv": "RWKV's greedy tokenizer",
    "plamo2": "PLaMo 2's own",
    "gemma4": "Gemma 4's BPE",
    "hybriddna": "BPE with k-mers of DNA",
    "whitespace": "BPE between white space",
}

# ---- from Hugging Face to GGUF --------------------------------------------------------------------------------------


def check_tokenizer(metadata: Metadata) -> None:
    """Raises BadCheckpoint, naming the fault, for a tokenizer that GGUF cannot express."""
    from_hf(metadata, "")


def remarks_on_writing(metadata: Metadata) -> tuple[str, ...]:
    """What llama.cpp will do otherwise than this tokenizer, a sentence each. Raises BadCheckpoint as `check_tokenizer`."""
    return () if metadata.tokenizer is None else tuple(_keys_and_source(metadata, metadata.tokenizer)[1].remarks)


def from_hf(metadata: Metadata, architecture: str) -> dict[str, Any]:
    """The `tokenizer.*` keys of a GGUF file. Without a tokenizer: the keys that let llama.cpp load the model all the same.

    Raises BadCheckpoint, naming the fault, for a tokenizer that GGUF cannot express.
    """
    if metadata.tokenizer is None:
        if name := unread_vocabulary(metadata.files):
            raise BadCheckpoint(f"{name} cannot be written to GGUF: {UNREAD}")
        size = metadata.config.get("vocab_size")
        count = {f"{architecture}.vocab_size": size} if isinstance(size, int) else {}
        return {Keys.Tokenizer.MODEL: "none", **count, **templates.to_gguf(metadata)}
    keys, source = _keys_and_source(metadata, metadata.tokenizer)
    own = {OWN_KEY: json.dumps(source.own, sort_keys=True)} if source.own else {}
    return keys | own | templates.to_gguf(metadata)


def _keys_and_source(metadata: Metadata, tokenizer: Mapping[str, Any]) -> tuple[dict[str, Any], Source]:
    """The keys that say how text is encoded, and what they were made of."""
    model = tokenizer.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, Mapping) else model
        raise BadCheckpoint(f"a tokenizer of type {kind!r} cannot be written to GGUF, only BPE")
    for field in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            raise BadCheckpoint(f"tokenizer.json: model.{field} has no counterpart in GGUF")
    make = sentencepiece_keys if is_sentencepiece(tokenizer) else byte_level_keys
    keys, source = make(metadata, tokenizer)
    ends = _added_ends(tokenizer, source)
    keys |= {SPECIAL[name]: number for name, number in source.special.items()}
    return keys | ends, source


def _added_ends(tokenizer: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Whether encoding puts bos before and eos after a text. Said in any case: llama.cpp's defaults vary.

    tokenizer.json decides, as in transformers 5, which passes over add_bos_token and add_eos_token of tokenizer_config.json
    where there is a tokenizer.json. A template's tokens are bos and eos where nothing else says which these are.
    """
    templates = templates_of(tokenizer)
    if not templates:
        return {Keys.Tokenizer.ADD_BOS: False}
    pieces = templates[0].get("single")
    ends = [_end_of(piece) for piece in pieces] if isinstance(pieces, list) else []
    if ends.count(None) != 1 or len(ends) > 3:
        raise BadCheckpoint("tokenizer.json: its post_processor does more than add bos and eos, GGUF cannot express it")
    text = ends.index(None)
    before, after = ends[:text], ends[text + 1 :]
    for name, added in (("bos_token", before), ("eos_token", after)):
        if name not in source.special and len(added) == 1 and added[0] in source.tokens:
            source.special[name] = source.tokens.index(added[0])
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


def to_hf(raw: Mapping[str, Any], config: dict[str, Any], general: dict[str, Any], where: str) -> Metadata:
    """A GGUF file's tokenizer and templates in Hugging Face terms.

    Args:
        raw: all keys of the file.
        config: the content of config.json.
        general: descriptive facts, passed through.
        where: the file, for messages.

    Raises BadCheckpoint.
    """
    keys = TokenizerKeys(raw, where)
    kind = keys.get(Keys.Tokenizer.MODEL, str)
    if kind in (None, "none", "no_vocab"):
        return Metadata(config, general=general, **templates.fields(templates.of_gguf(raw, where)))
    if kind not in ("gpt2", "llama"):
        what = f" ({OTHER_KINDS[kind]})" if kind in OTHER_KINDS else ""
        raise BadCheckpoint(f"{where}: a tokenizer of kind {kind[:40]!r}{what} cannot be read, only gpt2 and llama")
    tokens = _distinct(keys.strings(Keys.Tokenizer.LIST), where)
    types = keys.numbers(Keys.Tokenizer.TOKEN_TYPE, "iu", len(tokens))
    types = np.full(len(tokens), TokenType.NORMAL, np.int32) if types is None else types.astype(np.int32)
    defaults = LLAMA_DEFAULTS if kind == "llama" else {}
    special = {
        name: n for name, key in SPECIAL.items() if (n := keys.number_of(key, tokens, defaults.get(name))) is not None
    }
    _mark_control(keys, tokens, types, special)
    own = keys.own()
    make = byte_level_tokenizer if kind == "gpt2" else sentencepiece_tokenizer
    tokenizer, adds_bos = make(keys, tokens, types, own)
    adds_bos = keys.get(Keys.Tokenizer.ADD_BOS, bool, adds_bos) and "bos_token" in special
    adds_eos = keys.get(Keys.Tokenizer.ADD_EOS, bool, False) and "eos_token" in special
    tokenizer["post_processor"] = _post_processor(tokenizer, tokens, special, adds_bos, adds_eos)
    ids = {f"{name}_id": special[name] for name in ("bos_token", "eos_token", "pad_token") if name in special}
    return Metadata(
        config={**ids, **config},
        tokenizer=tokenizer,
        tokenizer_config=_tokenizer_config(keys, tokens, special, config),
        generation_config=ids | _stops(tokens, special, own),
        **templates.fields(templates.of_gguf(raw, where)),
        general=general,
        remarks=tuple(keys.remarks),
    )


def _distinct(tokens: list[str], where: str) -> list[str]:
    """The tokens, empty ones named as llama.cpp names them. Raises BadCheckpoint if two are the same."""
    tokens = [token or f"[EMPTY_{n}]" for n, token in enumerate(tokens)]
    if len(set(tokens)) < len(tokens):
        numbers: dict[str, int] = {}
        n, twice = next((n, token) for n, token in enumerate(tokens) if numbers.setdefault(token, n) != n)
        raise BadCheckpoint(f"{where}: two tokens have the same text, {twice[:80]!r}: numbers {numbers[twice]} and {n}")
    return tokens


def _mark_control(keys: TokenizerKeys, tokens: list[str], types: np.ndarray, special: Mapping[str, int]) -> None:
    """Gives tokens that end a turn or begin a text the type of control tokens, if the file does not, as llama.cpp does by name:
    else a template's marks would be cut to pieces, and generation would not stop at them."""
    roles = {tokens[special[name]] for name in ("bos_token", "eos_token", "eot_token", "eom_token") if name in special}
    names = {*end_tokens({token: n for n, token in enumerate(tokens)}.get), *filter(does_look_special, roles)}
    wrong = [n for n, token in enumerate(tokens) if token in names and types[n] == TokenType.NORMAL]
    types[wrong] = TokenType.CONTROL
    if wrong:
        shown = ", ".join(repr(tokens[n]) for n in wrong[:4]) + (" and others" if len(wrong) > 4 else "")
        keys.remarks.append(f"{keys.where}: {shown} typed as text; taken as control tokens, as llama.cpp does")


def _post_processor(
    tokenizer: Mapping[str, Any], tokens: Sequence[str], special: Mapping[str, int], bos: bool, eos: bool
) -> dict[str, Any] | None:
    plain = byte_level(use_regex=True) if not is_sentencepiece(tokenizer) else None
    if not bos and not eos:
        return plain
    before = [tokens[special["bos_token"]]] if bos else []
    after = [tokens[special["eos_token"]]] if eos else []
    numbers = {tokens[number]: number for number in special.values()}
    template = template_around(before, after, numbers)
    return {"type": "Sequence", "processors": [plain, template]} if plain else template


def _tokenizer_config(
    keys: TokenizerKeys, tokens: Sequence[str], special: Mapping[str, int], config: Mapping[str, Any]
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
    if keys.get(Keys.Tokenizer.MODEL, str) == "gpt2" and keys.get(Keys.Tokenizer.PRE, str):
        found[PRE_HINT] = keys.get(Keys.Tokenizer.PRE, str)
    return found


def _stops(tokens: Sequence[str], special: Mapping[str, int], own: Mapping[str, Any]) -> dict[str, Any]:
    """Where several tokens end a generation: their numbers, as generation_config.json lists them."""
    stops = [special[name] for name in ("eos_token", "eot_token", "eom_token") if name in special]
    if set(HARMONY_STOPS) <= set(tokens[-4096:]):
        stops += [tokens.index(token) for token in HARMONY_STOPS]
    more = own.get("ends")
    stops += [n for n in more if type(n) is int and 0 <= n < len(tokens)] if isinstance(more, list) else []
    stops = list(dict.fromkeys(stops))
    return {"eos_token_id": stops} if len(stops) > 1 else {}
