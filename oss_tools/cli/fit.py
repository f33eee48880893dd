"""Say whether a model will run here, in which format, how fast.

MODEL is a checkpoint, tiny, a shape (gpt-oss-20b), a config.json, a repository (owner/name) or an address. Of a remote
checkpoint only the headers are read: a few hundred kilobytes.

A row for each recipe and format: bytes in files; the engine's memory for weights, KV cache (sliding layers keep their
window), copies of prompts for reuse, activations, and the program itself; tokens per second from the bytes that a token reads and
the speed of memory. `--ram` and the like describe another machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._options import EMBEDDED, JsonFlag, QuietFlag, format_size, model_path, size_option
from oss_tools.cli._output import print_facts, print_json, print_table, remark, remark_reading

if TYPE_CHECKING:
    from oss_tools.fit.estimate import Choice, Estimate, Row
    from oss_tools.fit.machine import Machine
    from oss_tools.fit.memory import Use

EXAMPLES = """
oss-tools fit gpt-oss-20b
oss-tools fit openai/gpt-oss-120b --vram 80GB --context 32768
oss-tools fit model.gguf --ram 16GiB --bandwidth 50GB
oss-tools fit path/to/config.json --json
"""


def complete_shape(incomplete: str) -> list[str]:
    from oss_tools.convert.synth import shape_names

    return [name for name in shape_names() if name.startswith(incomplete)]


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", autocompletion=complete_shape, help="See above.")],
    ram: Annotated[
        int | None, typer.Option("--ram", parser=size_option, metavar="SIZE", help="Memory. [default: what is free]")
    ] = None,
    vram: Annotated[
        int | None, typer.Option("--vram", parser=size_option, metavar="SIZE", help="Of a graphics card.")
    ] = None,
    disk: Annotated[
        int | None, typer.Option("--disk", parser=size_option, metavar="SIZE", help="[default: what is free]")
    ] = None,
    bandwidth: Annotated[
        int | None,
        typer.Option("--bandwidth", parser=size_option, metavar="SIZE", help="Memory, a second. [default: measured]"),
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Positions. [default: 4096]", show_default=False)
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=64, help="Sequences at a time.")] = 1,
    threads: Annotated[int, typer.Option("--threads", "-t", min=0, help="0 is every core.", show_default=False)] = 0,
    revision: Annotated[str, typer.Option("--revision", metavar="R", help="Of a repository.")] = "",
    endpoint: Annotated[str, typer.Option("--endpoint", metavar="URL", help="The hub. [default: HF_ENDPOINT]")] = "",
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Which files of a repository, as `download` has it."),
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    from oss_tools.fit.estimate import choose, to_record
    from oss_tools.fit.machine import detect

    model = str(model_path(model)) if model == EMBEDDED else model
    place = Path(model) if Path(model).exists() else Path()
    machine = detect(place, ram=ram, vram=vram, disk=disk, bandwidth=bandwidth, threads=threads)
    estimate = estimate_model(model, machine, context, batch, revision, endpoint, include or [], quiet)
    choice = choose(estimate, machine)
    if as_json:
        print_json(to_record(estimate, machine, choice))
    else:
        print_estimate(estimate, machine, choice)


def estimate_model(
    model: str,
    machine: Machine,
    context: int | None,
    batch: int,
    revision: str,
    endpoint: str,
    include: list[str],
    quiet: bool,
) -> Estimate:
    """Of whatever MODEL names: a path, a shape, or something remote."""
    from oss_tools.convert.synth import load_shape, shape_names
    from oss_tools.fit.estimate import of_checkpoint, of_shape
    from oss_tools.models import architecture_of, open_checkpoint

    path = Path(model)
    is_shape = path.suffix in (".yaml", ".yml", ".json") if path.exists() else model in shape_names()
    if is_shape:
        shape = load_shape(model)
        made_for = architecture_of(shape.config["model_type"]).from_config("hf", shape.config).context
        return of_shape(shape, use_of(machine, context, batch, made_for))
    if path.exists():
        with open_checkpoint(path) as checkpoint:
            if not quiet:
                remark_reading(checkpoint)
            return of_checkpoint(checkpoint, path.name, use_of(machine, context, batch, checkpoint.architecture.context))
    from oss_tools.download import sources
    from oss_tools.download.download import make_plan
    from oss_tools.download.headers import mirrored
    from oss_tools.download.web import Web, cache_folder, offline

    web = Web(endpoint or None, (lambda line: None) if quiet else remark)
    wanted = sources.understand(model, revision, web.endpoint)
    if offline() and wanted.repo:
        snapshot = str(sources.cached_snapshot(wanted, cache_folder()))
        return estimate_model(snapshot, machine, context, batch, "", "", [], quiet)
    source = sources.look_up(wanted, web)
    with mirrored(make_plan(source, include=include, compare=False), web) as mirror, open_checkpoint(mirror) as checkpoint:
        if not quiet:
            remark_reading(checkpoint)
        name = source.name.rpartition("/")[2]
        return of_checkpoint(checkpoint, name, use_of(machine, context, batch, checkpoint.architecture.context))


def use_of(machine: Machine, context: int | None, batch: int, made_for: int) -> Use:
    """The use that the options describe. Raises BadRequest for a context that the model was not made for."""
    from oss_tools.engine.engine import DEFAULT_CONTEXT
    from oss_tools.errors import BadRequest
    from oss_tools.fit.memory import Use

    if context and context > made_for:
        raise BadRequest(f"a context of {context} positions: this model was made for 1..{made_for}")
    return Use(context or min(DEFAULT_CONTEXT, made_for), batch, machine.threads, machine.ram)


def print_estimate(estimate: Estimate, machine: Machine, choice: Choice) -> None:
    """The rows as a table, the machine and the choice in words."""

    def there(name: str, size: float | None, unit: str = "") -> str | None:
        found = " (found)" if name in machine.detected else " (given)"
        return None if size is None else format_size(size) + unit + found

    print_facts(
        {
            "model": f"{estimate.model}, {estimate.rows[0].parameters:,} parameters",
            "use": f"context of {estimate.use.context} tokens, {estimate.use.batch} at a time",
            "memory": there("ram", machine.ram),
            "graphics card": there("vram", machine.vram),
            "disk": there("disk", machine.disk),
            "memory speed": there("bandwidth", machine.bandwidth, "/s"),
        }
    )
    card = ("on card",) if machine.vram else ()
    headers = (
        "format",
        "files",
        "bits",
        "weights",
        "KV cache",
        "prompts",
        "work",
        "program",
        "total",
        "fits",
        *card,
        "tokens/s",
    )
    large = max(row.memory.total for row in estimate.rows) >= 10**9
    unit = 10**9 if large else 10**6
    rows = [_shown(row, machine, unit) for row in estimate.rows]
    print_table(rows, headers, title=f"Bytes in {'GB' if large else 'MB'}", right=(1, 2, 3, 4, 5, 6, 7, 8, len(headers) - 1))
    print()
    print_facts({"choice": f"{choice.row.name}: {choice.reason}" if choice.row else choice.reason})
    for line in choice.limits:
        print(f"limit   {line}")


def _shown(row: Row, machine: Machine, unit: int) -> list[str]:
    m = row.memory
    sizes = [f"{size / unit:.2f}" for size in (m.weights, m.cache, m.prefixes, m.activations, m.program, m.total)]
    fits = machine.memory_verdict(m.total) + ("" if machine.disk_holds(row.file_bytes) else ", no disk")
    card = [machine.device_verdict(m.on_device)] if machine.vram else []
    speed = "{:.3g}–{:.3g}".format(*row.speed(machine.bandwidth)) if machine.bandwidth else ""
    name = f"{row.name} *" if row.published else row.name
    return [name, f"{row.file_bytes / unit:.2f}", f"{row.bits_per_weight:.2f}", *sizes, fits, *card, speed]
