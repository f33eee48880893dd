"""Our engine as a contender of the benchmark."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request, Sequence
from oss_tools.measure.counters import counters
from oss_tools.measure.worker import Contender, tokens_of_step


class EngineContender(Contender):
    """Our engine. A step of generation includes the choice of the likeliest token.

    What comes before is computed once: rounds continue forks of it, one for each sequence of a batch, as sequences that share
    memory would read less of it. Another depth takes its place.
    """

    def __init__(self, model: str, threads: int, context: int, batch: int, **options: Any) -> None:
        self._engine = Engine.load(model, threads=threads, context=context, prefix_budget=0, **options)
        self._before: list[Sequence] = []

    def facts(self) -> dict[str, Any]:
        return {"program": "oss-tools", **self._engine.backend.facts(), "vocabulary": self._engine.backend.vocabulary}

    def prompt(self, tokens: list[int], depth: int) -> float:
        (sequence,) = self._behind(tokens[:depth], 1, len(tokens) - depth)
        tokens = tokens[depth:]
        self.mark()
        passed = self._engine.backend.stopwatch()
        int(self._engine.prefill(sequence, tokens).argmax())
        return passed()

    def generate(self, tokens: list[int], depth: int, batch: int) -> list[float]:
        sequences = self._behind(tokens[:depth], batch, len(tokens) - depth)
        tokens = tokens[depth:]
        seconds, self._chosen = [], []
        self.mark()
        for step in range(len(tokens)):
            passed = self._engine.backend.stopwatch()
            self._chosen.append(self._engine.likeliest(sequences, tokens_of_step(tokens, step, batch))[0])
            seconds.append(passed())
        return seconds

    def chosen(self) -> list[int]:
        """The likeliest token after each step of the last `generate`, of its first sequence."""
        return [int(token) for token in self._chosen]

    def lookup(self, tokens: list[int], count: int) -> dict[str, Any] | None:
        """Seconds of `count` tokens behind a text that repeats itself, the first not counted, without guesses and with them; how
        many were guessed, and right. None where nothing is guessed."""
        engine = self._engine
        if not (pace := engine.pace):
            return None
        before, seconds, texts = replace(pace.figures), {}, []
        for name, used in (("without", None), ("with", pace)):
            engine.pace = used
            request = Request(tokens, count, stop_tokens=frozenset())
            times = [(time.perf_counter(), token.id) for token in engine.generate(request)]
            seconds[name] = times[-1][0] - times[0][0]
            texts.append([token for _, token in times])
        figures = {"guessed": pace.figures.guessed - before.guessed, "right": pace.figures.right - before.right}
        return {"tokens": count - 1, "seconds": seconds, **figures, "same": texts[0] == texts[1]}

    def ceilings(self) -> dict[str, float]:
        """See `Backend.ceilings`."""
        return self._engine.backend.ceilings()

    def counters(self) -> dict[str, float]:
        return counters(self._engine.backend.facts())

    def device_memory(self) -> dict[str, int]:
        """See `Backend.device_memory`."""
        return self._engine.backend.device_memory()

    def close(self) -> None:
        self._engine.close()

    def _behind(self, before: list[int], count: int, room: int) -> list[Sequence]:
        """So many sequences that have these tokens, and room for more."""
        if not before:
            return [self._engine.open([0], room=room, reuse=0) for _ in range(count)]
        if self._before and self._before[0].tokens != before:
            self._before = []
        while len(self._before) < count:
            sequence = self._engine.open(before, reuse=0)
            self._engine.prefill(sequence, before)
            self._before.append(sequence)
        return [self._engine.fork(sequence, room) for sequence in self._before[:count]]
