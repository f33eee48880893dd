"""Times of several checkpoints that take turns, each in a process of its own; load time and peak memory come from there too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.machine.memory import available_memory
from oss_tools.measure.worker import Child
from oss_tools.report.comparison import Latency
from oss_tools.statistics.repeats import paired_ratio, timing

REFERENCE = "tanh(a · b + c) over 4,096 float32 values by NumPy, 25 times; the fastest of 40 around each turn"
REFERENCE_RUNS, REFERENCE_LOOPS = 20, 25
FASTEST = 0.1  # the share of a round's steps that nothing is taken to have disturbed
ROUNDS = ("first", "step", "fast_step", "reference")  # what each round gives
MEMORY = ("peak_bytes", "library_bytes")
PROCESS_BYTES = 300 << 20  # of a process beside its weights
TURNS_APART = 3  # loads of each model where not all fit into memory at once


@dataclass(frozen=True)
class Settings:
    """What is timed.

    Attributes:
        prompt, generate: tokens of each round.
        repeat: rounds, after one that is not timed.
        threads, backend, activations, load, memory, cache: as for the engine.
    """

    prompt: int = 128
    generate: int = 64
    repeat: int = 12
    threads: int = 0
    backend: str = "numba"
    activations: str = "int8"
    load: str = "mapped"
    memory: int | None = None
    cache: str | None = None


def reference_seconds() -> float:
    """The time of a fixed piece of work, about as long as a step of a small model: the fastest of some runs, which says how
    fast the machine is just then where nobody else is using it."""
    a = np.linspace(-1, 1, 4096, dtype=np.float32)
    fastest = math.inf
    for _ in range(REFERENCE_RUNS):
        began = time.perf_counter()
        for _ in range(REFERENCE_LOOPS):
            a = np.tanh(a * np.float32(1.25) + np.float32(0.01))
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


def contest(
    models: Sequence[tuple[str, Path, int]],
    settings: Settings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Times of every model, round by round: A B C A B C …, so that what slows the machine for a while slows all of them.

    Args:
        models: (name, path, bytes).

    Returns by name: `first`, `step` and `fast_step` (seconds by round: to the first token; of a step, the mean and the tenth
    percentile), `reference` (around this turn), `load_seconds`, `peak_bytes`, `library_bytes`, `weight_bytes`.
    Raises ContenderFailed.
    """
    together = sum(size * 1.3 + PROCESS_BYTES for _, _, size in models) < 0.8 * available_memory()
    if together:
        return _contest(models, settings, settings.repeat, progress)
    found: dict[str, dict[str, Any]] = {}
    rounds = -(-settings.repeat // TURNS_APART)
    for turn in range(TURNS_APART):
        for number, model in enumerate(models):
            part = _contest([model], settings, rounds, lambda *_: None)[model[0]]
            _join(found.setdefault(model[0], part), part, new=turn > 0)
            progress(turn * len(models) + number + 1, TURNS_APART * len(models))
    return found


def _join(into: dict[str, Any], part: dict[str, Any], new: bool) -> None:
    if new:
        for name in (*ROUNDS, "load_seconds"):
            into[name] = into[name] + part[name]
        for name in MEMORY:
            into[name] = max(into[name], part[name])


def _contest(
    models: Sequence[tuple[str, Path, int]], settings: Settings, rounds: int, progress: Callable[[int, int], None]
) -> dict[str, dict[str, Any]]:
    children: dict[str, Child] = {}
    found: dict[str, dict[str, Any]] = {}
    try:
        for name, path, _ in models:
            children[name] = child = _start(path, settings)
            found[name] = {**{key: [] for key in ROUNDS}, "load_seconds": [child.ready["load_seconds"]]}
            weights = child.ready["facts"].get("weight_bytes")
            found[name]["weight_bytes"] = sum(weights.values()) if isinstance(weights, dict) else weights
            _time(child, settings)
        reference_seconds()
        for number in range(rounds):
            before = reference_seconds()
            for name, child in children.items():
                times = _time(child, settings)
                after = reference_seconds()
                for key, value in zip(ROUNDS, (*times, min(before, after)), strict=True):
                    found[name][key].append(value)
                before = after
            progress(number + 1, rounds)
        for name, child in children.items():
            child.close()
            found[name].update({key: getattr(child, key) for key in MEMORY})
    except BaseException as error:
        for child in children.values():
            child.__exit__(type(error))
        raise
    return found


def _start(path: Path, s: Settings) -> Child:
    context = s.prompt + s.generate
    return Child(
        "oss-tools",
        model=str(path),
        threads=s.threads,
        context=context,
        batch=1,
        backend=s.backend,
        activations=s.activations,
        load=s.load,
        memory=s.memory,
        cache=s.cache,
    )


def _time(child: Child, s: Settings) -> tuple[float, float, float]:
    """Seconds to the first token behind a prompt; of each further one, the mean and the tenth percentile."""
    vocabulary = child.ready["facts"]["vocabulary"]
    tokens = [(7919 * i + 13) % min(vocabulary, 20000) for i in range(s.prompt + s.generate)]
    first = child.ask("prompt", tokens=tokens[: s.prompt], depth=0)
    steps = child.ask("generate", tokens=tokens, depth=s.prompt, batch=1)
    return float(first), float(np.mean(steps)), float(np.quantile(steps, FASTEST))


def latency(found: dict[str, Any], base: dict[str, Any] | None, settings: Settings) -> Latency:
    """The figures of a model's rounds; `base`: the base's in the same rounds, None for the base itself."""
    first, step = found["first"], found["step"]
    return Latency(
        settings.prompt,
        settings.generate,
        timing(first),
        timing(step),
        timing([1 / s for s in step]),
        timing([settings.prompt / s for s in first]),
        timing([s / r for s, r in zip(found["fast_step"], found["reference"], strict=True)]),
        paired_ratio(base["first"], first) if base else None,
        paired_ratio(base["step"], step) if base else None,
    )
