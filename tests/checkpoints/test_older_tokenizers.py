"""tokenizer.model, vocab.json with merges.txt, tekken.json: read, or refused in one line. Their peers are in tests/interop."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.checkpoints.companions import read_metadata
from oss_tools.checkpoints.gguf_splitters import TEKKEN
from oss_tools.checkpoints.tokenizers.byte_bpe import byte_letters
from oss_tools.checkpoints.tokenizers.sentencepiece_model import parse_model, tokenizer_of_model
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def piece(text: str | bytes, score: float = 0.0, kind: int = NORMAL) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return block(1, block(1, data) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))


FIRST = piece("<unk>", kind=UNKNOWN) + piece("<s>", kind=CONTROL) + piece("</s>", kind=CONTROL)
ALL_BYTES = b"".join(piece(f"<0x{byte:02X}>", kind=BYTE) for byte in range(256))
WORDS = b"".join(piece(text, -index) for index, text in enumerate(["ab", "▁ab", "▁", "a", "b", "c"]))


def model(
    *, kind: int = BPE, pieces: bytes = FIRST + ALL_BYTES + WORDS, trainer: bytes = b"", normalizer: bytes = b""
) -> bytes:
    return pieces + block(2, number(3, kind) + number(35, 1) + trainer) + block(3, normalizer)


def folder_with(place: Path, name: str, content: bytes, **config: Any) -> Path:
    (place / name).write_bytes(content)
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


def test_a_sentencepiece_model(tmp_path: Path) -> None:
    metadata = read_metadata(folder_with(tmp_path, "tokenizer.model", model(), add_bos_token=True), {})
    text = Text(metadata)
    assert text.encode("ab  c") == [1, 260, 261, 264]  # spaces become one; <s> before the text, as the configuration says
    assert text.encode("abé", special=False) == [260, 3 + 0xC3, 3 + 0xA9]
    assert text.decode(text.encode("abé c")) == "abé c"
    assert metadata.tokenizer_config["eos_token"] == "</s>"
    assert 2 in text.stop_tokens
    assert metadata.remarks == ()


def test_who_decides_on_bos(tmp_path: Path) -> None:
    """Where nothing says so, none: as transformers 5. It is said."""
    metadata = read_metadata(folder_with(tmp_path, "tokenizer.model", model()), {})
    assert Text(metadata).encode("ab") == [260]
    assert "add_bos_token" in metadata.remarks[0]
    ends = read_metadata(folder_with(tmp_path, "tokenizer.model", model(), add_bos_token=False, add_eos_token=True), {})
    assert (Text(ends).encode("ab"), ends.remarks) == ([260, 2], ())


def test_the_switches_of_its_normalizer(tmp_path: Path) -> None:
    plain = number(3, 0) + number(4, 0)
    text = Text(read_metadata(folder_with(tmp_path, "tokenizer.model", model(normalizer=plain), add_bos_token=False), {}))
    assert text.encode("ab  ab") == [259, 261, 260]
    assert text.decode([260]) == " ab"


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, [260, 2, 260]),  # llama.cpp's way, and transformers' of old: a space behind </s> too
        ({"legacy": False}, [260, 2, 259]),
        ({"add_prefix_space": False}, [259, 2, 259]),
    ],
)
def test_spaces_that_go_before_words(tmp_path: Path, config: dict[str, Any], wanted: list[int]) -> None:
    metadata = read_metadata(folder_with(tmp_path, "tokenizer.model", model(), add_bos_token=False, **config), {})
    assert Text(metadata).encode("ab</s>ab") == wanted


def test_tokens_beside_it(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 265}')
    metadata = read_metadata(folder_with(tmp_path, "tokenizer.model", model(), add_bos_token=False), {})
    assert Text(metadata).encode("ab<|im_end|>") == [260, 265]


def test_tokens_beside_it_that_it_has_itself(tmp_path: Path) -> None:
    """As in Mistral-7B-OpenOrca, whose added_tokens.json lists the first three pieces too."""
    (tmp_path / "added_tokens.json").write_text('{"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": 265}')
    metadata = read_metadata(folder_with(tmp_path, "tokenizer.model", model(), add_bos_token=True), {})
    text = Text(metadata)
    assert text.encode("ab</s><|im_end|>") == [1, 260, 2, 265]
    assert text.special.keys() == {"<unk>", "<s>", "</s>", "<|im_end|>"}  # what ends a turn is never a part of its text
    assert text.stop_tokens == {2, 265}


def test_tokenizer_json_comes_first(tmp_path: Path) -> None:
    content = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert read_metadata(folder_with(tmp_path, "tokenizer.model", b"\xff"), {}).tokenizer == content


REFUSED = {
    "no protobuf": (b"\xff" * 20, "not a SentencePiece model"),
    "cut short": (model()[:-3], "cut short"),
    "longer than it is": (block(1, b"")[:1] + varint(1 << 40), "1099511627776 bytes at byte"),
    "no pieces": (b"", "0 pieces, none for unknown characters"),
    "twice": (FIRST + piece("ab") + piece("ab"), "the piece 'ab' stands there twice, as 3 and 4"),
    "empty piece": (FIRST + piece(""), "piece 3 is damaged"),
    "no UTF-8": (FIRST + piece(b"\xff"), "piece 3 is damaged"),
    "no number": (FIRST + piece("a", float("nan")), "piece 3 is damaged"),
    "a type unknown": (FIRST + piece("a", kind=9), "piece 3 is damaged"),
    "words": (model(kind=3), "of words is not read, only BPE and Unigram"),
    "spaces behind": (model(trainer=number(24, 1)), "treat_whitespace_as_suffix"),
    "spaces as they are": (model(normalizer=number(5, 0)), "escape_whitespaces"),
    "Llama 3's": (b"IQ== 0\nIg== 1\n", "a tiktoken vocabulary"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda name: name.replace(" ", "-"))
def test_refused(tmp_path: Path, case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(BadCheckpoint, match=message) as caught:
        read_metadata(folder_with(tmp_path, "tokenizer.model", data), {})
    assert str(tmp_path / "tokenizer.model") in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged(data: st.DataObject) -> None:
    """Bytes replaced, put in and cut off: read, or refused by an error of ours."""
    content = bytearray(model(pieces=FIRST + WORDS))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    message = ""
    try:
        tokenizer_of_model(parse_model(bytes(content), "m"))
    except BadCheckpoint as error:
        message = str(error)
    assert "\n" not in message


# ---- vocab.json and merges.txt ---------------------------------------------------------------------------------------

VOCAB = {**{letter: n for n, letter in enumerate(byte_letters())}, "ab": 256, "Ġab": 257, "<|endoftext|>": 258}
MERGES = "#version: 0.2\na b\nĠ ab\n"


def folder_of_two(place: Path, merges: str = MERGES, **config: Any) -> Path:
    (place / "merges.txt").write_text(merges)
    return folder_with(place, "vocab.json", json.dumps(VOCAB).encode(), **config)


def test_vocab_and_merges(tmp_path: Path) -> None:
    metadata = read_metadata(folder_of_two(tmp_path, tokenizer_class="GPT2Tokenizer"), {})
    text = Text(metadata)
    assert text.encode("ab ab<|endoftext|>") == [256, 257, 258]
    assert text.decode([256, 257]) == "ab ab"
    assert text.stop_tokens == {258}
    assert metadata.remarks == ()


def test_vocab_and_merges_of_no_class(tmp_path: Path) -> None:
    (remark,) = read_metadata(folder_of_two(tmp_path), {}).remarks
    assert "GPT-2's way is taken" in remark


def test_vocab_and_merges_of_qwen(tmp_path: Path) -> None:
    """Its digits are split one by one, and text is brought to NFC."""
    metadata = read_metadata(folder_of_two(tmp_path, tokenizer_class="Qwen2Tokenizer", bos_token=None), {})
    assert (metadata.tokenizer or {})["normalizer"] == {"type": "NFC"}
    assert "{1,3}" not in json.dumps((metadata.tokenizer or {})["pre_tokenizer"])
    assert metadata.tokenizer_config["bos_token"] is None


@pytest.mark.parametrize(
    ("merges", "config", "message"),
    [
        ("a b c\n", {}, r"merges\.txt: line 1 \('a b c'\) is no pair"),
        ("#version: 0.2\n\na c\n", {}, r"line 3 \('a c'\) is no pair of tokens that makes a token"),
        (MERGES, {"tokenizer_class": "CLIPTokenizer"}, "of a CLIPTokenizer are not read"),
    ],
)
def test_vocab_and_merges_refused(tmp_path: Path, merges: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        read_metadata(folder_of_two(tmp_path, merges, **config), {})


# ---- tekken.json -----------------------------------------------------------------------------------------------------


def tekken(*tokens: bytes, reserved: int = 12, **changes: Any) -> dict[str, Any]:
    everything = [*(bytes([byte]) for byte in range(256)), *tokens]
    vocab = [{"rank": n, "token_bytes": base64.b64encode(token).decode()} for n, token in enumerate(everything)]
    size = reserved + len(everything)
    config = {"pattern": TEKKEN, "default_num_special_tokens": reserved, "default_vocab_size": size, **changes}
    return {
        "config": config,
        "vocab": vocab,
        "special_tokens": [{"rank": 1, "token_str": "<s>"}, {"rank": 2, "token_str": "</s>"}],
    }


def test_tekken(tmp_path: Path) -> None:
    content = tekken(b"ab", b" ab", b"never")
    content["config"]["default_vocab_size"] -= 1  # the file holds more tokens than the model
    text = Text(read_metadata(folder_with(tmp_path, "tekken.json", json.dumps(content).encode()), {}))
    assert text.encode("ab ab") == [1, 12 + 256, 12 + 257]
    assert text.encode("</s>é", special=False) == [2, 12 + 0xC3, 12 + 0xA9]
    assert text.special["<SPECIAL_11>"] == 11
    assert len(text.encode("never", special=False)) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "config, vocab or special_tokens is missing"),
        (tekken(pattern=r"\w+"), "its pattern is another than the published one"),
        (tekken(default_num_special_tokens=1 << 40), "no number, or too large"),
        (tekken(b"ab", b"ab"), "entry 257 of vocab is damaged"),
        (tekken() | {"special_tokens": [{"rank": 99, "token_str": "<x>"}]}, "special token .* is damaged"),
        (tekken(b"ab") | {"vocab": tekken()["vocab"][1:]}, "entry 0 of vocab is damaged"),
    ],
)
def test_tekken_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        read_metadata(folder_with(tmp_path, "tekken.json", json.dumps(content).encode()), {})
