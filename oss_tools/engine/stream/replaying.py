"""A recorded forward pass, replayed with stops: behind each router, where it is known which experts are wanted.

Those that are in memory are multiplied while others are read, and each of the others as it comes. A result's bits do not depend
on that: a group of tokens meets its expert in rows of its own, and the sum over a token's experts is one operation behind all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from numba_kernels.cpu.team import Program, Team
from oss_tools.engine.stream.cache import ExpertCache, Reading
from oss_tools.engine.stream.trace import TraceWriter


@dataclass(eq=False)
class ExpertStop:
    """Where in a program the experts of a layer begin: the two products and the gate between them.

    Attributes:
        experts: the module.
        begins: number of the operation that makes the router's input of what the residual stream holds; −1 if it is not known.
        chosen: experts of a token.
        ids: int32 [tokens · chosen], those that the router chose.
        groups, group_matrix, group_start: as the router sorted them: how many, int32 [1]; whose they are; where their rows begin.
        first: number of the first product; the gate and the second product follow.
        count, matrix: what the products take instead where experts stream: how many groups, int32 [1], and the slot of each.
    """

    experts: str
    begins: int
    chosen: int
    ids: np.ndarray
    groups: np.ndarray
    group_matrix: np.ndarray
    group_start: np.ndarray
    first: int = -1

    def __post_init__(self) -> None:
        self.count, self.matrix = np.zeros_like(self.groups), np.zeros_like(self.group_matrix)


ROUTING = ("rms_norm", "layer_norm", "quantize", "linear", "route", "route_by_score", "group_by_expert")  # and nothing else


class Part:
    """The three operations of a stop, which can be replayed for a part of its groups."""

    def __init__(self, stop: ExpertStop, program: Program) -> None:
        self.program, self._stop = program, stop
        self._is_whole = True
        self._whole: list[tuple[int, int, int, int]] = []  # operation, cell, address for all groups, bytes for each group
        table = program.table
        for number in (stop.first, stop.first + 2):
            names = program.ops[number].names
            for name in ("group_matrix", "group_start"):
                cell = 1 + names.index(name)
                self._whole.append((number, cell, int(table[number, cell]), 4))
        gate, names = stop.first + 1, program.ops[stop.first + 1].names
        self._rows_at = gate, 1 + names.index("rows")
        self._of_rows = []  # operation, cell, address for all rows, bytes for each row
        for name, stride in (("x", "x_stride"), ("out", "out_stride"), ("records", "record_stride")):
            cell = 1 + names.index(name)
            if address := int(table[gate, cell]):
                self._of_rows.append((gate, cell, address, int(table[gate, 1 + names.index(stride)])))

    def take(self, first: int, last: int) -> None:
        """From now on the operations are for groups first … last − 1."""
        stop, table = self._stop, self.program.table
        start, end = int(stop.group_start[first]), int(stop.group_start[last])
        self._is_whole = False
        for number, cell, address, each in self._whole:
            table[number, cell] = address + each * first
        for number, cell, address, each in self._of_rows:
            table[number, cell] = address + each * start
        table[self._rows_at] = end - start
        stop.count[0] = last - first

    def take_all(self) -> None:
        """From now on the operations are for all groups of the pass."""
        if not self._is_whole:
            self.take(0, int(self._stop.groups[0]))
            self._is_whole = True
        else:
            self._stop.count[0] = self._stop.groups[0]


class Stops:
    """The stops of one program, in order.

    Attributes:
        bases: by module, the key of a layer's first expert, if experts stream; the others' follow.
        guesses: by stop, before which operation the next one's experts can be guessed; None where they cannot.
    """

    def __init__(self, stops: list[ExpertStop], program: Program, bases: Mapping[str, int]) -> None:
        self.stops, self.program, self.bases = stops, program, bases
        self.parts = [Part(stop, program) for stop in stops] if bases else []
        self.guesses = [*(_guess_point(program, stop, after) for stop, after in pairwise(stops)), None][: len(stops)]


def _guess_point(program: Program, stop: ExpertStop, after: ExpertStop) -> int | None:
    """Where all of the residual stream is there but what the next layer's attention adds: the router of that layer, carried out
    on it, chooses nearly the same experts as later. Its operations write nothing that anybody else reads before they are carried
    out again."""
    if after.begins < 0 or any(op.function.__name__ not in ROUTING for op in program.ops[after.begins : after.first]):
        return None
    stream = _argument(program, after.begins, "x")
    adding = [n for n in range(stop.first + 3, after.begins) if _argument(program, n, "out") == stream]
    return adding[-2] + 1 if len(adding) > 1 else None


def _argument(program: Program, number: int, name: str) -> int:
    """The argument of an operation; 0 if it has none of that name."""
    names = program.ops[number].names
    return int(program.table[number, 1 + names.index(name)]) if name in names else 0


class Streaming:
    """Replays programs with experts from a cache."""

    def __init__(self, team: Team, cache: ExpertCache | None, trace: TraceWriter | None) -> None:
        self._team, self._cache, self._trace = team, cache, trace
        self._is_broken = False  # a pass was broken off: an interrupt, a read that failed

    def run(self, stops: Stops, rows: int, check: Callable[[], None]) -> None:
        """One forward pass over `rows` tokens. Raises BadCheckpoint."""
        if self._is_broken and self._cache:
            self._cache.settle()
        self._is_broken = True
        team, program, at = self._team, stops.program, 0
        seen: list[np.ndarray] = []
        for i, stop in enumerate(stops.stops):
            team.run(program, at, stop.first)
            at = stop.first
            if self._trace:
                seen.append(stop.ids[: rows * stop.chosen].reshape(rows, stop.chosen).copy())
            if self._cache:
                if self._stream(self._cache, stop, stops.parts[i], stops.bases[stop.experts]):
                    at = stop.first + 3
                if (guess := stops.guesses[i]) is not None:
                    team.run(program, at, guess)
                    at = guess
                    self._guess(self._cache, stops.stops[i + 1], stops, rows)
        team.run(program, at)
        check()
        self._is_broken = False
        if self._trace:
            self._trace.add(seen)

    def close(self) -> None:
        """Gives the trace its name."""
        if self._trace:
            self._trace.close()

    def _guess(self, cache: ExpertCache, stop: ExpertStop, stops: Stops, rows: int) -> None:
        """Has the experts read that a later stop will probably want: the disk has nothing else to do meanwhile."""
        self._team.run(stops.program, stop.begins, stop.first)
        base, ids = stops.bases[stop.experts], stop.ids[: rows * stop.chosen]
        if rows > 1:
            found, counts = np.unique(ids, return_counts=True)
            ids = found[np.argsort(-counts, kind="stable")]
        cache.read_ahead([base + expert for expert in ids.tolist()])

    def _stream(self, cache: ExpertCache, stop: ExpertStop, part: Part, base: int) -> bool:
        """Sees to the experts of a layer. Whether their operations have been carried out; if not, all are in memory."""
        table, count = cache.table, int(stop.groups[0])
        keys = [base + expert for expert in stop.group_matrix[:count].tolist()]
        claimed = cache.claim(keys) if cache.ahead else {}
        present: list[int] = []
        missing: list[int] = []
        slots: list[int] = []
        for group, key in enumerate(keys):
            slots.append(table.get(key, -1))
            if slots[-1] < 0:
                missing.append(group)
            else:
                table.move_to_end(key)
                present.append(group)
        stop.matrix[:count] = slots
        cache.hits += len(present) - len(claimed)
        if not missing and not claimed:
            part.take_all()
            return False
        group_of = dict(zip(keys, range(count), strict=True))
        coming = deque((group_of[key], reading) for key, reading in claimed.items())
        there = runs_of([group for group in present if keys[group] not in claimed])
        self._in_parts(cache, stop, part, keys, slots, there, coming, deque(missing))
        return True

    def _in_parts(
        self,
        cache: ExpertCache,
        stop: ExpertStop,
        part: Part,
        keys: list[int],
        slots: list[int],
        there: list[tuple[int, int]],
        coming: deque[tuple[int, Reading]],
        missing: deque[int],
    ) -> None:
        """Asks for what is missing as far as there is room, works on what is there, and goes on as the rest comes.

        keys, slots: of the groups' experts; there: ranges of groups whose experts are in memory; coming: groups whose experts are
        being read; missing: the others.
        """
        pinned = {slot for slot in slots if slot >= 0}

        def ask() -> None:
            while missing and (reading := cache.ask(keys[missing[0]], pinned)):
                group = missing.popleft()
                pinned.add(reading.slot)
                slots[group] = stop.matrix[group] = reading.slot
                coming.append((group, reading))

        def work(first: int, last: int) -> None:
            part.take(first, last)
            self._team.run(part.program, stop.first, stop.first + 3)
            if missing:
                pinned.difference_update(slots[first:last])
                ask()

        ask()
        for first, last in there:
            work(first, last)
        while coming:
            group, reading = coming.popleft()
            cache.wait(reading)
            last = group + 1
            while coming and coming[0][0] == last and coming[0][1].is_done:
                cache.wait(coming.popleft()[1])
                last += 1
            work(group, last)


def runs_of(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges [first, last)."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = found[-1][0], number + 1
        else:
            found.append((number, number + 1))
    return found
