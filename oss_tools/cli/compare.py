"""Compare quantizations: quality, speed and memory side by side.

Without MODEL, the embedded model is made in several formats and these are compared. --formats names the formats, recipes or
recipe files; the first is the base. With one MODEL, that model is made in these formats. With several, the finished
checkpoints are compared, whatever their containers; the first, or --base, is the base.

The figures are size, weight error, perplexity, KL divergence from the base, the suites' scores with paired tests, latency
in turns, load time and peak memory. Intervals are 95 % intervals. Finished parts are kept under --output and used again: an
interrupted run goes on where it stopped, and one more format costs only its own part.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._compare_options import (
    BudgetOptions,
    ComparedQuestions,
    DriftOptions,
    GateOptions,
    PackOptions,
    TimingOptions,
)
from oss_tools.cli._compared import print_advice, print_comparison, shown
from oss_tools.cli._endpoints import EndpointOptions, model_or_endpoint, opened
from oss_tools.cli._options import EMBEDDED, JsonFlag, QuietFlag, model_path, names_in
from oss_tools.cli._output import print_json, remark, remark_unless
from oss_tools.cli._ray import Ray, cluster_at
from oss_tools.cli._ray import with_address as with_address

if TYPE_CHECKING:
    from oss_tools.compare.advice import Advice
    from oss_tools.report.comparison import Comparison

EXAMPLES = """
oss-tools compare
oss-tools compare gpt-oss-20b/ --formats mxfp4,q8_0,my-recipe.yaml --limit 50
oss-tools compare model-bf16/ model-q8_0.gguf model-q4_0.gguf --output runs/q4
oss-tools compare gpt-oss-20b/ gpt-oss-20b-q4.gguf https://api.openai.com/v1#o4-mini --suites math,health --price 1.1,4.4
oss-tools compare gpt-oss-120b/ --write-pack 120b.pack
oss-tools compare gpt-oss-120b-q4.gguf --pack 120b.pack
oss-tools compare gpt-oss-20b/ --formats mxfp4,q8_0,q4_0 --budget 16GB --context 32768
oss-tools compare gpt-oss-20b/ --formats mxfp4,q4_0 --suites "" --drift depth,cache --depths 0,4k,32k
oss-tools compare gpt-oss-20b/ --formats mxfp4,q8_0,q4_0 --tier full --ray 10.0.0.5:6379 --output /shared/runs/20b
oss-tools compare --gate default --baseline results/baselines/tiny.json
"""
FORMATS = "bf16,int8,q8_0,mxfp4,q4_0"
SUITES = "math,health,tool_use"
MODEL_FILES = (".gguf", ".ready", ".safetensors")  # suffixes of models that are one file


def run(
    models: Annotated[
        list[Any] | None,
        typer.Argument(
            metavar="MODEL",
            parser=model_or_endpoint,
            help="Checkpoints (a path, the owner/name of a download, or tiny) or endpoints, "
            "https://host/v1#name. [default: tiny]",
            show_default=False,
        ),
    ] = None,
    *,
    formats: Annotated[
        str | None,
        typer.Option(
            "--formats",
            "-f",
            metavar="LIST",
            help=f"The formats or recipes to make of one model, separated by commas. [default: {FORMATS}]",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        Any,
        typer.Option(
            "--base",
            metavar="MODEL",
            parser=model_or_endpoint,
            help="The model that the others are compared with. [default: the first]",
            show_default=False,
        ),
    ] = None,
    suites: Annotated[
        str,
        typer.Option(
            "--suites",
            "--suite",
            "-s",
            metavar="LIST",
            help="The suites whose questions to ask, separated by commas; empty for none.",
        ),
    ] = SUITES,
    questions: ComparedQuestions,
    timing: TimingOptions,
    drift: DriftOptions,
    packs: PackOptions,
    budget: BudgetOptions,
    gate: GateOptions,
    wire: EndpointOptions,
    ray: Ray = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder for models, finished parts and the record.")
    ] = Path("comparison"),
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Use the parts that are finished, or measure everything again.")
    ] = True,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    finished = len(models or ()) > 1 or base is not None or packs.pack is not None
    _check(models or [], formats, base, packs, drift, gate)
    named = _models(models or [], quiet) if finished else list(models or [])
    asked = {text: opened(text, wire) for text in [*named, base] if isinstance(text, str)}
    paths = [path for path in named if isinstance(path, Path)]
    if ray and packs:
        raise typer.BadParameter("a pack is made and used on one machine; leave --ray out", param_hint="--ray")
    if asked and packs:
        raise typer.BadParameter("a pack is for checkpoints, not for models behind addresses")
    if asked and not finished:
        raise typer.BadParameter("a model behind an address is compared with checkpoints; `eval` scores it by itself")
    if finished and formats:
        raise typer.BadParameter("it is for one model; several checkpoints are compared as they are", param_hint="--formats")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the progress here is ours
    judge, published = gate.judge(), gate.names()
    from oss_tools.checkpoints.files import check_folder
    from oss_tools.compare.pipeline import RECORD, compare_checkpoints, compare_formats, compare_with_pack, make_pack
    from oss_tools.resources import resource

    check_folder(output)
    say = remark_unless(quiet)
    embedded = not (paths or base) or resource("tiny/checkpoint") in (*paths, base)
    settings = questions.settings(names_in(suites), timing.timing(say), drift, embedded=embedded)
    shared: dict[str, Any] = {"fresh": not resume, "say": say}
    with cluster_at(ray) as cluster, shown(quiet=quiet) as report:
        spread: dict[str, Any] = {"cluster": cluster, "report": report}
        if (file := packs.write_pack) is not None:
            size = make_pack(paths[0], file, settings, output, report=report, **shared)
            print(f"{file}: {size:,} bytes; `oss-tools compare CANDIDATE --pack {file}` holds others against it")
            return
        if packs.pack is not None:
            record = compare_with_pack(paths, packs.pack, settings, output, report=report, **shared)
        elif finished:
            own = base if isinstance(base, Path) else None
            away = {"endpoints": list(asked.values()), "base_endpoint": asked.get(base), "price": wire.price}
            record = compare_checkpoints(paths, settings, output, base=own, **spread, **away, **shared)
        else:
            one = paths[0] if paths else model_path(EMBEDDED)
            record = compare_formats(one, names_in(formats or FORMATS), settings, output, **spread, **shared)
    verdict = judge(record)
    advice = _advice(record, budget.budget, budget.context, timing.threads) if budget.budget else None
    if as_json:
        from dataclasses import asdict

        more = {"verdict": verdict and verdict.to_json(), "advice": advice and asdict(advice)}
        print_json(record.to_json() | {name: value for name, value in more.items() if value})
    else:
        print_comparison(record, output / RECORD, verdict, published)
        if advice:
            print_advice(advice)
    if verdict and not verdict.passed:
        raise typer.Exit(1)


def _check(
    models: list[Any], formats: str | None, base: Any, packs: PackOptions, drift: DriftOptions, gate: GateOptions
) -> None:
    """Raises BadParameter where a pack is named together with what it excludes."""
    if packs.pack and (base is not None or not models):
        raise typer.BadParameter(
            "the pack replaces the base: leave --base out, and name the checkpoints to compare with it", param_hint="--pack"
        )
    if packs.pack and drift.drift:
        raise typer.BadParameter("it needs the base itself: a pack has no logits of it", param_hint="--drift")
    if packs.write_pack and (packs.pack or base is not None or len(models) != 1 or formats or gate.gate):
        raise typer.BadParameter(
            "a pack is made of one checkpoint, without --formats, --base or --gate", param_hint="--write-pack"
        )


def _models(paths: list[Any], quiet: bool) -> list[Any]:
    """Those of several models that can be some: the rest of what DIR/* names is passed over, with a line."""
    left_out = [path for path in paths if isinstance(path, Path) and path.is_file() and not _may_be_model(path)]
    if left_out and not quiet:
        remark(f"{', '.join(path.name for path in left_out)}: not a model, ignored")
    return [path for path in paths if path not in left_out]


def _may_be_model(file: Path) -> bool:
    """Whether a file has a model's name or beginning; opening it says what is wrong with it then."""
    if file.suffix in MODEL_FILES:
        return True
    with file.open("rb") as stream:
        return stream.read(4) == b"GGUF"


def _advice(record: Comparison, budget: int, context: int, threads: int) -> Advice:
    """What to take of checkpoints that are here."""
    from oss_tools.compare.advice import advise, memory_of

    there = {c.name: Path(c.path).expanduser() for c in record.candidates}
    needed = {name: memory_of(path, context, threads) for name, path in there.items() if path.exists()}
    return advise(record, needed, budget, context)
