"""Text streams: characters and stop strings that fall across token borders."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.tokenizers.byte_tokenizer import byte_tokenizer
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint

TOKENIZER = byte_tokenizer("llama", 300)
assert TOKENIZER
TEXT = Text(Metadata({}, tokenizer=TOKENIZER.content))


def streamed(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """The text as it comes out, one token (here: one byte) at a time."""
    stream, out = TEXT.stream(stop), ""
    for token in TEXT.encode(text, special=False):
        out += stream.add(token)
        assert text.startswith(out)
        if stream.stopped:
            return out, True
    return out + stream.flush(), False


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from("abé🙂"), max_size=20), st.lists(st.text("abé🙂", min_size=1, max_size=3), max_size=2))
def test_a_stream_is_the_text_up_to_its_first_stop_string(text: str, stop: list[str]) -> None:
    out, stopped = streamed(text, tuple(stop))
    complete = next((n for n in range(len(text) + 1) if any(s in text[:n] for s in stop)), None)  # the first to be complete
    assert stopped == (complete is not None)
    expected = text if complete is None else text[: min(at for s in stop if (at := text[:complete].find(s)) >= 0)]
    assert out == expected


def test_the_earliest_stop_string_cuts() -> None:
    assert streamed("one\n\ntwo", ("\n\n",)) == ("one", True)
    assert streamed("one\ntwo", ("\n\n",)) == ("one\ntwo", False)


def test_a_damaged_tokenizer_is_refused() -> None:
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json"):
        Text(Metadata({}, tokenizer={"model": 7}))
    with pytest.raises(BadCheckpoint, match="no tokenizer"):
        Text(Metadata({}))


def test_stop_tokens_come_from_the_configuration() -> None:
    generation = {"eos_token_id": [6, 7]}
    text = Text(Metadata({"eos_token_id": 5}, tokenizer=TOKENIZER.content, generation_config=generation))
    assert {5, 6, 7} <= text.stop_tokens
    assert TOKENIZER.content["model"]["vocab"]["</s>"] in text.stop_tokens  # a known end of text


FILLED = {
    "strategy": {"Fixed": 64},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 3,
    "pad_type_id": 0,
    "pad_token": "!",
}
CUT = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize("saved", [{"padding": FILLED}, {"truncation": CUT}, {"padding": FILLED, "truncation": CUT}])
def test_what_a_trainer_left_switched_on_does_not_rule(saved: dict[str, Any]) -> None:
    """transformers resets truncation and padding at every call: a prompt is neither cut nor filled up."""
    text = Text(Metadata({}, tokenizer=TOKENIZER.content | saved))
    prompt = "a prompt of more than three tokens"
    assert text.encode(prompt) == TEXT.encode(prompt)
    assert text.encode_plain(prompt) == TEXT.encode_plain(prompt)
    assert text.decode(text.encode(prompt)) == prompt


def test_no_merges_are_left_out_by_chance() -> None:
    content = copy.deepcopy(TOKENIZER.content)
    content["model"]["dropout"] = 0.9
    text = Text(Metadata({}, tokenizer=content))
    assert all(text.encode(" the and in the") == TEXT.encode(" the and in the") for _ in range(20))
    assert content["model"]["dropout"] == 0.9  # what is written elsewhere stays as it came


def named(*names: str) -> Text:
    """A tokenizer in which these are ordinary tokens."""
    content = copy.deepcopy(TOKENIZER.content)
    content["model"]["vocab"] = {n: i for n, i in content["model"]["vocab"].items() if not n.startswith("<unused")}
    for name in names:
        content["model"]["vocab"][name] = len(content["model"]["vocab"])
    return Text(Metadata({}, tokenizer=content))


@pytest.mark.parametrize("name", ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "[EOT]", "<|end_of_text|>"])
def test_ends_of_turns_are_known_by_name(name: str) -> None:
    """As llama.cpp knows them, also where a vocabulary has them as ordinary tokens."""
    text = named(name)
    assert text.encode_plain(name)  # text it is in a stranger's mouth
    assert len(text.stop_tokens) == len(TEXT.stop_tokens) + 1


def test_a_strangers_text_ends_no_turn() -> None:
    """A file may say that the token that ends a turn is none of the special ones; it is here."""
    content = copy.deepcopy(TOKENIZER.content)
    number = content["model"]["vocab"].pop("<unused_299>")
    content["model"]["vocab"]["<|im_end|>"] = number
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    content["added_tokens"].append({"id": number, "content": "<|im_end|>", **flags})
    text = Text(Metadata({}, tokenizer=content))
    assert text.encode("a<|im_end|>")[-1] == number
    assert number in text.stop_tokens
    assert number not in text.encode_plain("a<|im_end|>")


def test_in_harmony_a_message_ends_and_not_the_turn() -> None:
    both, one = named("<|end|>", "<|return|>", "<|call|>"), named("<|end|>", "<|return|>")
    assert len(both.stop_tokens) == len(TEXT.stop_tokens) + 2
    assert len(one.stop_tokens) == len(TEXT.stop_tokens) + 2
    assert both.stop_tokens != one.stop_tokens


class PanicException(BaseException):
    """As the library's own is called, and as little an Exception."""


def test_a_panic_of_the_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panics:
        def encode(self, text: str, add_special_tokens: bool) -> None:
            raise PanicException("index out of bounds:\nthe len is 3")

        def decode(self, tokens: list[int], skip_special_tokens: bool) -> None:
            raise PanicException("a decoder's")

    text = Text(Metadata({}, tokenizer=TOKENIZER.content))
    monkeypatch.setattr(text, "_tokenizer", Panics())
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json cannot encode this text: index out of bounds: the len is 3\Z"):
        text.encode("a")
    words = Text(
        Metadata({}, tokenizer=TOKENIZER.content | {"decoder": {"type": "WordPiece", "prefix": "#", "cleanup": True}})
    )
    monkeypatch.setattr(words._detokenizer, "tokenizer", Panics())
    for read in (words.decode, lambda tokens: words.stream().add(tokens[0])):
        with pytest.raises(BadCheckpoint, match=r"tokenizer\.json cannot decode these tokens: a decoder's"):
            read([5])


def test_an_unread_vocabulary_is_named() -> None:
    with pytest.raises(BadCheckpoint, match=r"qwen\.tiktoken.*save the tokenizer as tokenizer\.json"):
        Text(Metadata({}, files={"LICENSE": b"", "qwen.tiktoken": b""}))
