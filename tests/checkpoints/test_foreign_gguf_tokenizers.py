"""Tokenizers of GGUF files as other programs write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import TokenType

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.gguf_splitters import splitter_named
from oss_tools.checkpoints.gguf_tokenizer import from_hf, to_hf
from oss_tools.checkpoints.gguf_values import StringArray
from oss_tools.errors import BadCheckpoint
from tests.checkpoints.small_tokenizers import (
    added,
    byte_level_json,
    metadata,
    sentencepiece_json,
    through_gguf,
)


def array(strings: list[str]) -> StringArray:
    data = [text.encode() for text in strings]
    return StringArray(b"".join(len(text).to_bytes(8, "little") + text for text in data), len(data), "a.gguf")


def read_keys(source: Metadata, **changes: Any) -> Metadata:
    """The keys of a tokenizer, some of them replaced (None: removed), read back."""
    keys = from_hf(source, "llama")
    keys = {k: array(v) if isinstance(v, list) else v for k, v in keys.items()}
    for name, value in changes.items():
        key = f"tokenizer.ggml.{name}"
        keys[key] = array(value) if isinstance(value, list) else value
    return to_hf({k: v for k, v in keys.items() if v is not None}, {}, {}, "a.gguf")


@pytest.mark.parametrize("name", [None, ""])
def test_without_a_name_for_the_splitter(name: str | None) -> None:
    """llama.cpp's "default", and it is said that this is a guess."""
    found = read_keys(metadata(), pre=name)
    default = splitter_named("default")
    assert default
    assert (found.tokenizer or {})["pre_tokenizer"] == default.pre_tokenizer()
    (remark,) = found.remarks
    assert "a.gguf: key tokenizer.ggml.pre is missing" in remark
    assert "as llama.cpp does" in remark


def test_an_end_of_turn_typed_as_text() -> None:
    types = np.full(10, TokenType.NORMAL, np.int32)
    names = ["a", "b", "ab", "Ġ", "Ġa", "<|im_start|>", "<|im_end|>", "<mark>", "x", ","]
    source = metadata()
    found = read_keys(source, tokens=names, token_type=types, bos_token_id=5, eos_token_id=9)
    added_tokens = {t["content"]: t["special"] for t in (found.tokenizer or {})["added_tokens"]}
    assert added_tokens == {"<|im_start|>": True, "<|im_end|>": True}  # the comma is no mark, whatever the file calls it
    assert "'<|im_start|>', '<|im_end|>' typed as text" in found.remarks[0]


def test_an_end_of_turn_that_users_defined(tmp_path: Path) -> None:
    """A template's mark is one token already; nothing is changed, nothing is to be said."""
    tokenizer = byte_level_json()
    tokenizer["added_tokens"].append(added(8, "<|im_end|>", special=False))
    back = through_gguf(tmp_path, metadata(tokenizer))
    assert (back.tokenizer or {})["added_tokens"] == tokenizer["added_tokens"]
    assert back.remarks == ()


def test_special_tokens_that_a_llama_file_does_not_name() -> None:
    """llama.cpp takes 1, 2 and 0."""
    source = metadata(sentencepiece_json(), 270, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    found = read_keys(source, bos_token_id=None, eos_token_id=None, unknown_token_id=None)
    assert [found.tokenizer_config[f"{n}_token"] for n in ("bos", "eos", "unk")] == ["<s>", "</s>", "<unk>"]


def test_tokens_without_text_and_tokens_that_are_there_twice() -> None:
    names = ["a", "b", "ab", "Ġ", "Ġa", "<|start|>", "<|end|>", "<mark>", "", ""]
    vocab = (read_keys(metadata(), tokens=names).tokenizer or {})["model"]["vocab"]
    assert (vocab["[EMPTY_8]"], vocab["[EMPTY_9]"]) == (8, 9)  # as llama.cpp names them
    with pytest.raises(BadCheckpoint, match=r"a\.gguf: two tokens have the same text, 'b': numbers 1 and 9"):
        read_keys(metadata(), tokens=[*names[:9], "b"])


@pytest.mark.parametrize(("kind", "what"), [("t5", "Unigram"), ("bert", "WordPiece"), ("rwkv", "RWKV"), ("plamo2", "PLaMo")])
def test_other_kinds_are_named(kind: str, what: str) -> None:
    with pytest.raises(BadCheckpoint, match=rf"of kind '{kind}' \(.*{what}.*\) cannot be read, only gpt2 and llama"):
        read_keys(metadata(), model=kind)


def test_an_unknown_splitter_in_a_file() -> None:
    with pytest.raises(BadCheckpoint, match="'new-one' splits text is not known to this program; convert the Hugging Face"):
        read_keys(metadata(), pre="new-one")


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, "7"])
def test_our_own_key_damaged(text: str) -> None:
    keys = from_hf(metadata(), "llama")
    raw = {k: array(v) if isinstance(v, list) else v for k, v in keys.items()} | {"oss_tools.tokenizer": text}
    with pytest.raises(BadCheckpoint, match=r"oss_tools\.tokenizer: (not|JSON nested)"):
        to_hf(raw, {}, {}, "a.gguf")
