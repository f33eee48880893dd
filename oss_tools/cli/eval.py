"""Score a model on mathematics, health, tool use and text.

The tasks are lm-eval's, and the model runs on this program's engine. The tier `smoke` needs no network: its questions come
with the program. The tier `full` asks the public sets, which come from the Hugging Face hub or from --data DIR (as
DIR/TASK/SPLIT.jsonl, with the fields of the original). --task names single tasks, ours (--list shows them) or lm-eval's
own. With --output, every answer is kept as it comes, and --resume goes on where a run stopped. Intervals are 95 %
intervals.

MODEL may also be an endpoint, https://host/v1#name: a model behind an OpenAI-compatible address, such as a hosted one,
vLLM, llama-server or Ollama. Its answers are scored like those of a checkpoint. Its times include the network.

HealthBench is graded by another model, which --grader-url and --grader-model name. The grades are kept in --output, and
none is asked for twice. In tau2-bench's tasks another model plays the user; --user-url and --user-model name it, --data is
a checkout of tau2-bench, and --tau2-python is a Python in which tau2 is installed. --dry-run shows what a run would ask,
and how many calls and tokens the grader and the simulated user would take.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._endpoints import EndpointOptions, asked, model_or_endpoint, opened, show_calls
from oss_tools.cli._engine import ScoringOptions, TraceExperts, loaded
from oss_tools.cli._grading import GraderOptions, grading
from oss_tools.cli._options import EMBEDDED, JsonFlag, QuietFlag, Repeats, model_path
from oss_tools.cli._output import counted, print_json, print_table, remark
from oss_tools.cli._ray import Ray, cluster_at
from oss_tools.cli._ray import with_address as with_address
from oss_tools.cli._scores import DIVERGENCE, print_record
from oss_tools.cli._simulation import UserOptions, show_users, simulating

if TYPE_CHECKING:
    from oss_tools.endpoints.endpoint import Endpoint
    from oss_tools.engine.engine import Engine
    from oss_tools.harness.grader import Grader
    from oss_tools.harness.subjects import Subject
    from oss_tools.harness.suites import SuiteTask

EXAMPLES = """
oss-tools eval tiny
oss-tools eval gpt-oss-20b/ --suite math,health --tier full --limit 100 --reasoning high --output runs/20b
oss-tools eval model-q4.gguf --suite text --base model-bf16/ --text notes.txt
oss-tools eval model.gguf --task hellaswag --num-fewshot 5
oss-tools eval gpt-oss-20b/ --task healthbench_hard --grader-url https://api.openai.com/v1 --grader-model gpt-4.1 --dry-run
oss-tools eval https://api.openai.com/v1#o4-mini --suite math --price 1.1,4.4 --dry-run
oss-tools eval http://localhost:8080/v1#gpt-oss-20b --suite tool_use --output runs/server
oss-tools eval gpt-oss-120b/ --suite math --tier full --ray 10.0.0.5:6379 --output runs/120b
oss-tools eval --list
"""
SUITES = "math,health,tool_use,text"


def run(
    model: Annotated[
        Any,
        typer.Argument(
            metavar="MODEL",
            parser=model_or_endpoint,
            help="A checkpoint (its path, the owner/name of a download, or tiny), or an endpoint, https://host/v1#name.",
            show_default=False,
        ),
    ] = None,
    *,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite",
            "--suites",
            "-s",
            metavar="LIST",
            help=f"The suites to run, separated by commas. [default: {SUITES}]",
            show_default=False,
        ),
    ] = None,
    tier: Annotated[
        str,
        typer.Option(
            "--tier",
            metavar="smoke|full",
            help="smoke asks questions that come with the program; full asks the public sets.",
        ),
    ] = "smoke",
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="Run this task, by its name or its YAML file; may be repeated.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text", metavar="FILE", help="Measure the perplexity of this text; may be repeated.", show_default=False
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            parser=model_path,
            help="Measure how far the predictions on texts are from this model's.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="A folder that holds the public sets as TASK/SPLIT.jsonl.", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Ask only this many questions of each task.", show_default=False)
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="The seed of sampled answers and of the choice of worked examples.")
    ] = 0,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num-fewshot",
            min=0,
            help="How many worked examples come before each question. [default: the task's]",
            show_default=False,
        ),
    ] = None,
    reasoning: Annotated[
        str | None,
        typer.Option(
            "--reasoning",
            metavar="low|medium|high",
            help="How much to reason. [default: the task's, or medium]",
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Ask with or without the chat template. [default: with it, if the model has one]",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            "-n",
            min=1,
            help="The most tokens of one answer, reasoning included. [default: the task's]",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="How many answers to generate together.")] = 16,
    repeats: Repeats = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The folder for the record, the samples, and every answer as it comes.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the answers that are in --output.")] = False,
    grader: GraderOptions,
    user: UserOptions,
    wire: EndpointOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be asked and what grading would cost; run nothing.")
    ] = False,
    how: ScoringOptions,
    trace_experts: TraceExperts = None,
    ray: Ray = None,
    list_tasks: Annotated[
        bool, typer.Option("--list", help="List suites and tasks with their tiers, sizes, licences and sources.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    if list_tasks:
        show_list(as_json)
        return
    if model is None:
        raise typer.BadParameter("name a model, or give --list", param_hint="MODEL")
    if reasoning not in (None, "low", "medium", "high"):
        raise typer.BadParameter(f"{reasoning!r} is not one of low, medium, high", param_hint="--reasoning")
    if ray and user.user_url:
        raise typer.BadParameter("conversations with a simulated user are held on one machine", param_hint="--ray")
    if resume and output is None:
        raise typer.BadParameter("it needs --output, the folder of the run that is to go on", param_hint="--resume")
    if ray and (isinstance(model, str) or base or text or trace_experts):
        raise typer.BadParameter(
            "is for checkpoints, without --base, --text and --trace-experts; --jobs sets how many requests an endpoint gets",
            param_hint="--ray",
        )
    from oss_tools.checkpoints.files import check_folder
    from oss_tools.harness.suites import chosen_tasks
    from oss_tools.harness.tasks import load_tasks, require_lm_eval

    os.environ.setdefault("TQDM_DISABLE", "1")  # the bars here are ours
    require_lm_eval()
    if output is not None:
        check_folder(output)
    endpoint = opened(model, wire)
    if endpoint is not None and base is not None:
        raise typer.BadParameter("both models must be checkpoints: an endpoint gives no logits", param_hint="--base")
    check_models(None if endpoint else model, base)
    usual = SUITES if endpoint is None else SUITES.replace(",text", "")  # which wants log-probabilities of a prompt
    wanted = suite if suite is not None else "" if task or text else usual
    listed = chosen_tasks([name.strip() for name in wanted.split(",")], tier) if wanted else []
    graders = grading(grader, output, quiet)
    if grader.grader_url is None and (left_out := [entry.task for entry in listed if entry.needs_grader]):
        remark(
            f"{', '.join(left_out)}: left out, because a model must grade them: name one with --grader-url and --grader-model"
        )
        listed = [entry for entry in listed if not entry.needs_grader]
    if user.user_url is None and not dry_run and (left_out := [entry.task for entry in listed if entry.needs_user]):
        remark(
            f"{', '.join(left_out)}: left out, because a model must play the user: name one with --user-url and --user-model"
        )
        listed = [entry for entry in listed if not entry.needs_user]
    names = [*(entry.task for entry in listed), *(task or [])]
    if dry_run:
        with graders:
            prices = {"price": wire.price, "user_price": user.user_price, "repeats": repeats}
            show_plan(names, {entry.task for entry in listed}, text or [], data, limit, as_json, endpoint, **prices)
        return
    from oss_tools.harness.run import Settings, write_record
    from oss_tools.harness.subjects import EngineSubject

    settings = Settings(
        limit=limit,
        seed=seed,
        num_fewshot=num_fewshot,
        effort=reasoning,  # type: ignore[arg-type]
        chat=chat,
        batch=batch,
        max_tokens=max_tokens,
        repeats=repeats,
    )
    room = how.memory // 2 if how.memory and base else how.memory  # both are loaded in the end
    engine_options = how.settings() | {"memory": room, "quiet": quiet}
    played = simulating(user, wire.jobs, data, quiet)
    with graders as judge, played as simulation:
        tasks = load_tasks(names, data, text or [], remark, may_miss={entry.task for entry in listed})
        run = (listed, tasks, settings, output, resume, quiet, judge)
        if endpoint is not None:
            with asked(endpoint, wire.price, tasks, quiet) as subject:
                record = evaluated(subject, subject.described, *run)
        elif ray is not None:
            record = spread(ray, model, how.settings(), data, quiet, *run)
        else:
            with loaded(model, trace_experts=trace_experts, **engine_options) as engine:
                record = evaluated(EngineSubject(engine), described(model), *run)
                if base is not None:
                    with loaded(base, **engine_options) as other:
                        record[DIVERGENCE] = divergence(other, engine, text or [], limit, quiet) | {"base": described(base)}
        if judge is not None:
            record["grader"] = {"model": grader.grader_model, **judge.tally.to_json()}
        if simulation is not None:
            record["user"] = {"model": simulation.name, **simulation.tally.to_json()}
            if user.user_price:
                record["user"]["dollars"] = user.user_price.of(simulation.tally.prompt_tokens, simulation.tally.tokens)
    if output is not None:
        write_record(output, record)
    if as_json:
        print_json(record)
    else:
        print_record(record)


def show_plan(
    names: list[str],
    listed: set[str],
    texts: list[Path],
    data: Path | None,
    limit: int | None,
    as_json: bool,
    endpoint: Endpoint | None = None,
    price: Any = None,
    repeats: int | None = None,
    user_price: Any = None,
) -> None:
    """What a run would ask, as a table or as JSON; of an endpoint and of a simulated user also tokens and price."""
    from dataclasses import asdict

    from oss_tools.harness.plan import planned

    rows = planned(names, data, texts, limit, remark, may_miss=listed, repeats=repeats)
    if endpoint is not None:
        show_calls(rows, endpoint, price, as_json)
        if not as_json:
            show_users(rows, user_price)
        return
    if as_json:
        print_json({"tasks": [asdict(row) for row in rows]})
        return
    cells = [
        (row.task, f"{row.questions:,}", f"{row.requests:,}", *(f"{n:,}" if row.grader_calls else "" for n in row.grading()))
        for row in rows
    ]
    header = ("task", "questions", "requests", "calls of the grader", "tokens to read, about", "tokens to write, about")
    print_table(cells, header, right=(1, 2, 3, 4, 5))
    show_users(rows, user_price)


def check_models(model: Path | None, base: Path | None) -> None:
    """Raises what loading would raise for files that are no checkpoint, before anything is done."""
    from oss_tools.models import open_checkpoint

    for path in (model, base):
        if path is not None:
            with open_checkpoint(path) as checkpoint:
                checkpoint.metadata()


def described(model: Path) -> dict[str, Any]:
    """What the record says of a model's files."""
    from oss_tools.download.layout import name_of
    from oss_tools.harness.run import fingerprint
    from oss_tools.models import open_checkpoint
    from oss_tools.resources import resource

    name = EMBEDDED if model == resource("tiny/checkpoint") else name_of(model)
    with open_checkpoint(model) as checkpoint:
        return {"name": name, "nbytes": checkpoint.nbytes, **fingerprint(checkpoint.reader.files())}


def evaluated(
    subject: Subject,
    model: dict[str, Any],
    listed: list[SuiteTask],
    tasks: dict[str, Any],
    settings: Any,
    output: Path | None,
    resume: bool,
    quiet: bool,
    grader: Grader | None = None,
) -> dict[str, Any]:
    """Runs tasks, of which the suites list some, with progress; the record."""
    from oss_tools.harness.run import evaluate

    with counted(quiet=quiet) as report:
        if grader is not None:
            grader.report = lambda done, total: report("grades", done, total)
        return evaluate(
            subject,
            tasks,
            settings,
            model=model,
            listed=listed,
            output=output,
            resume=resume,
            report=report,
            say=remark,
        )


def spread(
    address: str,
    model: Path,
    engine: dict[str, Any],
    data: Path | None,
    quiet: bool,
    listed: list[SuiteTask],
    tasks: dict[str, Any],
    settings: Any,
    output: Path | None,
    resume: bool,
    *rest: Any,
) -> dict[str, Any]:
    """Has the tasks answered on a cluster, and scores the answers here; the record."""
    from oss_tools.engine.backend import backend_for
    from oss_tools.harness.shares import answer_elsewhere, source_of

    engine["backend"] = backend_for(engine.pop("device"), engine["backend"], (lambda line: None) if quiet else remark)
    about, threads = described(model), engine.pop("threads")
    with tempfile.TemporaryDirectory() as scratch, cluster_at(address) as cluster, counted(quiet=quiet) as report:
        assert cluster is not None
        folder = output or Path(scratch)
        source = source_of(cluster, model, about["sha256"], engine, threads)
        asked = source, tasks["tasks"], settings, folder, data, resume
        subject = answer_elsewhere(cluster, model, *asked, report=report)
        return evaluated(subject, about, listed, tasks, settings, folder, True, *rest)


def divergence(base: Engine, engine: Engine, texts: list[Path], limit: int | None, quiet: bool) -> dict[str, Any]:
    """The statistics of the divergence from `base` on the user's files, or on the text that travels with the program."""
    from oss_tools.harness.data import read_jsonl
    from oss_tools.harness.texts import read_text
    from oss_tools.measure.fidelity import common_rows, compare_engines, summarize
    from oss_tools.resources import resource

    own = [doc["text"] for doc in read_jsonl(resource("evals/text/smoke.jsonl"))]
    tokens = engine.text.encode("\n\n".join([read_text(file) for file in texts] or own))
    both, rows = common_rows(base, engine), max(base.backend.vocabulary, engine.backend.vocabulary)
    if both < rows and not quiet:
        remark(f"one of the models has {rows - both:,} more rows, for padding; the {both:,} rows of both are compared")
    with counted(quiet=quiet) as report:
        chunks = compare_engines(base, engine, tokens, limit=limit, progress=lambda done, n: report(DIVERGENCE, done, n))
    return summarize(chunks)


def show_list(as_json: bool) -> None:
    """The suites' tasks, as a table or as JSON."""
    from dataclasses import asdict

    from oss_tools.harness.suites import load_suite, suite_names

    suites = [load_suite(name) for name in suite_names()]
    if as_json:
        print_json({suite.name: asdict(suite) for suite in suites})
        return
    for suite in suites:
        rows = [
            (entry.task, tier, f"{entry.size:,}", entry.licence, entry.about, entry.source)
            for tier, entries in suite.tiers.items()
            for entry in entries
        ]
        print_table(
            rows,
            ("task", "tier", "size", "licence", "what is asked", "source"),
            title=f"{suite.name}: {suite.about}",
            right=(2,),
        )
