"""Prompt lookup: guesses the next tokens from the text so far, so that one pass over the weights can give several.

Where the last tokens stand earlier in the text, what followed them there is the guess
(https://github.com/apoorvumang/prompt-lookup-decoding). A pass takes the guessed tokens along, and each is held against the token
that is chosen at its place, by the request's own rule and its own draw: the first that differs, and all behind it, are given up.
The tokens are those that would come one by one.

How many tokens are guessed follows from what was measured: how often guesses were right in this text, which is known without
trying, and what passes over so many tokens take on this machine. Each text has an account: what wrong guesses lose is what right
ones have won in it, or a small share of its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHORT, LONG = 2, 4  # tokens that must stand earlier in the text; the longer are looked for first
CHANGED = 3  # tokens in a row that may differ where a text is repeated with changes
SURE = 16  # tokens that agree, beyond which no more is asked
MOST = 32  # guessed tokens in a pass
MARGIN = 1.03  # so many times more tokens a second must be expected
SHARE = 0.003  # of the time, which may be lost
GRANT = 0.5  # of a pass without guesses, which may be lost in each text before anything was won
MEMORY = 32  # guesses of a kind after which older ones count half
FORGET = 64  # passes without guesses, after which half of what was measured of others is forgotten
STEEP = 0.2  # of a pass of one token: what one token more is believed to cost before it was measured
WEIGHT = 0.2  # of a new measurement
# What is believed of guesses before any was seen, by the tokens that agree, up to so many: right ones, and all.
BELIEFS = ((1, 1.5, 3.0), (3, 1.0, 4.0), (7, 2.0, 4.0), (SURE - 1, 3.0, 4.0), (SURE, 7.0, 8.0))
KIND = [next(kind for kind, belief in enumerate(BELIEFS) if length <= belief[0]) for length in range(SURE + 1)]


class Lookup:
    """A text and what it says about its next tokens.

    Attributes:
        tokens: the text.
        length: tokens before the end that stand before the guess as well, at most SURE; 0 where there is no guess, 1 where the
            last differ from what was repeated up to them.
        balance: what guesses have won in this text and may lose again, in passes without guesses.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self.length = 0
        self.balance = GRANT
        self._wrong = CHANGED  # guesses in a row since many tokens agreed
        self._at = 0  # where the guessed token stands
        self._behind: tuple[dict[tuple[int, ...], int], ...] = (
            {},
            {},
        )  # behind which token SHORT and LONG tokens stood last
        self._right = [right for _, right, _ in BELIEFS]
        self._all = [count for *_, count in BELIEFS]
        self._extend(tokens)

    def _extend(self, tokens: Sequence[int]) -> None:
        """The text so far, all at once; only its end is looked for."""
        if not tokens:
            return
        self.tokens = list(tokens[:-1])
        for size, behind in zip((SHORT, LONG), self._behind, strict=True):
            behind.update(
                zip(zip(*(self.tokens[i:] for i in range(size)), strict=False), range(size, len(tokens)), strict=False)
            )
        self.add(tokens[-1])

    def add(self, token: int) -> None:
        """The text's next token. If one was guessed, it is noted whether it was right."""
        tokens = self.tokens
        right = False
        if self.length:
            kind = KIND[self.length]
            right = tokens[self._at] == token
            self._right[kind] += right
            self._all[kind] += 1
            if self._all[kind] >= MEMORY:
                self._right[kind] /= 2
                self._all[kind] /= 2
        tokens.append(token)
        if right:
            self._at += 1
            self.length = max(min(self.length + 1, SURE), LONG if self._wrong < CHANGED else 0)
            if self.length >= 2 * LONG:
                self._wrong = 0
        else:
            self._wrong += 1
            self._find()
        for size, behind in zip((SHORT, LONG), self._behind, strict=True):
            if len(tokens) >= size:
                behind[tuple(tokens[-size:])] = len(tokens)

    def _find(self) -> None:
        """Looks for the last tokens earlier in the text."""
        tokens = self.tokens
        resumes, self.length = bool(self.length) and self._wrong <= CHANGED, 0
        for size, behind in ((LONG, self._behind[1]), (SHORT, self._behind[0])):
            if size == SHORT and resumes:
                self._at, self.length = self._at + 1, 1
                return
            if at := behind.get(tuple(tokens[-size:])):
                length, most = size, min(SURE, at)
                while length < most and tokens[at - 1 - length] == tokens[-1 - length]:
                    length += 1
                self._at, self.length = at, length
                return

    def chances(self, most: int) -> list[float]:
        """For each of the next tokens, at most so many, how likely it and all guesses before it are right."""
        found, all_right, length = [], 1.0, self.length
        for _ in range(most if length else 0):
            kind = KIND[length]
            all_right *= self._right[kind] / self._all[kind]
            found.append(all_right)
            length = min(length + 1, SURE)
        return found

    def guess(self, count: int) -> list[int]:
        """The next `count` tokens as they stand there; of a text that goes in a circle, once more around."""
        known = self.tokens[self._at : self._at + count]
        for place in range(len(known), count):
            known.append(known[place - (len(self.tokens) - self._at)])
        return known


@dataclass
class Figures:
    """What came of it: passes that took guesses along, tokens guessed, those that were right, seconds won (or lost, below 0)."""

    passes: int = 0
    guessed: int = 0
    right: int = 0
    seconds_won: float = 0.0


class Pace:
    """What passes take on this machine.

    Attributes:
        figures: of all texts so far.
    """

    def __init__(self) -> None:
        self.figures = Figures()
        self._seconds: dict[int, float] = {}  # of a pass over so many tokens
        self._passes = 0

    def plain(self, sequences: int, seconds: float) -> None:
        """A pass without guesses."""
        self._passes += 1
        self._took(sequences, seconds)
        if self._passes % FORGET == 0:  # what was measured once, perhaps at a bad moment, is not believed for ever
            one = self._seconds[sequences]
            for tokens in [n for n in self._seconds if n > sequences]:
                self._seconds[tokens] = (self._seconds[tokens] + _believed(one, sequences, tokens)) / 2

    def guessed(self, sequences: int, rows: int, chosen: int, seconds: float) -> float:
        """A pass over so many rows, from which so many tokens were chosen. Returns what was won, in passes without guesses."""
        seconds, one = self._took(rows, seconds), self.expected(sequences)
        won = one * chosen / sequences - seconds
        figures = self.figures
        figures.passes += 1
        figures.guessed += rows - sequences
        figures.right += max(chosen - sequences, 0)
        figures.seconds_won += won
        return won / one

    def _took(self, tokens: int, seconds: float) -> float:
        """Notes what a pass over so many tokens took; returns what it counts for: one that was held up, by other work on the
        machine, no more than twice what was expected."""
        if not self._seconds:
            self._seconds[tokens] = seconds
            return seconds
        known = self.expected(tokens)
        seconds = min(seconds, 2 * known)
        self._seconds[tokens] = known + WEIGHT * (seconds - known) if tokens in self._seconds else seconds
        return seconds

    def expected(self, tokens: int) -> float:
        """Seconds of a pass over so many tokens: as measured; else from the nearest that were."""
        if tokens in self._seconds:
            return min(seconds for n, seconds in self._seconds.items() if n >= tokens)
        fewer = max((n for n in self._seconds if n < tokens), default=0)
        more = min((n for n in self._seconds if n > tokens), default=0)
        if fewer and more:
            low, high = self._seconds[fewer], self._seconds[more]
            return low + max(high - low, 0) * (tokens - fewer) / (more - fewer)
        if not fewer:
            return self._seconds[more]
        return _believed(self._seconds[fewer], fewer, tokens)

    def best(self, chances: list[float], sequences: int, balance: float) -> int:
        """How many guesses a pass takes along, the likeliest first: as many as give the most tokens a second, 0 where they do not
        give more than none. `balance`: what may be lost, in passes without guesses; no more is put at risk."""
        if sequences not in self._seconds or not chances:
            return 0
        one = self._seconds[sequences]
        best, count, tokens = MARGIN * sequences / one, 0, float(sequences)
        for n, chance in enumerate(chances, start=1):
            tokens += chance
            seconds = self.expected(sequences + n)
            if (1 - chances[0]) * (seconds / one - 1) > balance:
                break
            if tokens / seconds > best:
                best, count = tokens / seconds, n
        return count


def _believed(seconds: float, known: int, tokens: int) -> float:
    """What a pass over more tokens may take, before it was measured."""
    return seconds * (1 + STEEP * (tokens - known) / known)
