"""Whether a stranger's regular expression could take a search without end.

Oniguruma, which carries them out, tries every way to match. How many there are grows beyond all bounds where a repetition, or a
choice, stands within a repetition, and something behind it may fail: `(a+)+$`. It grows as a power of the text's length where
several repetitions stand before what may fail: `a*a*a*$`. Many choices in a row are a repetition spelled out: `a?a?a?…b`.
Published tokenizers have none of these: what they repeat in a repetition stands at the end, where nothing fails
(`(?:\\p{L}\\p{M}*)+`), and no more than one repetition comes before what may fail.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

MAX_DEPTH = 32  # of groups in groups
MANY = 16  # times: a repetition that may go on for more counts as one without end
MOST = 1  # repetitions before what may fail
BITS = 16  # the logarithm of the number of ways in which choices before what may fail can be made
MAX_LENGTH = 1 << 15  # characters; the longest published ones have some 5,000
COUNT = re.compile(r"\{(\d{0,9})(?:(,)(\d{0,9}))?\}")
UNBOUNDED = 1 << 30
LOOKS = ("(?=", "(?!", "(?<=", "(?<!")
ASSERTIONS = "AbBGzZyYK"  # behind a backslash: nothing is taken from the text


@dataclass
class Atom:
    """One character or class, an assertion, or a group, and how often it may come."""

    branches: list[list[Atom]] = field(default_factory=list)  # of a group
    contained: bool = False  # a group into which no search goes back: a lookaround, an atomic one
    asserts: bool = False
    least: int = 1
    most: int = 1

    @property
    def may_fail(self) -> bool:
        return self.least > 0

    @property
    def varies(self) -> bool:
        """Whether it may match in several ways, whatever is around it."""
        return self.least != self.most or self.inner_varies

    @property
    def inner_varies(self) -> bool:
        return not self.contained and (len(self.branches) > 1 or any(atom.varies for b in self.branches for atom in b))

    @property
    def bits(self) -> float:
        """The logarithm of the number of ways in which it may match, endless repetitions left out."""
        if self.contained:
            return 0.0
        inner = math.log2(len(self.branches)) + max(sum(a.bits for a in b) for b in self.branches) if self.branches else 0.0
        return math.log2(min(self.most - self.least, MANY) + 1) + min(self.most, MANY) * inner


def fault_of(expression: str) -> str | None:
    """What is wrong with an expression; None if it ends soon, or is none at all (as the library then says)."""
    if len(expression) > MAX_LENGTH:
        return f"more than {MAX_LENGTH} characters"
    try:
        branches = _Parser(expression).whole()
    except _Unread as error:
        return str(error) or None
    try:
        _check(branches, Before(), times=1, tail=True)
    except _Endless as error:
        return str(error)
    return None


class _Endless(Exception):
    pass


class _Unread(Exception):
    """With words: refused; without: no regular expression."""


@dataclass(frozen=True)
class Before:
    """What comes before a place in an expression: endless repetitions, and choices as bits."""

    repetitions: int = 0
    bits: float = 0.0


def _check(branches: list[list[Atom]], outside: Before, times: int, tail: bool) -> int:
    """Raises _Endless; returns how many repetitions there are up to the end, at most.

    `times`: how often the whole may come; `tail`: whether nothing that may fail is behind it.
    """
    highest = outside.repetitions
    for branch in branches:
        repetitions, bits = outside.repetitions, outside.bits
        final = max((place for place, atom in enumerate(branch) if atom.may_fail), default=-1)
        for place, atom in enumerate(branch):
            last = tail and place >= final
            if atom.may_fail and repetitions > MOST:
                raise _Endless(f"more than {MOST} repetition before what may fail, as in a*a*b")
            if atom.may_fail and bits > BITS:
                raise _Endless("very many choices before what may fail, as in a?a?a?b")
            all_times = min(times * atom.most, UNBOUNDED)
            if atom.inner_varies and all_times > MANY and not last:
                raise _Endless("a repetition or a choice within a repetition before what may fail, as in (a+)+b")
            if atom.contained:
                _check(atom.branches, Before(), 1, tail=True)
            elif atom.branches:
                inside = Before(repetitions, bits) if atom.may_fail else Before()
                repetitions = max(repetitions, _check(atom.branches, inside, all_times, last))
            bits += atom.bits
            if atom.most - atom.least > MANY:
                repetitions += 1
        highest = max(highest, repetitions)
    return highest


class _Parser:
    """Reads Oniguruma's syntax as far as it decides how often what may come."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def whole(self) -> list[list[Atom]]:
        branches = self._branches(0)
        if self._at < len(self._text):
            raise _Unread  # a parenthesis too many
        return branches

    def _branches(self, depth: int) -> list[list[Atom]]:
        if depth > MAX_DEPTH:
            raise _Unread(f"groups in groups, more than {MAX_DEPTH} deep")
        branches: list[list[Atom]] = [[]]
        while self._at < len(self._text) and self._text[self._at] != ")":
            if self._text[self._at] == "|":
                branches.append([])
                self._at += 1
            else:
                atom = self._atom(depth)
                if atom is not None:
                    branches[-1].append(self._repeated(atom))
        return branches

    def _atom(self, depth: int) -> Atom | None:
        letter = self._text[self._at]
        if letter == "(":
            return self._group(depth)
        if letter == "[":
            self._class()
            return Atom()
        if letter == "\\":
            return self._escape()
        self._at += 1
        return Atom(asserts=letter in "^$")

    def _group(self, depth: int) -> Atom | None:
        text, at = self._text, self._at
        if text.startswith("(?#", at):
            self._at = self._behind(")")
            return None
        if text.startswith(("(?(", "(?~", "(?&", "(?R", "(?P>")):
            raise _Unread("a condition, an absence or a call of a group")
        if flags := re.compile(r"\(\?[imxnsadluWDSPy{}gw-]*\)").match(text, at):  # for the rest of the branch
            self._at = flags.end()
            return None
        opening = re.compile(r"\((\?(<?[=!]|>|[imxnsadluWDSPy{}gw-]*:|P?<\w+>|'\w+'))?").match(text, at)
        assert opening
        self._at = opening.end()
        branches = self._branches(depth + 1)
        if self._at >= len(text):
            raise _Unread
        self._at += 1
        looks = opening[0] in LOOKS
        return Atom(branches, contained=looks or opening[0] == "(?>", asserts=looks)

    def _class(self) -> None:
        """A class of characters, classes within it."""
        depth, first = 0, False
        while self._at < len(self._text):
            letter = self._text[self._at]
            self._at += 1
            if letter == "\\":
                self._at += 1
            elif letter == "[":
                depth += 1
                self._at += self._text.startswith("^", self._at)
                first = True
                continue
            elif letter == "]" and not first:
                depth -= 1
                if not depth:
                    return
            first = False
        raise _Unread

    def _escape(self) -> Atom:
        letter = self._text[self._at + 1 : self._at + 2]
        if letter in ("g", "k") or letter in tuple("123456789"):
            raise _Unread("a reference to a group")
        self._at += 2
        if letter in ("p", "P", "x", "u", "o") and self._text.startswith("{", self._at):
            self._at = self._behind("}")
        return Atom(asserts=letter in tuple(ASSERTIONS))

    def _behind(self, end: str) -> int:
        at = self._text.find(end, self._at)
        if at < 0:
            raise _Unread
        return at + 1

    def _repeated(self, atom: Atom) -> Atom:
        """The atom with the repetitions behind it, one of a repetition as a group around it."""
        around = 0
        while self._at < len(self._text):
            letter = self._text[self._at]
            count = COUNT.match(self._text, self._at)
            if letter in "*+?":
                least, most = int(letter == "+"), 1 if letter == "?" else UNBOUNDED
                self._at += 1
            elif count and (count[1] or count[3]):
                least = int(count[1] or 0)
                most = least if not count[2] else int(count[3]) if count[3] else UNBOUNDED
                self._at = count.end()
            else:
                break
            kept = letter != "{" and self._text.startswith("+", self._at)  # possessive
            self._at += kept or self._text.startswith("?", self._at)
            if (atom.least, atom.most) != (1, 1):
                around += 1
                if around > MAX_DEPTH:
                    raise _Unread("repetitions of repetitions")
                atom = Atom([[atom]])
            atom.least, atom.most = least, most
            if kept:
                atom = Atom([[atom]], contained=True, least=min(least, 1))
        return atom
