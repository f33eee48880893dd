"""Matrices that were rounded in a pass over a text, as they wait on the disk until the files are written.

A folder with a folder for each matrix: `PLANE.bin`, the rows of a plane of the format, one behind the other, and `facts.json`. A
matrix's folder gets its name when it is complete.

Not NumPy's own files: their headers are parsed as Python, which before CPython 3.13 fails now and then where several threads do
so ("AST constructor recursion depth mismatch", https://github.com/python/cpython/issues/106905). Rows are read in threads.
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
                plane.tofile(made / f"{name}.bin")
            (made / FACTS).write_text(json.dumps({"rows": tensor.shape[0], **asdict(facts)}))
            made.rename(place)

    def read(self, number: int, matrix: int, format: Format, columns: int, start: int, stop: int | None) -> QTensor:
        """Rows of a matrix. Raises BadCheckpoint if the folder is damaged."""
        place, planes = self._place(number, matrix), {}
        rows, _ = self._read_facts(place)
        try:
            start, stop, _ = slice(start, stop).indices(rows)
            for name, plane in format.planes(columns).items():
                file, width = place / f"{name}.bin", plane.columns * np.dtype(plane.dtype).itemsize
                if file.stat().st_size != rows * width:
                    raise ValueError("of another size")
                stored = np.fromfile(file, plane.dtype, (stop - start) * plane.columns, offset=start * width)
                planes[name] = stored.reshape(stop - start, plane.columns)
        except (OSError, ValueError) as error:
            raise _damaged(place, error) from None
        return QTensor(format, (stop - start, columns), planes)

    def facts(self, number: int, matrix: int) -> Facts:
        """Raises BadCheckpoint if the folder is damaged."""
        return self._read_facts(self._place(number, matrix))[1]

    @staticmethod
    def _read_facts(place: Path) -> tuple[int, Facts]:
        """How many rows the matrix has, and what is known of it."""
        try:
            stored = json.loads((place / FACTS).read_bytes())
            return int(stored.pop("rows")), Facts(**stored)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise _damaged(place, error) from None


def _damaged(place: Path, error: Exception) -> BadCheckpoint:
    return BadCheckpoint(f"{place}: damaged ({error}); --overwrite starts anew")
