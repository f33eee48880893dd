"""A short way to convert, and to look at what came of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from oss_tools.cli.main import app
from oss_tools.convert.manifest import Manifest
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import KEEP_ALL, Recipe
from oss_tools.models import open_checkpoint
from oss_tools.verify import verify

EXTENSION = {"hf": "", "original": "", "gguf": ".gguf", "ready": ".ready"}
Synthetic = Callable[..., Path]


def convert(source: Path, destination: Path, container: str, recipe: Recipe = KEEP_ALL, **options: object) -> Manifest:
    """Plans and runs a conversion."""
    with open_checkpoint(source) as checkpoint:
        return run(make_plan(checkpoint, container, recipe), destination, Options(jobs=2, **options))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a checkpoint folder but the manifest, by name."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "oss-tools-manifest.json"}


def assert_equal(a: Path, b: Path) -> None:
    """Two checkpoints that must be the same model."""
    with open_checkpoint(a) as x, open_checkpoint(b) as y:
        result = verify(x, y)
    assert result.equal, (result.said, result.differences[:3])
    assert result.compared == result.identical > 5


def convert_command(*arguments: object) -> tuple[int, str]:
    """Status and what was said on stderr, by lines that end a verb."""
    done = CliRunner().invoke(app, ["convert", *map(str, arguments), "-q"])
    return done.exit_code, done.stderr


def copied(source: Path, to: Path) -> Path:
    return Path(shutil.copytree(source, to)) if source.is_dir() else Path(shutil.copy(source, to))
