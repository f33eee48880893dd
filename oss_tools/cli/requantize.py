"""Round a checkpoint to another number format; say what it cost.

`requantize` does what `convert` does with --format or --recipe, and prints a table of the rounded tensors, worst first: the
relative error ‖rounded − original‖ / ‖original‖, the signal-to-quantization-noise ratio (SQNR) in dB, the largest error,
and the share of clipped values.

With --method gptq every matrix is rounded column by column, and later columns make up for the error of each, so that the
outputs for a text change as little as possible. This removes about half of the loss; format and size of the file stay the
same.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli import _conversion as shared
from oss_tools.cli._conversion_options import Destination, Source, TargetOptions, WritingOptions
from oss_tools.cli._conversion_options import help_lists as help_lists
from oss_tools.cli._gptq import MethodOptions
from oss_tools.cli._options import JsonFlag, QuietFlag, format_size
from oss_tools.cli._output import print_facts, print_json, print_table
from oss_tools.escapes import json_text

if TYPE_CHECKING:
    from oss_tools.convert.manifest import Manifest, OutputError, TensorError

EXAMPLES = """
oss-tools requantize model-bf16/ model-mxfp4/ --recipe mxfp4
oss-tools requantize model.gguf model-q8_0.gguf --format q8_0 --report errors.json
oss-tools requantize model.gguf model-q4_0.gguf --format q4_0 --importance imatrix.gguf --show 0
oss-tools requantize model-bf16/ model-mxfp4/ --recipe mxfp4 --method gptq
"""


def run(
    source: Source,
    destination: Destination,
    *,
    target: TargetOptions,
    method: MethodOptions,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the errors to this file, as JSON.")
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="How many tensors to list; 0 lists all.")] = 20,
    writing: WritingOptions,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    from oss_tools.checkpoints.files import check_place, replace_file

    if not (target.format or target.recipe):
        raise typer.BadParameter("name the target: --format or --recipe")
    if report:
        check_place(report)
    done = shared.carry_out(
        source,
        destination,
        target,
        writing,
        quiet=quiet,
        as_json=as_json,
        rounding=method.rounding(),
    )
    if done is None:
        return
    record = done.record | {"seconds": done.seconds} | errors_record(done.manifest)
    if report:
        replace_file(report, json_text(record, indent=2) + "\n")
    if as_json:
        print_json(record)
        return
    if done.before:
        return
    print_errors(done.manifest, show)
    print_output_errors(done.manifest, show)
    print()
    print_facts(
        {
            "made": destination,
            "errors against": shared.rounded_before(done.plan) if done.plan.rounded_before else None,
            "bytes": f"{format_size(done.plan.source_bytes)} → {format_size(done.plan.target_bytes)}",
            "time": f"{done.seconds:.1f} s, {format_size(done.plan.source_bytes / done.seconds)}/s of input",
            "report": report,
        }
    )


def output_errors(manifest: Manifest) -> list[tuple[str, OutputError]]:
    """Of the tensors that were rounded for their outputs' sake, the largest error first."""
    found = [(t.name, t.output) for t in manifest.tensors if t.output]
    return sorted(found, key=lambda row: -row[1].after)


def print_output_errors(manifest: Manifest, show: int) -> None:
    """What became of the outputs, as a table; nothing where no text was run."""
    found = output_errors(manifest)
    if not found:
        return
    rows: list[tuple[str, ...]] = [
        (name, f"{error.before:.3e}", f"{error.after:.3e}", f"{error.tokens:,.0f}", str(error.unmet or ""))
        for name, error in found[: show or None]
    ]
    if len(found) > len(rows):
        rows.append((f"… {len(found) - len(rows)} more with smaller errors (--show 0 lists all)", *[""] * 4))
    headers = ("tensor", "rounded alone", "gptq", "inputs", "alone after all")
    print()
    print_table(rows, headers, title="Relative error of outputs, worst first", right=(1, 2, 3, 4))


def worst_first(manifest: Manifest) -> list[tuple[str, str, str, str, TensorError]]:
    """(name, role, source format, format, error) of every rounded tensor, the largest relative error first."""
    rounded = [(t.name, t.role, t.source_format, t.format, t.error) for t in manifest.tensors if t.error]
    return sorted(rounded, key=lambda row: -row[4].relative_error)


def errors_record(manifest: Manifest) -> dict[str, Any]:
    """The errors as JSON: per tensor, worst first, and in total."""
    from oss_tools.convert.manifest import TensorError

    rounded = worst_first(manifest)
    return {
        "tensors": [
            {"name": name, "role": role, "source_format": before, "format": after, **asdict(error)}
            for name, role, before, after, error in rounded
        ],
        "total": asdict(TensorError.total([row[4] for row in rounded])),
        "outputs": [{"name": name, **asdict(error)} for name, error in output_errors(manifest)],
        "tensors_not_rounded": sum(t.error is None for t in manifest.tensors),
    }


def print_errors(manifest: Manifest, show: int) -> None:
    """The errors as a table, worst first, and their total."""
    from oss_tools.convert.manifest import TensorError

    rounded = worst_first(manifest)
    rows: list[tuple[str, ...]] = [
        (name, f"{before} → {after}", *_figures(error)) for name, _, before, after, error in rounded[: show or None]
    ]
    if len(rounded) > len(rows):
        rows.append((f"… {len(rounded) - len(rows)} more with smaller errors (--show 0 lists all)", *[""] * 5))
    rows.append((f"total of {len(rounded)} rounded tensors", "", *_figures(TensorError.total([row[4] for row in rounded]))))
    headers = ("tensor", "format", "relative error", "SQNR dB", "largest error", "clipped")
    print_table(rows, headers, title="What rounding cost, worst first", right=(2, 3, 4, 5))
    print(f"{len(manifest.tensors) - len(rounded)} tensors were not rounded")


def _figures(error: TensorError) -> tuple[str, str, str, str]:
    sqnr = "exact" if error.sqnr_db is None else f"{error.sqnr_db:.2f}"
    return f"{error.relative_error:.3e}", sqnr, f"{error.max_error:.3e}", f"{error.clipped:.3%}"
