"""Tokens that stand beside tokenizer.json: which are added, with which numbers and flags; what damaged files are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oss_tools.checkpoints.companions import read_metadata
from oss_tools.checkpoints.gguf_splitters import byte_level
from oss_tools.checkpoints.tokenizers.added_tokens import Companions, with_added_tokens
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def tokenizer(*added: dict[str, Any], **vocab: int) -> dict[str, Any]:
    return {
        "added_tokens": list(added),
        "model": {"type": "BPE", "vocab": vocab or {"a": 0, "b": 1, "<s>": 2}, "merges": []},
    }


def token(number: int, content: str, **flags: bool) -> dict[str, Any]:
    return {"id": number, "content": content, **FLAGS, "special": True, **flags}


def numbers(content: dict[str, Any]) -> dict[str, int]:
    return {entry["content"]: entry["id"] for entry in content["added_tokens"]}


def test_nothing_to_add_changes_nothing() -> None:
    content = tokenizer(token(2, "<s>"))
    assert with_added_tokens(content, Companions({"bos_token": "<s>"})) == (content, [])


def test_added_tokens_decoder() -> None:
    """By number, whatever their order there; those that the vocabulary has keep theirs."""
    entry = {"lstrip": True, "rstrip": False, "normalized": False, "single_word": False, "special": False}
    decoder = {
        "4": {"content": "<y>", **entry},
        "3": {"content": "<x>", **entry, "special": True},
        "2": {"content": "<s>", **entry},
    }
    content, remarks = with_added_tokens(tokenizer(), Companions({"added_tokens_decoder": decoder}, added={"<z>": 9}))
    assert numbers(content) == {"<s>": 2, "<x>": 3, "<y>": 4}  # the older file is not read beside it
    assert [(t["lstrip"], t["special"]) for t in content["added_tokens"]] == [(True, False), (True, True), (True, False)]
    assert remarks == []


def test_added_tokens_json() -> None:
    """A token there is special if a list or a name says so; else it is sought in the normalized text."""
    beside = Companions({"eos_token": "<e>"}, {"<e>": 3, "<m>": 4, "w": 5}, {"additional_special_tokens": ["<m>"]})
    content, _ = with_added_tokens(tokenizer(), beside)
    assert numbers(content) == {"<e>": 3, "<m>": 4, "w": 5}
    assert [(t["special"], t["normalized"]) for t in content["added_tokens"]] == [
        (True, False),
        (True, False),
        (False, True),
    ]


def test_named_special_tokens() -> None:
    """Of the vocabulary, of nowhere, and one that was not special."""
    config = {
        "bos_token": "<s>",
        "pad_token": {"content": "<pad>", "lstrip": True},
        "eos_token": "<e>",
        "add_bos_token": True,
    }
    content, _ = with_added_tokens(tokenizer(token(3, "<e>", special=False)), Companions(config))
    assert numbers(content) == {"<e>": 3, "<s>": 2, "<pad>": 4}
    assert all(t["special"] for t in content["added_tokens"])
    assert [t["lstrip"] for t in content["added_tokens"]] == [False, False, True]


def test_a_number_that_the_vocabulary_does_not_lead_to() -> None:
    decoder = {"9": {"content": "<x>", "special": True}}
    content, (remark,) = with_added_tokens(tokenizer(), Companions({"added_tokens_decoder": decoder}))
    assert numbers(content) == {"<x>": 3}
    assert "'<x>' the number 9" in remark
    assert "leads to 3" in remark


def test_a_gap_of_the_vocabulary() -> None:
    """The library would give out a number that another token has; the file's number is free, and lies in the vocabulary then."""
    tokenizers = pytest.importorskip("tokenizers")
    content, remarks = with_added_tokens(tokenizer(token(1, "<x>"), a=0, b=2), Companions())
    assert remarks == []
    assert tokenizers.Tokenizer.from_str(json.dumps(content)).encode("a<x>b").ids == [0, 1, 2]


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (Companions({"added_tokens_decoder": []}), "added_tokens_decoder is no table"),
        (Companions({"added_tokens_decoder": {"x": {"content": "<x>"}}}), "the entry 'x' is no token"),
        (Companions({"added_tokens_decoder": {"3": {"content": 3}}}), "the entry '3' is no token"),
        (Companions({"added_tokens_decoder": {"9" * 40: {"content": "<x>"}}}), "is no token"),
        (Companions(added={"<x>": "3"}), "added_tokens.json: the number of '<x>' is no whole number"),
        (Companions(added={"<x>": -1}), "is no whole number"),
    ],
)
def test_damaged(beside: Companions, message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        with_added_tokens(tokenizer(), beside)


def test_a_folder_says_who_decides_on_bos(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer()))
    for wanted, said in ((True, 1), (False, 0), (None, 0)):
        config = {} if wanted is None else {"add_bos_token": wanted}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        remarks = read_metadata(tmp_path, {}).remarks
        assert len(remarks) == said
        assert all("tokenizer.json is followed" in remark for remark in remarks)


def test_bytes_as_letters_under_a_decoder_that_leaves_them(tmp_path: Path) -> None:
    """As mlx-lm's users met it: every space of an answer came out as Ġ."""
    content = tokenizer(a=0, Ġa=1)
    decoders = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    content["decoder"] = {"type": "Sequence", "decoders": decoders}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [byte_level(use_regex=False)]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    metadata = read_metadata(tmp_path, {})
    assert Text(metadata).decode([0, 1]) == "a a"
    assert "decoder" in metadata.remarks[0]


def test_a_folder_says_that_merges_are_kept(tmp_path: Path) -> None:
    content = tokenizer()
    content["model"]["dropout"] = 0.1
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (remark,) = read_metadata(tmp_path, {}).remarks
    assert "dropout 0.1" in remark
