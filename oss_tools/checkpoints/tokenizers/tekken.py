"""tekken.json: Mistral's file of a byte-level BPE by ranks, read into the terms of tokenizer.json.

Fields after mistral-common (`tokens/tokenizers/tekken.py`): tokens in base64 by rank; the special ones have the first numbers.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from oss_tools.checkpoints.gguf_splitters import TEKKEN, byte_level, splitter_named
from oss_tools.checkpoints.tokenizers.byte_bpe import byte_letters, halves
from oss_tools.checkpoints.tokenizers.gguf_keys import bpe
from oss_tools.errors import BadCheckpoint

MAX_SPECIAL = 1 << 16
MAX_TOKEN = 1 << 10  # bytes
MAX_WORK = 1 << 26  # squares of all tokens' lengths, in bytes: of the published ones some 10 million
USUAL = (  # the special tokens of files that do not list them, up to version 7
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)


def tokenizer_of_tekken(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of tokenizer.json, without a post-processor. Takes seconds. Raises BadCheckpoint."""
    config, listed = content.get("config"), content.get("vocab")
    special_tokens = content.get("special_tokens")
    if special_tokens is None:
        special_tokens = [{"rank": n, "token_str": text} for n, text in enumerate(USUAL)]
    if not isinstance(config, Mapping) or not isinstance(listed, list) or not isinstance(special_tokens, list):
        raise BadCheckpoint("tekken.json: config, vocab or special_tokens is missing or of the wrong kind")
    pattern, reserved, size = (config.get(k) for k in ("pattern", "default_num_special_tokens", "default_vocab_size"))
    if type(reserved) is not int or type(size) is not int or not 0 <= reserved <= MAX_SPECIAL or not reserved < size:
        raise BadCheckpoint("tekken.json: default_num_special_tokens or default_vocab_size is no number, or too large")
    if pattern != TEKKEN:
        raise BadCheckpoint("tekken.json: its pattern is another than the published one; how it splits text is not known")
    splitter = splitter_named("tekken")
    assert splitter
    ranks = _ranks(listed[: size - reserved])
    letters = byte_letters()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    special = _special(special_tokens, reserved)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    vocab = {text: number for number, text in enumerate(special)}
    vocab |= {names[token]: reserved + rank for token, rank in ranks.items()}
    if len(vocab) < len(special) + len(ranks):
        raise BadCheckpoint("tekken.json: two tokens have the same text")
    merges = [[names[left], names[right]] for token in ranks if len(token) > 1 for left, right in [halves(token, ranks)]]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **flags} for number, text in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": splitter.pre_tokenizer(),
        "post_processor": None,
        "decoder": byte_level(use_regex=True),
        "model": {**bpe(merges, ignore_merges=True), "vocab": vocab},
    }


def _ranks(listed: list[Any]) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, entry in enumerate(listed):
        try:
            token = base64.b64decode(entry["token_bytes"], validate=True)
        except (KeyError, TypeError, binascii.Error, ValueError):
            token = b""
        if not 0 < len(token) <= MAX_TOKEN or entry.get("rank") != number or token in ranks:
            raise BadCheckpoint(f"tekken.json: entry {number} of vocab is damaged: no bytes, not in order, or there twice")
        ranks[token] = number
    if sum(len(token) ** 2 for token in ranks) > MAX_WORK:
        raise BadCheckpoint("tekken.json: its tokens are very long; no published vocabulary has such")
    single = {bytes([byte]) for byte in range(256)}
    if not single <= ranks.keys():
        raise BadCheckpoint("tekken.json: not every byte is a token")
    return ranks


def _special(listed: list[Any], reserved: int) -> list[str]:
    """The special tokens' texts by number; numbers without one get `<SPECIAL_n>`, as in mistral-common."""
    names = [f"<SPECIAL_{n}>" for n in range(reserved)]
    for entry in listed:
        number, text = (entry.get(k) for k in ("rank", "token_str")) if isinstance(entry, Mapping) else (None, None)
        if type(number) is not int or not 0 <= number < reserved or not isinstance(text, str) or not text:
            raise BadCheckpoint(f"tekken.json: the special token {str(entry)[:60]} is damaged")
        names[number] = text
    return names
