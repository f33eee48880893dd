"""Our engine as a contender of the benchmark."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request
from oss_tools.measure.counters import counters
from oss_tools.measure.worker import Contender, tokens_of_step


class EngineContender(Contender):
    """Our engine. A step of generation includes the choice of the likeliest token."""

    def __init__(self, model: str, threads: int, context: int, batch: int, **options: Any) -> None:
        self._engine = Engine.load(model, threads=threads, context=context, prefix_budget=0, **options)

    def facts(self) -> dict[str, Any]:
        return {"program": "oss-tools", **self._engine.backend.facts(), "vocabulary": self._engine.backend.vocabulary}

    def prompt(self, tokens: list[int], depth: int) -> float:
        sequence = self._filled(tokens, depth, len(tokens))
        self.mark()
        passed = self._engine.backend.stopwatch()
        int(self._engine.prefill(sequence, tokens).argmax())
        return passed()

    def generate(self, tokens: list[int], depth: int, batch: int) -> list[float]:
        sequences = [self._filled(tokens, depth, len(tokens)) for _ in range(batch)]
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

    def _filled(self, tokens: list[int], depth: int, room: int) -> Any:
        first = (tokens * (depth // len(tokens) + 1))[:depth]
        sequence = self._engine.open(first or tokens[:1], room=room, reuse=0)
        if first:
            self._engine.prefill(sequence, first)
        return sequence
