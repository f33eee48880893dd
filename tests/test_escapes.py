"""What a terminal would obey, and what is only text."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oss_tools.escapes import in_a_line, json_text, one_line, visible

LEFT_ALONE = {
    "a family, joined": "👨‍👩‍👧‍👦",
    "a flag": "🇩🇪",
    "Persian with a non-joiner": "می‌خواهم",
    "an ideographic space": "你　好",
    "a no-break space": "10\u202f%, 5\xa0km",
    "accents": "é ä ñ ß Ω ж",
    "a line and a tab": "a\n\tb",
}


@pytest.mark.parametrize("text", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_text_is_left_alone(text: str) -> None:
    assert visible(text) == text
    assert json_text(text) == json.dumps(text, ensure_ascii=False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("100 %\r99 %", "100 %\\r99 %"),
        ("a\x7f\x08b", "a\\x7f\\x08b"),
        ("user\u202egpj.exe", "user\\u202egpj.exe"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("\udc80\ud83d", "\\udc80\\ud83d"),
        ("hi\U000e0068\U000e0069", "hi\\U000e0068\\U000e0069"),
    ],
)
def test_what_is_obeyed_is_shown(text: str, shown: str) -> None:
    assert visible(text) == in_a_line(text) == shown


def test_every_control_character_of_unicode_is_seen_and_each_that_turns_the_direction() -> None:
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    marks = {"\u200e", "\u200f", "\u061c"}
    for code in range(0x110000):
        c = chr(code)
        turns = unicodedata.bidirectional(c) in bidi or c in marks
        wanted = unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or turns
        if wanted and c not in "\n\t":
            assert visible(c) != c, hex(code)
        elif unicodedata.category(c)[0] in "LMNPS":
            assert visible(c) == c, hex(code)


@given(st.text(st.characters(codec=None)))  # halves of surrogate pairs too
def test_whatever_it_is_it_can_be_read_and_encoded(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    shown.encode()
    assert len(in_a_line(text).splitlines()) <= 1
    assert len(one_line(text).splitlines()) <= 1
    written = json_text({text: [text]})
    written.encode()
    assert visible(written) == written
    assert json.loads(written) == json.loads(json.dumps({text: [text]}))
