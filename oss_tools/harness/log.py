"""Answers as they come: a file of JSON lines keyed by request, from which a run that was broken off goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.files import replace_file
from oss_tools.errors import BadRecipe
from oss_tools.escapes import json_text


def request_key(kind: str, content: bytes, **settings: Any) -> str:
    """What tells requests apart: what is asked and how it is to be answered."""
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    digest.update(content)
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


class AnswerLog:
    """Answers by request key, in a file and in memory.

    The file's first line says what was asked of which model; a run goes on only where that is the same.
    """

    def __init__(
        self,
        file: Path | None = None,
        about: Mapping[str, Any] | None = None,
        resume: bool = False,
        known: Iterable[str] = (),
    ) -> None:
        """Without a file, answers are kept in memory only. `known`: keys of answers that are kept elsewhere. Raises BadRecipe if
        `resume` finds a run of something else."""
        self._known: dict[str, dict[str, Any]] = {key: {} for key in known}
        self._stream = None
        if file is None:
            return
        header: dict[str, Any] = json.loads(json.dumps(dict(about or {})))
        if resume and file.exists():
            self._take_up(file, header)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, json.dumps(header) + "\n", private=True)
        self._stream = file.open("a", encoding="utf-8")

    def _take_up(self, file: Path, about: dict[str, Any]) -> None:
        """Reads a file up to its last whole line; what a broken write left behind that is cut off."""
        good = 0
        with file.open("rb") as lines:
            for number, line in enumerate(lines):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    break
                if not line.endswith(b"\n") or not isinstance(row, dict):
                    break
                if number == 0 and row != about:
                    raise BadRecipe(
                        f"{file} is of another run: {_difference(row, about)}; give another --output, or no --resume"
                    )
                if number:
                    self._known[str(row.get("key"))] = row
                good += len(line)
        if not good:
            replace_file(file, json.dumps(about) + "\n", private=True)
            return
        with file.open("rb+") as stream:
            stream.truncate(good)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._known[key]

    def rows(self) -> Iterator[dict[str, Any]]:
        yield from self._known.values()

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Keeps an answer; it is in the file when this returns."""
        self._known[key] = {"key": key, **row}
        if self._stream is not None:
            self._stream.write(json_text(self._known[key]) + "\n")
            self._stream.flush()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names)
