"""Make a checkpoint of random weights in a named shape.

The result loads wherever a real checkpoint of that architecture does. It has a byte-level tokenizer, and its activations
stay finite. The same seed gives the same bytes on every machine.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from oss_tools.cli._conversion_options import FILES, Format, RecipeName, check_format_or_recipe
from oss_tools.cli._conversion_options import help_lists as lists_of_formats
from oss_tools.cli._options import Jobs, JsonFlag, QuietFlag, ShardSize, format_size, threads
from oss_tools.cli._output import print_facts, print_json, progress, remark

EXAMPLES = """
oss-tools synth gpt-oss-tiny tiny/
oss-tools synth gpt-oss-20b fake-20b/ --seed 7
oss-tools synth gpt-oss-20b one-layer.gguf --layers 1
oss-tools synth gpt-oss-20b skewed.ready --router skewed
oss-tools synth path/to/config.json fake/ --format bf16
"""


def help_lists() -> dict[str, list[tuple[str, str]]]:
    """The shapes, formats and recipes there are."""
    from oss_tools.convert.synth import load_shape, shape_names

    return {"Shapes": [(name, load_shape(name).description) for name in shape_names()], **lists_of_formats()}


def complete_shape(incomplete: str) -> list[str]:
    from oss_tools.convert.synth import shape_names

    return [name for name in shape_names() if name.startswith(incomplete)]


def run(
    shape: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", autocompletion=complete_shape, help="A shape's name, a .yaml file, or a config.json."
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder, .gguf or .ready file to make.")],
    seed: Annotated[int, typer.Option("--seed", help="The seed of the random weights.")] = 0,
    format: Format = "",
    recipe: RecipeName = "",
    container: Annotated[
        str,
        typer.Option(
            "--container",
            "-c",
            metavar="hf|original|gguf|ready",
            help="The container to write. [default: by DST's extension, else hf]",
        ),
    ] = "",
    layers: Annotated[
        int,
        typer.Option(
            "--layers", min=0, help="How many layers to make. [default: as many as the shape has]", show_default=False
        ),
    ] = 0,
    router: Annotated[
        str,
        typer.Option(
            "--router",
            metavar="even|skewed",
            help="even: all experts are chosen equally often; skewed: some more often, as in published traces "
            "(Zipf, exponent 0.65).",
        ),
    ] = "even",
    shard_size: ShardSize = None,
    jobs: Jobs = 0,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    from oss_tools.convert import synth
    from oss_tools.convert.recipe import load_recipe, recipe_of_format

    check_format_or_recipe(format, recipe)
    model = synth.load_shape(shape)
    if layers:
        model = model.with_layers(layers)
    chosen = recipe_of_format(format) if format else load_recipe(recipe) if recipe else None
    container = container or FILES.get(destination.suffix, "hf")
    synthesis = synth.plan_synthesis(model, container, chosen, seed, router)
    by_note: dict[str, list[str]] = {}
    for name, note in synthesis.notes:
        by_note.setdefault(note, []).append(name)
    for note, names in by_note.items():
        remark(f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {note}")
    start = time.perf_counter()
    with progress({"synth": synthesis.nbytes}, quiet=quiet) as advance:
        made = synth.synthesize(
            synthesis,
            destination,
            threads=threads(jobs),
            shard_size=shard_size,
            advance=lambda nbytes: advance("synth", nbytes),
        )
    seconds = time.perf_counter() - start
    record = {
        "path": str(made),
        "shape": model.name,
        "container": container,
        "parameters": sum(entry.spec.size for entry in synthesis.entries),
        "bytes": synthesis.nbytes,
        "seed": seed,
        "router": router,
        "seconds": seconds,
    }
    if as_json:
        print_json(record)
        return
    print_facts(
        {
            "made": made,
            "shape": f"{model.name}, {record['parameters']:,} parameters",
            "tensor bytes": f"{synthesis.nbytes:,} ({format_size(synthesis.nbytes)})",
            "time": f"{seconds:.1f} s, {format_size(synthesis.nbytes / seconds)}/s",
        }
    )
