"""The options that name a grader, and grading with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oss_tools.cli._groups import need_each_other, options
from oss_tools.cli._output import remark_unless

if TYPE_CHECKING:
    from oss_tools.harness.grader import Grader


@options
class GraderOptions:
    """A model that grades answers."""

    grader_url: Annotated[
        str | None,
        typer.Option(
            "--grader-url",
            metavar="URL",
            help="The address of the model that grades, an OpenAI-compatible API, e.g. http://localhost:8000/v1.",
            show_default=False,
        ),
    ] = None
    grader_model: Annotated[
        str | None,
        typer.Option("--grader-model", metavar="NAME", help="The name of the model that grades.", show_default=False),
    ] = None
    grader_key: Annotated[
        str | None,
        typer.Option(
            "--grader-key",
            metavar="VARIABLE",
            help="The environment variable that holds the grader's key. [default: OPENAI_API_KEY, for https]",
            show_default=False,
        ),
    ] = None
    grader_jobs: Annotated[
        int, typer.Option("--grader-jobs", min=1, help="How many requests to send to the grader at once.")
    ] = 16

    def __post_init__(self) -> None:
        need_each_other(("--grader-url", self.grader_url), ("--grader-model", self.grader_model))


@contextmanager
def grading(how: GraderOptions, output: Path | None, quiet: bool) -> Iterator[Grader | None]:
    """Within it, tasks find the grader that is named, if one is. Grades are kept in OUTPUT/grades.jsonl."""
    if how.grader_url is None or how.grader_model is None:
        yield None
        return
    from oss_tools.harness.grader import GradeCache, Grader, GraderSettings, grading_with

    settings = GraderSettings(how.grader_url, how.grader_model, key_variable=how.grader_key, concurrency=how.grader_jobs)
    cache = GradeCache(None if output is None else output / "grades.jsonl")
    say = remark_unless(quiet)
    with Grader(settings, cache, say=say) as grader, grading_with(grader):
        yield grader
