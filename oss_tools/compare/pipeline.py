"""A comparison from models to its record: make, weigh, predict, answer, time. Every finished part is kept and found again."""

from __future__ import annotations

import datetime
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from oss_tools.chat.messages import Effort
from oss_tools.compare import answers, latency, weights
from oss_tools.compare.checks import made_tasks, require_room, require_speech
from oss_tools.compare.models import Member, make, member, recipe_called
from oss_tools.compare.pairing import Pairing, pair
from oss_tools.compare.parts import Parts
from oss_tools.compare.predictions import BaseLogits, Passage, compare_predictions, passages
from oss_tools.compare.schedule import Now, Schedule
from oss_tools.compare.statistics import timing
from oss_tools.download.layout import name_of
from oss_tools.engine.backend import backend_class
from oss_tools.engine.engine import Engine
from oss_tools.errors import BadRequest
from oss_tools.harness.run import Settings as EvalSettings
from oss_tools.harness.run import fingerprint
from oss_tools.harness.suites import SuiteTask, load_suite, task_files
from oss_tools.harness.tasks import require_lm_eval
from oss_tools.measure.machine import machine, versions
from oss_tools.models import open_checkpoint
from oss_tools.report.comparison import (
    Candidate,
    Comparison,
    Environment,
    Fidelity,
    Finding,
    TaskScore,
    WeightError,
    build,
)
from oss_tools.resources import resource

RECORD = "comparison.json"
FORMATS = ("bf16", "int8", "q8_0", "mxfp4", "q4_0")
SUITES = ("math", "health", "tool_use")
PACKAGES = ("numpy", "numba", "scipy", "lm-eval", "tokenizers")


@dataclass(frozen=True)
class Settings:
    """How to compare.

    Attributes:
        suites, tier: whose tasks are asked; none for no questions.
        limit: so many questions of each task; None for all.
        chunks: so many chunks of each text; None for all.
        reasoning: effort.
        max_tokens: of one answer with its reasoning; None for the task's own number and room for reasoning.
        data: the user's folder of public sets.
        seed: of the choice of these questions and chunks, of which 0 takes the first; of few-shot examples and resampling tests.
        timing: what is timed; repeat = 0 times nothing.
    """

    suites: tuple[str, ...] = SUITES
    tier: str = "smoke"
    limit: int | None = None
    chunks: int | None = None
    reasoning: Effort = "medium"
    max_tokens: int | None = None
    data: Path | None = None
    seed: int = 0
    timing: latency.Settings = field(default_factory=latency.Settings)

    @property
    def engine(self) -> dict[str, Any]:
        """On which predictions and answers depend."""
        return {"backend": self.timing.backend, "activations": self.timing.activations}

    def tasks(self) -> list[tuple[str, SuiteTask]]:
        """(suite, task). Raises BadRecipe for an unknown suite, BadRequest for a tier without tasks."""
        found = [(name, task) for name in self.suites for task in load_suite(name).tiers.get(self.tier, ())]
        if self.suites and not found:
            raise BadRequest(f"the suites {', '.join(self.suites)} have no tasks in the tier {self.tier!r}")
        return found


def compare_formats(
    source: Path,
    formats: Sequence[str],
    settings: Settings,
    output: Path,
    *,
    fresh: bool = False,
    report: Callable[[Now], None] = lambda now: None,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Makes a checkpoint of `source` by each recipe (a name, a YAML file or a format; the first is the base), and compares them.

    The record is then output/comparison.json as well. Raises OssToolsError.
    """
    recipes = [recipe_called(name) for name in formats]
    if len({recipe.name for recipe in recipes}) != len(recipes):
        raise BadRequest(f"formats share a name: {', '.join(recipe.name for recipe in recipes)}")
    work = _Work(settings, [source], output, fresh, report, say)
    require_room(source, recipes, output / "models")
    with open_checkpoint(source) as checkpoint:
        origin = str(fingerprint(checkpoint.reader.files())["sha256"])
    work.schedule.expect("convert", len(recipes))
    work.expect(len(recipes))
    members = []
    for recipe in recipes:
        with work.schedule.step("convert", f"making {recipe.name}") as advance:
            about = {"source": origin, "recipe": _plain(asdict(recipe)), "name": recipe.name}

            def convert(recipe: Any = recipe, advance: Any = advance) -> dict[str, str]:
                path = make(source, recipe, output / "models", advance)
                return {"path": path.name, "sha256": member(recipe.name, path).sha256}

            members.append(_made(work.parts, about, convert, output / "models", recipe.name))
    return work.compare(_name(source), members, [pair(members[0].path, m.path) for m in members[1:]])


def _made(parts: Parts, about: dict[str, Any], convert: Callable[[], dict[str, str]], folder: Path, name: str) -> Member:
    """The checkpoint that a conversion made, if it still lies there as it was made, else made again."""
    if parts.has("convert", about):
        made = parts.get("convert", about, convert)
        path = folder / made["path"]
        if path.exists() and (found := member(name, path, name)).sha256 == made["sha256"]:
            return found
        parts.drop("convert", about)
    return member(name, folder / parts.get("convert", about, convert)["path"], name)


def compare_checkpoints(
    paths: Sequence[Path],
    settings: Settings,
    output: Path,
    *,
    base: Path | None = None,
    fresh: bool = False,
    report: Callable[[Now], None] = lambda now: None,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compares finished checkpoints in any containers. The base is the first of them unless it is named.

    Raises OssToolsError; BadRequest if they are not one model.
    """
    every = [base, *(path for path in paths if path.resolve() != base.resolve())] if base else list(paths)
    if len(every) < 2:
        raise BadRequest("a comparison needs two checkpoints at least, or one and the formats to make of it (--formats)")
    pairings = [pair(every[0], path) for path in every[1:]]
    work = _Work(settings, every, output, fresh, report, say)
    work.expect(len(every))
    members = [member(name, path) for name, path in zip(_names(every), every, strict=True)]
    return work.compare(_name(every[0]), members, pairings)


def _name(path: Path) -> str:
    """A path's last part; the embedded model's own name."""
    return "tiny" if path == resource("tiny/checkpoint") else name_of(path)


def _names(paths: Sequence[Path]) -> list[str]:
    """Their names; whole paths where two are the same."""
    short = [_name(path) for path in paths]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]


class _Work:
    """A comparison at work: its settings, its folder, what is finished."""

    def __init__(
        self,
        settings: Settings,
        models: Sequence[Path],
        output: Path,
        fresh: bool,
        report: Callable[[Now], None],
        say: Callable[[str], None],
    ) -> None:
        """Checks all that can be known before there is work to lose. Raises OssToolsError."""
        self.settings, self.output, self.say = settings, output, say
        backend_class(settings.timing.backend)
        self.tasks = self._tasks()
        if self.tasks:
            require_lm_eval()
        made, conversations = made_tasks([task for _, task in self.tasks], settings.data, say)
        self.tasks = [(suite, task) for suite, task in self.tasks if task.task in made]
        for model in models:
            require_speech(model, conversations)
        if fresh:
            for folder in ("parts", "answers"):
                shutil.rmtree(output / folder, ignore_errors=True)
        self.parts = Parts(output / "parts")
        self.schedule = Schedule(report)

    def _tasks(self) -> list[tuple[str, SuiteTask]]:
        """(suite, task) of those that this program scores by itself."""
        found = self.settings.tasks()
        if graded := [task.task for _, task in found if task.needs_grader]:
            self.say(f"{', '.join(graded)}: left out, as they are graded by a model; `oss-tools eval` asks one")
        return [(suite, task) for suite, task in found if not task.needs_grader]

    def expect(self, members: int) -> None:
        for kind, count in (("weights", members - 1), ("predict", members), ("answer", members * len(self.tasks))):
            self.schedule.expect(kind, count)
        self.schedule.expect("time", 1 if self.settings.timing.repeat else 0)

    def compare(self, model: str, members: list[Member], pairings: Sequence[Pairing]) -> Comparison:
        """The record of these checkpoints, the first being the base; `pairings` are those of the others."""
        base, others = members[0], members[1:]
        self._expect_missing(members)
        found = {m.name: Candidate(**_about(m)) for m in members}
        for m, pairing in zip(others, pairings, strict=True):
            for line in pairing.remarks:
                self.say(line)
            error, findings = self._weights(base, m)
            found[m.name] = replace(
                found[m.name],
                weight_error=error,
                findings=[*pairing.findings(), *findings],
                differences=pairing.record(),
                remarks=list(pairing.remarks),
            )
        for name, fidelity in self._predictions(members).items():
            found[name] = replace(found[name], fidelity=fidelity)
        said = {m.name: self._answers(m) for m in members}
        self._add_scores(found, base.name, said)
        reference = self._add_times(found, members)
        record = Comparison(model, base.name, self._environment(reference), [found[m.name] for m in members])
        record.write(self.output / RECORD)
        return record

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _expect_missing(self, members: list[Member]) -> None:
        """Now that the models are known: which steps are really to be done."""
        base = members[0]
        missing = {
            "weights": sum(not self.parts.has("weights", _pair(base, m)) for m in members[1:]),
            "predict": sum(not self._has_predictions(base, m) for m in members),
            "answer": sum(not self.parts.has("answer", self._asked(m, task)) for m in members for _, task in self.tasks),
            "time": int(any(not self.parts.has("time", self._timed(base, m)) for m in members)),
        }
        for kind, count in missing.items():
            self.schedule.expect(kind, count if kind != "time" or self.settings.timing.repeat else 0)

    def _weights(self, base: Member, other: Member) -> tuple[WeightError, list[Finding]]:
        def make() -> dict[str, Any]:
            with (
                self.schedule.step("weights", f"weights of {other.name}") as advance,
                open_checkpoint(base.path) as one,
                open_checkpoint(other.path) as two,
            ):
                done = 0

                def count(values: int) -> None:
                    nonlocal done
                    done += values
                    advance(done, base.parameters)

                error, findings = weights.compare_weights(one, two, count)
            return {"error": asdict(error), "findings": [asdict(f) for f in findings]}

        part = self.parts.get("weights", _pair(base, other), make)
        findings = [build(Finding, f, "finding") for f in part["findings"]]
        return build(WeightError, part["error"], "weight error"), findings

    def _predicted(self, base: Member, m: Member) -> dict[str, Any]:
        """On what the predictions of `m` against the base depend."""
        texts = [
            resource("evals/text/smoke.jsonl"),
            *(task_files()[t.task] for _, t in self.tasks if t.task in task_files()),
        ]
        data = [file.with_name("smoke.jsonl") for file in texts]
        sums = [hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "" for file in data]
        tasks = [task.task for _, task in self.tasks]
        s = self.settings
        chunks = {"chunks": s.chunks, "seed": s.seed if s.chunks else 0}
        return {**_pair(base, m), **s.engine, "texts": sums, "tasks": tasks, **chunks}

    def _has_predictions(self, base: Member, m: Member) -> bool:
        return self.parts.has("predict", self._predicted(base, m))

    def _predictions(self, members: list[Member]) -> dict[str, list[Fidelity]]:
        """The base is loaded once, beside one candidate after the other."""
        base = members[0]
        with ExitStack() as stack:
            loaded: list[tuple[BaseLogits, list[Passage]]] = []  # one, once it is needed
            for m in members:
                if self._has_predictions(base, m):
                    continue
                if not loaded:
                    engine = stack.enter_context(self._load(base, beside=1))
                    texts = passages(engine, [task for _, task in self.tasks], self.settings.chunks, self.settings.seed)
                    loaded.append((BaseLogits(engine), texts))
                self.parts.get("predict", self._predicted(base, m), partial(self._predict, *loaded[0], m, m is base))
        rows = {m.name: self.parts.get("predict", self._predicted(base, m), list) for m in members}
        return {name: [build(Fidelity, row, "fidelity") for row in parts] for name, parts in rows.items()}

    def _predict(self, base: BaseLogits, texts: list[Passage], m: Member, own: bool) -> list[dict[str, Any]]:
        total, done = sum(len(text.chunks) for text in texts), 0
        found = []
        with self.schedule.step("predict", f"predictions of {m.name}") as advance, ExitStack() as stack:
            engine = base.engine if own else stack.enter_context(self._load(m, beside=1))
            for text in texts:
                before = done

                def count(n: int, _: int, before: int = before) -> None:
                    advance(before + n, total)

                found.append(asdict(compare_predictions(base, engine, text, count)))
                done += len(text.chunks)
        return found

    def _asked(self, m: Member, task: SuiteTask) -> dict[str, Any]:
        s = self.settings
        file = task_files().get(task.task)
        data = file.with_name("smoke.jsonl") if file else None
        return {
            "model": m.identity,
            **s.engine,
            "task": task.task,
            "metric": task.metric,
            "questions": hashlib.sha256(data.read_bytes()).hexdigest() if data and data.exists() else str(s.data),
            "limit": s.limit,
            "seed": s.seed,
            "reasoning": s.reasoning,
            "max_tokens": s.max_tokens,
        }

    def _answers(self, m: Member) -> dict[str, Any]:
        """By task; the engine is loaded if anything is missing."""
        missing = [task for _, task in self.tasks if not self.parts.has("answer", self._asked(m, task))]
        if missing:
            with self._load(m) as engine:
                for task in missing:
                    self.parts.get("answer", self._asked(m, task), partial(self._answer, engine, m, task))
        return {task.task: self.parts.get("answer", self._asked(m, task), dict) for _, task in self.tasks}

    def _answer(self, engine: Engine, m: Member, task: SuiteTask) -> dict[str, Any]:
        s = self.settings
        folder = self.output / "answers" / self.parts.key(task.task, self._asked(m, task))
        settings = EvalSettings(s.limit, s.seed or None, s.seed, effort=s.reasoning, max_tokens=s.max_tokens)
        with self.schedule.step("answer", f"{task.task} by {m.name}") as advance:
            return answers.answer(engine, task, settings, folder, m.identity, s.data, advance, self.say)

    def _timed(self, base: Member, m: Member) -> dict[str, Any]:
        where = {"machine": {k: str(v) for k, v in machine().items()}, "reference": latency.REFERENCE}
        return {**_pair(base, m), **asdict(self.settings.timing), **where}

    def _times(self, members: list[Member]) -> dict[str, dict[str, Any]]:
        """By name: {"own": …, "base": …}, both of the same rounds. Those that are missing take turns with the base."""
        base = members[0]
        missing = [m for m in members if not self.parts.has("time", self._timed(base, m))]
        if missing:
            turns = [base, *(m for m in missing if m is not base)]
            began = time.perf_counter()
            with self.schedule.step("time", "timing, in turns: " + ", ".join(m.name for m in turns)) as advance:
                found = latency.contest([(m.name, m.path, m.size) for m in turns], self.settings.timing, advance)
            each = (time.perf_counter() - began) / len(missing)
            for m in missing:
                self.parts.put("time", self._timed(base, m), {"own": found[m.name], "base": found[base.name]}, each)
        return {m.name: self.parts.get("time", self._timed(base, m), dict) for m in members}

    # ---- engines ----------------------------------------------------------------------------------------------------

    def _load(self, m: Member, beside: int = 0) -> Engine:
        """beside: engines that are loaded at the same time and have the same share of the memory that was given."""
        timing = self.settings.timing
        return Engine.load(
            m.path,
            backend=timing.backend,
            threads=timing.threads,
            activations=timing.activations,
            load=timing.load,
            memory=timing.memory and timing.memory // (1 + beside),
            say=self.say,
        )

    # ---- the record -------------------------------------------------------------------------------------------------

    def _add_scores(self, found: dict[str, Candidate], base: str, said: dict[str, dict[str, Any]]) -> None:
        others = {name: tasks for name, tasks in said.items() if name != base}
        differences = answers.differences(said[base], others, self.settings.seed) if self.tasks else {}
        for name, tasks in said.items():
            scores: list[TaskScore] = [
                answers.task_score(task, suite, tasks[task.task], differences.get(name, {}).get(task.task))
                for suite, task in self.tasks
            ]
            changes = answers.changes(said[base], tasks) if name != base else []
            findings = [*found[name].findings, *answers.task_findings(scores, base)]
            found[name] = replace(found[name], tasks=scores, changes=changes, findings=findings)

    def _add_times(self, found: dict[str, Candidate], members: list[Member]) -> dict[str, Any] | None:
        """Adds latencies, load times and memory; the base's rounds, which have the reference kernel's times."""
        if not self.settings.timing.repeat:
            return None
        times = self._times(members)
        for m in members:
            own, base = times[m.name]["own"], times[m.name]["base"]
            figures = latency.latency(own, None if m is members[0] else base, self.settings.timing)
            found[m.name] = replace(
                found[m.name],
                latency=figures,
                load_seconds=timing(own["load_seconds"]),
                peak_bytes=own["peak_bytes"],
                weight_bytes=own["weight_bytes"],
            )
        own = times[members[0].name]["own"]
        return dict(own)

    def _environment(self, base_times: dict[str, Any] | None) -> Environment:
        settings = {**_plain(asdict(self.settings)), "timing": asdict(self.settings.timing)}
        return Environment(
            machine(),
            versions(*PACKAGES),
            settings,
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            self.parts.seconds,
            latency.REFERENCE if base_times else "",
            timing(base_times["reference"]) if base_times else None,
        )


def _about(m: Member) -> dict[str, Any]:
    """A candidate's fields that its checkpoint tells."""
    names = ("name", "recipe", "formats", "container", "sha256", "size", "parameters", "bits_per_weight")
    return {"path": _without_home(m.path), **{name: getattr(m, name) for name in names}}


def _without_home(path: Path) -> str:
    """A path for a record, which others will read: without the user's name."""
    home = os.path.expanduser("~")
    return str(path).replace(home, "~", 1) if path.is_relative_to(home) and home != "/" else str(path)


def _pair(base: Member, m: Member) -> dict[str, Any]:
    """What identifies a candidate beside its base; a copy of the base is not the base."""
    return {"base": base.identity, "model": m.identity, "own": m is base}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
