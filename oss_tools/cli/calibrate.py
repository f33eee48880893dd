"""Run a model over text; record how much each weight column matters.

The importance of a column of a weight matrix is the mean square of the values that it is multiplied with. It is measured
for every matrix and every expert. OUT is an importance matrix in llama-imatrix's format: `requantize --importance OUT` and
llama-quantize read it. Without --text and --chats, the model reads a mixture that comes with the program: prose, code,
mathematics, health, and conversations with tools.

All tokens go through one layer before the next layer is read. Therefore the model may be larger than memory. An interrupted
run goes on with --resume, and the result has the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._options import JsonFlag, QuietFlag, format_size, model_path
from oss_tools.cli._output import counted, print_facts, print_json, remark, remark_reading
from oss_tools.cli._texts import TextOptions

if TYPE_CHECKING:
    from oss_tools.calibration.calibrate import Cost, Outcome
    from oss_tools.calibration.texts import Sample

EXAMPLES = """
oss-tools calibrate gpt-oss-20b/ importance.gguf
oss-tools calibrate model.gguf importance.gguf --text manual.txt --chats chats.jsonl --tokens 131072
oss-tools calibrate gpt-oss-20b/ importance.gguf --resume
"""
SHOWN = 12  # tensors that are named


def run(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            parser=model_path,
            help="A checkpoint: its path, the owner/name of a download, or tiny (the embedded model).",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The importance matrix to make, a GGUF file.")],
    *,
    texts: TextOptions,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run; the result has the same bytes.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT, or start an interrupted run again from the beginning.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would take, and run nothing.")] = False,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    from oss_tools.calibration.calibrate import calibrate, check, cost_of
    from oss_tools.errors import BadRequest
    from oss_tools.machine.products import multiplications_per_second
    from oss_tools.models import open_checkpoint

    with open_checkpoint(model) as checkpoint:
        metadata = checkpoint.metadata()
        if texts.sequence > checkpoint.architecture.context:
            context = checkpoint.architecture.context
            raise BadRequest(f"--sequence {texts.sequence}: the model was made for sequences of {context} tokens at most")
        chosen = texts.sample(checkpoint, metadata, texts.tokens, texts.sequence)
        check(checkpoint, chosen, out, resume=resume, overwrite=overwrite)
        remark_reading(checkpoint, metadata)
        if chosen.tokens < texts.tokens - texts.sequence:
            remark(f"the text has {chosen.tokens:,} tokens, fewer than the {texts.tokens:,} that were asked for")
        cost = cost_of(checkpoint, chosen.tokens)
        record = _record(model, out, chosen, cost)
        if dry_run:
            seconds = cost.multiplications / multiplications_per_second()
            print_json(record | {"seconds": round(seconds)}) if as_json else _print_plan(out, chosen, cost, seconds)
            return
        with counted(quiet=quiet) as report:
            done = calibrate(
                checkpoint,
                chosen,
                out,
                resume=resume,
                overwrite=overwrite,
                report=lambda work, total: report("tokens", chosen.tokens * work // total, chosen.tokens),
            )
    record |= {
        "entries": done.entries,
        "matrices": done.matrices,
        "unreached": done.unreached,
        "seconds": round(done.seconds, 3),
        "resumed": round(done.resumed, 4),
    }
    print_json(record) if as_json else _print_outcome(out, chosen, done)


def _record(model: Path, out: Path, chosen: Sample, cost: Cost) -> dict[str, Any]:
    return {
        "model": str(model),
        "made": str(out),
        "tokens": chosen.tokens,
        "sequences": len(chosen.sequences),
        "sequence": chosen.length,
        "sources": chosen.shares,
        "multiplications": cost.multiplications,
        "memory_bytes": cost.memory,
        "disk_bytes": cost.disk,
    }


def _print_plan(out: Path, chosen: Sample, cost: Cost, seconds: float) -> None:
    print_facts(
        {
            "to make": out,
            "tokens": _tokens(chosen),
            "sources": _shares(chosen),
            "memory": f"{format_size(cost.memory)} at most",
            "disk": f"{format_size(cost.disk)}, to go on after an interruption",
            "time": f"about {_duration(seconds)}, of which products alone were measured",
        }
    )


def _print_outcome(out: Path, chosen: Sample, done: Outcome) -> None:
    experts = sum(map(len, done.unreached.values()))
    named = "; ".join(f"{name} {', '.join(map(str, m))}" for name, m in list(done.unreached.items())[:SHOWN])
    more = f"; and of {len(done.unreached) - SHOWN} more tensors" if len(done.unreached) > SHOWN else ""
    print_facts(
        {
            "made": out,
            "tokens": _tokens(chosen),
            "sources": _shares(chosen),
            "recorded": f"{done.matrices:,} matrices, in {done.entries:,} entries",
            "never reached": f"{experts} of them ({named}{more}), which will get their layer's" if experts else None,
            "time": _duration(done.seconds) + (f", after {done.resumed:.0%} before" if done.resumed else ""),
        }
    )


def _tokens(chosen: Sample) -> str:
    return f"{chosen.tokens:,} in {len(chosen.sequences):,} sequences"


def _shares(chosen: Sample) -> str:
    return ", ".join(f"{name} {count / chosen.tokens:.0%}" for name, count in chosen.shares.items())


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
