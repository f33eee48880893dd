"""A checkpoint whose answers are there already: it is spoken to in its own words, but its weights are not loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request, Scores, Token
from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest
from oss_tools.harness.answerer import Answerer
from oss_tools.harness.lm import EngineLM
from oss_tools.models import open_checkpoint

OTHERS = "the answers that came are to other requests than those of this machine; is --data the same on every node?"


class _Voice(Engine):
    """Tokenizer, templates and context of a checkpoint. Raises BadRequest where something is to be computed."""

    def __init__(self, path: Path, context: int) -> None:
        with open_checkpoint(path) as checkpoint:
            self.metadata, self.architecture = checkpoint.metadata(), checkpoint.architecture
        self._text, self.context, self.computed = Text(self.metadata), context, 0

    def generate_batch(self, requests: list[Request], batch: int = 8) -> Iterator[tuple[int, Token]]:
        if requests:
            raise BadRequest(OTHERS)
        yield from ()

    def score(self, requests: list[tuple[list[int], int]], progress: Callable[[int], None] = lambda n: None) -> list[Scores]:
        if requests:
            raise BadRequest(OTHERS)
        return []


class AnsweredSubject:
    """What `evaluate` takes in place of an engine where a log has every answer.

    Args:
        settings, facts: as the subjects gave them that answered.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self._settings, self._facts = dict(settings), dict(facts)
        self._voice = _Voice(path, self._settings["context"])
        self._lm: EngineLM | None = None

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)

    def model(self, *, batch: int, **how: Any) -> Answerer:
        self._lm = EngineLM(self._voice, batch=batch, **how)
        return self._lm

    def prompt(self, task: str, doc: int) -> list[int] | None:
        return self._lm.prompts.get((task, doc)) if self._lm else None
