"""Drift: how far predictions part with more and more context before them, by what differs.

The same tokens are predicted after 0, 1,024, … 32,768 tokens of context, so that nothing but the context differs between two
depths. A drift is the KL divergence of one run from another at each depth. What differs between the runs is one of

- `depth`: the checkpoint: a candidate against the base;
- `cache`: the number format of the KV cache: a model with bfloat16 keys and values against itself with float32 ones;
- `cache-q8`: the same with keys and values of 8 bits;
- `backends`: the program: a model on PyTorch, on a GPU, or with float32 activations, against itself as it is run here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from oss_tools.compare.models import Member
from oss_tools.compare.parts import Parts
from oss_tools.compare.schedule import Schedule
from oss_tools.compare.settings import Settings
from oss_tools.engine.backend import backend_for
from oss_tools.engine.engine import Engine
from oss_tools.engine.text import Text
from oss_tools.errors import MissingPackage, NoRoom, Unsupported
from oss_tools.harness.data import read_jsonl
from oss_tools.measure.fidelity import Positions, clustered_error, in_step, joined, measure_rows
from oss_tools.models import open_checkpoint
from oss_tools.report.fidelity import Drift, DriftPoint
from oss_tools.report.loading import build
from oss_tools.resources import resource
from oss_tools.statistics.repeats import estimate

DEPTH, CACHE, BYTES, BACKENDS = "depth", "cache", "cache-q8", "backends"
KINDS = (DEPTH, CACHE, BYTES, BACKENDS)
SCORED = 128  # tokens of a window, all but the first of which are predicted
WINDOWS = 8  # places of the text, unless there is a limit
FILLING = (
    "math",
    "health",
    "tool_use",
)  # suites whose questions stand before the prose, where contexts are longer than that


@dataclass(frozen=True)
class Window:
    """Tokens to be predicted, and what stands before them.

    Attributes:
        first: the token that the tokenizer puts before a text, if it has one.
        before: at least as many as the deepest context.
        scored: those that are predicted, the first of them aside.
    """

    first: tuple[int, ...]
    before: tuple[int, ...]
    scored: tuple[int, ...]

    def at(self, depth: int) -> tuple[list[int], int]:
        """The tokens that are read for this depth, and the position after which the first prediction comes."""
        context = self.before[len(self.before) - depth :]
        return [*self.first, *context, *self.scored[:-1]], len(self.first) + depth


def windows(text: Text, deepest: int, count: int) -> list[Window]:
    """Windows of the text suite's prose, spread over it, none of which is in its own context. Before the prose stand the smoke
    suites' questions, again and again, as far as that is needed."""
    prose = text.encode("\n\n".join(doc["text"] for doc in read_jsonl(resource("evals/text/smoke.jsonl"))), special=False)
    questions = [doc["question"] for suite in FILLING for doc in read_jsonl(resource(f"evals/{suite}/smoke.jsonl"))]
    filling = text.encode("\n\n".join(questions), special=False)
    first = tuple(text.encode(""))
    scored = min(SCORED, len(prose) // count)
    starts = [(number * (len(prose) - scored)) // max(count - 1, 1) for number in range(count)]
    found = []
    for start in starts:
        times = max(0, -(-(deepest - start) // len(filling)))
        before = [*filling * times, *prose[:start]][-deepest:] if deepest else []
        found.append(Window(first, tuple(before), tuple(prose[start : start + scored])))
    return found


def measure(
    reference: Engine,
    other: Engine,
    places: Sequence[Window],
    depths: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[DriftPoint]:
    """The divergence of one run's predictions from the other's at each depth. Intervals are of windows (Student's)."""
    both = min(reference.backend.vocabulary, other.backend.vocabulary)
    points, done, total = [], 0, sum(depth + SCORED for depth in depths) * len(places)
    for depth in depths:
        found = []
        for place in places:
            found.append(_predicted(reference, other, place, depth, both))
            done += depth + SCORED
            progress(done, total)
        points.append(_point(depth, found))
    return points


def _predicted(reference: Engine, other: Engine, place: Window, depth: int, both: int) -> Positions:
    tokens, start = place.at(depth)
    came, parts, at = np.array(place.scored[1:]), [], 0
    for p, q in in_step(reference.each_logits(tokens, start), other.each_logits(tokens, start)):
        parts.append(measure_rows(p[:, :both], q[:, :both], came[at : at + len(p)]))
        at += len(p)
    return joined(parts)


def _point(depth: int, found: list[Positions]) -> DriftPoint:
    every = joined(found)
    kld = estimate(float(every.kld.mean()), clustered_error([p.kld for p in found]), len(found))
    kld = kld if kld.low is None else replace(kld, low=max(kld.low, 0.0))
    same = [p.same_top.astype(np.float64) for p in found]
    top = estimate(float(every.same_top.mean()), clustered_error(same), len(found))
    return DriftPoint(depth, len(every), len(found), kld, top)


# ---- as parts of a comparison -----------------------------------------------------------------------------------------

Load = Callable[..., AbstractContextManager[Engine]]  # a member's engine, with further arguments of Engine.load


@dataclass(frozen=True)
class Run:
    """A way of running a model: further arguments of `Engine.load`, and its name in the record."""

    name: str
    how: dict[str, Any]


class Drifting:
    """The drifts of a comparison's checkpoints. Each is a part that is kept."""

    def __init__(self, settings: Settings, parts: Parts, schedule: Schedule, load: Load, say: Callable[[str], None]) -> None:
        self.settings, self.parts, self.schedule, self.load, self.say = settings, parts, schedule, load, say
        self.count = min(settings.chunks or WINDOWS, WINDOWS)

    def of(self, members: Sequence[Member]) -> dict[str, list[Drift]]:
        """By name, in the order of KINDS."""
        found: dict[str, list[Drift]] = {m.name: [] for m in members}
        if not self.settings.drift:
            return found
        depths = self.depths(members)
        own = Run(self.settings.timing.backend, {})
        pairs: list[tuple[str, Member, Run, Member, Run]] = []
        if DEPTH in self.settings.drift:
            pairs += [(DEPTH, members[0], own, m, own) for m in members[1:]]
        for kind, element in ((CACHE, "bf16"), (BYTES, "q8")):
            if kind in self.settings.drift:
                if self.settings.timing.backend == "numba":
                    whole, rounded = Run("f32 cache", {"cache": "f32"}), Run(f"{element} cache", {"cache": element})
                    pairs += [(kind, m, whole, m, rounded) for m in members]
                else:
                    self.say(f"drift by {kind}: only the kernels on the CPU (numba) have both formats, not {own.name}")
        if BACKENDS in self.settings.drift:
            pairs += [(BACKENDS, m, own, m, other) for other in self.others() for m in members]
        self.schedule.expect("drift", sum(not self.parts.has("drift", self._about(pair, depths)) for pair in pairs))
        unable: set[str] = set()
        for pair in pairs:
            kind, base, reference, m, run = pair
            if run.name in unable:
                continue
            try:
                rows = self.parts.get("drift", self._about(pair, depths), partial(self._measured, pair, depths))
            except (MissingPackage, Unsupported, NoRoom) as error:
                if kind != BACKENDS:
                    raise
                unable.add(run.name)
                self.say(f"drift on {run.name} is left out: {error}")
                continue
            name = base.name if kind == DEPTH else reference.name
            points = [build(DriftPoint, row, "drift") for row in rows]
            found[m.name].append(Drift(kind, name, m.name if kind == DEPTH else run.name, points))
        return found

    def depths(self, members: Sequence[Member]) -> list[int]:
        """Those that fit into every model's context."""
        contexts = []
        for m in members:
            with open_checkpoint(m.path) as checkpoint:
                contexts.append(checkpoint.architecture.context)
        room = min(contexts) - SCORED - 1
        if beyond := [depth for depth in self.settings.depths if depth > room]:
            self.say(
                f"drift: depths beyond {room:,} do not fit into the models' context: {', '.join(f'{d:,}' for d in beyond)}"
            )
        return sorted(depth for depth in set(self.settings.depths) if depth <= room)

    def others(self) -> list[Run]:
        """Other programs that can run the same checkpoints."""
        timing, found = self.settings.timing, []
        if timing.backend == "numba" and timing.activations != "f32":
            found.append(Run("numba f32", {"activations": "f32"}))
        if timing.backend != "numba":
            found.append(Run("numba", {"backend": "numba"}))
        if timing.backend != "torch":
            found.append(Run("torch", {"backend": "torch", "cache": None}))
        if timing.backend != "cuda":
            try:
                found.append(Run("cuda", {"backend": backend_for("cuda", "numba"), "cache": None}))
            except (MissingPackage, Unsupported) as error:
                self.say(f"drift on cuda is left out: {error}")
        return found

    def _about(self, pair: tuple[str, Member, Run, Member, Run], depths: Sequence[int]) -> dict[str, Any]:
        _, base, reference, m, run = pair
        runs = {"base": base.identity, "reference": reference.how, "model": m.identity, "run": run.how}
        return {**runs, **self.settings.engine, "depths": list(depths), "windows": self.count}

    def _measured(self, pair: tuple[str, Member, Run, Member, Run], depths: Sequence[int]) -> list[dict[str, Any]]:
        kind, base, reference, m, run = pair
        what = f"drift of {m.name} by {kind}" + (f", {run.name}" if kind != DEPTH else "")
        context = max(depths) + SCORED + 1
        with (
            self.schedule.step("drift", what) as advance,
            self.load(base, beside=1, context=context, **reference.how) as one,
            self.load(m, beside=1, context=context, **run.how) as two,
        ):
            places = windows(one.text, max(depths), self.count)
            return [asdict(point) for point in measure(one, two, places, depths, advance)]
