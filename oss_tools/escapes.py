"""Characters that a terminal or an editor obeys instead of showing them: written as escapes, in text and in JSON.

These are the control characters C0 and C1 and DEL (ECMA-48: they begin what moves the cursor, sets the title, answers for the
user), the line separators of Unicode, the controls that turn its direction (Unicode Standard Annex 9, "Trojan Source"),
the invisible tag characters, and halves of surrogate pairs, which are no text. What only joins or spaces (U+200D of emoji,
U+00A0, U+3000) stays as it is.
"""

from __future__ import annotations

import json
import re
from typing import Any

_OBEYED = r"\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff\U000e0000-\U000e007f"
_IN_TEXT = re.compile(rf"[\x00-\x08\x0b-\x1f{_OBEYED}]")
_IN_A_LINE = re.compile(rf"[\x00-\x1f{_OBEYED}]")
_IN_JSON = re.compile(rf"[{_OBEYED}]")  # JSON has no others, as its strings escape C0 always


def visible(text: str) -> str:
    r"""The text with such characters as Python writes them (`\x1b`, `\u202e`); line ends and tabs stay."""
    return _IN_TEXT.sub(_python_escape, text)


def in_a_line(text: str) -> str:
    r"""The text with such characters, line ends and tabs as Python writes them: whatever it holds, it is one line."""
    return _IN_A_LINE.sub(_python_escape, text)


def one_line(text: str) -> str:
    """A message on one line, however many its author wrote: each run of white space is a space, the rest as `in_a_line`."""
    return in_a_line(" ".join(text.split()))


def json_text(value: Any, *, indent: int | None = None, **options: Any) -> str:
    """JSON that keeps what is text (ä, 語, emoji) and escapes such characters, so that it can be read in a terminal and be
    encoded as UTF-8 always. `options` are those of json.dumps."""
    return _IN_JSON.sub(_json_escape, json.dumps(value, indent=indent, ensure_ascii=False, **options))


def _python_escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def _json_escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
