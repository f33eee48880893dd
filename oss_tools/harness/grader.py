"""Asks a model behind an OpenAI-compatible endpoint for grades, many at once, and keeps every grade that it gave.

An answer that is no grade (`grades`) is asked for again and then counted apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

from oss_tools.download.failures import Transient
from oss_tools.endpoints.client import LARGEST_ANSWER as LARGEST_ANSWER
from oss_tools.endpoints.client import Client, text_of, tokens_of
from oss_tools.errors import BadRecipe
from oss_tools.harness.grader_settings import GraderSettings as GraderSettings
from oss_tools.harness.grades import Grade, GradeCache, read_grade

CHARACTERS_A_TOKEN = 4  # of English, about; for estimates


@dataclass
class Tally:
    """What grading took.

    Attributes:
        graded: asked and answered in this run; `kept`: found among the grades of earlier runs.
        ungraded: for which the grader gave no grade, however often it was asked.
        retries: after failures; `malformed`: answers that were no grades.
        prompt_tokens, tokens: as the server counts them.
    """

    graded: int = 0
    kept: int = 0
    ungraded: int = 0
    retries: int = 0
    malformed: int = 0
    prompt_tokens: int = 0
    tokens: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class Grader:
    """Grades prompts. Close it, or use it in a `with`.

    Attributes:
        tally: what grading took so far.
    """

    def __init__(
        self,
        settings: GraderSettings,
        cache: GradeCache | None = None,
        *,
        report: Callable[[int, int], None] = lambda done, total: None,
        say: Callable[[str], None] = lambda line: None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """
        Args:
            cache: of earlier grades; they are not asked for again.
            report: called with grades done and wanted.
            say: is told, in a line, of every retry.
            sleep: between tries; None sleeps until another request fails for good.

        Raises BadRecipe.
        """
        self.settings, self.cache = settings, GradeCache() if cache is None else cache
        self.report = report
        self.tally = Tally()
        self._lock = threading.Lock()
        self._client = Client(
            settings.endpoint(), say=say, sleep=sleep, retried=lambda: self._count(retries=1), kept=self._what_is_kept
        )

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()
        self.cache.close()

    def key_of(self, prompt: str) -> str:
        """Names a grade: who gives it, and all that it is given on."""
        return hashlib.sha256(json.dumps([self.settings.model, prompt]).encode()).hexdigest()

    def grade(self, prompts: Sequence[str]) -> list[Grade | None]:
        """The grades of prompts, in their order; None where the grader gave none.

        Raises BadSource if the server refuses, Unreachable if it does not answer. The grades that came until then are kept.
        """
        keys = [self.key_of(prompt) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if self.cache.get(key) is None}
        done = len(set(keys)) - len(missing)
        self.tally.kept += done
        total = len(set(keys))
        self.report(done, total)
        for _ in self._client.each(self._ask_until_graded, missing.items()):
            done += 1
            self.report(done, total)
        return [self.cache.get(key) for key in keys]

    def _what_is_kept(self) -> str:
        return f"{len(self.cache)} grades are kept, and the same command goes on from them"

    def _ask_until_graded(self, keyed: tuple[str, str]) -> None:
        """Gets one grade."""
        key, prompt = keyed
        for attempt in range(self.settings.malformed_tries):
            body = {
                "model": self.settings.model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": self.settings.max_tokens,
                "temperature": 0.0 if attempt == 0 else 1.0,  # the same question would get the same malformed answer
            }
            grade = read_grade(self._client.post(body, self._text))
            if grade is not None:
                grade = Grade(grade.criteria_met, self._client.blotted(grade.explanation))
                self.cache.add(key, grade, self.settings.model)
                self._count(graded=1)
                return
            self._count(malformed=1)
        self._count(ungraded=1)

    def _text(self, answer: Any) -> str:
        """The message of an answer. Raises Transient if it is none, as of a proxy in trouble."""
        try:
            content = answer["choices"][0]["message"]["content"]
            usage: Mapping[str, Any] = answer.get("usage") or {}
        except (KeyError, IndexError, TypeError, AttributeError):
            raise Transient("an answer that is no chat completion") from None
        self._count(prompt_tokens=tokens_of(usage, "prompt_tokens"), tokens=tokens_of(usage, "completion_tokens"))
        return text_of(content)

    def _count(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self.tally, name, getattr(self.tally, name) + count)


def about_tokens(text: str) -> int:
    """An estimate of the tokens of a text."""
    return -(-len(text) // CHARACTERS_A_TOKEN)


_CURRENT: ContextVar[Grader | None] = ContextVar("grader", default=None)


@contextlib.contextmanager
def grading_with(grader: Grader) -> Iterator[Grader]:
    """Within it, tasks that need a grader find this one."""
    token = _CURRENT.set(grader)
    try:
        yield grader
    finally:
        _CURRENT.reset(token)


def current_grader() -> Grader:
    """Raises BadRecipe if there is none."""
    grader = _CURRENT.get()
    if grader is None:
        raise BadRecipe("HealthBench is graded by a model: name one with --grader-url and --grader-model")
    return grader
