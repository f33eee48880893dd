"""Grades: what the grader said, read and kept.

A grade is a JSON object {"explanation": text, "criteria_met": true or false}. Grades are kept in a file of JSON lines as they
come, so that a run that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.files import PRIVATE, opener
from oss_tools.escapes import json_text
from oss_tools.harness.nearly_json import Unreadable, read_value

MET, WHY = "criteria_met", "explanation"
BEGINS = re.compile(r"""\{(?=\s*(["'}]|\w+\s*:))""")  # an object, as against a brace in a text
MOST_OBJECTS = 200


@dataclass(frozen=True)
class Grade:
    """What the grader found."""

    criteria_met: bool
    explanation: str


class GradeCache:
    """Grades by key, in a file to which lines are only ever added, and in memory. A line that a kill cut short is passed over."""

    def __init__(self, file: Path | None = None) -> None:
        self._known: dict[str, Grade] = {}
        self._lock = threading.Lock()
        self._stream = None
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        torn = file.exists() and self._read(file)
        self._stream = open(file, "a", encoding="utf-8", opener=opener(PRIVATE))  # noqa: SIM115 (`close` closes it)
        if torn:
            self._stream.write("\n")

    def _read(self, file: Path) -> bool:
        """Whether the last line is cut short."""
        line = b"\n"
        with file.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                    row = json.loads(line)
                    if isinstance(row["criteria_met"], bool):
                        self._known[str(row["key"])] = Grade(row["criteria_met"], str(row["explanation"]))
        return not line.endswith(b"\n")

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Grade | None:
        return self._known.get(key)

    def add(self, key: str, grade: Grade, model: str) -> None:
        line = json_text({"key": key, "model": model, **asdict(grade)})
        with self._lock:
            self._known[key] = grade
            if self._stream is not None:
                self._stream.write(line + "\n")
                self._stream.flush()  # what is written outlives a kill of this process

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def read_grade(text: str) -> Grade | None:
    """The last grade in a text, whatever stands around it; None if there is none.

    What is nearly JSON is read as it is meant. A grade inside of another object counts only where that is none itself.
    """
    found = None
    for value in _objects(text):
        grades = [value] if _is_grade(value) else list(_grades_inside(value))
        if len(grades) == 1:
            why = str(grades[0].get(WHY, "")).encode("utf-8", "replace").decode()  # halves of surrogate pairs are no text
            found = Grade(_truth(grades[0][MET]), why)
    return found


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """The outermost objects of a text, as far as they can be read."""
    at = 0
    for _ in range(MOST_OBJECTS):
        begins = BEGINS.search(text, at)
        if begins is None:
            return
        try:
            value, at = read_value(text, begins.start())
            yield value
        except Unreadable as error:
            if error.broken_off:  # all that follows is inside of it
                return
            at = max(error.at, begins.end())


def _grades_inside(value: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if _is_grade(inner):
            yield inner
        else:
            waiting += inner.values() if isinstance(inner, Mapping) else inner if isinstance(inner, list) else ()


def _is_grade(value: Any) -> bool:
    return isinstance(value, Mapping) and _truth(value.get(MET)) is not None


def _truth(value: Any) -> Any:
    """True or False, also where they are written as texts; None of anything else."""
    word = value.strip().lower() if isinstance(value, str) else value
    return {"true": True, "false": False}.get(word) if isinstance(word, str) else word if isinstance(word, bool) else None
