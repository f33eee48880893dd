"""Merge LoRA adapters into their model; say what rounding leaves.

ADAPTER is a PEFT folder (adapter_config.json and adapter_model.safetensors), the name of a downloaded one, or a GGUF
adapter of llama.cpp. Several adapters are added one after the other. Without --recipe or --format every tensor keeps its
format: in an MXFP4 model, the tensors that the adapter changes are rounded to MXFP4 again. `merge` streams, resumes and
verifies as `convert` does.

The table lists the changed tensors, those that keep least first: how large the update is beside the weights, which share of
it is left after rounding, and how much else rounding changed (the rest, in sizes of the update).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli import _conversion as shared
from oss_tools.cli._conversion_options import Destination, TargetOptions, WritingOptions
from oss_tools.cli._conversion_options import help_lists as help_lists
from oss_tools.cli._options import JsonFlag, QuietFlag, download_path, format_size, model_path
from oss_tools.cli._output import print_facts, print_json, print_table, remark
from oss_tools.escapes import json_text

if TYPE_CHECKING:
    from oss_tools.convert.manifest import Manifest
    from oss_tools.convert.updates import Kept

EXAMPLES = """
oss-tools merge gpt-oss-20b/ my-lora/ gpt-oss-20b-mine/
oss-tools merge Llama-3.2-1B/ my-lora/ mine.gguf --recipe mxfp4-q8
oss-tools merge base.gguf style.gguf facts/ both.gguf --scale 0.5 --scale 1 --report kept.json
"""
SMALL_SHARE = 0.8  # of an update: less is worth a warning
LARGE_REST = 1.0  # in sizes of the update: more is


def run(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE",
            parser=model_path,
            help="The model: its path, the owner/name of a download, or tiny (the embedded model).",
        ),
    ],
    adapter: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER", parser=download_path, help="The adapters to merge into it, in this order."),
    ],
    destination: Destination,
    scale: Annotated[
        list[float] | None,
        typer.Option(
            "--scale",
            metavar="S",
            help="The strength of the updates; 1 is as trained. Give it once for all adapters, or once for each.",
        ),
    ] = None,
    any_base: Annotated[bool, typer.Option("--any-base", help="Merge even if the adapter names another model.")] = False,
    *,
    target: TargetOptions,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE", help="Write to this file, as JSON, what is kept of the updates, and the errors."
        ),
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="How many tensors to list; 0 lists all.")] = 20,
    writing: WritingOptions,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    from oss_tools.adapters.merge import Merge, check_apart, open_adapter, prepare
    from oss_tools.checkpoints.files import check_place, replace_file
    from oss_tools.convert.plan import Plan
    from oss_tools.convert.recipe import Recipe
    from oss_tools.models import Checkpoint

    strengths = scale or [1.0]
    if len(strengths) not in (1, len(adapter)):
        raise typer.BadParameter(
            f"{len(strengths)} are given for {len(adapter)} adapters; give one for all, or one for each",
            param_hint="--scale",
        )
    strengths = strengths * len(adapter) if len(strengths) == 1 else strengths
    if report:
        check_place(report)
    check_apart(destination, adapter)
    opened = []
    try:
        for path in adapter:
            opened.append(open_adapter(path))  # noqa: PERF401 (those before it are closed if it cannot be opened)

        def planned(checkpoint: Checkpoint, container: str, recipe: Recipe) -> Plan:
            merge: Merge = prepare(checkpoint, opened, strengths, any_base=any_base)
            for text in dict.fromkeys([*merge.remarks, *(text for one in opened for text in one.remarks)]):
                remark(text)
            return merge.plan(container, recipe)

        done = shared.carry_out(
            base,
            destination,
            target,
            writing,
            quiet=quiet,
            as_json=as_json,
            planned=planned,
        )
    finally:
        for one in opened:
            one.close()
    if done is None:
        return
    record = done.record | {"seconds": done.seconds, "adapters": _adapters(adapter, strengths)} | kept_record(done.manifest)
    if report:
        replace_file(report, json_text(record, indent=2) + "\n")
    _warn(done.manifest)
    if as_json:
        print_json(record)
        return
    if done.before:
        return
    print_kept(done.manifest, show)
    print()
    print_facts(
        {
            "made": destination,
            "of": ", ".join(
                [str(base), *(f"{path} × {strength:g}" for path, strength in zip(adapter, strengths, strict=True))]
            ),
            "bytes": f"{format_size(done.plan.source_bytes)} → {format_size(done.plan.target_bytes)}",
            "read back": "every hash as written, by way of the system's cache" if writing.verify else "no",
            "time": f"{done.seconds:.1f} s, {format_size(done.plan.source_bytes / done.seconds)}/s of input",
            "report": report,
        }
    )


def _adapters(paths: list[Path], strengths: list[float]) -> list[dict[str, Any]]:
    return [{"path": str(path), "scale": strength} for path, strength in zip(paths, strengths, strict=True)]


def least_first(manifest: Manifest) -> list[tuple[str, str, str, Kept]]:
    """(name, source format, format, what is kept) of every changed tensor, the smallest share first."""
    changed = [(t.name, t.source_format, t.format, t.kept) for t in manifest.tensors if t.kept]
    return sorted(changed, key=lambda row: (row[3].share is None, row[3].share, row[0]))


def kept_record(manifest: Manifest) -> dict[str, Any]:
    """What is kept as JSON: per tensor, least first, with the error of rounding; and in total."""
    from oss_tools.convert.updates import Kept

    errors = {t.name: asdict(t.error) for t in manifest.tensors if t.error}
    rows = least_first(manifest)
    return {
        "tensors": [
            {"name": name, "source_format": before, "format": after, **asdict(kept), "error": errors.get(name)}
            for name, before, after, kept in rows
        ],
        "total": asdict(Kept.total([row[3] for row in rows])),
        "tensors_not_changed": len(manifest.tensors) - len(rows),
    }


def print_kept(manifest: Manifest, show: int) -> None:
    """What is kept as a table, least first, and in total."""
    from oss_tools.convert.updates import Kept

    changed = least_first(manifest)
    rows: list[tuple[str, ...]] = [
        (name, f"{before} → {after}", *_figures(kept)) for name, before, after, kept in changed[: show or None]
    ]
    if len(changed) > len(rows):
        rows.append((f"… {len(changed) - len(rows)} more with larger shares (--show 0 lists all)", *[""] * 4))
    rows.append((f"total of {len(changed)} changed tensors", "", *_figures(Kept.total([row[3] for row in changed]))))
    headers = ("tensor", "format", "update / weights", "share kept", "rest / update")
    print_table(rows, headers, title="What rounding left of the update, least first", right=(2, 3, 4))
    print(f"{len(manifest.tensors) - len(changed)} tensors were not changed")


def _figures(kept: Kept) -> tuple[str, str, str]:
    if kept.share is None or kept.residual is None:
        return "0", "no update", ""
    return "" if kept.size is None else f"{kept.size:.2e}", f"{kept.share:.1%}", f"{kept.residual:.3g}"


def _warn(manifest: Manifest) -> None:
    """Says on stderr where little of the update is left, or much else was changed."""
    from oss_tools.convert.updates import Kept

    total = Kept.total([row[3] for row in least_first(manifest)])
    if total.share is None or total.residual is None:
        remark("the update is zero: nothing was merged")
        return
    wider = "a wider format (--recipe mxfp4-q8, --format q8_0 or bf16) keeps more"
    if total.share < SMALL_SHARE:
        remark(f"rounding left {total.share:.0%} of the update; {wider}")
    elif total.residual > LARGE_REST:
        remark(f"rounding changed the weights {total.residual:.1f} times as much as the update does; {wider}")
