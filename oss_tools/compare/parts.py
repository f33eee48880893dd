"""Finished parts of a comparison, kept by what they depend on: program, bytes of models, settings; never names or dates."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.files import replace_file
from oss_tools.escapes import json_text
from oss_tools.machine.program import program

SCHEMA = 1


class Parts:
    """A folder of finished parts, one JSON file each: {"about": …, "seconds": …, "result": …}."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._seconds: dict[str, float] = {}  # by key, of the parts asked for

    @property
    def seconds(self) -> float:
        """Of work that the parts asked for so far took, whenever it was done."""
        return sum(self._seconds.values())

    def key(self, kind: str, about: Mapping[str, Any]) -> str:
        """A part's name: its kind, and the hash of all that its result depends on."""
        whole = json.dumps({"schema": SCHEMA, "program": program(), **about}, sort_keys=True, ensure_ascii=False)
        return f"{kind}-{hashlib.sha256(whole.encode()).hexdigest()[:24]}"

    def has(self, kind: str, about: Mapping[str, Any]) -> bool:
        return self._read(self.key(kind, about)) is not None

    def get(self, kind: str, about: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The result, as JSON has it, found or made."""
        key = self.key(kind, about)
        part = self._read(key)
        if part is None:
            began = time.perf_counter()
            result = make()
            part = self.put(kind, about, result, time.perf_counter() - began)
        self._seconds[key] = part["seconds"]
        return part["result"]

    def put(self, kind: str, about: Mapping[str, Any], result: Any, seconds: float) -> Any:
        """Keeps a result; the part as it will be found."""
        file = self.folder / f"{self.key(kind, about)}.json"
        text = json_text({"about": dict(about), "seconds": seconds, "result": result}, allow_nan=False)
        replace_file(file, text + "\n", private=True)
        return json.loads(text)

    def drop(self, kind: str, about: Mapping[str, Any]) -> None:
        """Forgets a part whose result is gone."""
        (self.folder / f"{self.key(kind, about)}.json").unlink(missing_ok=True)

    def _read(self, key: str) -> Any | None:
        """A part; None where it is missing or damaged (it is then made again)."""
        try:
            part = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        whole = isinstance(part, dict) and {"seconds", "result"} <= set(part)
        return part if whole else None
