"""Prompt processing and token generation, ours and other programs', in interleaved runs of separate processes."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oss_tools.checkpoints import open_container
from oss_tools.download.layout import name_of
from oss_tools.engine.backend import backend_class
from oss_tools.machine.description import machine, versions
from oss_tools.machine.disk import largest_file, read_speed
from oss_tools.machine.memory import available_memory
from oss_tools.measure.counters import figures as counted
from oss_tools.measure.identity import model_sha256
from oss_tools.measure.peer import PEERS
from oss_tools.measure.worker import Child
from oss_tools.models import open_checkpoint

SCHEMA = 1
LOOKUP = 512  # tokens of a text that repeats itself
PACKAGES = ("llama-cpp-python", "ik-llama-cpp-python")  # which have them


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
        repeat: timed rounds; the first run of each case in a process is not timed.
        peers: other programs, of `PEERS`.
        backend, activations, load, memory, trace_experts, cache: as for the engine; cuda runs on the GPU, timed by its events.
        speculate: whether to time what guessing tokens from the text so far gains, too.
    """

    prompt: int = 512
    generate: int = 128
    depths: tuple[int, ...] = (0,)
    batches: tuple[int, ...] = (1,)
    threads: int = 0
    repeat: int = 5
    peers: tuple[str, ...] = ()
    backend: str = "numba"
    activations: str = "int8"
    load: str = "mapped"
    memory: int | None = None
    trace_experts: str | None = None
    speculate: bool = False
    cache: str | None = None

    def cases(self) -> list[Case]:
        prompts = [Case("prompt", self.prompt, d) for d in self.depths if self.prompt]
        return prompts + [Case("generate", self.generate, d, b) for d in self.depths for b in self.batches if self.generate]

    @property
    def context(self) -> int:
        repeated = LOOKUP + self.generate if self.speculate else 0
        return max(max(self.depths) + max(self.prompt, self.generate), repeated)


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
        tokens = self.tokens(case.tokens)
        if case.kind == "prompt":
            return [child.ask("prompt", tokens=tokens, depth=case.depth)]
        return list(child.ask("generate", tokens=tokens, depth=case.depth, batch=case.batch))


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files)


@dataclass
class Rounds:
    """What was measured, by round: seconds of each step, what was counted meanwhile, and right after our ceilings and, if we
    stream, the disk's speed; what guesses gained."""

    seconds: dict[tuple[str, Case], list[list[float]]] = field(default_factory=dict)
    counted: dict[tuple[str, Case], list[dict[str, float]]] = field(default_factory=dict)
    disk: dict[Case, list[float]] = field(default_factory=dict)
    ceilings: dict[Case, list[dict[str, float]]] = field(default_factory=dict)
    lookups: list[dict[str, Any] | None] = field(default_factory=list)


def _measure_model(file: Path, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    rounds = Rounds()
    with Contest(file, settings) as contest:
        for number in range(settings.repeat):
            say(f"round {number + 1} of {settings.repeat}")
            _round(contest, settings, rounds)
    entry: dict[str, Any] = {"bytes": _size(file), "loaded_together": contest.together, "contenders": {}}
    for kind in contest.kinds:
        results = [_figures(case, rounds.seconds[kind, case]) | _counted(case, kind, rounds) for case in settings.cases()]
        entry["contenders"][kind] = {**contest.ready[kind], "peak_bytes": contest.peaks[kind], "results": results}
    if contest.device_memory:
        entry["contenders"]["oss-tools"]["device_memory"] = contest.device_memory
    if lookups := [found for found in rounds.lookups if found]:
        entry["contenders"]["oss-tools"]["lookup"] = _lookup(lookups)
    _add_depths(entry)
    _add_batches(entry)
    _add_shares(entry, settings, rounds)
    _add_ratios(entry, settings, rounds)
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


def _figures(case: Case, rounds: list[list[float]]) -> dict[str, Any]:
    """tokens/s with median and spread over the rounds, and the times that a user feels."""
    rates = sorted(case.tokens * case.batch / sum(seconds) for seconds in rounds)
    figures: dict[str, Any] = {
        "case": case.label,
        **asdict(case),
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_range": [rates[0], rates[-1]],
        "rounds": [case.tokens * case.batch / sum(seconds) for seconds in rounds],
    }
    if case.kind == "prompt":
        return figures | {"time_to_first_token": statistics.median(s[0] for s in rounds)}
    steps = sorted(step for seconds in rounds for step in seconds)
    return figures | {"step_seconds_p50": _quantile(steps, 0.5), "step_seconds_p95": _quantile(steps, 0.95)}


def _counted(case: Case, kind: str, rounds: Rounds) -> dict[str, Any]:
    """What was counted in a case, for each token."""
    seconds = [sum(steps) for steps in rounds.seconds[kind, case]]
    disk = rounds.disk.get(case, []) if kind == "oss-tools" else []
    return counted(rounds.counted[kind, case], seconds, disk, case.tokens * case.batch)


def _lookup(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """What guesses gain where a text repeats itself: tokens/s with and without them, and the ratio, round by round."""
    gains = sorted(r["seconds"]["without"] / r["seconds"]["with"] for r in rounds)
    rates = {name: statistics.median(r["tokens"] / r["seconds"][name] for r in rounds) for name in ("without", "with")}
    return {
        "tokens": rounds[0]["tokens"],
        "tokens_per_second": rates,
        "gain": {"median": statistics.median(gains), "range": [gains[0], gains[-1]]},
        **{name: sum(r[name] for r in rounds) for name in ("guessed", "right")},
        "same_tokens": all(r["same"] for r in rounds),
    }


def _add_depths(entry: dict[str, Any]) -> None:
    """What share of its rate without anything before it each case behind other tokens has, program by program."""
    for contender in entry["contenders"].values():
        first = {(r["kind"], r["batch"]): r["tokens_per_second"] for r in contender["results"] if not r["depth"]}
        for result in contender["results"]:
            if result["depth"] and (rate := first.get((result["kind"], result["batch"]))):
                result["share_of_depth_0"] = result["tokens_per_second"] / rate


def _add_batches(entry: dict[str, Any]) -> None:
    """How many times the tokens/s of one sequence several of them have together, program by program, round by round."""
    for contender in entry["contenders"].values():
        alone = {(r["kind"], r["depth"]): r["rounds"] for r in contender["results"] if r["batch"] == 1}
        for result in contender["results"]:
            if result["batch"] > 1 and (rounds := alone.get((result["kind"], result["depth"]))):
                gains = sorted(a / b for a, b in zip(result["rounds"], rounds, strict=True))
                result["gain_over_one"] = {"median": statistics.median(gains), "range": [gains[0], gains[-1]]}


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _add_shares(entry: dict[str, Any], settings: Settings, rounds: Rounds) -> None:
    """What share of the ceilings the weights of generated tokens reach, round by round: of the speed at which their memory is
    read, and of matrix × vector alone."""
    ours = entry["contenders"]["oss-tools"]
    weights = ours["facts"].get("bytes_per_token")
    for case, result in zip(settings.cases(), ours["results"], strict=True):
        ceilings = [c for c in rounds.ceilings.get(case, []) if c]
        if not weights or not ceilings:
            continue
        result["weight_bytes_per_second"] = weights * result["tokens_per_second"]
        result["ceilings"] = {name: statistics.median(c[name] for c in ceilings) for name in ceilings[0]}
        result["shares"] = {}
        for name in ceilings[0]:
            shares = sorted(weights * r / c[name] for r, c in zip(result["rounds"], ceilings, strict=True))
            result["shares"][name] = {"median": statistics.median(shares), "range": [shares[0], shares[-1]]}


def _add_ratios(entry: dict[str, Any], settings: Settings, rounds: Rounds) -> None:
    """How many times as fast as each peer, round by round; `ratio` is that to the first of them."""
    for case, result in zip(settings.cases(), entry["contenders"]["oss-tools"]["results"], strict=True):
        ratios = {}
        for peer in settings.peers:
            pairs = zip(rounds.seconds[peer, case], rounds.seconds["oss-tools", case], strict=True)
            values = sorted(sum(theirs) / sum(ours) for theirs, ours in pairs)
            ratios[peer] = {"median": statistics.median(values), "range": [values[0], values[-1]]}
        if ratios:
            result |= {"ratio": ratios[settings.peers[0]], "ratios": ratios}
