"""Byte-level BPE (GPT-2, Llama 3, gpt-oss; GGUF's model `gpt2`), from tokenizer.json to GGUF's keys and back.

GGUF says by a name how text is split before merging, where tokenizer.json spells it out: see `gguf_splitters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf.constants import Keys

from oss_tools.checkpoints.base import Metadata
from oss_tools.checkpoints.gguf_splitters import PRE_HINT, byte_level, pre_name, splitter_named
from oss_tools.checkpoints.tokenizers.gguf_keys import TokenizerKeys, bpe, tokenizer_json
from oss_tools.checkpoints.tokenizers.gguf_source import Source, pairs, read_source
from oss_tools.errors import BadCheckpoint

NFC = {"type": "NFC"}


def byte_level_keys(metadata: Metadata, tokenizer: Mapping[str, Any]) -> tuple[dict[str, Any], Source]:
    """The keys of GGUF's list of tokens, and what they were made of. Raises BadCheckpoint."""
    normalizer = tokenizer.get("normalizer")
    if isinstance(normalizer, Mapping) and normalizer.get("type") == "Sequence":
        parts = normalizer.get("normalizers")
        normalizer = parts[0] if isinstance(parts, list) and len(parts) == 1 else parts
    if normalizer and normalizer != NFC:
        kind = normalizer.get("type") if isinstance(normalizer, Mapping) else "Sequence"
        raise BadCheckpoint(f"tokenizer.json: its normalizer ({str(kind)[:40]}) has no counterpart in GGUF")
    source = read_source(metadata, tokenizer)
    merges = pairs(source.model)
    spaced = next((p for p in merges if " " in p[0] or " " in p[1]), None)
    if spaced:
        raise BadCheckpoint(f"tokenizer.json: the merge {spaced} holds a space, which GGUF cannot express")
    pre = pre_name(tokenizer, metadata.tokenizer_config.get(PRE_HINT))
    splitter = splitter_named(pre)
    if splitter and splitter.nfc != bool(normalizer):
        source.own["normalizer"] = normalizer or None
    if normalizer:
        source.remarks.append("the tokenizer brings text to the form NFC first; llama.cpp never does")
    keys = {
        Keys.Tokenizer.MODEL: "gpt2",
        Keys.Tokenizer.PRE: pre,
        Keys.Tokenizer.LIST: source.tokens,
        Keys.Tokenizer.TOKEN_TYPE: source.types,
        Keys.Tokenizer.MERGES: [f"{left} {right}" for left, right in merges],
    }
    return keys, source


def byte_level_tokenizer(
    keys: TokenizerKeys, tokens: list[str], types: np.ndarray, own: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """(tokenizer.json without its post-processor, whether bos comes before a text by default)."""
    name = keys.get(Keys.Tokenizer.PRE, str, "")
    if not name:
        keys.remarks.append(
            f"{keys.where}: key {Keys.Tokenizer.PRE} is missing, so how text is split is a guess: llama.cpp's splitter "
            '"default" is used, as llama.cpp does; answers may be worse than the model\'s; convert the model anew'
        )
    splitter = splitter_named(name or "default")
    if splitter is None:
        raise BadCheckpoint(
            f"{keys.where}: how the pre-tokenizer {name[:80]!r} splits text is not known to this program; convert the "
            "Hugging Face folder that the file was made of, or use a newer oss-tools"
        )
    known = set(tokens)
    merges = []
    for index, merge in enumerate(keys.strings(Keys.Tokenizer.MERGES)):
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        if space < 0 or not right or left not in known or right not in known or left + right not in known:
            raise BadCheckpoint(f"{keys.where}: merge {index} ({merge[:80]!r}) is no pair of tokens that makes a token")
        merges.append([left, right])
    tokenizer = tokenizer_json(
        tokens,
        types,
        own.get("strips"),
        normalizer=own.get("normalizer", NFC if splitter.nfc else None),
        pre_tokenizer=splitter.pre_tokenizer(),
        post_processor=None,
        decoder=byte_level(use_regex=True),
        model=bpe(merges, ignore_merges=splitter.ignore_merges),
    )
    return tokenizer, splitter.ignore_merges  # the same splitters imply bos in llama.cpp
