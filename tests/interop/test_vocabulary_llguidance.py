"""The bytes of tokens beside llguidance's own reading of tokenizer.json, which constraints do not use."""

from __future__ import annotations

import json

import pytest

from oss_tools.checkpoints import Metadata
from oss_tools.engine import o200k
from oss_tools.engine.text import Text
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource

llguidance = pytest.importorskip("llguidance")
pytestmark = pytest.mark.peers


def check(metadata: Metadata) -> None:
    assert metadata.tokenizer is not None
    text = Text(metadata)
    theirs = llguidance.LLTokenizer(json.dumps(metadata.tokenizer))
    plain = sorted(set(text.numbers().values()) - set(text.special.values()) - set(text.marks.values()))
    different = [n for n in plain if text.token_bytes(n) != theirs.decode_bytes([n])]
    assert [text.token_bytes(n) for n in different] == [
        b"\xff"
    ]  # with which it marks tokens that are no text; no UTF-8 has it


def test_the_embedded_model_s_vocabulary() -> None:
    with open_checkpoint(resource("tiny/checkpoint")) as checkpoint:
        check(checkpoint.metadata())


def test_gpt_oss_s_vocabulary() -> None:
    pytest.importorskip("bpe_openai", reason="needs the extra `harmony`")
    check(Metadata({"model_type": "gpt_oss"}, tokenizer=o200k.tokenizer_json()))


def test_pieces_with_byte_fallback() -> None:
    names = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "▁the", "▁▁", "é", "日本"]
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": n, "content": names[n], **flags} for n in range(3)],
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "vocab": {name: n for n, name in enumerate(names)},
            "merges": [],
            "byte_fallback": True,
            "unk_token": "<unk>",
        },
    }
    check(Metadata({}, tokenizer=content))
