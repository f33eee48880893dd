"""A checkpoint of random weights that are drawn when they are read: of any size, it needs neither disk nor memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from oss_tools.checkpoints import Metadata
from oss_tools.convert.drawing import draw
from oss_tools.convert.recipe import load_recipe
from oss_tools.convert.synth import Shape, plan_synthesis
from oss_tools.formats import QTensor
from oss_tools.models import Checkpoint, Entry, Placement

CONTAINERS = {"mxfp4": "hf", "bf16": "hf"}  # by recipe; another's formats are GGUF's


class SyntheticCheckpoint(Checkpoint):
    """What `oss-tools synth` would write, tensor by tensor, without a tokenizer."""

    def __init__(self, shape: Shape, recipe: str = "", seed: int = 0) -> None:
        """Raises BadCheckpoint for an impossible shape, BadRecipe or BadTensor where the recipe cannot be followed."""
        recipe = recipe or shape.recipe
        synthesis = plan_synthesis(shape, CONTAINERS.get(recipe, "gguf"), load_recipe(recipe), seed)
        self.path = Path(shape.name)
        self.container = synthesis.container
        self.architecture = synthesis.architecture
        self.entries = {entry.name: _whole(entry) for entry in synthesis.entries}
        self._seed = seed

    def read(self, name: str, matrix: int, start: int, stop: int) -> QTensor:
        return draw(self.entries[name], self.architecture, self._seed, matrix, start, stop)

    def panels(self, names: Sequence[str], interleave: bool) -> None:
        """Nothing lies in a file."""

    def is_in_panels(self, name: str) -> bool:
        return False

    def metadata(self) -> Metadata:
        return Metadata(self.architecture.hf_config())

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    def close(self) -> None:
        """Nothing is open."""


def _whole(entry: Entry) -> Entry:
    """The tensor as one piece of its own, whatever places a container would give it: any rows can be read."""
    _, rows, _ = entry.spec.matrices
    return replace(entry, placements=(Placement(entry.name, entry.spec.shape, rows, rows),))
