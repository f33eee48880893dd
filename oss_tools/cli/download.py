"""Fetch a checkpoint from a hub or an address, and verify every file.

SOURCE is a short name (gpt-oss-20b), a repository (owner/name or owner/name@REVISION; for GGUF models also
owner/name:QUANTIZATION), or an https:// or file:// address. An address names a .gguf file, a .safetensors file, or a folder
of those with an index. Only the files of a checkpoint are fetched, never a file that can run code when it is opened. If a
download is interrupted, give the same command again and it goes on. At the end the path is printed; other verbs take it, or
the name, as MODEL.

Without --to, a repository goes to the hub's own cache, where other programs find it too; a file from an address goes to the
current folder. The variables HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are honoured.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._options import JsonFlag, QuietFlag, format_size
from oss_tools.cli._output import print_facts, print_json, print_table, progress, remark, remark_unless

if TYPE_CHECKING:
    from oss_tools.download.download import Plan
    from oss_tools.download.sources import Source, Wanted
    from oss_tools.download.web import Web

EXAMPLES = """
oss-tools download gpt-oss-20b --dry-run
oss-tools download openai/gpt-oss-20b --to gpt-oss-20b
oss-tools download openai/gpt-oss-120b --container original
oss-tools download ggml-org/gpt-oss-20b-GGUF:mxfp4
oss-tools download https://example.org/models/model.gguf
"""
ALL = "all files"
CONTEXT = 4096  # tokens, for what --dry-run says of memory


def help_lists() -> dict[str, list[tuple[str, str]]]:
    """The short names there are."""
    from oss_tools.download.registry import published

    rows = [(p.name, f"{p.repo}, {format_size(p.nbytes)}, {p.licence}") for p in published().values()]
    return {"Short names": rows}


def complete_name(incomplete: str) -> list[str]:
    from oss_tools.download.registry import published

    return [name for name in published() if name.startswith(incomplete)]


def run(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", autocompletion=complete_name, help="A short name, owner/name, or an address.")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", "--output", "-o", metavar="DIR", help="The folder for the files. [default: the hub's cache]"),
    ] = None,
    revision: Annotated[
        str, typer.Option("--revision", metavar="R", help="A branch, tag or commit. [default: pinned, or main]")
    ] = "",
    container: Annotated[
        str,
        typer.Option(
            "--container",
            "-c",
            metavar="hf|original|gguf",
            help="The container to fetch where a repository has several. [default: hf]",
        ),
    ] = "",
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="GLOB",
            help="Fetch only files that match, or one quantization by its name (Q4_K_M); may be repeated.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Leave out files that match; may be repeated.")
    ] = None,
    endpoint: Annotated[
        str,
        typer.Option(
            "--endpoint", metavar="URL", help="The address of the hub. [default: HF_ENDPOINT, else huggingface.co]"
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files, their sizes and whether they fit; fetch nothing.")
    ] = False,
    connections: Annotated[
        int, typer.Option("--connections", min=1, max=32, help="How many parts to fetch at the same time.")
    ] = 8,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    from oss_tools.download import sources
    from oss_tools.download.download import carry_out, make_plan
    from oss_tools.download.downloaded import find_here
    from oss_tools.download.select import CONTAINERS
    from oss_tools.download.web import Web, offline

    if container and container not in CONTAINERS:
        raise typer.BadParameter(f"{container!r} is not one of {', '.join(CONTAINERS)}", param_hint="--container")
    say = remark_unless(quiet)
    web = Web(endpoint or None, say)
    wanted = sources.understand(source, revision, web.endpoint)
    if offline() and wanted.repo:
        report_downloaded(wanted.repo, find_here(wanted, say), as_json)
        return
    include = [*(include or []), *([wanted.quantization] if wanted.quantization else [])]
    offer = offered(wanted, web)
    plan = make_plan(offer, web=web, to=to, container=container, include=include, exclude=exclude or (), say=say)
    if dry_run:
        fits = what_fits(plan, web)
        print_json(to_record(plan) | {"fit": fits}) if as_json else print_plan(plan, fits)
        plan.place.require(plan.missing)
        return
    started = time.perf_counter()
    fetched = transfer(plan, web, connections, quiet, carry_out)
    seconds = time.perf_counter() - started
    if as_json:
        print_json(to_record(plan) | {"fetched_bytes": fetched, "seconds": seconds})
    else:
        print_outcome(plan, fetched, seconds)


def transfer(plan: Plan, web: Web, connections: int, quiet: bool, carry_out: Any) -> int:
    """Fetches what is missing with a progress bar for each file and one for all; returns the bytes that were fetched."""
    from oss_tools.download.download import remaining_bytes

    left = remaining_bytes(plan)
    gone_before = sum(f.size for f in plan.missing) - sum(left.values())
    if gone_before:
        web.say(f"going on: {format_size(gone_before)} were fetched before, {format_size(sum(left.values()))} are left")
    received = 0
    with progress({ALL: sum(left.values()), **left}, quiet=quiet) as advance:

        def count(path: str, nbytes: int) -> None:
            nonlocal received
            received += nbytes
            advance(ALL, nbytes)
            advance(path, nbytes)

        carry_out(plan, web, connections=connections, advance=count)
    return received


def offered(wanted: Wanted, web: Web) -> Source:
    """What the server has. Where none answers, the error tells of what was downloaded before."""
    from oss_tools.download import sources
    from oss_tools.download.downloaded import find_here
    from oss_tools.errors import Unreachable

    try:
        return sources.look_up(wanted, web)
    except Unreachable as error:
        here = find_here(wanted) if wanted.repo else None
        raise Unreachable(f"{error}; what was downloaded before is {here}" if here else str(error)) from None


def report_downloaded(repo: str, path: Path | None, as_json: bool) -> None:
    """Without a network: where the checkpoint lies that was downloaded before."""
    if as_json:
        print_json({"source": repo, "path": str(path), "offline": True})
    else:
        print_facts({"source": repo, "offline": "HF_HUB_OFFLINE is set: what is there already", "path": path})


def what_fits(plan: Plan, web: Web) -> dict[str, Any] | None:
    """What `fit` says of the files as they are: None if their headers tell no known architecture."""
    from oss_tools.download.headers import mirrored
    from oss_tools.errors import BadCheckpoint
    from oss_tools.fit.estimate import stored_row
    from oss_tools.fit.machine import detect
    from oss_tools.fit.memory import Use
    from oss_tools.models import open_checkpoint

    machine = detect(plan.place.root, measure=False)
    try:
        with mirrored(plan, web) as path, open_checkpoint(path) as checkpoint:
            context = min(CONTEXT, checkpoint.architecture.context)
            needed = stored_row(checkpoint, Use(context, 1, machine.threads, machine.ram)).memory.total
    except BadCheckpoint as error:
        remark(f"fit: {error}")
        return None
    return {
        "context": context,
        "needed_bytes": needed,
        "available_bytes": machine.ram,
        "verdict": machine.memory_verdict(needed),
    }


def to_record(plan: Plan) -> dict[str, Any]:
    """The plan as JSON."""
    return {
        "source": plan.source.name,
        "revision": plan.source.revision or None,
        "commit": plan.source.commit or None,
        "licence": plan.source.published.licence if plan.source.published else None,
        "container": plan.container,
        "to": str(plan.place.root),
        "path": str(plan.model),
        "manifest": str(plan.manifest_path),
        "bytes": plan.nbytes,
        "free_disk_bytes": plan.place.free_bytes(),
        "files": [
            {
                "path": f.path,
                "bytes": f.size,
                "sha256": f.sha256 or None,
                "verified_by": f.verified_by,
                "present": f.path in plan.present,
            }
            for f in plan.files
        ],
    }


def print_plan(plan: Plan, fits: dict[str, Any] | None) -> None:
    """What would be fetched."""
    print_facts(_source_facts(plan))
    rows = [(f.path, f"{f.size:,}", "there already" if f.path in plan.present else "to fetch") for f in plan.files]
    rows.append(("total", f"{plan.nbytes:,}", ""))
    print_table(rows, ("file", "bytes", ""), title="Files", right=(1,))
    missing = sum(f.size for f in plan.missing)
    print(f"\n{format_size(missing)} to fetch, {format_size(plan.place.free_bytes())} of disk free")
    if fits:
        verdicts = {
            "fits": "it fits",
            "tight": "it fits, tightly",
            "no": "it does not fit; `oss-tools fit` tells what would",
        }
        needed, there = format_size(fits["needed_bytes"]), format_size(fits["available_bytes"])
        memory = f"{needed} of memory for a context of {fits['context']} tokens, {there} are free"
        print(f"to run it: {memory}: {verdicts[fits['verdict']]}")


def _source_facts(plan: Plan) -> dict[str, Any]:
    source = plan.source
    return {
        "source": source.name,
        "revision": source.revision if source.revision == source.commit else f"{source.revision}, commit {source.commit}",
        "licence": source.published and source.published.licence,
        "container": plan.container,
        "to": plan.place.root,
    }


def print_outcome(plan: Plan, fetched: int, seconds: float) -> None:
    """What was fetched, and where it is."""
    checked = sum(f.verified_by != "nothing" for f in plan.files)
    others = "" if checked == len(plan.files) else "; for the others none are published"
    print_facts(
        {
            **_source_facts(plan),
            "fetched": f"{format_size(fetched)} in {seconds:.1f} s, {format_size(fetched / seconds)}/s"
            if fetched
            else "nothing, all is there",
            "verified": f"{checked} of {len(plan.files)} files against the published checksums{others}",
            "manifest": plan.manifest_path,
            "path": plan.model,
        }
    )
