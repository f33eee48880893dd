"""Matrices that were rounded in a pass over a text, as they wait on the disk until the files are written.

A folder with a folder for each matrix: `PLANE.npy` for each plane of the format, and `facts.json`. A matrix's folder gets its
name when it is complete.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from oss_tools.checkpoints.files import full_disk_is_no_room
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import Format, QTensor

FACTS, COMPLETE = "facts.json", "complete"


@dataclass(frozen=True)
class Facts:
    """Of a matrix that was rounded.

    Attributes:
        source: a hash of the weights that it was.
        before, after: squared errors of the outputs of its first rows, of each value rounded by itself and of the matrix.
        outputs: the squares of these outputs.
        tokens: how many inputs it met.
        alone: whether each value was rounded by itself, for want of inputs or of a matrix that can be factored.
    """

    source: str
    before: float
    after: float
    outputs: float
    tokens: int
    alone: bool


class Rounded:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with full_disk_is_no_room(folder):
            folder.mkdir(exist_ok=True)

    @property
    def is_complete(self) -> bool:
        """Whether the pass has come to its end."""
        return (self.folder / COMPLETE).exists()

    def complete(self) -> None:
        with full_disk_is_no_room(self.folder):
            (self.folder / COMPLETE).touch()

    def _place(self, number: int, matrix: int) -> Path:
        return self.folder / f"{number}-{matrix}"

    def has(self, number: int, matrix: int) -> bool:
        return self._place(number, matrix).is_dir()

    def write(self, number: int, matrix: int, tensor: QTensor, facts: Facts) -> None:
        """number: of the tensor. Raises NoRoom if the disk is full."""
        place = self._place(number, matrix)
        made = place.with_name(f"{place.name}.new")
        shutil.rmtree(made, ignore_errors=True)
        with full_disk_is_no_room(self.folder):
            made.mkdir()
            for name, plane in tensor.planes.items():
                np.save(made / f"{name}.npy", plane, allow_pickle=False)
            (made / FACTS).write_text(json.dumps(asdict(facts)))
            made.rename(place)

    def read(self, number: int, matrix: int, format: Format, columns: int, start: int, stop: int | None) -> QTensor:
        """Rows of a matrix. Raises BadCheckpoint if the folder is damaged."""
        place, planes = self._place(number, matrix), {}
        try:
            for name, plane in format.planes(columns).items():
                stored = np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                if stored.dtype != plane.dtype or stored.ndim != 2 or stored.shape[1] != plane.columns:
                    raise ValueError("of another shape")
                planes[name] = np.array(stored[start:stop])
        except (OSError, ValueError, EOFError) as error:
            raise BadCheckpoint(f"{place}: damaged ({error}); --overwrite starts anew") from None
        rows = next(iter(planes.values())).shape[0]
        return QTensor(format, (rows, columns), planes)

    def facts(self, number: int, matrix: int) -> Facts:
        """Raises BadCheckpoint if the folder is damaged."""
        place = self._place(number, matrix)
        try:
            return Facts(**json.loads((place / FACTS).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise BadCheckpoint(f"{place}: damaged ({error}); --overwrite starts anew") from None
