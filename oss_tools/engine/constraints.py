"""Which tokens may come next: answers that are held to a grammar while they are generated.

A grammar is compiled by llguidance (https://github.com/guidance-ai/llguidance, MIT) for a vocabulary. Before each token it says
which of them can go on, and the logits of all others become -inf; what is sampled among the rest follows the request's rules.
Grammars come from strangers: their compilation and every step have limits of work and of memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest, MissingPackage, how_to_install

LIMITS = {
    "initial_lexer_fuel": 500_000,  # work of compilation, some 10 ms
    "step_lexer_fuel": 50_000,  # work of one mask
    "max_lexer_states": 10_000,  # of one to two kB
    "max_grammar_size": 100_000,
    "max_items_in_row": 4_000,
    "step_max_items": 50_000,
}
MOST_GRAMMAR = 1 << 20  # characters
LONGEST_MESSAGE = 240  # characters of the library's


class Constraint(Protocol):
    """What one text may say. It sees every token that is generated."""

    def mask(self, logits: np.ndarray) -> None:
        """Sets the logits (float32 [vocabulary]) of tokens that may not come next to -inf, in place. Raises BadRequest if no
        token may."""
        ...

    def accept(self, token: int) -> None:
        """The token that was chosen. Raises BadRequest if it was not allowed."""
        ...

    @property
    def ended(self) -> bool:
        """Whether nothing but the end may follow."""
        ...


NewConstraint = Callable[[], Constraint]


@dataclass(frozen=True)
class Part:
    """A named part of a grammar, which other parts call `@name`: in llguidance's Lark, or a JSON schema."""

    name: str
    lark: str = ""
    schema: Any = None

    def record(self) -> dict[str, Any]:
        return {"name": self.name, **({"lark_grammar": self.lark} if self.lark else {"json_schema": self.schema})}


def expression(pattern: str) -> str:
    """A regular expression in a grammar's text. Raises MissingPackage."""
    with _library("the regular expression") as library:
        return f"/{library.regex_to_lark(pattern, use_ascii='dw')}/"


class Grammars:
    """Compiles grammars for a tokenizer.

    Attributes:
        text: the tokenizer.
        names: added tokens, special or marks, and their ids: what no text spells.
    """

    def __init__(self, text: Text, vocabulary: int) -> None:
        """`vocabulary`: rows of the logits, at least the tokenizer's tokens. Raises MissingPackage; BadRequest if it cannot be
        said which text a token is."""
        self.text, self.names = text, text.special | text.marks
        with _library("the tokenizer"):
            self._tokenizer = _tokenizer(text, vocabulary, self.names.values())

    def token(self, name: str) -> str:
        """An added token in a grammar's text."""
        return f"<[{self.names[name]}]>"

    def literal(self, text: str) -> str:
        """A text in a grammar's text, in which the names of added tokens are these tokens; "" for an empty one."""
        found = [self.token(piece) if piece in self.names else json.dumps(piece) for piece in self._pieces(text) if piece]
        return " ".join(found)

    def _pieces(self, text: str) -> Iterator[str]:
        while text:
            places = [(at, -len(name), name) for name in self.names if name and (at := text.find(name)) >= 0]
            if not places:
                break
            at, _, name = min(places)
            yield text[:at]
            yield name
            text = text[at + len(name) :]
        yield text

    def compile(self, parts: Sequence[Part], what: str = "the grammar") -> NewConstraint:
        """A grammar, whose first part is the whole, as constraints of texts, each new from the beginning.

        Raises BadRequest, beginning with `what`, if it has a fault or goes beyond the limits.
        """
        content = json.dumps({"grammars": [part.record() for part in parts]})
        if len(content) > MOST_GRAMMAR:
            raise BadRequest(f"{what}: has {len(content)} characters with all that belongs to it, more than {MOST_GRAMMAR}")
        with _library(what) as library:
            limits = library.LLParserLimits(**LIMITS, verbose_errors=False)
            matcher = library.LLMatcher(self._tokenizer, content, limits=limits, log_level=0)
            if matcher.is_error():
                raise BadRequest(f"{what}: {_shortened(matcher.get_error())}")
            matcher.deep_copy().compute_bitmask()  # the first mask costs most
        return lambda: _Matched(matcher.deep_copy(), what)


class _Matched:
    """A grammar's matcher."""

    def __init__(self, matcher: Any, what: str) -> None:
        self._matcher, self._what = matcher, what
        self._bits: np.ndarray | None = None

    def mask(self, logits: np.ndarray) -> None:
        if self._bits is None:
            self._bits = np.zeros((len(logits) + 31) // 32, np.uint32)
        with _library(self._what):
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        if not self._bits.any():
            raise BadRequest(f"{self._what}: no token of this model can go on")
        allowed = np.unpackbits(self._bits.view(np.uint8), count=len(logits), bitorder="little")
        np.copyto(logits, np.float32("-inf"), where=allowed == 0)

    def accept(self, token: int) -> None:
        with _library(self._what):
            self._matcher.consume_token(token)
        self._check()

    @property
    def ended(self) -> bool:
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadRequest(f"{self._what}: {_shortened(self._matcher.get_error())}")


def _tokenizer(text: Text, vocabulary: int, marks: Any) -> Any:
    """The vocabulary as llguidance has it."""
    import llguidance

    spelt = [b""] * vocabulary
    for name, number in text.numbers().items():
        if number < vocabulary:
            spelt[number] = text.token_bytes(number) or name.encode()
    for name, number in (text.special | text.marks).items():
        if number < vocabulary:
            spelt[number] = name.encode()
    ends = sorted(number for number in text.stop_tokens if number < vocabulary) or [_spare(spelt, marks)]
    wrapped = llguidance.TokenizerWrapper(_Vocabulary(text, spelt, sorted({*marks, *ends}), ends[0]))
    return llguidance.LLTokenizer(wrapped, n_vocab=vocabulary, eos_token=ends)


def _spare(spelt: list[bytes], marks: Any) -> int:
    """A token for the end, where the tokenizer has none: one that spells nothing, or is added; else the last."""
    return next((number for number, name in enumerate(spelt) if not name), next(iter(marks), len(spelt) - 1))


class _Vocabulary:
    """What llguidance asks a tokenizer for."""

    bos_token_id = None

    def __init__(self, text: Text, tokens: list[bytes], special: list[int], end: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, end
        self._text, self._special = text, frozenset(special)
        self._greedy: dict[bytes, int] = {}
        self._longest = 0

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that must come: the tokenizer's own, if they spell it byte for byte, else the longest that fit."""
        if not isinstance(text, str):
            raise TypeError("text is needed")
        wanted = text.encode()
        found = self._text.encode_plain(text)
        return found if b"".join(self.tokens[number] for number in found) == wanted else self._fitting(wanted)

    def _fitting(self, wanted: bytes) -> list[int]:
        if not self._greedy:
            plain = ((name, n) for n, name in enumerate(self.tokens) if name and n not in self._special)
            self._greedy = dict(plain)
            self._longest = max(map(len, self._greedy), default=0)
        found: list[int] = []
        at = 0
        while at < len(wanted):
            sizes = range(min(self._longest, len(wanted) - at), 0, -1)
            size = next((size for size in sizes if wanted[at : at + size] in self._greedy), 0)
            if not size:
                break  # no token spells it; the grammar has no way on, and says so
            found.append(self._greedy[wanted[at : at + size]])
            at += size
        return found


@contextmanager
def _library(what: str) -> Iterator[Any]:
    """llguidance; its panics, which are no exceptions, become BadRequest. Raises MissingPackage."""
    try:
        import llguidance
    except ImportError:
        raise MissingPackage(f"structured output needs llguidance: {how_to_install('serve')}") from None
    try:
        yield llguidance
    except BaseException as error:
        if isinstance(error, ValueError) or type(error).__name__ == "PanicException":
            raise BadRequest(f"{what}: {_shortened(str(error))}") from None
        raise


def _shortened(message: str) -> str:
    """A message of the library's in one line."""
    line = " ".join(message.replace("<non-verbose/>", "").split())
    if line.startswith("NoExtension"):
        return "no text is of this form: it contradicts itself, or refers to itself without end"
    return line if len(line) <= LONGEST_MESSAGE else line[:LONGEST_MESSAGE] + "…"
