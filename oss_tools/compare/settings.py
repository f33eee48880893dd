"""How to compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oss_tools.chat.messages import Effort
from oss_tools.compare import latency
from oss_tools.errors import BadRequest
from oss_tools.harness.suites import SuiteTask, load_suite

SUITES = ("math", "health", "tool_use")


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
        repeats: answers to each question; None for the task's own number.
        drift: of `drift.KINDS`; depths: tokens of context at which it is measured.
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
    repeats: int | None = None
    drift: tuple[str, ...] = ()
    depths: tuple[int, ...] = (0, 1024, 2048, 4096, 8192, 16384, 32768)

    @property
    def engine(self) -> dict[str, Any]:
        """On which predictions and answers depend."""
        timing = self.timing
        chosen = {} if timing.cache is None else {"kv_cache": timing.cache}
        return {"backend": timing.backend, "activations": timing.activations, **chosen}

    def loading(self, engines: int = 1) -> dict[str, Any]:
        """Arguments of `Engine.load`, for one of so many engines that share the memory that was given."""
        t = self.timing
        names = ("backend", "threads", "activations", "cache", "load")
        return {**{name: getattr(t, name) for name in names}, "memory": t.memory and t.memory // engines}

    def tasks(self) -> list[tuple[str, SuiteTask]]:
        """(suite, task). Raises BadRecipe for an unknown suite, BadRequest for a tier without tasks."""
        found = [(name, task) for name in self.suites for task in load_suite(name).tiers.get(self.tier, ())]
        if self.suites and not found:
            raise BadRequest(f"the suites {', '.join(self.suites)} have no tasks in the tier {self.tier!r}")
        return found
