"""Reads JSON as models write it: what json.loads reads, and what is meant where that fails.

Python's True, False and None, single quotes, names without quotes, a comma too many, line breaks and quotation marks inside of
a text: each has one meaning, so it is read. A text that breaks off has none.
"""

from __future__ import annotations

import json
import re
from typing import Any

DEEPEST = 50  # nested objects and lists
DIGITS = 4000  # of a whole number; Python reads none of more than 4300
LONGEST = 200_000  # characters that are read leniently; json's own reader has no such limit
MOST_DIGITS = 4000  # of a number: Python reads no more than 4300
WORDS = {"true": True, "false": False, "null": None, "none": None}
BLANK = re.compile(r"\s*")
WORD = re.compile(r"[A-Za-z_]\w*")
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
# What follows a text's last quotation mark: an end, a colon, or a comma and the beginning of something
CLOSES = re.compile(r"""\s*($|[:}\]]|,\s*($|["'{}\[\]]|-?\d|\w+\s*[:,}\]]))""")
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
STRICT = json.JSONDecoder()


def read_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends. Raises Unreadable if there is none."""
    try:
        return STRICT.raw_decode(text, start)
    except (ValueError, RecursionError):
        return _Lenient(text[: start + LONGEST], start).whole()


class Unreadable(ValueError):
    """No value.

    Attributes:
        at: up to where the text could be read.
        broken_off: it is the text's end that is missing.
    """

    def __init__(self, what: str, at: int, broken_off: bool) -> None:
        super().__init__(f"{what} at {at}")
        self.at, self.broken_off = at, broken_off


class _Lenient:
    def __init__(self, text: str, at: int) -> None:
        self._text, self._at = text, at

    def whole(self) -> tuple[Any, int]:
        return self._value(0), self._at

    def _unreadable(self, what: str) -> Unreadable:
        return Unreadable(what, self._at, not self._next())

    def _next(self) -> str:
        """The next character that is no blank; "" at the end."""
        self._at = BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches anywhere
        return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> bool:
        found = self._next() == character
        self._at += found
        return found

    def _value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise self._unreadable("nested too deeply")
        first = self._next()
        if first == "{":
            return self._object(depth + 1)
        if first == "[":
            return self._list(depth + 1)
        if first in ("'", '"'):
            return self._string(first)
        if found := NUMBER.match(self._text, self._at):
            if len(found[0]) > MOST_DIGITS:
                raise self._unreadable("a number of very many digits")
            self._at = found.end()
            whole = not (found[1] or found[2]) and len(found[0]) <= DIGITS
            return int(found[0]) if whole else float(found[0])
        word = self._word()
        if word.lower() not in WORDS:
            raise self._unreadable("no value")
        return WORDS[word.lower()]

    def _word(self) -> str:
        found = WORD.match(self._text, self._at)
        if found is None:
            raise self._unreadable("no value")
        self._at = found.end()
        return found[0]

    def _object(self, depth: int) -> dict[str, Any]:
        self._take("{")
        found: dict[str, Any] = {}
        while not self._take("}"):
            quote = self._next()
            key = self._string(quote) if quote in ("'", '"') else self._word()
            if not self._take(":"):
                raise self._unreadable("no colon")
            found[key] = self._value(depth)
            self._separate("}")
        return found

    def _list(self, depth: int) -> list[Any]:
        self._take("[")
        found = []
        while not self._take("]"):
            found.append(self._value(depth))
            self._separate("]")
        return found

    def _separate(self, end: str) -> None:
        if not self._take(",") and self._next() != end:
            raise self._unreadable("no comma")

    def _string(self, quote: str) -> str:
        """Up to the first such mark behind which something ends: another inside of the text is one of its characters."""
        self._at += 1
        pieces: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character == quote and CLOSES.match(self._text, self._at):
                return "".join(pieces)
            pieces.append(self._escaped() if character == "\\" else character)
        raise self._unreadable("a text without an end")

    def _escaped(self) -> str:
        character = self._text[self._at : self._at + 1]
        self._at += 1
        count = {"x": 2, "u": 4, "U": 8}.get(character, 0)
        digits = self._text[self._at : self._at + count]
        if count and re.fullmatch(r"[0-9a-fA-F]+", digits) and len(digits) == count and int(digits, 16) < 0x110000:
            self._at += count
            return chr(int(digits, 16))
        return ESCAPES.get(character, character)
