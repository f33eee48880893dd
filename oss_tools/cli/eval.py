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
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._endpoints import EndpointOptions, asked, model_or_endpoint, opened, show_calls
from oss_tools.cli._engine import ScoringOptions, TraceExperts, loaded
from oss_tools.cli._evaluation import Evaluation, check_models, described, divergence
from oss_tools.cli._grading import GraderOptions, grading
from oss_tools.cli._groups import options
from oss_tools.cli._options import JsonFlag, QuietFlag, model_path
from oss_tools.cli._output import print_json, print_table, remark
from oss_tools.cli._questions import QuestionOptions
from oss_tools.cli._ray import Ray
from oss_tools.cli._ray import with_address as with_address
from oss_tools.cli._scores import DIVERGENCE, print_record
from oss_tools.cli._simulation import UserOptions, show_users, simulating

if TYPE_CHECKING:
    from oss_tools.endpoints.endpoint import Endpoint
    from oss_tools.endpoints.wire import Price
    from oss_tools.harness.run import Settings

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


@options
class ScoredQuestions(QuestionOptions):
    """Which questions are asked, how they are put, and how they are answered."""

    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num-fewshot",
            min=0,
            help="How many worked examples come before each question. [default: the task's]",
            show_default=False,
        ),
    ] = None
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Ask with or without the chat template. [default: with it, if the model has one]",
            show_default=False,
        ),
    ] = None
    batch: Annotated[int, typer.Option("--batch", "-b", min=1, help="How many answers to generate together.")] = 16

    def settings(self) -> Settings:
        """As `evaluate` takes them."""
        from oss_tools.harness.run import Settings

        return Settings(
            limit=self.limit,
            seed=self.seed,
            num_fewshot=self.num_fewshot,
            effort=self.reasoning,  # type: ignore[arg-type]
            chat=self.chat,
            batch=self.batch,
            max_tokens=self.max_tokens,
            repeats=self.repeats,
        )


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
    questions: ScoredQuestions,
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
    listed = chosen_tasks([name.strip() for name in wanted.split(",")], questions.tier) if wanted else []
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
            may_miss = {entry.task for entry in listed}
            show_plan(names, may_miss, text or [], questions, endpoint, wire.price, user.user_price, as_json)
        return
    from oss_tools.harness.run import write_record
    from oss_tools.harness.subjects import EngineSubject

    room = how.memory // 2 if how.memory and base else how.memory  # both are loaded in the end
    engine_options = how.settings() | {"memory": room, "quiet": quiet}
    played = simulating(user, wire.jobs, questions.data, quiet)
    with graders as judge, played as simulation:
        tasks = load_tasks(names, questions.data, text or [], remark, may_miss={entry.task for entry in listed})
        work = Evaluation(listed, tasks, questions.settings(), output, resume, quiet, judge)
        if endpoint is not None:
            with asked(endpoint, wire.price, tasks, quiet) as subject:
                record = work.of(subject, subject.described)
        elif ray is not None:
            record = work.spread(ray, model, how.settings(), questions.data)
        else:
            with loaded(model, trace_experts=trace_experts, **engine_options) as engine:
                record = work.of(EngineSubject(engine), described(model))
                if base is not None:
                    with loaded(base, **engine_options) as other:
                        found = divergence(other, engine, text or [], questions.limit, quiet)
                        record[DIVERGENCE] = found | {"base": described(base)}
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
    questions: QuestionOptions,
    endpoint: Endpoint | None,
    price: Price | None,
    user_price: Price | None,
    as_json: bool,
) -> None:
    """What a run would ask, as a table or as JSON; of an endpoint and of a simulated user also tokens and price."""
    from dataclasses import asdict

    from oss_tools.harness.plan import planned

    rows = planned(names, questions.data, texts, questions.limit, remark, may_miss=listed, repeats=questions.repeats)
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
