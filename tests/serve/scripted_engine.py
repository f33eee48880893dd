"""A model that says what it is told to: for tests of what is made of a model's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.engine.backend import Backend, Run
from oss_tools.engine.engine import Engine
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource


@dataclass(eq=False)
class Said:
    """Which of the answers a sequence gives, and how many of its tokens it has given."""

    answer: int
    given: int = 0


class ScriptedBackend(Backend):
    """The first sequence gives the first answer, and so on, over and over."""

    name = "scripted"
    chunk, rows, sequences, recent = 512, 64, 64, 512

    def __init__(self, answers: Sequence[Sequence[int]], vocabulary: int) -> None:
        self.answers, self.vocabulary = answers, vocabulary
        self.opened = 0
        self.prompts: list[list[int]] = []  # what each sequence was given and has said
        self._owners: list[Said] = []

    @classmethod
    def weight_bytes(cls, checkpoint: Any, options: Any) -> int:
        return 0

    @classmethod
    def position_bytes(cls, architecture: Any, options: Any) -> int:
        return 0

    def open(self, capacity: int) -> Said:
        self.opened += 1
        self.prompts.append([])
        return Said(self.opened - 1)

    def grow(self, cache: Said, capacity: int) -> None:
        """Nothing is kept."""

    def fork(self, cache: Said, length: int, capacity: int) -> Said:
        raise NotImplementedError

    def run(self, runs: list[Run]) -> None:
        self._owners = [run.cache for run in runs for _ in run.tokens]
        for run in runs:
            self.prompts[run.cache.answer] += run.tokens.tolist()

    def logits(self, rows: np.ndarray) -> np.ndarray:
        found = np.full((len(rows), self.vocabulary), -100.0, np.float32)
        for logits, row in zip(found, rows, strict=True):
            said = self._owners[row]
            answer = self.answers[said.answer % len(self.answers)]
            logits[answer[min(said.given, len(answer) - 1)]] = 0
            said.given += 1
        return found

    def read_cache(self, cache: Said, start: int, stop: int) -> np.ndarray:
        return np.zeros((stop - start, 1))

    def write_cache(self, cache: Said, start: int, block: np.ndarray) -> None:
        """Nothing is kept."""

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """There are no threads."""


def scripted_engine(*answers: str | Sequence[int], context: int = 4096, prefix_budget: int = 0) -> Engine:
    """An engine with the embedded model's tokenizer and template that gives these answers: harmony with special tokens by their
    names, or tokens."""
    with open_checkpoint(Path(resource("tiny/checkpoint"))) as checkpoint:
        metadata, architecture = checkpoint.metadata(), checkpoint.architecture
    engine = Engine(architecture, ScriptedBackend([], 1), context, prefix_budget, metadata)
    engine.backend.vocabulary = len(engine.text.numbers())
    tokens = [engine.text.encode(answer, special=False) if isinstance(answer, str) else list(answer) for answer in answers]
    engine.backend.answers = tokens  # type: ignore[attr-defined]
    return engine
