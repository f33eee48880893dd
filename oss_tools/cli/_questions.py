"""What `eval` and `compare` share: which questions a model is asked, and how it answers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oss_tools.cli._groups import options
from oss_tools.cli._options import Repeats

EFFORTS = ("low", "medium", "high")


@options
class QuestionOptions:
    """Which questions are asked, and how they are answered."""

    tier: Annotated[
        str,
        typer.Option(
            "--tier",
            metavar="smoke|full",
            help="smoke asks questions that come with the program; full asks the public sets.",
        ),
    ] = "smoke"
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="A folder that holds the public sets as TASK/SPLIT.jsonl.", show_default=False
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Ask only this many questions of each task.", show_default=False)
    ] = None
    seed: Annotated[
        int, typer.Option("--seed", help="The seed of sampled answers and of the choice of worked examples.")
    ] = 0
    reasoning: Annotated[
        str | None,
        typer.Option(
            "--reasoning",
            metavar="low|medium|high",
            help="How much to reason. [default: the task's, or medium]",
            show_default=False,
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            "-n",
            min=1,
            help="The most tokens of one answer, reasoning included. [default: the task's]",
            show_default=False,
        ),
    ] = None
    repeats: Repeats = None

    def __post_init__(self) -> None:
        if self.reasoning is not None and self.reasoning not in EFFORTS:
            raise typer.BadParameter(f"{self.reasoning!r} is not one of low, medium, high", param_hint="--reasoning")
