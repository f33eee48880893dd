"""Text streams: characters and stop strings that fall across token borders."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.checkpoints import Metadata
from oss_tools.convert.byte_tokenizer import byte_tokenizer
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
