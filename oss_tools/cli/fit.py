"""Say whether a model will run here, in which format, how fast.

MODEL is a checkpoint, tiny, a shape's name (gpt-oss-20b), a config.json, a repository (owner/name, owner/name:QUANTIZATION)
or an address. Of a remote checkpoint only the headers are read, a few hundred kilobytes. For one that is on this disk,
nothing is fetched.

The table has a row for each recipe and format: the bytes of the files; the memory of the engine, which holds weights, KV
cache (sliding layers keep only their window), copies of prompts for reuse, activations, and the program itself; and the
tokens per second, which follow from the bytes that a token reads and the speed of memory. Options such as --ram describe
another machine.

A model with experts runs in less memory than its weights take: with `generate --memory SIZE` and other verbs, experts
stream from the disk. `fit --memory SIZE` says what would stay in memory, what would stream, and how fast that is with this
disk, or with a disk of another speed (--disk 2GB/s).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._engine import KvCache
from oss_tools.cli._estimate import print_estimate, print_streaming, streaming_record
from oss_tools.cli._options import EMBEDDED, JsonFlag, QuietFlag, model_path, size_option
from oss_tools.cli._output import print_json, remark_reading, remark_unless

if TYPE_CHECKING:
    from oss_tools.fit.estimate import Estimate
    from oss_tools.fit.machine import Machine
    from oss_tools.fit.memory import Use

EXAMPLES = """
oss-tools fit gpt-oss-20b
oss-tools fit openai/gpt-oss-120b --vram 80GB --context 32768
oss-tools fit model.gguf --ram 16GiB --bandwidth 50GB
oss-tools fit path/to/config.json --json
oss-tools fit gpt-oss-120b --memory 20GB --disk 3.5GB/s
"""


def complete_shape(incomplete: str) -> list[str]:
    from oss_tools.convert.synth import shape_names

    return [name for name in shape_names() if name.startswith(incomplete)]


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=complete_shape,
            help="A checkpoint, a shape's name, a config.json, owner/name, or an address.",
        ),
    ],
    ram: Annotated[
        int | None,
        typer.Option("--ram", parser=size_option, metavar="SIZE", help="The memory of the machine. [default: what is free]"),
    ] = None,
    vram: Annotated[
        int | None, typer.Option("--vram", parser=size_option, metavar="SIZE", help="The memory of a graphics card.")
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            "--memory",
            parser=size_option,
            metavar="SIZE",
            help="The most memory to use; experts that do not fit stream from the disk.",
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="SIZE|SPEED/s",
            help="The disk's free room (SIZE), or how much it reads in a second (SPEED/s); may be repeated. "
            "[default: measured]",
        ),
    ] = None,
    bandwidth: Annotated[
        int | None,
        typer.Option(
            "--bandwidth",
            parser=size_option,
            metavar="SIZE",
            help="How many bytes of memory can be read in a second. [default: measured]",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", "-c", min=1, help="The most tokens that a sequence may have. [default: 4096]", show_default=False
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, max=64, help="How many sequences run at the same time.")] = 1,
    cache: KvCache = None,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="Threads to use; 0 means every core.")] = 0,
    revision: Annotated[
        str, typer.Option("--revision", metavar="R", help="For a repository: a branch, tag or commit.")
    ] = "",
    endpoint: Annotated[
        str,
        typer.Option(
            "--endpoint", metavar="URL", help="The address of the hub. [default: HF_ENDPOINT, else huggingface.co]"
        ),
    ] = "",
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="For a repository: which files, as `download --include` takes it."),
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    from dataclasses import replace
    from functools import partial

    from oss_tools.engine.backend import check_cache
    from oss_tools.fit.estimate import choose, streamed_row, to_record
    from oss_tools.fit.machine import detect

    check_cache(cache)
    if cache and vram:
        raise typer.BadParameter("the GPU's kernels have no choice: leave it or --vram out", param_hint="--kv-cache")
    asked, model = model, str(model_path(model)) if model == EMBEDDED else model
    place = Path(model) if Path(model).exists() else Path()
    room, disk_speed = disk_options(disk or [])
    machine = detect(place, ram=ram, vram=vram, disk=room, bandwidth=bandwidth, disk_speed=disk_speed, threads=threads)
    using = partial(use_of, machine, context, batch, cache or "bf16")
    estimate = estimate_model(model, using, revision, endpoint, include or [], quiet)
    estimate = replace(estimate, model=asked) if asked == EMBEDDED else estimate
    choice = choose(estimate, machine)
    row = streamed_row(estimate) if memory or choice.row is None else None
    streaming = row.streaming(memory or machine.ram) if row else None
    if streaming and disk_speed is None and ram is None:
        machine = with_disk_speed(machine, place)
    if as_json:
        print_json(to_record(estimate, machine, choice) | {"streaming": streaming_record(row, streaming, machine)})
        return
    print_estimate(estimate, machine, choice)
    if row and streaming:
        print_streaming(row, streaming, machine)
    elif memory:
        print("stream  nothing: the model has no experts, so every token needs all of it")


def disk_options(given: list[str]) -> tuple[int | None, int | None]:
    """(free bytes, bytes per second) of `--disk`, each None if it was not given."""
    room = speed = None
    for text in given:
        try:
            if text.strip().lower().endswith("/s"):
                speed = size_option(text.strip()[:-2])
            else:
                room = size_option(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r}: write room as 500GB, speed as 2GB/s", param_hint="--disk") from None
    if speed == 0:
        raise typer.BadParameter("the speed must be above 0", param_hint="--disk")
    return room, speed


def with_disk_speed(machine: Machine, model: Path) -> Machine:
    """The machine, with what its disk gives where the model lies, if that is here."""
    from dataclasses import replace

    from oss_tools.machine.disk import known_speed, largest_file

    largest = largest_file(model) if model != Path() else None
    return replace(machine, disk_speed=known_speed(largest) if largest else None)


def estimate_model(
    model: str,
    using: Callable[[int], Use],
    revision: str,
    endpoint: str,
    include: list[str],
    quiet: bool,
) -> Estimate:
    """Of whatever MODEL names: a path, a shape, or something remote. `using`: how a model of so long a context is used."""
    from oss_tools.convert.synth import load_shape, shape_names
    from oss_tools.download.layout import name_of
    from oss_tools.fit.estimate import of_checkpoint, of_shape
    from oss_tools.models import architecture_of, open_checkpoint

    path = model_path(model) if Path(model).exists() else Path(model)
    is_shape = path.suffix in (".yaml", ".yml", ".json") if path.exists() else model in shape_names()
    if is_shape:
        shape = load_shape(model)
        made_for = architecture_of(shape.config["model_type"]).from_config("hf", shape.config).context
        return of_shape(shape, using(made_for))
    if path.exists():
        with open_checkpoint(path) as checkpoint:
            if not quiet:
                remark_reading(checkpoint)
            return of_checkpoint(checkpoint, name_of(path), using(checkpoint.architecture.context))
    from oss_tools.download import sources
    from oss_tools.download.download import make_plan
    from oss_tools.download.downloaded import find_here, refuse_path
    from oss_tools.download.headers import mirrored
    from oss_tools.download.web import Web

    refuse_path(model)
    web = Web(endpoint or None, remark_unless(quiet))
    wanted = sources.understand(model, revision, web.endpoint)
    here = find_here(wanted, web.say) if wanted.repo and not include else None
    if here:
        return estimate_model(str(here), using, "", "", [], quiet)
    source = sources.look_up(wanted, web)
    include = [*include, *([wanted.quantization] if wanted.quantization else [])]
    with (
        mirrored(make_plan(source, web=web, include=include, compare=False), web) as mirror,
        open_checkpoint(mirror) as checkpoint,
    ):
        if not quiet:
            remark_reading(checkpoint)
        name = source.name.rpartition("/")[2]
        return of_checkpoint(checkpoint, name, using(checkpoint.architecture.context))


def use_of(machine: Machine, context: int | None, batch: int, cache: str, made_for: int) -> Use:
    """The use that the options describe. Raises BadRequest for a context that the model was not made for."""
    from oss_tools.engine.engine import DEFAULT_CONTEXT
    from oss_tools.errors import BadRequest
    from oss_tools.fit.memory import Use

    if context and context > made_for:
        raise BadRequest(f"a context of {context} tokens: this model was made for {made_for} at most")
    return Use(context or min(DEFAULT_CONTEXT, made_for), batch, machine.threads, machine.ram, cache)
