"""What each part of a comparison depends on. A finished part is found again where all of this is the same (`parts`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from oss_tools.compare import latency
from oss_tools.compare.models import Member
from oss_tools.compare.packs import Pack
from oss_tools.compare.remote import Remote
from oss_tools.compare.settings import Settings
from oss_tools.harness.suites import SuiteTask, task_files
from oss_tools.machine.description import machine
from oss_tools.resources import resource

ASKING = ("tier", "limit", "seed", "reasoning", "max_tokens", "repeats")


class Dependencies:
    """Of the parts of one comparison, which have these settings and tasks."""

    def __init__(self, settings: Settings, tasks: Sequence[SuiteTask]) -> None:
        self._settings, self._tasks = settings, tasks

    def asking(self) -> dict[str, Any]:
        """On which answers depend, beside the model; a pack keeps it."""
        return {name: getattr(self._settings, name) for name in ASKING}

    def packed(self, pack: Pack, m: Member) -> dict[str, Any]:
        """Of the predictions of `m` against a pack."""
        return {"pack": pack.sha256, "model": m.identity, **self._settings.engine}

    def predictions(self, base: Member, m: Member) -> dict[str, Any]:
        """Of the predictions of `m` against the base."""
        files = task_files()
        texts = [resource("evals/text/smoke.jsonl"), *(files[t.task] for t in self._tasks if t.task in files)]
        sums = [_hash(file.with_name("smoke.jsonl")) for file in texts]
        s = self._settings
        chunks = {"chunks": s.chunks, "seed": s.seed if s.chunks else 0}
        return {**pair_of(base, m), **s.engine, "texts": sums, "tasks": [task.task for task in self._tasks], **chunks}

    def answers(self, m: Member | Remote, task: SuiteTask) -> dict[str, Any]:
        """Of a model's answers to a task."""
        s = self._settings
        file = task_files().get(task.task)
        return {
            "model": m.identity,
            **(s.engine if isinstance(m, Member) else {"endpoint": m.endpoint.name}),
            "task": task.task,
            "metric": task.metric,
            "questions": (_hash(file.with_name("smoke.jsonl")) if file else "") or str(s.data),
            **{name: getattr(s, name) for name in ASKING if name != "tier"},
        }

    def margins(self, base: Member, m: Member | Remote) -> dict[str, Any]:
        """Of a model's margins at the base's decisions."""
        asked = [self.answers(base, task) for task in self._tasks]
        return {"model": m.identity, **self._settings.engine, "decisions_of": asked}

    def times(self, base: Member, m: Member) -> dict[str, Any]:
        """Of the times of `m` beside the base."""
        where = {"machine": {k: str(v) for k, v in machine().items()}, "reference": latency.REFERENCE}
        return {**pair_of(base, m), **asdict(self._settings.timing), **where}


def pair_of(base: Member, m: Member) -> dict[str, Any]:
    """What identifies a candidate beside its base; a copy of the base is not the base."""
    return {"base": base.identity, "model": m.identity, "own": m is base}


def _hash(file: Path) -> str:
    """Of a file's bytes; "" where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
