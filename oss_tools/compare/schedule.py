"""What a comparison has still to do, and about how long that takes, learnt from the steps that are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

USUAL = {
    "convert": 2.0,
    "weights": 0.5,
    "predict": 8.0,
    "answer": 12.0,
    "share": 6.0,
    "margins": 3.0,
    "drift": 30.0,
    "time": 8.0,
}  # seconds of a step of a small model

TELLING = 0.1  # the share of a step from which its own pace says how long the rest takes: loading and compiling come first


@dataclass(frozen=True)
class Now:
    """What is being done.

    Attributes:
        number, total: of the step.
        what: in words, with its subject.
        done, of: within the step; of = 0 where that is not known.
        left: seconds for the rest, about; None before there is anything to go by.
    """

    number: int
    total: int
    what: str
    done: int
    of: int
    left: float | None


class Schedule:
    """Steps by kind. `report` is called at each change with what is being done."""

    def __init__(self, report: Callable[[Now], None]) -> None:
        self._report = report
        self._pending: dict[str, int] = dict.fromkeys(USUAL, 0)
        self._spent = dict.fromkeys(USUAL, 0.0)
        self._finished = dict.fromkeys(USUAL, 0)
        self._number = 0

    def expect(self, kind: str, count: int) -> None:
        """So many steps of this kind are still to come."""
        self._pending[kind] = count

    @contextmanager
    def step(self, kind: str, what: str) -> Iterator[Callable[[int, int], None]]:
        """A step; yields a function to call with what is done of it, and of how much."""
        self._number += 1
        self._pending[kind] = max(self._pending[kind] - 1, 0)
        total = self._number + sum(self._pending.values())
        began = time.perf_counter()

        def advance(done: int, of: int) -> None:
            spent = time.perf_counter() - began
            known = done >= TELLING * of > 0
            rest = spent * (of - done) / done if known else max(self._usual(kind) - spent, 0.0)
            self._report(Now(self._number, total, what, done, of, self._left(rest)))

        advance(0, 0)
        yield advance
        self._spent[kind] += time.perf_counter() - began
        self._finished[kind] += 1

    @contextmanager
    def elsewhere(self, kinds: Sequence[str]) -> Iterator[Callable[[str, str], None]]:
        """Steps that others do, several at a time: `kinds` of all. Yields a function to call with the kind of each that is done
        and what is to be said of it."""
        began, done = time.perf_counter(), 0
        for kind in {*kinds}:
            self._pending[kind] = kinds.count(kind)
        total = self._number + sum(self._pending.values())

        def finished(kind: str, what: str) -> None:
            nonlocal done
            done += 1
            self._number += 1
            self._pending[kind] -= 1
            passed = time.perf_counter() - began
            self._report(Now(self._number, total, what, 0, 0, passed * (len(kinds) - done) / done))

        yield finished
        for kind in {*kinds}:
            self._spent[kind] += (time.perf_counter() - began) * kinds.count(kind) / len(kinds)
            self._finished[kind] += kinds.count(kind)

    def _usual(self, kind: str) -> float:
        """Seconds of a step of this kind: as those before, or, before the first, as the machine and model do other steps."""
        if self._finished[kind]:
            return self._spent[kind] / self._finished[kind]
        expected = sum(USUAL[k] * n for k, n in self._finished.items())
        return USUAL[kind] * (sum(self._spent.values()) / expected if expected else 1.0)

    def _left(self, rest: float) -> float | None:
        if not any(self._finished.values()):
            return None
        return rest + sum(self._usual(kind) * count for kind, count in self._pending.items())
