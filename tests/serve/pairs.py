"""The embedded model and a coarser copy of it, which answer alike for a while."""

from __future__ import annotations

from pathlib import Path

from oss_tools.compare.models import make
from oss_tools.convert.recipe import recipe_of_format
from oss_tools.engine.engine import Engine
from oss_tools.resources import resource

TINY = Path(resource("tiny/checkpoint"))
DOSE = "A patient weighs 72 kg. The dose is 5 mg per kg. How many mg are given?"  # they part at it, with seed 7


def load_pair(folder: Path) -> dict[str, Engine]:
    """`tiny`, and `coarse`: every matrix of it in MXFP4."""
    coarse = make(TINY, recipe_of_format("mxfp4"), folder)
    return {"tiny": Engine.load(TINY, threads=2), "coarse": Engine.load(coarse, threads=2)}
