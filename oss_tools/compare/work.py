"""A comparison at work: weigh, predict, answer, time. Every finished part is kept and found again."""

from __future__ import annotations

import datetime
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.compare import answers, latency, margins, weights
from oss_tools.compare.checks import made_tasks, require_speech
from oss_tools.compare.drift import Drifting
from oss_tools.compare.models import Member
from oss_tools.compare.packs import Pack, against, pack_passage, shortened, vocabulary_hash
from oss_tools.compare.pairing import Pairing
from oss_tools.compare.parts import Parts
from oss_tools.compare.predictions import BaseLogits, Passage, compare_predictions, fidelity_of, passages
from oss_tools.compare.remote import Remote, over_the_wire
from oss_tools.compare.schedule import Now, Schedule
from oss_tools.compare.settings import Settings
from oss_tools.engine.backend import backend_class
from oss_tools.engine.engine import Engine
from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest, BadSource
from oss_tools.harness.run import Settings as EvalSettings
from oss_tools.harness.subjects import EndpointSubject, EngineSubject, Subject
from oss_tools.harness.suites import SuiteTask, task_files
from oss_tools.harness.tasks import require_lm_eval
from oss_tools.machine.description import machine, versions
from oss_tools.models import open_checkpoint
from oss_tools.report.comparison import (
    Candidate,
    Comparison,
    Environment,
    Fidelity,
    Finding,
    Margins,
    TaskScore,
    WeightError,
    build,
)
from oss_tools.resources import resource
from oss_tools.statistics.repeats import timing

RECORD = "comparison.json"
AGAINST_A_PACK = "held against a pack: weights, configuration, tokenizer and template are not compared"
PACKAGES = ("numpy", "numba", "scipy", "lm-eval", "tokenizers")


class Work:
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
        self.questions = made
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
        if played := [task.task for _, task in found if task.needs_user]:
            self.say(f"{', '.join(played)}: left out, as a model plays the user in them; `oss-tools eval` asks one")
        return [(suite, task) for suite, task in found if not (task.needs_grader or task.needs_user)]

    def expect(self, members: int, remotes: int = 0) -> None:
        answers = (members + remotes) * len(self.tasks)
        margined = members + remotes if self.tasks and members + remotes > 1 else 0
        for kind, count in (("weights", members - 1), ("predict", members), ("answer", answers), ("margins", margined)):
            self.schedule.expect(kind, count)
        self.schedule.expect("drift", members * len(self.settings.drift))
        self.schedule.expect("time", 1 if self.settings.timing.repeat else 0)

    def compare(
        self, model: str, members: list[Member], pairings: Sequence[Pairing], remotes: Sequence[Remote] = (), base: str = ""
    ) -> Comparison:
        """The record of these checkpoints and models behind addresses.

        The first checkpoint is what weights, predictions and times are held against; `pairings` are those of the others. Answers
        are held against those of `base`, a name among all, or the first checkpoint's.
        """
        first, others = members[0], members[1:]
        self._expect_missing(members, remotes)
        found = {m.name: Candidate(**_about(m)) for m in members}
        for m, pairing in zip(others, pairings, strict=True):
            for line in pairing.remarks:
                self.say(line)
            error, findings = self._weights(first, m)
            found[m.name] = replace(
                found[m.name],
                weight_error=error,
                findings=[*pairing.findings(), *findings],
                differences=pairing.record(),
                remarks=list(pairing.remarks),
            )
        for name, fidelity in self._predictions(members).items():
            found[name] = replace(found[name], fidelity=fidelity)
        everyone: list[Member | Remote] = [*members, *remotes]
        said = {m.name: self._answers(m) for m in everyone}
        found |= {r.name: Candidate(**r.about(), wire=over_the_wire(said[r.name])) for r in remotes}
        self._add_scores(found, base or first.name, said)
        if not base or base in (m.name for m in members):
            for name, figures in self._margins([*members, *remotes], said).items():
                found[name] = replace(found[name], margins=figures)
        for name, drifts in Drifting(self.settings, self.parts, self.schedule, self._load, self.say).of(members).items():
            found[name] = replace(found[name], drift=drifts)
        reference = self._add_times(found, members)
        record = Comparison(model, base or first.name, self._environment(reference), list(found.values()))
        record.write(self.output / RECORD)
        return record

    def compare_with(self, pack: Pack, members: list[Member]) -> Comparison:
        """The record of these checkpoints, held against what a pack keeps of the base. Times are held against the first's."""
        self._expect_missing(members, ())
        for kind in ("weights", "margins"):
            self.schedule.expect(kind, 0)
        self.schedule.expect("predict", sum(not self.parts.has("predict", self._from(pack, m)) for m in members))
        found = {pack.name: build(Candidate, pack.about["candidate"], "the pack's base")}
        found |= {m.name: Candidate(**_about(m), remarks=[AGAINST_A_PACK]) for m in members}
        for m in members:
            rows = self.parts.get("predict", self._from(pack, m), partial(self._predict_from, pack, m))
            found[m.name] = replace(found[m.name], fidelity=[build(Fidelity, row, "fidelity") for row in rows])
        said = {pack.name: pack.answers} | {m.name: self._answers(m) for m in members}
        self._add_scores(found, pack.name, said)
        reference = self._add_times(found, members)
        record = Comparison(pack.about["model"], pack.name, self._environment(reference), list(found.values()))
        record.write(self.output / RECORD)
        return record

    def pack(self, model: str, m: Member) -> Pack:
        """What a model says on the texts and to the questions, to be kept."""
        self.schedule.expect("weights", 0)
        self.schedule.expect("predict", 1)
        self.schedule.expect("margins", 0)
        self.schedule.expect("time", 0)
        packed, fidelity = [], []
        with self._load(m) as engine:
            texts = passages(engine, [task for _, task in self.tasks], self.settings.chunks, self.settings.seed)
            with self.schedule.step("predict", f"predictions of {m.name}") as advance:
                for text in texts:
                    passage, own = pack_passage(engine, text, advance)
                    packed.append(passage)
                    fidelity.append(asdict(fidelity_of(text, own, own=True)))
            vocabulary, tokens = engine.backend.vocabulary, vocabulary_hash(engine.text.numbers())
        candidate = asdict(Candidate(**_about(m))) | {"fidelity": fidelity}
        about = {"model": model, "candidate": candidate, "vocabulary": vocabulary, "tokens": tokens}
        answered = {name: shortened(found) for name, found in self._answers(m).items()}
        return Pack(about | {"settings": self._asking()}, tuple(packed), answered)

    def require_same_questions(self, pack: Pack, file: Path) -> None:
        """Raises BadRequest unless the pack's base was asked what will be asked."""
        missing = [task.task for _, task in self.tasks if task.task not in pack.answers]
        if missing:
            raise BadRequest(f"{file}: has no answers to {', '.join(missing)}; choose other --suites, or make it with them")
        own, theirs = self._asking(), pack.about["settings"]
        names = sorted(name for name in own if own[name] != theirs.get(name))
        if self.tasks and names:
            raise BadRequest(f"{file}: was made with another {', '.join(names)}; use the same options, or --suites ''")

    # ---- parts ------------------------------------------------------------------------------------------------------

    def _asking(self) -> dict[str, Any]:
        """On which answers depend, beside the model."""
        s = self.settings
        names = ("tier", "limit", "seed", "reasoning", "max_tokens", "repeats")
        return {name: getattr(s, name) for name in names}

    def _from(self, pack: Pack, m: Member) -> dict[str, Any]:
        """On what the predictions of `m` against a pack depend."""
        return {"pack": pack.sha256, "model": m.identity, **self.settings.engine}

    def _predict_from(self, pack: Pack, m: Member) -> list[dict[str, Any]]:
        found = []
        with self.schedule.step("predict", f"predictions of {m.name}") as advance, self._load(m) as engine:
            if engine.backend.vocabulary != pack.about["vocabulary"]:
                sizes = f"{engine.backend.vocabulary:,} rows, the pack {pack.about['vocabulary']:,}"
                raise BadRequest(f"{m.path}: its vocabulary has {sizes}; it was made of another model")
            for packed in pack.passages:
                positions, bound = against(packed, engine, advance)
                found.append(asdict(fidelity_of(packed.passage, positions, own=False, kld_bound=bound)))
        return found

    def _expect_missing(self, members: list[Member], remotes: Sequence[Remote]) -> None:
        """Now that the models are known: which steps are really to be done."""
        base = members[0]
        everyone: list[Member | Remote] = [*members, *remotes]
        missing = {
            "weights": sum(not self.parts.has("weights", pair_of(base, m)) for m in members[1:]),
            "predict": sum(not self._has_predictions(base, m) for m in members),
            "answer": sum(not self.parts.has("answer", self._asked(m, task)) for m in everyone for _, task in self.tasks),
            "margins": sum(not self.parts.has("margins", self._decided(base, m)) for m in everyone) if self.tasks else 0,
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

        part = self.parts.get("weights", pair_of(base, other), make)
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
        return {**pair_of(base, m), **s.engine, "texts": sums, "tasks": tasks, **chunks}

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

    def _asked(self, m: Member | Remote, task: SuiteTask) -> dict[str, Any]:
        """On what a model's answers to a task depend."""
        s = self.settings
        file = task_files().get(task.task)
        data = file.with_name("smoke.jsonl") if file else None
        return {
            "model": m.identity,
            **(s.engine if isinstance(m, Member) else {"endpoint": m.endpoint.name}),
            "task": task.task,
            "metric": task.metric,
            "questions": hashlib.sha256(data.read_bytes()).hexdigest() if data and data.exists() else str(s.data),
            "limit": s.limit,
            "seed": s.seed,
            "reasoning": s.reasoning,
            "max_tokens": s.max_tokens,
            "repeats": s.repeats,
        }

    def _answers(self, m: Member | Remote) -> dict[str, Any]:
        """By task; the engine is loaded, the endpoint asked, if anything is missing."""
        missing = [task for _, task in self.tasks if not self.parts.has("answer", self._asked(m, task))]
        if missing:
            with self._subject(m) as subject:
                for task in missing:
                    self.parts.get("answer", self._asked(m, task), partial(self._answer, subject, m, task))
        return {task.task: self.parts.get("answer", self._asked(m, task), dict) for _, task in self.tasks}

    def _answer(self, subject: Subject, m: Member | Remote, task: SuiteTask) -> dict[str, Any]:
        s = self.settings
        with self.schedule.step("answer", f"{task.task} by {m.name}") as advance:
            return answers.answer(
                subject, task, self._eval_settings(), self._folder(m, task), m.identity, s.data, advance, self.say
            )

    def _folder(self, m: Member | Remote, task: SuiteTask) -> Path:
        """Where answers are kept as they come."""
        return self.output / "answers" / self.parts.key(task.task, self._asked(m, task))

    def _eval_settings(self) -> EvalSettings:
        s = self.settings
        how: dict[str, Any] = {"effort": s.reasoning, "max_tokens": s.max_tokens, "repeats": s.repeats}
        return EvalSettings(s.limit, s.seed or None, s.seed, **how)

    def _margins(self, everyone: Sequence[Member | Remote], said: dict[str, dict[str, Any]]) -> dict[str, list[Margins]]:
        """Of the others, at the decisions in the first one's answers. Models behind addresses that give no log-probabilities have
        none."""
        base, others = everyone[0], everyone[1:]
        assert isinstance(base, Member)
        questions = [q for _, task in self.tasks for q in margins.questions_of(said[base.name][task.task])]
        if not questions or not others:
            return {}
        with open_checkpoint(base.path) as checkpoint:
            self._text = Text(checkpoint.metadata())
        decided = margins.decisions(self._text, questions)
        if not decided:
            return {}
        self._before_margins([m for m in everyone if isinstance(m, Member)], decided)
        found = {}
        for m in everyone:
            try:
                values = self.parts.get("margins", self._decided(base, m), partial(self._margins_of, m, decided))
            except BadSource as error:
                if isinstance(m, Member):
                    raise
                self.say(f"{error}; it has no margins")
                continue
            found[m.name] = np.array(values, np.float64)  # None becomes NaN
        compared = {m.name: found[m.name] for m in others if m.name in found}
        return margins.summarized(decided, found[base.name], compared, self.settings.seed) if compared else {}

    def _before_margins(self, members: list[Member], decided: list[margins.Decision]) -> None:
        """Is called when it is known where margins are wanted."""

    def _decided(self, base: Member, m: Member | Remote) -> dict[str, Any]:
        """On what a model's margins at the base's decisions depend."""
        asked = [self._asked(base, task) for _, task in self.tasks]
        return {"model": m.identity, **self.settings.engine, "decisions_of": asked}

    def _margins_of(self, m: Member | Remote, decided: list[margins.Decision]) -> list[float | None]:
        with self.schedule.step("margins", f"margins of {m.name}") as advance:
            if isinstance(m, Member):
                with self._load(m) as engine:
                    values = margins.measure(engine, decided)
            else:
                values = margins.measure_remote(m.endpoint, self._text, decided, self.say, advance)
        return [value if np.isfinite(value) else None for value in values.tolist()]

    def _timed(self, base: Member, m: Member) -> dict[str, Any]:
        where = {"machine": {k: str(v) for k, v in machine().items()}, "reference": latency.REFERENCE}
        return {**pair_of(base, m), **asdict(self.settings.timing), **where}

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

    # ---- models -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _subject(self, m: Member | Remote) -> Iterator[Subject]:
        if isinstance(m, Member):
            with self._load(m) as engine:
                yield EngineSubject(engine)
            return
        subject = EndpointSubject(m.endpoint, m.price, self.say)
        try:
            yield subject
        finally:
            subject.close()

    def _load(self, m: Member, beside: int = 0, **more: Any) -> Engine:
        """beside: engines that are loaded at the same time and have the same share of the memory that was given; more:
        arguments of `Engine.load` that are not the settings'."""
        timing = self.settings.timing
        usual: dict[str, Any] = {
            "backend": timing.backend,
            "threads": timing.threads,
            "activations": timing.activations,
            "cache": timing.cache,
            "load": timing.load,
            "memory": timing.memory and timing.memory // (1 + beside),
        }
        return Engine.load(m.path, **usual | more, say=self.say)

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
        settings = {**plain(asdict(self.settings)), "timing": asdict(self.settings.timing)}
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


def pair_of(base: Member, m: Member) -> dict[str, Any]:
    """What identifies a candidate beside its base; a copy of the base is not the base."""
    return {"base": base.identity, "model": m.identity, "own": m is base}


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
