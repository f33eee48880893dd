"""SentencePiece-style BPE with byte fallback (Llama 2; GGUF's model `llama`), from tokenizer.json to GGUF's keys and back.

GGUF has a score for each token where tokenizer.json has merges, and of normalization only whether a space goes before a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gguf.constants import Keys, TokenType

from oss_tools.checkpoints.base import Metadata
from oss_tools.checkpoints.tokenizers.gguf_keys import TokenizerKeys, bpe, tokenizer_json
from oss_tools.checkpoints.tokenizers.gguf_source import Source, pairs, read_source
from oss_tools.errors import BadCheckpoint

SPACE = "\u2581"  # how SentencePiece writes a space
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
USER_DEFINED_SCORE, PADDING_SCORE = -1000.0, -10000.0  # never looked at; the values that llama.cpp's converter writes
PREPEND = {"type": "Prepend", "prepend": SPACE}
# One space before the text, also before one that begins with a space, and none behind an added token. (Metaspace puts none before
# its own sign; so the first step's sign is the space, of which the normalizer has left none.)
BEFORE_TEXT: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Metaspace", "replacement": " ", "prepend_scheme": "first", "split": False},
        {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False},
    ],
}
LONGEST = 256  # characters of a token, cut after which no pair is sought
MAX_WAYS = 1 << 23  # to cut all tokens in two; the largest vocabularies have some 2 million
MAX_MERGES = 1 << 21  # the largest have some 600,000
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
SPACES = re.compile(r"\\A ?\+|\^ ?\+| ?\+(\\z|\$)| \{2,\}| \+")  # runs of spaces, at the beginning, at the end, anywhere


def is_sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    return bool(tokenizer["model"].get("byte_fallback"))


def sentencepiece_keys(metadata: Metadata, tokenizer: Mapping[str, Any]) -> tuple[dict[str, Any], Source]:
    """The keys of GGUF's list of tokens, and what they were made of. Raises BadCheckpoint."""
    source = read_source(metadata, tokenizer)
    types = source.types
    for number, token in enumerate(source.tokens):
        if types[number] == TokenType.NORMAL and BYTE_TOKEN.fullmatch(token):
            types[number] = TokenType.BYTE
    if source.model.get("unk_token") in source.tokens:
        types[source.tokens.index(source.model["unk_token"])] = TokenType.UNKNOWN
    prefix, normalizes = _adds_space_prefix(tokenizer)
    if normalizes:
        source.own["normalizer"] = tokenizer["normalizer"]
        source.remarks.append(
            "the tokenizer normalizes text (SentencePiece's character map, runs of spaces); GGUF's kind of tokenizer has no "
            "word for it, and llama.cpp takes text as it comes"
        )
    if tokenizer.get("pre_tokenizer") is not None and prefix:
        source.own.update(normalizer=tokenizer.get("normalizer"), pre_tokenizer=tokenizer["pre_tokenizer"])
        source.remarks.append(
            "the tokenizer puts a space before the text only, or none before a space; llama.cpp puts one behind added tokens too"
        )
    scores = _scores(source)
    for user_defined in np.flatnonzero(types == TokenType.USER_DEFINED):  # llama.cpp seeks them in the text as it came
        source.tokens[user_defined] = source.tokens[user_defined].replace(SPACE, " ")
    keys = {
        Keys.Tokenizer.MODEL: "llama",
        Keys.Tokenizer.PRE: "default",
        Keys.Tokenizer.LIST: source.tokens,
        Keys.Tokenizer.SCORES: scores,
        Keys.Tokenizer.TOKEN_TYPE: types,
        Keys.Tokenizer.ADD_PREFIX: prefix,
    }
    return keys, source


def _scores(source: Source) -> np.ndarray:
    """float32 [tokens]: falling in the order in which merges make tokens, as SentencePiece's do; single characters last."""
    made = dict.fromkeys(left + right for left, right in pairs(source.model))
    rank = {token: index for index, token in enumerate(made)}
    scores = np.zeros(len(source.tokens), np.float32)
    for number in np.flatnonzero(source.types == TokenType.NORMAL).tolist():
        scores[number] = -rank.setdefault(source.tokens[number], len(rank))
    scores[source.types == TokenType.USER_DEFINED] = USER_DEFINED_SCORE
    scores[source.types == TokenType.UNUSED] = PADDING_SCORE
    return scores


def _adds_space_prefix(tokenizer: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether a space goes before the text, and whether the text is normalized besides. Raises BadCheckpoint for other steps than
    SentencePiece's."""
    normalizer, splitter = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    parts = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, Mapping) else []
    parts = parts if isinstance(parts, list) else [parts]
    plain = [part for part in parts if not _is_sentencepieces(part)]
    if splitter is None and plain in ([REPLACE], [PREPEND, REPLACE]):
        return PREPEND in plain, len(plain) < len(parts)
    if splitter == BEFORE_TEXT and plain == [REPLACE]:
        return True, len(plain) < len(parts)
    if isinstance(splitter, Mapping) and splitter.get("type") == "Metaspace" and plain in ([], [REPLACE]):
        scheme = splitter.get("prepend_scheme", "always" if splitter.get("add_prefix_space", True) else "never")
        if not splitter.get("split", True) and scheme in ("first", "always", "never"):
            return scheme != "never", len(plain) < len(parts)
    raise BadCheckpoint("tokenizer.json: its normalizer and pre_tokenizer are not SentencePiece's, GGUF cannot express them")


def _is_sentencepieces(part: Any) -> bool:
    """Whether a normalizer is one that SentencePiece has and llama.cpp's `llama` tokenizer has not."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    pattern = part.get("pattern") if kind == "Replace" else None
    regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    return kind in ("Precompiled", "Strip") or (isinstance(regex, str) and bool(SPACES.fullmatch(regex)))


def sentencepiece_tokenizer(
    keys: TokenizerKeys, tokens: list[str], types: np.ndarray, own: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """(tokenizer.json without its post-processor, whether bos comes before a text by default). Raises BadCheckpoint."""
    scores = keys.numbers(Keys.Tokenizer.SCORES, "fiu", len(tokens))
    if scores is None:
        raise BadCheckpoint(f"{keys.where}: key {Keys.Tokenizer.SCORES} is missing")
    prefix = keys.get(Keys.Tokenizer.ADD_PREFIX, bool, True)
    unknown = np.flatnonzero(types == TokenType.UNKNOWN)
    normalizers = [PREPEND, REPLACE] if prefix else [REPLACE]
    normalizer = own.get("normalizer") or {"type": "Sequence", "normalizers": normalizers}
    tokenizer = tokenizer_json(
        tokens,
        types,
        own.get("strips"),
        normalizer=own.get("normalizer") if "pre_tokenizer" in own else normalizer,
        pre_tokenizer=own.get("pre_tokenizer"),
        post_processor=None,
        decoder=sentencepiece_decoder(prefix),
        model=bpe(
            merges_of_scores(tokens, types, scores),
            unk_token=tokens[unknown[0]] if len(unknown) else None,
            fuse_unk=True,
            byte_fallback=True,
        ),
    )
    return tokenizer, True


def sentencepiece_decoder(strips_first: bool) -> dict[str, Any]:
    """As tokenizer.json says it. `strips_first`: the space that was put before the text goes again."""
    back = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {"type": "Sequence", "decoders": [*back, strip] if strips_first else back}


def merges_of_scores(tokens: Sequence[str], types: np.ndarray, scores: np.ndarray) -> list[list[str]]:
    """The merges that a SentencePiece BPE's scores amount to: all ways to make a token of two, best scores first.

    Ties are ordered as transformers' `generate_merges` orders them: the longer left part first. Raises BadCheckpoint for a
    vocabulary that is made to have very many.
    """
    usable = {tokens[n]: n for n in np.flatnonzero(types == TokenType.NORMAL).tolist()}
    if (ways := sum(min(len(token), LONGEST) for token in usable)) > MAX_WAYS:
        raise BadCheckpoint(
            f"the tokenizer's tokens can be cut in two in {ways} ways, more than {MAX_WAYS}: they are too long"
        )
    found: list[tuple[float, str, str]] = []
    for token, number in usable.items():
        splits = [(token[:i], token[i:]) for i in range(1, min(len(token), LONGEST))]
        pairs = [p for p in splits if p[0] in usable and p[1] in usable]
        pairs.sort(key=lambda p: (usable[p[0]], usable[p[1]]))
        found += [(float(scores[number]), *p) for p in pairs]
        if len(found) > MAX_MERGES:
            raise BadCheckpoint(f"the tokenizer's tokens have more than {MAX_MERGES} merges; no model needs that")
    found.sort(key=lambda m: (m[0], len(m[1]), len(m[2])), reverse=True)
    return [[left, right] for _, left, right in found]
