"""A short way to convert, and to look at what came of it."""

from pathlib import Path

from oss_tools.convert.manifest import Manifest
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import KEEP_ALL, Recipe
from oss_tools.models import open_checkpoint


def convert(source: Path, destination: Path, container: str, recipe: Recipe = KEEP_ALL, **options: object) -> Manifest:
    """Plans and runs a conversion."""
    with open_checkpoint(source) as checkpoint:
        return run(make_plan(checkpoint, container, recipe), destination, Options(jobs=2, **options))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a checkpoint folder but the manifest, by name."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "oss-tools-manifest.json"}
