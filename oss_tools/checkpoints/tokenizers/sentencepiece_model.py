"""tokenizer.model: SentencePiece's file, read into the terms of tokenizer.json.

A protobuf message, walked by a parser of our own that holds every length against the bytes there are. Fields after
sentencepiece's `sentencepiece_model.proto`; what they mean after its `normalizer.cc`, `bpe_model.cc`, `unigram_model.cc`.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf.constants import TokenType

from oss_tools.checkpoints.tokenizers.gguf_keys import bpe
from oss_tools.checkpoints.tokenizers.gguf_sentencepiece import (
    BEFORE_TEXT,
    PREPEND,
    REPLACE,
    SPACE,
    merges_of_scores,
    sentencepiece_decoder,
)
from oss_tools.errors import BadCheckpoint

MAX_PIECES = 1 << 20  # the largest have some 260,000
MAX_PIECE = 1 << 12  # bytes of a piece
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
KINDS = {3: "words", 4: "characters"}
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass
class Model:
    """What of a tokenizer.model decides which tokens a text has. Defaults are those of the message.

    Attributes:
        pieces: (text, score, type) by number.
        special: bos_token, eos_token, unk_token, pad_token -> number; -1: none.
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = UNIGRAM
    byte_fallback: bool = False
    space_as_suffix: bool = False
    special: dict[str, int] = field(
        default_factory=lambda: {"unk_token": 0, "bos_token": 1, "eos_token": 2, "pad_token": -1}
    )
    charsmap: bytes = b""
    dummy_prefix: bool = True
    fewer_spaces: bool = True
    escapes_spaces: bool = True


def parse_model(data: bytes, where: str) -> Model:
    """Raises BadCheckpoint, its message beginning with `where`."""
    if TIKTOKEN.match(data):
        raise BadCheckpoint(
            f"{where}: a tiktoken vocabulary, not SentencePiece's, without its special tokens; "
            "save the tokenizer as tokenizer.json, with transformers"
        )
    model = Model()
    for number, value in _fields(data, where):
        if number == 1:
            if len(model.pieces) == MAX_PIECES:
                raise BadCheckpoint(f"{where}: more than {MAX_PIECES} pieces")
            model.pieces.append(_piece(_message(value, where), where, len(model.pieces)))
        elif number == 2:
            _read_trainer(model, _message(value, where), where)
        elif number == 3:
            _read_normalizer(model, _message(value, where), where)
    _check(model, where)
    return model


def _fields(data: bytes, where: str) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: an int for numbers as they lie there, bytes for everything with a length."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at, where)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at, where)
            yield number, value
            continue
        if wire == BYTES:
            length, at = _varint(data, at, where)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise BadCheckpoint(f"{where}: not a SentencePiece model (byte {at})")
        if length > len(data) - at:
            raise BadCheckpoint(
                f"{where}: not a SentencePiece model, or cut short: {length} bytes at byte {at} are not there"
            )
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise BadCheckpoint(f"{where}: not a SentencePiece model, or cut short (byte {at})")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value & (1 << 64) - 1, at
    raise BadCheckpoint(f"{where}: not a SentencePiece model (byte {at})")


def _message(value: int | bytes, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise BadCheckpoint(f"{where}: not a SentencePiece model: a number where a message should be")
    return value


def _number(value: int | bytes, where: str) -> int:
    """A signed 32-bit number."""
    if not isinstance(value, int):
        raise BadCheckpoint(f"{where}: not a SentencePiece model: bytes where a number should be")
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def _piece(data: bytes, where: str, index: int) -> tuple[str, float, int]:
    text, score, kind = b"", 0.0, NORMAL
    for number, value in _fields(data, where):
        if number == 1:
            text = _message(value, where)
        elif number == 2:
            raw = _message(value, where)
            score = struct.unpack("<f", raw)[0] if len(raw) == 4 else math.nan
        elif number == 3:
            kind = _number(value, where)
    try:
        name = text.decode()
    except UnicodeDecodeError:
        name = ""
    if not name or len(text) > MAX_PIECE or not math.isfinite(score) or not NORMAL <= kind <= BYTE:
        raise BadCheckpoint(f"{where}: piece {index} is damaged: no text, or no score, or of no known type")
    return name, score, kind


def _read_trainer(model: Model, data: bytes, where: str) -> None:
    ids = {40: "unk_token", 41: "bos_token", 42: "eos_token", 43: "pad_token"}
    for number, value in _fields(data, where):
        if number == 3:
            model.kind = _number(value, where)
        elif number == 24:
            model.space_as_suffix = bool(_number(value, where))
        elif number == 35:
            model.byte_fallback = bool(_number(value, where))
        elif number in ids:
            model.special[ids[number]] = _number(value, where)


def _read_normalizer(model: Model, data: bytes, where: str) -> None:
    for number, value in _fields(data, where):
        if number == 2:
            model.charsmap = _message(value, where)
        elif number == 3:
            model.dummy_prefix = bool(_number(value, where))
        elif number == 4:
            model.fewer_spaces = bool(_number(value, where))
        elif number == 5:
            model.escapes_spaces = bool(_number(value, where))


def _check(model: Model, where: str) -> None:
    numbers: dict[str, int] = {}
    for number, (text, _, _) in enumerate(model.pieces):
        if numbers.setdefault(text, number) != number:
            raise BadCheckpoint(f"{where}: the piece {text[:80]!r} stands there twice, as {numbers[text]} and {number}")
    if not any(kind == UNKNOWN for _, _, kind in model.pieces):
        raise BadCheckpoint(f"{where}: not a SentencePiece model: {len(model.pieces)} pieces, none for unknown characters")
    if model.kind not in (UNIGRAM, BPE):
        raise BadCheckpoint(
            f"{where}: a SentencePiece model of {KINDS.get(model.kind, f'kind {model.kind}')} is not read, only BPE and Unigram"
        )
    if model.space_as_suffix or not model.escapes_spaces:
        which = "treat_whitespace_as_suffix" if model.space_as_suffix else "escape_whitespaces false"
        raise BadCheckpoint(f"{where}: a SentencePiece model with {which} is not read")


def tokenizer_of_model(model: Model, legacy: bool = True) -> dict[str, Any]:
    """The content of a tokenizer.json, without a post-processor, that gives text the tokens that SentencePiece gives it.

    `legacy`: a space goes before each part between special tokens too, as llama.cpp does it, and transformers of old.
    """
    texts = [text for text, _, _ in model.pieces]
    types = np.array([kind for _, _, kind in model.pieces], np.int32)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {
            "id": n,
            "content": text.replace(SPACE, " ") if kind == USER_DEFINED else text,
            **flags,
            "special": kind != USER_DEFINED,
        }
        for n, (text, _, kind) in enumerate(model.pieces)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    # SentencePiece puts its space before the text only, and so does transformers' Metaspace (but none before a space); Prepend
    # puts it before each part between added tokens. Symbols that users defined are part of the text: behind them it must not.
    metaspace = model.dummy_prefix and (not legacy or bool((types == USER_DEFINED).any()))
    exact = legacy and not model.fewer_spaces  # `_normalizers` leaves the one space that goes before
    before_text = BEFORE_TEXT if exact else {**BEFORE_TEXT["pretokenizers"][0], "replacement": SPACE}
    unknown = int(np.flatnonzero(types == UNKNOWN)[0])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model, metaspace)},
        "pre_tokenizer": before_text if metaspace else None,
        "post_processor": None,
        "decoder": sentencepiece_decoder(model.dummy_prefix or model.fewer_spaces),
        "model": _unigram(model, unknown) if model.kind == UNIGRAM else _bpe(model, texts, types, texts[unknown]),
    }


def _normalizers(model: Model, metaspace: bool) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if model.charsmap:
        parts.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()})
    if model.fewer_spaces:
        # Metaspace takes a first letter for the text's beginning only if nothing was cut off before it.
        for regex, content in ((r"\A +", " " if metaspace else ""), (r" +\z", ""), (r" {2,}", " ")):
            parts.append({"type": "Replace", "pattern": {"Regex": regex}, "content": content})
    return [*parts, PREPEND, REPLACE] if model.dummy_prefix and not metaspace else [*parts, REPLACE]


def _unigram(model: Model, unknown: int) -> dict[str, Any]:
    vocab = [[text.replace(SPACE, " ") if kind == USER_DEFINED else text, score] for text, score, kind in model.pieces]
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": model.byte_fallback}


def _bpe(model: Model, texts: list[str], types: np.ndarray, unknown: str) -> dict[str, Any]:
    scores = np.array([score for _, score, _ in model.pieces], np.float32)
    normal = np.where(types == NORMAL, TokenType.NORMAL, TokenType.CONTROL)
    merges = merges_of_scores(texts, normal, scores)
    found = bpe(merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)
    found["vocab"] = {
        text.replace(SPACE, " ") if kind == USER_DEFINED else text: n for n, (text, _, kind) in enumerate(model.pieces)
    }
    return found
