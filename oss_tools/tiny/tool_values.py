"""Words, names, texts and figures that questions about tools are filled with, drawn for one split."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from oss_tools.tiny.items import Split, split_of

SPLICED = 0.6  # of made-up words: pieces of other words
GIVEN = 0.7  # of these pieces: from the list that `items` was given
ONSETS = (*"bcdfghjklmnprstvwyz", "", *["br", "ch", "cl", "dr", "fl", "gr", "kl", "pl", "qu", "sh", "sk", "st", "th", "tr"])
VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "ei", "io", "oo", "ou", "y")
CODAS = ("", "", "", "l", "n", "r", "s", "t", "k", "m", "x", "nd", "nt", "rt", "ck", "ng", "lo", "ra", "sh")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


@cache
def tool_words() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("tool_words.yaml").read_text("utf-8"))


class Values:
    """Draws words and values of one split from one random generator."""

    def __init__(self, rng: random.Random, split: Split, pieces: Sequence[str] = ()) -> None:
        self.rng, self.split, self.pieces = rng, split, pieces
        words = tool_words()
        kept = {
            key: [w for w in dict.fromkeys(words[key]) if split_of(w.lower()) == split]
            for key in ("places", "people", "families", "foods", "words", "booleans", "nouns")
        }
        self.words: dict[str, list[str]] = kept
        self.letters = [w.lower() for words_of_kind in kept.values() for w in words_of_kind if w.isalpha()]
        self.known = [key for key in words["tools"] if split_of(key.split()[1]) == split]
        self.taken = (
            set(words["verbs"]) | set(words["sentence"]) | {w for key in kept for w in words[key]} | {"with", "without"}
        )

    def held(self, draw: Callable[[], str]) -> str:
        """The first value drawn that belongs to this split."""
        while split_of((value := draw()).lower()) != self.split:
            pass
        return value

    def made_up(self) -> str:
        """A word that is none: up to three syllables, or pieces of words, in which every piece of a word comes up."""

        def draw() -> str:
            if self.rng.random() < SPLICED:
                pieces = self.rng.choices((1, 2, 3), (1, 4, 2))[0]
                return "".join(self._piece() for _ in range(pieces))
            syllables = self.rng.choices((1, 2, 3), (2, 10, 5))[0]
            word = "".join(self.rng.choice(ONSETS) + self.rng.choice(VOWELS) for _ in range(syllables))
            return word + self.rng.choice(CODAS)

        while (word := self.held(draw)) in self.taken or len(word) < 3:
            pass
        return word

    def _piece(self) -> str:
        """One of the given pieces, or two to five letters of a word of this split."""
        if self.pieces and self.rng.random() < GIVEN:
            return self.rng.choice(self.pieces)
        word = self.rng.choice(self.letters)
        length = min(len(word), self.rng.randint(2, 5))
        start = self.rng.randint(0, len(word) - length)
        return word[start : start + length]

    def word(self) -> str:
        return self.rng.choice(self.words["words"]) if self.rng.random() < 0.7 else self.made_up()

    def listed(self, key: str, share: float = 0.75) -> str:
        return self.rng.choice(self.words[key]) if self.rng.random() < share else self.made_up().capitalize()

    def text(self) -> str:
        """A few words that need not make sense, whole in this split; one may be made up."""
        vocabulary = tool_words()["sentence"]

        def draw() -> str:
            chosen = [self.rng.choice(vocabulary) for _ in range(self.rng.randint(2, 6))]
            if self.rng.random() < 0.2:
                chosen[self.rng.randrange(len(chosen))] = self.made_up()
            return " ".join(chosen)

        text = self.held(draw)
        return text[0].upper() + text[1:] if self.rng.random() < 0.5 else text

    def title(self) -> str:
        def draw() -> str:
            words = [self.word().capitalize() for _ in range(self.rng.choice((1, 2, 2, 3)))]
            return ("The " if self.rng.random() < 0.15 else "") + " ".join(words)

        return self.held(draw)

    def person(self) -> str:
        def draw() -> str:
            first = self.listed("people")
            return first if self.rng.random() < 0.4 else f"{first} {self.listed('families')}"

        return self.held(draw)

    def digits(self, low: int, high: int) -> str:
        return "".join(self.rng.choice("0123456789") for _ in range(self.rng.randint(low, high)))

    def string(self, values: str) -> str:
        rng = self.rng
        if values == "text":
            return self.text()
        if values == "title":
            return self.title()
        if values == "person":
            return self.person()
        if values == "place":
            return self.listed("places")
        if values == "food":
            return self.listed("foods").lower()
        if values == "word":
            return self.word()
        if values == "code":
            letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
            return self.held(
                lambda: "".join(rng.choices(letters, k=rng.randint(1, 3))) + rng.choice(("-", "")) + self.digits(2, 5)
            )
        if values == "phone":
            return self.held(lambda: f"{self.digits(3, 4)}-{self.digits(3, 5)}")
        if values == "time":
            return self.held(lambda: f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}")
        if values == "date":
            return self.held(self._date)
        if values == "file":
            return self.held(lambda: f"{self.word()}.{rng.choice(('txt', 'pdf', 'csv', 'png', 'md', 'json'))}")
        assert values == "address", values
        return self.held(
            lambda: f"{rng.randint(1, 250)} {self.word().capitalize()} {rng.choice(('Street', 'Road', 'Lane'))}"
        )

    def _date(self) -> str:
        year, month, day = self.rng.randint(2019, 2035), self.rng.randint(1, 12), self.rng.randint(1, 28)
        return f"{year}-{month:02}-{day:02}" if self.rng.random() < 0.6 else f"{MONTHS[month - 1]} {day}"

    def integer(self, values: str = "") -> int:
        def draw() -> str:
            if values == "year":
                return str(self.rng.randint(1900, 2060))
            most = self.rng.choice((12, 40, 150) if values == "small" else (40, 300, 9999))
            return str(self.rng.randint(1, most))

        return int(self.held(draw))

    def number(self) -> float:
        """A decimal that JSON writes as the request does: 12.5, never 12.50."""

        def draw() -> str:
            whole = self.rng.choice((self.rng.randint(0, 40), self.rng.randint(10, 999), self.rng.randint(100, 9999)))
            return f"{whole}.{self.rng.randint(0, 9) if self.rng.random() < 0.3 else ''}{self.rng.randint(1, 9)}"

        if self.rng.random() < 0.2:
            return self.integer()
        return float(self.held(draw))
