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
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._endpoints import EndpointOptions, model_or_endpoint, opened
from oss_tools.cli._engine import Activations, BackendName, Device, Load, Memory, Threads
from oss_tools.cli._options import EMBEDDED, JsonFlag, Published, QuietFlag, Repeats, model_path, names_in, size_option
from oss_tools.cli._output import PLAIN_INTERVAL, print_json, remark
from oss_tools.cli._ray import Ray, cluster_at
from oss_tools.cli._ray import with_address as with_address
from oss_tools.escapes import in_a_line

if TYPE_CHECKING:
    from oss_tools.compare.advice import Advice
    from oss_tools.compare.schedule import Now
    from oss_tools.report.comparison import Comparison
    from oss_tools.report.gates import Verdict

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
EMBEDDED_TOKENS = 320  # more than the embedded model's longest right answer
EMBEDDED_LIMIT = 100  # questions of each task, so that all of it is done in minutes


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
    tier: Annotated[
        str,
        typer.Option(
            "--tier",
            metavar="smoke|full",
            help="smoke asks questions that come with the program; full asks the public sets.",
        ),
    ] = "smoke",
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help=f"Ask only this many questions of each task. [default: all; {EMBEDDED_LIMIT} if tiny takes part]",
            show_default=False,
        ),
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks", min=1, help="Read only this many chunks of each text; a chunk has 512 tokens.", show_default=False
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option(
            "--repeat", "-r", min=0, help="How many timed rounds to run; 6 or more give intervals, 0 times nothing."
        ),
    ] = 12,
    prompt: Annotated[int, typer.Option("--prompt", "-p", min=1, help="How many tokens the timed prompt has.")] = 128,
    generate: Annotated[int, typer.Option("--gen", "-n", min=1, help="How many tokens to generate after it.")] = 64,
    reasoning: Annotated[str, typer.Option("--reasoning", metavar="low|medium|high", help="How much to reason.")] = "medium",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            help="The most tokens of one answer, reasoning included. [default: the task's]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="A folder that holds the public sets as TASK/SPLIT.jsonl.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            min=0,
            help="The seed of resampling, and of the choice of questions and chunks under --limit and --chunks "
            "(0 takes the first).",
        ),
    ] = 0,
    repeats: Repeats = None,
    drift: Annotated[
        str,
        typer.Option(
            "--drift",
            metavar="KINDS",
            help="Measure how the divergence changes with the length of the context: depth, cache, backends, "
            "separated by commas.",
            show_default=False,
        ),
    ] = "",
    depths: Annotated[
        str, typer.Option("--depths", metavar="LIST", help="For --drift: numbers of tokens of context, separated by commas.")
    ] = "0,1024,2048,4096,8192,16384,32768",
    device: Device = "cpu",
    threads: Threads = 0,
    backend: BackendName = "numba",
    activations: Activations = "int8",
    wire: EndpointOptions,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            parser=size_option,
            metavar="SIZE",
            help="Say at the end which of them is the best that fits in this memory, e.g. 16GiB.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        int, typer.Option("--context", "-c", min=1, help="For --budget: the most tokens that a sequence may have.")
    ] = 4096,
    pack: Annotated[
        Path | None,
        typer.Option(
            "--pack",
            metavar="FILE",
            help="Compare with this pack of a base, made by --write-pack; the base itself need not be here.",
            show_default=False,
        ),
    ] = None,
    write_pack: Annotated[
        Path | None,
        typer.Option(
            "--write-pack",
            metavar="FILE",
            help="Keep what MODEL predicts in this file of a few MB; compare nothing.",
            show_default=False,
        ),
    ] = None,
    load: Load = "resident",
    memory: Memory = None,
    ray: Ray = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder for models, finished parts and the record.")
    ] = Path("comparison"),
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Use the parts that are finished, or measure everything again.")
    ] = True,
    gate: Annotated[
        str | None,
        typer.Option(
            "--gate",
            metavar="GATE",
            help="The limits that the figures must hold: a gate's name, or a .yaml file.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", metavar="FILE", help="An earlier record that the gate compares with.", show_default=False
        ),
    ] = None,
    published: Published = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    if reasoning not in ("low", "medium", "high"):
        raise typer.BadParameter(f"{reasoning!r} is not one of low, medium, high", param_hint="--reasoning")
    finished = len(models or ()) > 1 or base is not None or pack is not None
    if pack and (base is not None or not models):
        raise typer.BadParameter(
            "the pack replaces the base: leave --base out, and name the checkpoints to compare with it", param_hint="--pack"
        )
    if write_pack and (finished or len(models or ()) != 1 or formats or gate):
        raise typer.BadParameter(
            "a pack is made of one checkpoint, without --formats, --base or --gate", param_hint="--write-pack"
        )
    named = _models(models or [], quiet) if finished else list(models or [])
    asked = {text: opened(text, wire) for text in [*named, base] if isinstance(text, str)}
    paths = [path for path in named if isinstance(path, Path)]
    if ray and (pack or write_pack):
        raise typer.BadParameter("a pack is made and used on one machine; leave --ray out", param_hint="--ray")
    if asked and (pack or write_pack):
        raise typer.BadParameter("a pack is for checkpoints, not for models behind addresses")
    if asked and not finished:
        raise typer.BadParameter("a model behind an address is compared with checkpoints; `eval` scores it by itself")
    if finished and formats:
        raise typer.BadParameter("it is for one model; several checkpoints are compared as they are", param_hint="--formats")
    if baseline and not gate:
        raise typer.BadParameter("it needs --gate, whose rules compare with it", param_hint="--baseline")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the progress here is ours
    if drift and pack:
        raise typer.BadParameter("it needs the base itself: a pack has no logits of it", param_hint="--drift")
    drifts, places = names_in(drift), _depths(depths)
    judge = _judge(gate, baseline)
    _check_published(names_in(published))
    from oss_tools.checkpoints.files import check_folder
    from oss_tools.compare.drift import KINDS
    from oss_tools.compare.latency import Settings as Timing
    from oss_tools.compare.pipeline import (
        RECORD,
        Settings,
        compare_checkpoints,
        compare_formats,
        compare_with_pack,
        make_pack,
    )
    from oss_tools.engine.backend import backend_for
    from oss_tools.resources import resource

    check_folder(output)
    if unknown := [kind for kind in drifts if kind not in KINDS]:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(KINDS)}", param_hint="--drift")
    if not (paths or base) or resource("tiny/checkpoint") in (*paths, base):
        limit, max_tokens = limit or EMBEDDED_LIMIT, max_tokens or EMBEDDED_TOKENS
    say = (lambda line: None) if quiet else remark
    timing = Timing(prompt, generate, repeat, threads, backend_for(device, backend, say), activations, load, memory)
    settings = Settings(
        names_in(suites), tier, limit, chunks, reasoning, max_tokens, data and data.absolute(), seed, timing, repeats,  # type: ignore[arg-type]
        drifts, places,
    )  # fmt: skip
    shared: dict[str, Any] = {"fresh": not resume, "say": say}
    with cluster_at(ray) as cluster, shown(quiet=quiet) as report:
        spread: dict[str, Any] = {"cluster": cluster, "report": report}
        if write_pack is not None:
            size = make_pack(paths[0], write_pack, settings, output, report=report, **shared)
            print(f"{write_pack}: {size:,} bytes; `oss-tools compare CANDIDATE --pack {write_pack}` holds others against it")
            return
        if pack is not None:
            record = compare_with_pack(paths, pack, settings, output, report=report, **shared)
        elif finished:
            own = base if isinstance(base, Path) else None
            away = {"endpoints": list(asked.values()), "base_endpoint": asked.get(base), "price": wire.price}
            record = compare_checkpoints(paths, settings, output, base=own, **spread, **away, **shared)
        else:
            wanted = names_in(formats or FORMATS)
            record = compare_formats(
                paths[0] if paths else model_path(EMBEDDED), wanted, settings, output, **spread, **shared
            )
    verdict = judge(record)
    advice = _advice(record, budget, context, threads) if budget else None
    if as_json:
        from dataclasses import asdict

        more = {"verdict": verdict and verdict.to_json(), "advice": advice and asdict(advice)}
        print_json(record.to_json() | {name: value for name, value in more.items() if value})
    else:
        print_comparison(record, output / RECORD, verdict, names_in(published))
        if advice:
            print_advice(advice)
    if verdict and not verdict.passed:
        raise typer.Exit(1)


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


def _judge(gate: str | None, baseline: Path | None) -> Callable[[Comparison], Verdict | None]:
    """What the gate will say of the record; its file and the baseline are read before anything is measured."""
    if gate is None:
        return lambda record: None
    from oss_tools.report.gates import judge, load_gate
    from oss_tools.report.reading import load_sheets
    from oss_tools.report.sheet import sheet_of

    rules = load_gate(gate)
    known = load_sheets([baseline])[0] if baseline else None
    if rules.wants_baseline and known is None:
        raise typer.BadParameter(f"the gate {rules.name} compares with a record; give --baseline", param_hint="--gate")
    return lambda record: judge(rules, sheet_of(record), known)


def _depths(text: str) -> tuple[int, ...]:
    """Numbers of tokens; 4k is 4,096."""
    found = []
    for name in names_in(text):
        number, thousands = (name[:-1], 1024) if name.lower().endswith("k") else (name, 1)
        if not number.isdecimal() or int(number) * thousands > 1 << 24:
            raise typer.BadParameter(f"{name!r}: write numbers of tokens, as in 0,1024,32k", param_hint="--depths")
        found.append(int(number) * thousands)
    if not found:
        raise typer.BadParameter("write numbers of tokens, as in 0,1024,32k", param_hint="--depths")
    return tuple(found)


def _check_published(names: tuple[str, ...]) -> None:
    """Raises BadRecipe for figures that there are not, before anything is measured."""
    if names and "none" not in names:
        from oss_tools.report.published import load_published

        for name in names:
            load_published(name)


def print_comparison(record: Comparison, file: Path, verdict: Verdict | None, published: tuple[str, ...]) -> None:
    """The table, what is wrong, the gate's word, and how to go on."""
    import shutil

    from oss_tools.report.published import with_published
    from oss_tools.report.sheet import sheet_of
    from oss_tools.report.table import text

    print(text(with_published(sheet_of(record), published), max(shutil.get_terminal_size((120, 24)).columns, 80)))
    print(_about(record))
    if verdict:
        print()
        for outcome in verdict.failed:
            lines = [f"FAILED {outcome.rule.title}: {outcome.message}", *(f"  {line}" for line in outcome.details)]
            print(*map(in_a_line, lines), sep="\n")
        print(verdict.summary)
    print(f"\nrecord: {file}; `oss-tools report {file}` makes a page of it")


def _advice(record: Comparison, budget: int, context: int, threads: int) -> Advice:
    """What to take of checkpoints that are here."""
    from oss_tools.compare.advice import advise, memory_of

    there = {c.name: Path(c.path).expanduser() for c in record.candidates}
    needed = {name: memory_of(path, context, threads) for name, path in there.items() if path.exists()}
    return advise(record, needed, budget, context)


def print_advice(advice: Advice) -> None:
    """The recommendation, why, what speaks against it, and why not the others."""
    print()
    print(f"take {in_a_line(advice.chosen)}:" if advice.chosen else "nothing that was compared fits:")
    marks = [("+", advice.reasons), ("-", advice.against), (" ", tuple(f"{name} {why}" for name, why in advice.passed_over))]
    for mark, lines in marks:
        for line in lines:
            print(f"  {mark} {in_a_line(line)}")


def _about(record: Comparison) -> str:
    """What the figures were measured on."""
    machine = record.environment.machine
    texts = [f"{f.positions:,} tokens of {f.text}" for f in record.reference.fidelity]
    over = f"predictions over {' and '.join(texts)}, whole vocabulary; " if texts else ""
    asked = ", ".join(f"{task.n} of {task.task}" for task in record.reference.tasks)
    return f"\n{over}{f'questions: {asked}; ' if asked else ''}{machine['cpu']}, {machine['cores']} cores"


@contextmanager
def shown(*, quiet: bool = False) -> Iterator[Callable[[Now], None]]:
    """Progress on stderr: what is being done, the how manieth step it is, about how long the rest takes."""
    if quiet:
        yield lambda now: None
    elif sys.stderr.isatty():
        from oss_tools.cli._bars import spinner

        with spinner() as say:
            yield lambda now: say(describe(now))
        return
    else:
        yield _lines()


def _lines() -> Callable[[Now], None]:
    """A plain line for each step, and one now and then within it."""
    last: tuple[int, float] = (0, 0.0)

    def report(now: Now) -> None:
        nonlocal last
        if now.number != last[0] or time.monotonic() - last[1] >= PLAIN_INTERVAL:
            last = (now.number, time.monotonic())
            print(in_a_line(describe(now)), file=sys.stderr)

    return report


def describe(now: Now) -> str:
    """(7/23) predictions of q8_0, 40 %, about 1:30 left"""
    share = f", {100 * now.done // now.of} %" if now.of else ""
    left = "" if now.left is None else f", about {int(now.left) // 60}:{int(now.left) % 60:02} left"
    return f"({now.number}/{now.total}) {now.what}{share}{left}"
