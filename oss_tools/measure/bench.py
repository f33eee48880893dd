"""Prompt processing and token generation, ours and other programs', in interleaved runs of separate processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oss_tools.checkpoints import open_container
from oss_tools.download.layout import name_of
from oss_tools.engine.backend import backend_class
from oss_tools.machine.description import machine, versions
from oss_tools.machine.disk import largest_file, read_speed
from oss_tools.machine.memory import available_memory
from oss_tools.measure.bench_cases import LOOKUP, Case, Settings
from oss_tools.measure.bench_figures import Rounds, add_comparisons, results
from oss_tools.measure.identity import model_sha256
from oss_tools.measure.peer import PEERS
from oss_tools.measure.worker import Child
from oss_tools.models import open_checkpoint

SCHEMA = 1
PACKAGES = ("llama-cpp-python", "ik-llama-cpp-python")  # which have them


def measure(
    models: list[Path],
    settings: Settings,
    peer_file: Callable[[Path], Path] = lambda path: path,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The record of a benchmark: every model, and beside it the peers where asked for.

    `peer_file` gives the GGUF file that peers read for a model; all programs then read that file.

    What is missing is found before anything is timed. Raises MissingPackage, BadCheckpoint, BadRecipe.
    """
    for peer in settings.peers:
        PEERS[peer].require()
    backend_class(settings.backend)
    for model in models:
        open_checkpoint(model).close()
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "bench",
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_before": os.getloadavg()[0],
        "versions": versions("numpy", "numba", "llvmlite", "torch", "gguf", "tokenizers", *PACKAGES),
        "settings": asdict(settings),
        "models": [],
    }
    for model in models:
        file = peer_file(model) if settings.peers else model
        entry = {"model": name_of(model), "sha256": "", **_measure_model(file, settings, say)}
        if file != model:
            entry["made_from_sha256"] = _hash(model, say)
        entry["sha256"] = _hash(file, say, remember=file == model)  # at the end: what reads the disk disturbs what is timed
        record["models"].append(entry)
    return {**record, "load_after": os.getloadavg()[0]}


def _hash(model: Path, say: Callable[[str], None], remember: bool = True) -> str:
    with open_container(model) as reader:
        return model_sha256(reader.files(), remember=remember, say=say)


class Contest:
    """Contenders that take turns on one model: all loaded at once, or, where they do not fit into memory together, each
    loaded anew for each of its turns.

    Attributes:
        ready: what each said when it was loaded, by kind.
        peaks: the largest resident size of each, in bytes.
        device_memory: what our program took of a GPU's memory, if it ran there.
    """

    def __init__(self, file: Path, settings: Settings) -> None:
        self.kinds = ["oss-tools", *settings.peers]
        self.file, self.settings = file, settings
        self.together = len(self.kinds) * _size(file) < 0.8 * available_memory()
        self.ready: dict[str, Any] = {}
        self.peaks: dict[str, int] = {}
        self.device_memory: dict[str, int] = {}
        self._live: dict[str, Child] = {}

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for child in self._live.values():
            child.__exit__(kind)
            self.peaks[child.kind] = child.peak_bytes

    @contextmanager
    def turn(self, kind: str) -> Iterator[Child]:
        """The contender, loaded and warm."""
        if kind in self._live:
            yield self._live[kind]
            return
        child = self._start(kind)
        for case in self.settings.cases():  # the first run of each is not timed
            self.time(child, case)
        if self.together:
            self._live[kind] = child
            yield child
        else:
            with child:
                yield child
            self.peaks[kind] = max(child.peak_bytes, self.peaks.get(kind, 0))

    def _start(self, kind: str) -> Child:
        s = self.settings
        arguments: dict[str, Any] = {
            "model": str(self.file),
            "threads": s.threads,
            "context": s.context,
            "batch": max(s.batches),
        }
        if kind == "oss-tools":
            arguments |= {"backend": s.backend, "activations": s.activations, "load": s.load}
            arguments |= {"memory": s.memory, "trace_experts": s.trace_experts, "cache": s.cache}
        else:
            arguments["threads"] = self.ready["oss-tools"]["facts"]["threads"]
        child = Child(kind, **arguments)
        self.ready.setdefault(kind, child.ready)
        return child

    def tokens(self, count: int) -> list[int]:
        vocabulary = min(self.ready["oss-tools"]["facts"]["vocabulary"], 20000)
        return [(7919 * i + 13) % vocabulary for i in range(count)]

    def time(self, child: Child, case: Case) -> list[float]:
        """Seconds of each step of a case."""
        tokens = self.tokens(case.depth + case.tokens)
        if case.kind == "prompt":
            return [child.ask("prompt", tokens=tokens, depth=case.depth)]
        return list(child.ask("generate", tokens=tokens, depth=case.depth, batch=case.batch))


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files)


def _measure_model(file: Path, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    rounds = Rounds()
    with Contest(file, settings) as contest:
        for number in range(settings.repeat):
            say(f"round {number + 1} of {settings.repeat}")
            _round(contest, settings, rounds)
    entry: dict[str, Any] = {"bytes": _size(file), "loaded_together": contest.together, "contenders": {}}
    for kind in contest.kinds:
        measured = {"peak_bytes": contest.peaks[kind], "results": results(kind, settings, rounds)}
        entry["contenders"][kind] = {**contest.ready[kind], **measured}
    if contest.device_memory:
        entry["contenders"]["oss-tools"]["device_memory"] = contest.device_memory
    add_comparisons(entry, settings, rounds)
    return entry


def _round(contest: Contest, settings: Settings, rounds: Rounds) -> None:
    """Times every case once: case by case in turns where all are loaded, else contender by contender."""
    if contest.together:
        turns = [(kind, [case]) for case in settings.cases() for kind in contest.kinds]
    else:
        turns = [(kind, settings.cases()) for kind in contest.kinds]
    for kind, cases in turns:
        with contest.turn(kind) as child:
            for case in cases:
                rounds.seconds.setdefault((kind, case), []).append(contest.time(child, case))
                added = child.ask("added")
                rounds.counted.setdefault((kind, case), []).append(added)
                if "hits" in added and (file := largest_file(contest.file)) and (speed := read_speed(file)):
                    rounds.disk.setdefault(case, []).append(speed)
                if kind == "oss-tools" and case.kind == "generate" and case.batch == 1:
                    rounds.ceilings.setdefault(case, []).append(child.ask("ceilings"))
                if kind == "oss-tools":
                    contest.device_memory = child.ask("device_memory")
            if kind == "oss-tools" and settings.speculate and settings.generate > 1 and cases[-1] == settings.cases()[-1]:
                rounds.lookups.append(child.ask("lookup", tokens=contest.tokens(LOOKUP // 2) * 2, count=settings.generate))
