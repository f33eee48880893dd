"""vocab.json and merges.txt: byte-level BPE as it was kept before tokenizer.json, read into its terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oss_tools.checkpoints.gguf_splitters import byte_level, splitter_named
from oss_tools.checkpoints.tokenizers.gguf_keys import bpe
from oss_tools.errors import BadCheckpoint

# The class in tokenizer_config.json says how text is split: its name -> GGUF's name for that.
CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
OF_NO_KIND = (None, "PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
MAX_MERGES = 1 << 22  # lines; the largest vocabularies have some 500,000
DEFAULT_END = "<|endoftext|>"  # of both classes, where tokenizer_config.json does not say


def tokenizer_of_files(vocab: Mapping[str, Any], merges: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The content of tokenizer.json, without a post-processor, and remarks. Raises BadCheckpoint."""
    name = config.get("tokenizer_class")
    kind = CLASSES.get(name.removesuffix("Fast")) if isinstance(name, str) else None
    remarks = []
    if kind is None:
        if name not in OF_NO_KIND:
            raise BadCheckpoint(
                f"vocab.json and merges.txt of a {str(name)[:60]} are not read, only those of {' and '.join(CLASSES)}; "
                "save the tokenizer as tokenizer.json, with transformers"
            )
        kind = "gpt-2"
        remarks.append("vocab.json and merges.txt do not say how text is split; GPT-2's way is taken")
    if not vocab or not all(type(n) is int and n >= 0 for n in vocab.values()):
        raise BadCheckpoint("vocab.json: not a table of tokens and their numbers")
    splitter = splitter_named(kind)
    assert splitter
    pre_tokenizer = splitter.pre_tokenizer()
    if config.get("add_prefix_space") and kind == "gpt-2":
        pre_tokenizer = {**pre_tokenizer, "add_prefix_space": True}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if splitter.nfc else None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": byte_level(use_regex=True),
        "decoder": byte_level(use_regex=True),
        "model": {**bpe(_merges(merges, vocab)), "vocab": dict(vocab)},
    }
    return tokenizer, remarks


def _merges(text: str, vocab: Mapping[str, int]) -> list[list[str]]:
    if (lines := text.count("\n")) > MAX_MERGES:
        raise BadCheckpoint(f"merges.txt: {lines} lines, more than {MAX_MERGES}")
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(part in vocab for part in (*pair, "".join(pair))):
            raise BadCheckpoint(f"merges.txt: line {number} ({line[:60]!r}) is no pair of tokens that makes a token")
        found.append(pair)
    return found


def special_defaults(vocab: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """What bos, eos and unk are where tokenizer_config.json does not say."""
    if DEFAULT_END not in vocab:
        return {}
    names = ("bos_token", "eos_token", "unk_token") if config.get("tokenizer_class") != "Qwen2Tokenizer" else ("eos_token",)
    return {name: DEFAULT_END for name in names if name not in config}
