"""Compare two checkpoints: what they compute, their texts, every value.

Four parts are compared: the tensors, value by value; the configurations, in terms that all containers share; the tokenizers
(tokens, merges, special and added tokens, what is put before and after a text, what ends an answer); and the chat
templates. What only describes a model (name, licence, number formats) does not count. --only names the parts to compare:
`--only tensors`, or `--only config --only template`.

With --checksums there is one checkpoint, A, which `oss-tools download` fetched. Every file of it is read and compared with
the checksum from the download.

The exit status is 0 if all agree and 1 if not; then the first differences are named.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._options import JsonFlag, QuietFlag, download_path, model_path
from oss_tools.cli._output import print_facts, print_json, print_table, progress, remark, remark_reading

if TYPE_CHECKING:
    from oss_tools.verify import TensorDifference, Verification

EXAMPLES = """
oss-tools verify gpt-oss-20b/ gpt-oss-20b.gguf
oss-tools verify model-bf16/ model-q8_0.gguf --tolerance 0.01
oss-tools verify model-bf16/ model-q4_k.gguf --only config --only tokenizer --only template
oss-tools verify --checksums gpt-oss-20b/
"""
CHOICES = ("tensors", "config", "tokenizer", "template")
MISSING = "—"  # stands where one says nothing


def run(
    reference: Annotated[
        str, typer.Argument(metavar="A", help="The reference: its path, the owner/name of a download, or tiny.")
    ],
    b: Annotated[
        Path | None,
        typer.Argument(metavar="B", parser=model_path, help="The checkpoint to compare with it.", show_default=False),
    ] = None,
    checksums: Annotated[
        bool, typer.Option("--checksums", help="Check A's files against the checksums of its download.")
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            metavar="X",
            min=0.0,
            help="The largest ‖b − a‖ / ‖a‖ that a tensor may have; 0 asks for equal values.",
        ),
    ] = 0.0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="PART",
            help=f"Compare only this part: {', '.join(CHOICES)}; may be repeated.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="How many differences to list; 0 lists all.")] = 10,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    a = download_path(reference) if checksums else model_path(reference)
    if checksums != (b is None):
        raise typer.BadParameter("give two checkpoints, or one with --checksums")
    if b is None:
        check_download(a, quiet, as_json)
        return
    if unknown := set(only or ()).difference(CHOICES):
        raise typer.BadParameter(f"{unknown.pop()!r} is not one of {', '.join(CHOICES)}", param_hint="--only")
    from oss_tools.models import open_checkpoint
    from oss_tools.verify import verify

    with (
        open_checkpoint(a) as first,
        open_checkpoint(b) as second,
        progress({"verify": first.parameters}, quiet=quiet) as advance,
    ):
        if not quiet:
            remark_reading(first, second)
        found = verify(first, second, tolerance, lambda name, values: advance("verify", values), only or CHOICES)
    for line in () if quiet else found.remarks:
        remark(line)
    if as_json:
        print_json(to_record(found, a, b))
    else:
        print_verification(found, a, b, show)
    if not found.equal:
        raise typer.Exit(1)


def check_download(path: Path, quiet: bool, as_json: bool) -> None:
    """Reads the files of a download and compares their checksums; exit status 1 if one has changed or is missing."""
    from oss_tools.download import manifest

    folder, known = manifest.expected(path)
    total = sum(entry.bytes for entry in known.values())
    with progress({"read": total}, quiet=quiet) as advance:
        checks = manifest.check(folder, known, lambda nbytes: advance("read", nbytes))
    faults = [check for check in checks if check.fault]
    if as_json:
        print_json({"path": str(path), "equal": not faults, "files": [vars(check) for check in checks]})
    else:
        if faults:
            print_table([(c.path, c.fault) for c in faults], ("file", "fault"), title="Files differ")
            print()
        verdict = "NOT equal" if faults else "equal"
        print_facts({"verdict": verdict, "files": f"{len(checks)} read, {len(checks) - len(faults)} as downloaded"})
    if faults:
        raise typer.Exit(1)


def to_record(found: Verification, a: Path, b: Path) -> dict[str, Any]:
    """The outcome as JSON."""
    return {
        "a": str(a),
        "b": str(b),
        "equal": found.equal,
        "tolerance": found.tolerance,
        "tensors_compared": found.compared,
        "tensors_identical": found.identical,
        "largest_relative_error": found.largest_relative_error,
        "model_differences": [
            {"part": d.part, "what": d.what, "a": d.a, "b": d.b, "missing_in": _missing_in(d.a, d.b)} for d in found.said
        ],
        "remarks": list(found.remarks),
        "differences": [_difference_record(d) for d in found.differences],
    }


def _missing_in(a: str | None, b: str | None) -> str | None:
    """Which of the two says nothing; None where both do."""
    return "a" if a is None else "b" if b is None else None


def _difference_record(difference: TensorDifference) -> dict[str, Any]:
    first = difference.first
    return {
        "tensor": difference.name,
        "reason": difference.reason,
        "differing_values": difference.differing,
        "values": difference.values,
        "relative_error": _number(difference.relative_error),
        "max_difference": _number(difference.max_difference),
        "first": {"index": list(first[0]), "a": _number(first[1]), "b": _number(first[2])} if first else None,
    }


def _number(value: float) -> float | str:
    """JSON knows no NaN and no infinity; those become text."""
    import math

    return value if math.isfinite(value) else str(value)


def print_verification(found: Verification, a: Path, b: Path, show: int) -> None:
    """The outcome in words, and the differences as tables."""
    if found.said:
        rows = [(d.part, d.what, *(MISSING if value is None else value for value in (d.a, d.b))) for d in found.said]
        print_table(rows, ("part", "what", str(a), str(b)), title=f"Models differ beside tensors ({MISSING}: missing there)")
    if found.differences:
        lines = [_row(d) for d in found.differences[: show or None]]
        more = len(found.differences) - len(lines)
        print_table(
            lines, ("tensor", "difference", "relative error", "first at", "A", "B"), title="Tensors differ", right=(2, 4, 5)
        )
        if more:
            print(f"… and {more} more (--show 0 lists all)")
        print()
    verdict = "equal" if found.equal else "NOT equal"
    within = f" within a tolerance of {found.tolerance:g}" if found.tolerance else ""
    print_facts(
        {
            "verdict": verdict + within,
            "beside tensors": f"{len(found.said)} differences" if found.said else None,
            "tensors": f"{found.compared} compared, {found.identical} identical" if found.compared else None,
            "largest relative error": f"{found.largest_relative_error:.3e}" if found.largest_relative_error else None,
        }
    )


def _row(difference: TensorDifference) -> tuple[str, ...]:
    if difference.reason:
        return (difference.name, difference.reason, "", "", "", "")
    count = f"{difference.differing:,} of {difference.values:,} values"
    index, x, y = difference.first or ((), 0.0, 0.0)
    where = "[" + ", ".join(map(str, index)) + "]"
    return (difference.name, count, f"{difference.relative_error:.3e}", where, f"{x:g}", f"{y:g}")
