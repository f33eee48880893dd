"""Tokens to text, one at a time: nothing raises, nothing is lost, and the parts are the whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.tokenizers.byte_bpe import byte_letters
from oss_tools.checkpoints.tokenizers.byte_tokenizer import byte_tokenizer
from oss_tools.engine.detokenizer import RereadStream
from oss_tools.engine.text import Text

tokenizers = pytest.importorskip("tokenizers")
SPACE = "▁"
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BACK = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
FALLBACK: list[dict[str, Any]] = [BACK, {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
WORDS = [f"{SPACE}he", "llo", SPACE, "é", "日本", f"a{SPACE}b", "?", "🙂", f"{SPACE}{SPACE}"]


def vocabulary(decoder: dict[str, Any] | None, kind: str = "BPE") -> dict[str, Any]:
    """tokenizer.json with byte tokens <0x00>… at 3, and words behind them."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model: dict[str, Any] = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "merges": []}
    model["vocab"] = {piece: n for n, piece in enumerate(pieces)}
    if kind == "Unigram":
        model = {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": [[piece, -1.0] for piece in pieces]}
    added = [{"id": n, "content": pieces[n], **FLAGS} for n in range(3)]
    return {"version": "1.0", "added_tokens": added, "normalizer": None, "decoder": decoder, "model": model}


BYTE_LEVEL = byte_tokenizer("llama", 300)
assert BYTE_LEVEL
VOCABULARIES = {
    "byte-level": BYTE_LEVEL.content,
    "byte fallback": vocabulary({"type": "Sequence", "decoders": [*FALLBACK, STRIP]}),
    "byte fallback, no prefix": vocabulary({"type": "Sequence", "decoders": FALLBACK}),
    "Unigram": vocabulary({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}, "Unigram"),
    "Unigram, fallback": vocabulary({"type": "Sequence", "decoders": [*FALLBACK, STRIP]}, "Unigram"),
    "no decoder": vocabulary(None),
}
TEXTS = {name: Text(Metadata({}, tokenizer=content)) for name, content in VOCABULARIES.items()}
PEERS = {name: tokenizers.Tokenizer.from_str(json.dumps(content)) for name, content in VOCABULARIES.items()}


def parts(text: Text, tokens: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream, found = text.stream(stop), []
    for token in tokens:
        found.append(stream.add(token))
        if stream.stopped:
            return found
    return [*found, stream.flush()]


@pytest.mark.parametrize("name", VOCABULARIES)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_the_parts_are_the_whole(name: str, data: st.DataObject) -> None:
    """Any tokens at all, most of them no text: bytes in any order, special tokens, numbers that no token has."""
    text, peer = TEXTS[name], PEERS[name]
    tokens = data.draw(st.lists(st.integers(0, peer.get_vocab_size() + 2), max_size=24))
    whole = text.decode(tokens)
    assert "".join(parts(text, tokens)) == whole
    theirs = peer.decode(tokens, skip_special_tokens=True)
    if "\ufffd" not in theirs or name == "byte-level":
        assert whole == theirs
    with_special = peer.decode(tokens, skip_special_tokens=False)
    if "\ufffd" not in with_special:
        assert text.decode(tokens, skip_special=False) == with_special


def as_sentencepiece(data: bytes) -> str:
    """SentencePiece's rule (`sentencepiece_processor.cc`): a character where there is one, else U+FFFD for one byte."""
    out = ""
    while data:
        for length in range(1, 5):
            try:
                out, data = out + data[:length].decode(), data[length:]
                break
            except UnicodeDecodeError:
                continue
        else:
            out, data = out + "\ufffd", data[1:]
    return out


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=16))
def test_bytes_are_read_as_utf_8(data: bytes) -> None:
    """Whatever bytes a model writes: the characters that are whole come out, U+FFFD stands for what is none."""
    assert TEXTS["byte fallback, no prefix"].decode([3 + byte for byte in data]) == as_sentencepiece(data)
    letters = [PEERS["byte-level"].token_to_id(letter) for letter in byte_letters()]
    assert TEXTS["byte-level"].decode([letters[byte] for byte in data]) == data.decode("utf-8", "replace")


def test_a_shown_newline_is_not_taken_back() -> None:
    """The library turns a whole run of byte tokens to U+FFFD if one byte of it is broken; the newline was shown before."""
    text = TEXTS["byte fallback"]
    tokens = [3 + 0x0A, 3 + 0xF0, 3 + ord("a")]
    assert parts(text, tokens) == ["\n", "", "\ufffda", ""]
    assert PEERS["byte fallback"].decode(tokens) == "\ufffd\ufffd\ufffd"


def test_an_incomplete_character_is_held_back_and_not_lost() -> None:
    text = TEXTS["byte fallback"]
    smile = [3 + byte for byte in "🙂".encode()]
    assert parts(text, smile) == ["", "", "", "🙂", ""]
    assert parts(text, smile[:2]) == ["", "", "\ufffd\ufffd"]
    assert parts(text, [*smile[:2], PEERS["byte fallback"].token_to_id("llo")]) == ["", "", "\ufffd\ufffdllo", ""]


def test_a_stop_string_of_bytes_and_words() -> None:
    text = TEXTS["byte fallback"]
    tokens = [
        PEERS["byte fallback"].token_to_id(f"{SPACE}he"),
        3 + ord("l"),
        *(3 + byte for byte in "日".encode()),
        3 + ord("x"),
    ]
    assert "".join(parts(text, tokens, ("l日x",))) == "he"
    assert "".join(parts(text, tokens, ("l日y",))) == "hel日x"


def test_spaces_cut_off_the_end() -> None:
    decoder = {
        "type": "Sequence",
        "decoders": [BACK, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}],
    }
    content = vocabulary(decoder)
    text, peer = Text(Metadata({}, tokenizer=content)), tokenizers.Tokenizer.from_str(json.dumps(content))
    words = [peer.token_to_id(w) for w in (f"{SPACE}he", SPACE, f"{SPACE}{SPACE}", "llo")]
    for tokens in (words, words[:3], words[:2], [words[1]], words[::-1]):
        assert "".join(parts(text, tokens)) == text.decode(tokens) == peer.decode(tokens)


def test_other_decoders_are_read_anew() -> None:
    """A regular expression may change what came before: the text is decoded as a whole with each token."""
    decoder = {
        "type": "Sequence",
        "decoders": [BACK, {"type": "Fuse"}, {"type": "Replace", "pattern": {"Regex": "l+"}, "content": "L"}],
    }
    content = vocabulary(decoder)
    text, peer = Text(Metadata({}, tokenizer=content)), tokenizers.Tokenizer.from_str(json.dumps(content))
    assert isinstance(text._detokenizer.start(), RereadStream)
    tokens = [peer.token_to_id(w) for w in (f"{SPACE}he", "llo", "?")]
    assert "".join(parts(text, tokens)) == text.decode(tokens) == " heLo?"
