"""Prompt processing and token generation, ours and llama.cpp's, in interleaved runs of separate processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oss_tools.measure.bandwidth import read_bandwidth
from oss_tools.measure.machine import machine, versions
from oss_tools.measure.worker import Child, Contender

SCHEMA = 1


class EngineContender(Contender):
    """Our engine. A step of generation includes the choice of the likeliest token."""

    def __init__(self, model: str, threads: int, context: int, batch: int, **options: Any) -> None:
        from oss_tools.engine.engine import Engine

        self._engine = Engine.load(model, threads=threads, context=context, prefix_budget=0, **options)

    def facts(self) -> dict[str, Any]:
        return {"program": "oss-tools", **self._engine.backend.facts(), "vocabulary": self._engine.backend.vocabulary}

    def prompt(self, tokens: list[int], depth: int) -> float:
        sequence = self._filled(tokens, depth, len(tokens))
        began = time.perf_counter()
        int(self._engine.prefill(sequence, tokens).argmax())
        return time.perf_counter() - began

    def generate(self, tokens: list[int], depth: int, batch: int) -> list[float]:
        sequences = [self._filled(tokens, depth, len(tokens)) for _ in range(batch)]
        seconds = []
        for token in tokens:
            began = time.perf_counter()
            self._engine.step(sequences, [token] * batch).argmax(-1)
            seconds.append(time.perf_counter() - began)
        return seconds

    def _filled(self, tokens: list[int], depth: int, room: int) -> Any:
        first = (tokens * (depth // len(tokens) + 1))[:depth]
        sequence = self._engine.open(first or tokens[:1], room=room, reuse=0)
        if first:
            self._engine.prefill(sequence, first)
        return sequence


@dataclass(frozen=True)
class Case:
    """One thing to time: `prompt` tokens at once, or `generate` steps of `batch` sequences, behind `depth` tokens."""

    kind: str
    tokens: int
    depth: int = 0
    batch: int = 1

    @property
    def label(self) -> str:
        name = f"pp{self.tokens}" if self.kind == "prompt" else f"tg{self.tokens}"
        return name + (f" @ {self.depth}" if self.depth else "") + (f" × {self.batch}" if self.batch > 1 else "")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        prompt, generate: tokens; 0 leaves that out.
        depths, batches: each combined with each (prompts with depths only).
        threads: 0 for every core.
        repeat: timed rounds, after one that is not.
        peer: "llama.cpp" or None.
        backend, activations: as for the engine.
    """

    prompt: int = 512
    generate: int = 128
    depths: tuple[int, ...] = (0,)
    batches: tuple[int, ...] = (1,)
    threads: int = 0
    repeat: int = 5
    peer: str | None = None
    backend: str = "numba"
    activations: str = "int8"

    def cases(self) -> list[Case]:
        prompts = [Case("prompt", self.prompt, d) for d in self.depths if self.prompt]
        return prompts + [Case("generate", self.generate, d, b) for d in self.depths for b in self.batches if self.generate]

    @property
    def context(self) -> int:
        return max(self.depths) + max(self.prompt, self.generate)


def measure(
    models: list[Path],
    settings: Settings,
    peer_file: Callable[[Path], Path] = lambda path: path,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The record of a benchmark: every model, and beside it the peer where asked for.

    `peer_file` gives the GGUF file that the peer reads for a model; both programs then read that file.
    """
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "bench",
        "machine": machine(),
        "versions": versions("numpy", "numba", "llvmlite", "llama-cpp-python"),
        "settings": asdict(settings),
        "models": [],
    }
    for model in models:
        file = peer_file(model) if settings.peer else model
        record["models"].append({"model": model.name, **_measure_model(file, settings, say)})
    return record


def _measure_model(file: Path, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    arguments = {
        "model": str(file),
        "threads": settings.threads,
        "context": settings.context,
        "batch": max(settings.batches),
    }
    with ExitStack() as stack:
        ours = stack.enter_context(
            Child("oss-tools", **arguments, backend=settings.backend, activations=settings.activations)
        )
        threads = ours.ready["facts"]["threads"]
        contenders = [ours]
        if settings.peer:
            contenders.append(stack.enter_context(Child(settings.peer, **arguments | {"threads": threads})))
        vocabulary = ours.ready["facts"]["vocabulary"]
        rounds, bandwidth = _rounds(contenders, settings, vocabulary, say)
    entry: dict[str, Any] = {"read_bandwidth": statistics.median(bandwidth), "contenders": {}}
    for contender in contenders:
        results = [_figures(case, rounds[contender.kind, case]) for case in settings.cases()]
        entry["contenders"][contender.kind] = {**contender.ready, "peak_bytes": contender.peak_bytes, "results": results}
    _add_bandwidth(entry)
    if settings.peer:
        _add_ratios(entry, settings, rounds)
    return entry


def _rounds(
    contenders: list[Child], settings: Settings, vocabulary: int, say: Callable[[str], None]
) -> tuple[dict[tuple[str, Case], list[list[float]]], list[float]]:
    """Seconds of each step, by contender and case, for every round; and the memory's bandwidth in each round."""
    rounds: dict[tuple[str, Case], list[list[float]]] = {}
    bandwidth: list[float] = []
    for number in range(settings.repeat + 1):
        say(f"round {number} of {settings.repeat}" if number else "warm-up")
        for case in settings.cases():
            tokens = [(7919 * i + 13) % min(vocabulary, 20000) for i in range(case.tokens)]
            for contender in contenders:
                if case.kind == "prompt":
                    seconds = [contender.ask("prompt", tokens=tokens, depth=case.depth)]
                else:
                    seconds = contender.ask("generate", tokens=tokens, depth=case.depth, batch=case.batch)
                if number:
                    rounds.setdefault((contender.kind, case), []).append(seconds)
        if number:
            bandwidth.append(read_bandwidth(contenders[0].ready["facts"]["threads"]))
    return rounds, bandwidth


def _figures(case: Case, rounds: list[list[float]]) -> dict[str, Any]:
    """tokens/s with median and spread over the rounds, and the times that a user feels."""
    rates = sorted(case.tokens * case.batch / sum(seconds) for seconds in rounds)
    figures: dict[str, Any] = {
        "case": case.label,
        **asdict(case),
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_range": [rates[0], rates[-1]],
    }
    if case.kind == "prompt":
        return figures | {"time_to_first_token": statistics.median(s[0] for s in rounds)}
    steps = sorted(step for seconds in rounds for step in seconds)
    return figures | {"step_seconds_p50": _quantile(steps, 0.5), "step_seconds_p95": _quantile(steps, 0.95)}


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _add_bandwidth(entry: dict[str, Any]) -> None:
    """What share of the memory's bandwidth the weights of generated tokens take."""
    ours = entry["contenders"]["oss-tools"]
    weights = ours["facts"].get("bytes_per_token")
    for result in ours["results"]:
        if weights and result["kind"] == "generate" and result["batch"] == 1:
            rate = weights * result["tokens_per_second"]
            result["weight_bytes_per_second"] = rate
            result["bandwidth_share"] = rate / entry["read_bandwidth"]


def _add_ratios(entry: dict[str, Any], settings: Settings, rounds: dict[tuple[str, Case], list[list[float]]]) -> None:
    """How many times as fast as the peer, round by round."""
    assert settings.peer
    for case, result in zip(settings.cases(), entry["contenders"]["oss-tools"]["results"], strict=True):
        pairs = zip(rounds[settings.peer, case], rounds["oss-tools", case], strict=True)
        ratios = sorted(sum(theirs) / sum(ours) for theirs, ours in pairs)
        result["ratio"] = {"median": statistics.median(ratios), "range": [ratios[0], ratios[-1]]}
