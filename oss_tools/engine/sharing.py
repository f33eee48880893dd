"""What requests have in common at their beginnings: a tree of stems, each worth computing once for all that share it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(eq=False)
class Stem:
    """A beginning that several requests share.

    Attributes:
        tokens: from the first on.
        parent: the longest stem that it begins with, if there is one.
        sequence: what computes it.
    """

    tokens: Sequence[int]
    parent: Stem | None
    sequence: Any = None

    def line(self) -> list[Stem]:
        """This stem, its parent, and so on."""
        return [self, *(self.parent.line() if self.parent else ())]


def find_stems(beginnings: Sequence[Sequence[int]], least: int) -> tuple[list[list[Stem]], list[Stem | None]]:
    """The stems of at least `least` tokens more than their parents, level by level (parents before children), and for each of the
    beginnings the longest stem that it begins with."""
    owners: list[Stem | None] = [None] * len(beginnings)
    levels: list[list[Stem]] = []
    groups = [(sorted(range(len(beginnings)), key=lambda i: list(beginnings[i])), 0)]  # what shares so many tokens
    while groups:
        level: list[Stem] = []
        following = []
        for members in (branch for group, length in groups for branch in _branches(beginnings, group, length)):
            first = beginnings[members[0]]
            common = _common(first, beginnings[members[-1]])  # they are in order: what these two share, all share
            parent = owners[members[0]]
            if common - (len(parent.tokens) if parent else 0) >= least:
                level.append(Stem(first[:common], parent))
                for member in members:
                    owners[member] = level[-1]
            following.append((members, common))
        groups = following
        if level:
            levels.append(level)
    return levels, owners


def _branches(beginnings: Sequence[Sequence[int]], group: list[int], length: int) -> Iterator[list[int]]:
    """The parts of a group, in order, that go on with the same token, of two members or more."""
    longer = [i for i in group if len(beginnings[i]) > length]
    for _, members in groupby(longer, key=lambda i: beginnings[i][length]):
        if len(found := list(members)) > 1:
            yield found


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
