"""What an unfinished pass leaves on the disk, so that another run goes on behind it and ends with the same bytes.

A folder with `state.json`, which names two files: the hidden states after an operation (float32, exact), and the arrays of the
visitor. New files are written first; `state.json` is replaced last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oss_tools.checkpoints.files import full_disk_is_no_room, replace_file
from oss_tools.errors import BadCheckpoint, BadRequest

STATE = "state.json"
FILES = (("hidden", ".f32"), ("visitor", ".npz"))


@dataclass(frozen=True)
class Position:
    """Where a pass stands.

    Attributes:
        number: of the last operation that was carried out.
        hidden: its result, float32 [N, width].
        arrays: the visitor's.
        done: multiplications so far.
    """

    number: int
    hidden: np.ndarray
    arrays: dict[str, np.ndarray]
    done: int


class Kept:
    """The folder of a pass."""

    def __init__(self, folder: Path, facts: Mapping[str, str]) -> None:
        """facts: what another run must share with this one to go on: what it is, in words -> its value, or its hash."""
        self.folder, self._facts = folder, dict(facts)

    @property
    def exists(self) -> bool:
        return (self.folder / STATE).exists()

    def write(self, position: Position) -> None:
        """Raises NoRoom if the disk is full."""
        with full_disk_is_no_room(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            hidden, arrays = (self.folder / f"{what}-{position.number}{kind}" for what, kind in FILES)
            with hidden.open("wb") as file:
                file.write(memoryview(np.ascontiguousarray(position.hidden)).cast("B"))
                file.flush()
                os.fsync(file.fileno())
            with arrays.open("wb") as file:
                np.savez(file, **position.arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            state = {
                "facts": self._facts,
                "number": position.number,
                "shape": list(position.hidden.shape),
                "done": position.done,
            }
            replace_file(self.folder / STATE, json.dumps(state))
        for what, kind in FILES:
            for old in set(self.folder.glob(f"{what}-*{kind}")) - {hidden, arrays}:
                old.unlink()

    def read(self) -> Position:
        """Raises BadRequest if it is of another run, in words that say what differs; BadCheckpoint if it is damaged."""
        try:
            state = json.loads((self.folder / STATE).read_bytes())
            theirs, number, shape, done = state["facts"], int(state["number"]), tuple(state["shape"]), int(state["done"])
        except (OSError, ValueError, TypeError, KeyError):
            raise self._damaged(STATE) from None
        if other := ", ".join(fact for fact, value in self._facts.items() if theirs.get(fact) != value):
            raise BadRequest(f"{self.folder}: is of a run that differs in {other}; --overwrite starts anew")
        hidden, arrays = (self.folder / f"{what}-{number}{kind}" for what, kind in FILES)
        try:
            values = np.fromfile(hidden, np.float32).reshape(shape)
            with np.load(arrays, allow_pickle=False) as file:
                return Position(number, values, {name: file[name] for name in file.files}, done)
        except (OSError, ValueError, EOFError, KeyError):
            raise self._damaged(hidden.name) from None

    def _damaged(self, name: str) -> BadCheckpoint:
        return BadCheckpoint(f"{self.folder / name}: is damaged; --overwrite starts anew")
