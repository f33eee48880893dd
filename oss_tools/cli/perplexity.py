"""Measure a model's perplexity on texts, and how far it is from another.

Perplexity says how surprised the model is by each next token, on average; smaller is better. Two figures can be compared
only if text and tokenizer are the same. Without FILE the texts are those of the suite `text`. --base also measures how far
the predictions are from another model's (KL divergence, in nats), which shows damage long before the perplexity does. `eval
--text FILE` measures the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oss_tools.cli._endpoints import EndpointOptions
from oss_tools.cli._engine import Model, ScoringOptions
from oss_tools.cli._grading import GraderOptions
from oss_tools.cli._options import JsonFlag, QuietFlag, model_path
from oss_tools.cli._simulation import UserOptions

EXAMPLES = """
oss-tools perplexity tiny
oss-tools perplexity gpt-oss-20b-q4.gguf handbook.txt --base gpt-oss-20b/
oss-tools perplexity model.gguf wiki.test.raw --limit 20 --json
"""


def run(
    model: Model,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="The texts to read. [default: those of the suite `text`]", show_default=False),
    ] = None,
    *,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            parser=model_path,
            help="Measure how far the predictions are from this model's.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Read only this many passages of each text.", show_default=False)
    ] = None,
    how: ScoringOptions,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    from oss_tools.cli import eval as scores

    texts = {"text": files} if files else {"suite": "text"}
    unused = {"grader": GraderOptions(), "user": UserOptions(), "wire": EndpointOptions()}
    questions = scores.ScoredQuestions(limit=limit)
    scores.run(model, **texts, base=base, questions=questions, how=how, as_json=as_json, quiet=quiet, **unused)  # type: ignore[arg-type]
