"""The parts of a comparison: weigh, predict, answer, decide, time. Every finished part is kept and found again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.compare import answers, latency, margins, weights
from oss_tools.compare.checks import made_tasks, require_speech, scored_tasks
from oss_tools.compare.dependencies import Dependencies, pair_of
from oss_tools.compare.models import Member
from oss_tools.compare.parts import Parts
from oss_tools.compare.predictions import BaseLogits, Passage, compare_predictions, passages
from oss_tools.compare.remote import Remote
from oss_tools.compare.schedule import Now, Schedule
from oss_tools.compare.settings import Settings
from oss_tools.engine.backend import backend_class
from oss_tools.engine.engine import Engine
from oss_tools.engine.text import Text
from oss_tools.errors import BadSource
from oss_tools.harness.run import Settings as EvalSettings
from oss_tools.harness.subjects import EndpointSubject, EngineSubject, Subject
from oss_tools.harness.suites import SuiteTask
from oss_tools.harness.tasks import require_lm_eval
from oss_tools.models import open_checkpoint
from oss_tools.report.comparison import Finding
from oss_tools.report.fidelity import Fidelity, WeightError
from oss_tools.report.loading import build
from oss_tools.report.scores import Margins


class Measuring:
    """Makes parts: with its settings, in its folder, where they are not finished already."""

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
        self.tasks = scored_tasks(settings.tasks(), say)
        if self.tasks:
            require_lm_eval()
        made, conversations = made_tasks([task for _, task in self.tasks], settings.data, say)
        self.tasks = [(suite, task) for suite, task in self.tasks if task.task in made]
        self.questions = made
        self.depends = Dependencies(settings, [task for _, task in self.tasks])
        for model in models:
            require_speech(model, conversations)
        if fresh:
            for folder in ("parts", "answers"):
                shutil.rmtree(output / folder, ignore_errors=True)
        self.parts = Parts(output / "parts")
        self.schedule = Schedule(report)

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

    def _predictions(self, members: list[Member]) -> dict[str, list[Fidelity]]:
        """The base is loaded once, beside one candidate after the other."""
        base = members[0]
        with ExitStack() as stack:
            loaded: list[tuple[BaseLogits, list[Passage]]] = []  # one, once it is needed
            for m in members:
                depends = self.depends.predictions(base, m)
                if self.parts.has("predict", depends):
                    continue
                if not loaded:
                    engine = stack.enter_context(self._load(base, beside=1))
                    texts = passages(engine, [task for _, task in self.tasks], self.settings.chunks, self.settings.seed)
                    loaded.append((BaseLogits(engine), texts))
                self.parts.get("predict", depends, partial(self._predict, *loaded[0], m, m is base))
        rows = {m.name: self.parts.get("predict", self.depends.predictions(base, m), list) for m in members}
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

    def _answers(self, m: Member | Remote) -> dict[str, Any]:
        """By task; the engine is loaded, the endpoint asked, if anything is missing."""
        missing = [task for _, task in self.tasks if not self.parts.has("answer", self.depends.answers(m, task))]
        if missing:
            with self._subject(m) as subject:
                for task in missing:
                    self.parts.get("answer", self.depends.answers(m, task), partial(self._answer, subject, m, task))
        return {task.task: self.parts.get("answer", self.depends.answers(m, task), dict) for _, task in self.tasks}

    def _answer(self, subject: Subject, m: Member | Remote, task: SuiteTask) -> dict[str, Any]:
        s = self.settings
        with self.schedule.step("answer", f"{task.task} by {m.name}") as advance:
            return answers.answer(
                subject, task, self._eval_settings(), self._folder(m, task), m.identity, s.data, advance, self.say
            )

    def _folder(self, m: Member | Remote, task: SuiteTask) -> Path:
        """Where answers are kept as they come."""
        return self.output / "answers" / self.parts.key(task.task, self.depends.answers(m, task))

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
                values = self.parts.get("margins", self.depends.margins(base, m), partial(self._margins_of, m, decided))
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

    def _margins_of(self, m: Member | Remote, decided: list[margins.Decision]) -> list[float | None]:
        with self.schedule.step("margins", f"margins of {m.name}") as advance:
            if isinstance(m, Member):
                with self._load(m) as engine:
                    values = margins.measure(engine, decided)
            else:
                values = margins.measure_remote(m.endpoint, self._text, decided, self.say, advance)
        return [value if np.isfinite(value) else None for value in values.tolist()]

    def _times(self, members: list[Member]) -> dict[str, dict[str, Any]]:
        """By name: {"own": …, "base": …}, both of the same rounds. Those that are missing take turns with the base."""
        base = members[0]
        missing = [m for m in members if not self.parts.has("time", self.depends.times(base, m))]
        if missing:
            turns = [base, *(m for m in missing if m is not base)]
            began = time.perf_counter()
            with self.schedule.step("time", "timing, in turns: " + ", ".join(m.name for m in turns)) as advance:
                found = latency.contest([(m.name, m.path, m.size) for m in turns], self.settings.timing, advance)
            each = (time.perf_counter() - began) / len(missing)
            for m in missing:
                self.parts.put("time", self.depends.times(base, m), {"own": found[m.name], "base": found[base.name]}, each)
        return {m.name: self.parts.get("time", self.depends.times(base, m), dict) for m in members}

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
        return Engine.load(m.path, **self.settings.loading(1 + beside) | more, say=self.say)
