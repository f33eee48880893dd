"""The record of a comparison, put together from its parts."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from oss_tools.compare import answers, latency
from oss_tools.compare.models import Member
from oss_tools.compare.settings import Settings
from oss_tools.harness.suites import SuiteTask
from oss_tools.machine.description import machine, versions
from oss_tools.report.comparison import Candidate, Environment
from oss_tools.statistics.repeats import timing

RECORD = "comparison.json"
PACKAGES = ("numpy", "numba", "scipy", "lm-eval", "tokenizers")


def candidate_of(m: Member) -> Candidate:
    """With what its checkpoint tells."""
    names = ("name", "recipe", "formats", "container", "sha256", "size", "parameters", "bits_per_weight")
    return Candidate(path=without_home(m.path), **{name: getattr(m, name) for name in names})


def without_home(path: Path) -> str:
    """A path for a record, which others will read: without the user's name."""
    home = os.path.expanduser("~")
    return str(path).replace(home, "~", 1) if path.is_relative_to(home) and home != "/" else str(path)


def add_scores(
    found: dict[str, Candidate],
    tasks: Sequence[tuple[str, SuiteTask]],
    base: str,
    said: Mapping[str, dict[str, Any]],
    seed: int,
) -> None:
    """Adds what each one's answers to the (suite, task) are worth, beside the base's. said: answers by name and task."""
    others = {name: answered for name, answered in said.items() if name != base}
    differences = answers.differences(said[base], others, seed) if tasks else {}
    for name, answered in said.items():
        scores = [
            answers.task_score(task, suite, answered[task.task], differences.get(name, {}).get(task.task))
            for suite, task in tasks
        ]
        changes = answers.changes(said[base], answered) if name != base else []
        findings = [*found[name].findings, *answers.task_findings(scores, base)]
        found[name] = replace(found[name], tasks=scores, changes=changes, findings=findings)


def add_times(found: dict[str, Candidate], times: Mapping[str, dict[str, Any]], base: str, how: latency.Settings) -> None:
    """Adds latencies, load times and memory. times: by name its own rounds, and the base's among which they were taken."""
    for name, rounds in times.items():
        own = rounds["own"]
        found[name] = replace(
            found[name],
            latency=latency.latency(own, None if name == base else rounds["base"], how),
            load_seconds=timing(own["load_seconds"]),
            peak_bytes=own["peak_bytes"],
            library_bytes=own["library_bytes"],
            weight_bytes=own["weight_bytes"],
        )


def environment(settings: Settings, seconds: float, reference: Sequence[float] | None) -> Environment:
    """Where and how the figures were made. reference: the times of the reference kernel, None where no times were taken."""
    return Environment(
        machine(),
        versions(*PACKAGES),
        {**plain(asdict(settings)), "timing": asdict(settings.timing)},
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds,
        latency.REFERENCE if reference is not None else "",
        timing(reference) if reference is not None else None,
    )


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
