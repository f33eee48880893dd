"""What a model writes to make a parser work without end: each answer is read in one pass, and a fault is a finding."""

import copy
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oss_tools.chat import tags
from oss_tools.chat.chat_template import _Disguise
from oss_tools.chat.completion import Finding, Problem, read_arguments
from oss_tools.chat.tags import Quotes, TagParser
from oss_tools.chat.written_calls import calls_in, named_calls_in
from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.json_files import MAX_DEPTH
from oss_tools.checkpoints.tokenizers.byte_tokenizer import byte_tokenizer
from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest

MADE = byte_tokenizer("llama", 300)
assert MADE
TEXT = Text(Metadata({}, tokenizer=copy.deepcopy(MADE.content)))


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 400, 900, 100_000])
def test_arguments_in_arguments_are_a_finding(levels: int) -> None:
    """Deeper ones can be read and not written: a template's request, a record and a log would fail at them."""
    found = read_arguments(nested(levels))
    assert isinstance(found, Finding)
    assert found.problem == Problem.BROKEN_JSON
    call = f'{{"name": "f", "arguments": {nested(levels)}}}'
    assert not calls_in(call, ["f"]).calls
    assert not named_calls_in(f"f[ARGS]{nested(levels)}").calls


def test_arguments_of_a_usual_depth_are_read() -> None:
    assert read_arguments(nested(MAX_DEPTH)) == json.loads(nested(MAX_DEPTH))
    assert calls_in(f'{{"name": "f", "arguments": {nested(40)}}}', ["f"]).calls
    assert named_calls_in(f"f[ARGS]{nested(40)}").calls


@given(st.lists(st.text('"\\a', max_size=5), max_size=8))
def test_quotes_in_parts_are_those_of_the_whole(parts: Sequence[str]) -> None:
    quotes = Quotes()
    for part in parts:
        quotes = quotes.after(part)
    escaped_left_out = re.sub(r"\\.", "", "".join(parts))
    assert quotes.open == (escaped_left_out.count('"') % 2 == 1)


def test_ends_of_calls_within_a_text_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an end stands within a text was seen from the call's beginning on, for each of them."""
    looked_at = 0

    class Counted:
        def findall(self, text: str) -> list[Any]:
            nonlocal looked_at
            looked_at += len(text)
            return re.findall(r'(?<!\\)(?:\\\\)*"', text)

    monkeypatch.setattr(tags, "QUOTE", Counted())
    answer = '<tool_call>{"name": "f", "arguments": {"a": "' + "</tool_call>" * 200 + '"}}</tool_call>'
    completion = TagParser(TEXT, ["f"]).read(TEXT.encode(answer, special=False))
    assert completion.calls[0].arguments == {"a": "</tool_call>" * 200}
    assert looked_at < 4 * len(answer)


def test_special_tokens_are_found_among_very_many() -> None:
    """At each letter every name was tried: with tens of thousands of names, as speech models have, for minutes."""
    names = [f"<custom_token_{n}>" for n in range(50_000)]
    disguise = _Disguise([*names, "<a>", "<a><b>", ""], "")
    text = "<custom_token_5>x<custom_token_50>" + "<" * 50_000 + "<a><b><a>"
    pieces = list(disguise.pieces(text))
    assert [piece for piece in pieces if piece] == [
        "<custom_token_5>",
        "x",
        "<custom_token_50>",
        "<" * 50_000,
        "<a><b>",
        "<a>",
    ]
    assert disguise.reveal(disguise.hide(text)) == text
    assert not set(disguise.hide(text)) & set("custom")


def test_more_special_tokens_than_there_are_disguises_is_one_line() -> None:
    names = [f"<{n}>" for n in range(70_000)]
    with pytest.raises(BadRequest, match="spells more than 65534 special tokens"):
        _Disguise(names, "").hide("".join(names))


def test_what_python_would_warn_of_is_not_said(recwarn: pytest.WarningsRecorder) -> None:
    assert calls_in(r"[f(a='\d')]", ["f"]).calls == (("f", {"a": r"\d"}),)
    assert not calls_in("[f(a=1if 1else 2)]", ["f"]).calls
    assert not list(recwarn)
