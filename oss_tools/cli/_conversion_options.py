"""The options that `convert`, `requantize`, `merge` and `synth` share: what is made of a model, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._groups import options
from oss_tools.cli._options import Jobs, ShardSize, model_path

if TYPE_CHECKING:
    from oss_tools.convert.options import Options
    from oss_tools.convert.recipe import Recipe

FILES = {".gguf": "gguf", ".ready": "ready"}  # containers that are one file, by its extension


def help_lists() -> dict[str, list[tuple[str, str]]]:
    """The formats that can be written and the recipes there are, for help texts."""
    from oss_tools.convert.recipe import load_recipe, recipe_names, writable_formats
    from oss_tools.formats import get_format

    return {
        "Formats": [(name, get_format(name).summary) for name in writable_formats()],
        "Recipes": [(name, load_recipe(name).description) for name in recipe_names()],
    }


def complete_format(incomplete: str) -> list[str]:
    from oss_tools.convert.recipe import writable_formats

    return [name for name in writable_formats() if name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    from oss_tools.convert.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


Source = Annotated[
    Path,
    typer.Argument(
        metavar="SRC",
        parser=model_path,
        help="A checkpoint: its path, the owner/name of a download, or tiny (the embedded model).",
    ),
]
Destination = Annotated[Path, typer.Argument(metavar="DST", help="The folder, .gguf or .ready file to make.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        autocompletion=complete_format,
        help="Give every matrix except the router this number format.",
    ),
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        metavar="RECIPE",
        autocompletion=complete_recipe,
        help="Take the formats from this recipe: a name from the list below, or a .yaml file.",
    ),
]
Container = Annotated[
    str,
    typer.Option(
        "--container",
        "-c",
        metavar="hf|original|gguf|ready",
        help="The container to write. [default: by DST's extension, else the source's, else hf]",
    ),
]
Importance = Annotated[
    Path | None,
    typer.Option(
        "--importance",
        metavar="FILE",
        help="Round with these importance weights: an imatrix of `calibrate` or llama.cpp, or a safetensors file.",
    ),
]
Rule = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="RULE",
        help="How to round to a format that offers a choice: search, plain, floor, …; may be repeated.",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="MODULE", help="Leave this module as it is (a name or a pattern); may be repeated."),
]
Fallback = Annotated[
    list[str] | None,
    typer.Option(
        "--fallback",
        metavar="FORMAT",
        autocompletion=complete_format,
        help="The format for tensors that cannot have the recipe's; may be repeated.",
    ),
]
NoFallback = Annotated[
    bool, typer.Option("--no-fallback", help="Refuse a checkpoint with a tensor that cannot have the recipe's format.")
]
OnNonfinite = Annotated[
    str, typer.Option("--on-nonfinite", metavar="refuse|clamp", help="What to do with NaN and infinity.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run; the result has the same bytes.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace DST, or start an interrupted run again from the beginning.")
]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="Read the output back and compare its hashes.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]


@options
class TargetOptions:
    """What is made of a model: the container, and the format of each tensor."""

    container: Container = ""
    format: Format = ""
    recipe: RecipeName = ""
    rule: Rule = None
    keep: Keep = None
    fallback: Fallback = None
    no_fallback: NoFallback = False
    importance: Importance = None

    def __post_init__(self) -> None:
        check_format_or_recipe(self.format, self.recipe)
        if self.fallback and self.no_fallback:
            raise typer.BadParameter("--fallback and --no-fallback exclude each other")

    def chosen_recipe(self) -> Recipe:
        """The recipe that the options describe; keeping everything if they name neither format nor recipe."""
        from oss_tools.convert.recipe import KEEP_ALL, load_recipe, recipe_of_format

        named = recipe_of_format(self.format) if self.format else load_recipe(self.recipe) if self.recipe else KEEP_ALL
        chosen = named.falling_back(tuple(self.fallback)) if self.fallback else named
        for rule in self.rule or ():
            chosen = chosen.quantizing_by(rule)
        if self.keep:
            chosen = chosen.keeping(tuple(self.keep))
        return chosen.without_fallback() if self.no_fallback else chosen


def check_format_or_recipe(format: str, recipe: str) -> None:
    if format and recipe:
        raise typer.BadParameter("--format and --recipe exclude each other")


@options
class WritingOptions:
    """How a checkpoint is written."""

    shard_size: ShardSize = None
    on_nonfinite: OnNonfinite = "refuse"
    resume: Resume = False
    overwrite: Overwrite = False
    verify: Verify = True
    dry_run: DryRun = False
    jobs: Jobs = 0

    def __post_init__(self) -> None:
        if self.on_nonfinite not in ("refuse", "clamp"):
            raise typer.BadParameter(f"{self.on_nonfinite!r} is not one of refuse, clamp", param_hint="--on-nonfinite")

    def options(self) -> Options:
        """As the pipeline takes them."""
        from oss_tools.convert.options import Options

        return Options(self.jobs, self.shard_size, self.resume, self.overwrite, self.verify, self.on_nonfinite)
