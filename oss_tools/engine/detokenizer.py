"""Tokens to text by tokenizer.json's decoder, a token at a time: nothing raises, nothing is lost, nothing is taken back.

The library's own `DecodeStream` raises where a run of byte tokens turns out to be no UTF-8 after a part of it was shown. Here
bytes that begin a character are held back until it is complete, bytes that cannot be one become U+FFFD, and a text decoded at
once is by construction what the stream gave. Valid text comes out as the library's `decode` has it. Invalid bytes: as many
U+FFFD as the library and SentencePiece write (byte tokens `<0xXX>`: one a byte, and the valid characters beside them are kept,
as in SentencePiece; byte-level BPE: one for each broken character).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

from oss_tools.checkpoints.tokenizers.byte_bpe import byte_letters
from oss_tools.errors import BadCheckpoint, BadRequest

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
ONE_A_BYTE = "oss_tools_one_a_byte"  # the name of an error handler


def _one_a_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(ONE_A_BYTE, _one_a_byte)
_utf8 = codecs.getincrementaldecoder("utf-8")


@contextmanager
def library(what: str) -> Iterator[None]:
    """Turns the tokenizers library's bare exceptions, and its panics, which are none, into BadCheckpoint."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise BadCheckpoint(f"the checkpoint's tokenizer.json {what}: {' '.join(str(error).split())[:200]}") from None
        raise


class Step(Protocol):
    """A part of a decoder: takes pieces of text, in order, and gives pieces."""

    def feed(self, piece: str) -> list[str]: ...

    def flush(self) -> list[str]:
        """What was held back, at the end of the text."""
        ...


class _Replace:
    """One text for another, inside each piece."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def spelt(self, piece: str) -> str:
        return piece.replace(self._old, self._new)

    def feed(self, piece: str) -> list[str]:
        return [self.spelt(piece)]

    def flush(self) -> list[str]:
        return []


class _ByteLevel:
    """GPT-2's letters as the bytes for which they stand; a piece with any other letter as itself."""

    BYTES: ClassVar = {letter: byte for byte, letter in enumerate(byte_letters())}

    def __init__(self) -> None:
        self._decoder = _utf8("replace")

    def spelt(self, piece: str) -> bytes:
        try:
            return bytes([self.BYTES[letter] for letter in piece])
        except KeyError:
            return piece.encode()

    def feed(self, piece: str) -> list[str]:
        return [self._decoder.decode(self.spelt(piece))]

    def flush(self) -> list[str]:
        return [self._decoder.decode(b"", final=True)]


class _ByteFallback:
    """Pieces `<0xXX>` as bytes."""

    def __init__(self) -> None:
        self._decoder = _utf8(ONE_A_BYTE)

    def spelt(self, piece: str) -> str | bytes:
        found = BYTE_TOKEN.fullmatch(piece)
        return bytes.fromhex(found[1]) if found else piece

    def feed(self, piece: str) -> list[str]:
        spelt = self.spelt(piece)
        return [self._decoder.decode(spelt)] if isinstance(spelt, bytes) else [*self.flush(), piece]

    def flush(self) -> list[str]:
        return [self._decoder.decode(b"", final=True)]


class _Metaspace:
    """U+2581 as a space, but in the first piece as nothing, if the tokenizer put one before the text."""

    def __init__(self, replacement: str, prepended: bool) -> None:
        self._replacement, self._first = replacement, prepended

    def spelt(self, piece: str) -> str:
        return piece.replace(self._replacement, " ")

    def feed(self, piece: str) -> list[str]:
        space, self._first = "" if self._first else " ", False
        return [piece.replace(self._replacement, space)]

    def flush(self) -> list[str]:
        return []


class _Strip:
    """Cuts at most `start` letters `content` off the beginning of the whole text, and `stop` of them off its end."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content, self._start, self._stop = content, start, stop
        self._held = ""

    def feed(self, piece: str) -> list[str]:
        while self._start and piece:
            if not piece.startswith(self._content):
                self._start = 0
                break
            piece = piece[1:]
            self._start -= 1
        text = self._held + piece
        tail = min(self._stop, len(text) - len(text.rstrip(self._content)))
        cut = len(text) - tail
        self._held = text[cut:]
        return [text[:cut]]

    def flush(self) -> list[str]:
        self._held = ""
        return []


class _Spaced:
    """What a tokenizer without a decoder does: a space between tokens."""

    def __init__(self) -> None:
        self._between = ""

    def feed(self, piece: str) -> list[str]:
        between, self._between = self._between, " "
        return [between + piece]

    def flush(self) -> list[str]:
        return []


def steps_of(decoder: Any) -> list[Step] | None:
    """The decoder of a tokenizer.json as steps, new ones for each text; None if it cannot be carried out a piece at a time."""
    if decoder is None:
        return [_Spaced()]
    parts = [decoder]
    steps: list[Step] = []
    tokens, whole = True, False  # whether pieces are still the library's tokens; whether it sees the text as one
    while parts:
        part = parts.pop(0)
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "Sequence" and isinstance(part.get("decoders"), list):
            parts = part["decoders"] + parts
        elif kind == "Fuse":
            tokens, whole = False, True
        elif kind == "ByteLevel" and tokens:
            steps.append(_ByteLevel())
            tokens, whole = False, True
        elif kind == "ByteFallback" and tokens:
            steps.append(_ByteFallback())
            tokens = False
        elif kind == "Metaspace" and tokens:
            scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
            steps.append(_Metaspace(part.get("replacement", "\u2581"), scheme != "never"))
        elif kind == "Replace" and (old := _literal(part)) and (tokens or len(old) == 1):
            steps.append(_Replace(old, str(part.get("content", ""))))
        elif kind == "Strip" and whole and len(str(part.get("content"))) == 1:
            steps.append(_Strip(str(part["content"]), int(part.get("start", 0)), int(part.get("stop", 0))))
        else:
            return None
    return steps


def _literal(part: Mapping[str, Any]) -> str:
    """The text that a Replace seeks; "" for a regular expression."""
    pattern = part.get("pattern")
    found = pattern.get("String") if isinstance(pattern, Mapping) else None
    return found if isinstance(found, str) else ""


class Detokenizer:
    """A tokenizer's way from tokens to text.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        decoder: the content of tokenizer.json's `decoder`.
        special: ids of special tokens, which have no text where they are skipped.
    """

    def __init__(self, tokenizer: Any, decoder: Any, special: Iterable[int]) -> None:
        self.tokenizer, self._decoder, self.special = tokenizer, decoder, frozenset(special)

    def start(self, skip_special: bool = True) -> PieceStream | RereadStream:
        """A new text."""
        steps = steps_of(self._decoder)
        return RereadStream(self, skip_special) if steps is None else PieceStream(self, steps, skip_special)

    def token_bytes(self, token: int) -> bytes:
        """What a token is inside of a text, of which a character may be a part only; b"" if no token has this number. Raises
        BadRequest if tokens have no bytes of their own: the decoder reads the whole text, or puts spaces between them."""
        name = self.tokenizer.id_to_token(token)
        if name is None:
            return b""
        steps = steps_of(self._decoder)
        if steps is None or any(isinstance(step, _Spaced) for step in steps):
            raise BadRequest("answers cannot be held to a form: this tokenizer's decoder does not say which text a token is")
        for step in steps:
            if isinstance(step, _Replace | _Metaspace | _ByteLevel | _ByteFallback):
                found = step.spelt(name)
                if isinstance(found, bytes):
                    return found
                name = found
        return str(name).encode()

    def decode(self, tokens: Iterable[int], skip_special: bool = True) -> str:
        """The text of all these tokens. Numbers that no token has are passed over."""
        stream = self.start(skip_special)
        if isinstance(stream, RereadStream):
            return stream.reread(list(tokens))
        return "".join([*map(stream.add, tokens), stream.flush()])


class PieceStream:
    """Text as its tokens come, each carried through the decoder's steps."""

    def __init__(self, owner: Detokenizer, steps: Sequence[Step], skip_special: bool) -> None:
        self._owner, self._steps, self._skip = owner, steps, skip_special

    def add(self, token: int) -> str:
        """The text that is certain after this token."""
        name = self._owner.tokenizer.id_to_token(token)
        if name is None or (self._skip and token in self._owner.special):
            return ""
        return self._through([name])

    def _through(self, pieces: list[str]) -> str:
        for step in self._steps:
            pieces = [out for piece in pieces for out in step.feed(piece)]
        return "".join(pieces)

    def flush(self) -> str:
        """What was held back, when the text ends."""
        pieces: list[str] = []
        for step in self._steps:
            pieces = [out for piece in pieces for out in step.feed(piece)] + step.flush()
        return "".join(pieces)


class RereadStream:
    """For decoders of other kinds: the whole text is decoded anew with every token, and what it has more is new."""

    def __init__(self, owner: Detokenizer, skip_special: bool) -> None:
        self._owner, self._skip = owner, skip_special
        self._tokens: list[int] = []
        self._shown = ""

    def reread(self, tokens: list[int]) -> str:
        shown = [token for token in tokens if not (self._skip and token in self._owner.special)]
        with library("cannot decode these tokens"):
            return str(self._owner.tokenizer.decode(shown, skip_special_tokens=False))

    def add(self, token: int) -> str:
        """The text that is certain after this token, as far as such a decoder lets one know."""
        self._tokens.append(token)
        text = self.reread(self._tokens).rstrip("\ufffd")
        return self._show(text) if text.startswith(self._shown) else ""

    def _show(self, text: str) -> str:
        new, self._shown = text[len(self._shown) :], text
        return new

    def flush(self) -> str:
        """What was held back, when the text ends."""
        text = self.reread(self._tokens)
        return self._show(text) if len(text) > len(self._shown) else ""
