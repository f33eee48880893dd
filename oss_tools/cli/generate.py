"""Continue a text, or answer a message, with a model.

A model that has a chat template answers PROMPT as a user's message. The final answer goes to stdout as it comes; the
reasoning (with --show-analysis) and figures go to stderr. If there is no final answer, the exit status is 1 and stderr says
why. --raw continues PROMPT as plain text, which is also what a model without a chat template does.

--json-schema and --regex hold the answer to a form, token by token; the reasoning stays free. If the answer was cut off
before its end, the exit status is 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from oss_tools.cli._chat import Figures, Reasoning, Screen, Speaker, figures_line, guesses
from oss_tools.cli._engine import EngineOptions, Model, TraceExperts, loaded
from oss_tools.cli._options import JsonFlag, QuietFlag
from oss_tools.cli._outlet import say
from oss_tools.cli._output import print_json, remark
from oss_tools.cli._prompt_cache import KeptPrompt, PromptCache
from oss_tools.cli._sampling import SamplingOptions

if TYPE_CHECKING:
    from oss_tools.chat.chat_template import ChatTemplate
    from oss_tools.chat.completion import Completion, Delta
    from oss_tools.chat.messages import Conversation, Effort
    from oss_tools.chat.structured import Form
    from oss_tools.engine.requests import Token

EXAMPLES = """
oss-tools generate tiny "What is 47 + 38?" --show-analysis --reasoning high
oss-tools generate gpt-oss-20b/ "Why is the sky blue?"
oss-tools generate model.gguf "Once upon a time" --raw --max-tokens 64 --temperature 0.8 --seed 1
oss-tools generate model.gguf -f prompt.txt --stop END
oss-tools generate model.gguf -f handbook.txt --raw --prompt-cache handbook.prompt
oss-tools generate gpt-oss-20b/ "Who wrote Emma, and when?" --json-schema book.json
"""


PLAIN_TOKENS = 256
MOST_SCHEMA, MOST_PROMPT = 1 << 20, 64 << 20  # bytes
CUT_OFF = "the tokens ran out before the answer had its form; raise --max-tokens or --context"


def run(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The text. If it is - or missing, it is read from stdin.", show_default=False),
    ] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Read PROMPT from this file.", show_default=False)
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    reasoning: Reasoning = "medium",
    show_analysis: Annotated[bool, typer.Option("--show-analysis", help="Print the reasoning too, on stderr.")] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            "-n",
            min=1,
            help="The most tokens to generate. [default: 256 of plain text, for an answer what the context has room for]",
            show_default=False,
        ),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="Stop where this text comes; may be repeated.")
    ] = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(
            "--json-schema", metavar="FILE", help="Hold the answer to JSON that this schema allows.", show_default=False
        ),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option(
            "--regex",
            metavar="PATTERN",
            help="Hold the answer to text that this regular expression matches as a whole.",
            show_default=False,
        ),
    ] = None,
    sampling: SamplingOptions,
    how: EngineOptions,
    trace_experts: TraceExperts = None,
    prompt_cache: PromptCache = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    from oss_tools.chat.chat_template import chat_template, has_chat_template
    from oss_tools.chat.messages import Conversation, Message
    from oss_tools.chat.structured import constraint_for, plain_constraint
    from oss_tools.engine.requests import Request

    rule = sampling.rule()
    form = form_of(json_schema, regex)
    text = prompt_of(prompt, file)
    kept = KeptPrompt(prompt_cache, quiet) if prompt_cache else None
    given = how.settings() | {"trace_experts": trace_experts, "prefix_budget": None if kept else 0, "prompt": kept}
    with loaded(model, **given, quiet=quiet, hint=True) as engine:
        if not raw and has_chat_template(engine.metadata, engine.text):
            template = chat_template(engine.metadata, engine.text)
            conversation = Conversation((Message("user", text),), effort=cast("Effort", reasoning))
            constraint = constraint_for(template, engine.grammars, conversation, form) if form else None
            speaker = Speaker(engine, rule, max_tokens, constraint)
            screen = None if as_json else Screen(show_analysis)
            with kept.after(engine, template.encode(conversation)) if kept else nullcontext():
                answer(speaker, template, conversation, tuple(stop or ()), screen, quiet)
            return
        if not raw and not quiet:
            remark("the checkpoint has no chat template: the prompt is continued as plain text")
        tokens = engine.text.encode(text)
        began = time.perf_counter()
        constraint = plain_constraint(engine.grammars, form) if form else None
        stream = engine.generate(Request(tokens, max_tokens or PLAIN_TOKENS, rule, tuple(stop or ()), constraint=constraint))
        record = {"prompt_tokens": len(tokens)} | consume(stream, began, len(tokens), show=not as_json) | guesses(engine)
        if kept:
            kept.end(engine, tokens)
    if as_json:
        print_json(record)
    elif not quiet:
        remark(figures_line(record))
    if form and record["finish"] == "length":
        remark(CUT_OFF)
        raise typer.Exit(1)


def prompt_of(prompt: str | None, file: Path | None) -> str:
    """The text to continue: PROMPT itself, a file's, or what stdin has. Raises BadRequest, BadCheckpoint."""
    from oss_tools.checkpoints.files import read_text
    from oss_tools.errors import BadRequest

    if prompt is not None and file is not None:
        raise BadRequest("PROMPT and --file: one of them is the text; leave the other out")
    if file is not None:
        return read_text(file, MOST_PROMPT)
    if prompt is None and sys.stdin.isatty():
        raise BadRequest("PROMPT is missing: give a text, --file FILE, or a pipe")
    return sys.stdin.read() if prompt in (None, "-") else str(prompt)


def form_of(json_schema: Path | None, regex: str | None) -> Form | None:
    """What the answer is held to. Raises BadRequest, BadCheckpoint for a file that is no JSON, MissingPackage."""
    if json_schema is None and regex is None:
        return None
    from oss_tools.chat.structured import Form
    from oss_tools.checkpoints.files import read_small
    from oss_tools.checkpoints.json_files import parse_value
    from oss_tools.errors import BadRequest

    if regex is not None and json_schema is not None:
        raise BadRequest("--json-schema and --regex: an answer has one form; leave one of them out")
    if json_schema is None:
        return Form.regex(regex)
    return Form.json_schema(parse_value(read_small(json_schema, MOST_SCHEMA), str(json_schema)))


def answer(
    speaker: Speaker,
    template: ChatTemplate,
    conversation: Conversation,
    stop: tuple[str, ...],
    screen: Screen | None,
    quiet: bool,
) -> None:
    """Answers a user's message on the screen, or as JSON without one. Raises typer.Exit if there is no final answer."""
    from oss_tools.chat.loop import listen

    figures, final = Figures(), Final(stop, screen)
    tokens = speaker.complete(template.encode(conversation), figures)
    completion = listen(final.until_stop(tokens), template.parser(conversation), final.add)
    final.end()
    if final.stopped:
        figures.finish = "stop"
    wrong = None if final.stopped else problem_of(completion, figures)
    if wrong is None and speaker.constraint and figures.finish == "length":
        wrong = CUT_OFF
    if screen is None:
        print_json(
            {
                "text": final.text,
                "answered": wrong is None,
                "analysis": completion.analysis,
                "problems": [str(finding) for finding in completion.findings],
                **figures.record(),
            }
        )
    else:
        screen.end_line()
    if wrong:
        remark(wrong)
    if not quiet and screen:
        remark(figures_line(figures.record()))
    if wrong:
        raise typer.Exit(1)


def problem_of(completion: Completion, figures: Figures) -> str | None:
    """Why there is no final answer; None if there is one. One that --max-tokens or the context cut off counts."""
    from oss_tools.chat.completion import Problem

    wrong = [finding for finding in completion.findings if finding.problem != Problem.MISSING_END or not completion.shown]
    if completion.calls and not wrong:
        return f"no final answer: the model calls the tool {completion.calls[0].name}"
    if not wrong:
        return None
    cut = figures.finish == "length" and all(finding.problem == Problem.MISSING_END for finding in wrong)
    if cut:
        return "no final answer: the tokens ran out"
    return "no final answer: " + "; ".join(dict.fromkeys(finding.sentence for finding in wrong[:3]))


class Final:
    """The final answer as it comes, up to a stop string; the reasoning goes past it to the screen."""

    def __init__(self, stop: tuple[str, ...], screen: Screen | None) -> None:
        from oss_tools.engine.text import StopStrings

        self._stop, self._screen = StopStrings(stop), screen
        self.text = ""

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    def until_stop(self, tokens: Iterable[int]) -> Iterator[int]:
        """The tokens, as long as no stop string has been complete."""
        for token in tokens:
            yield token
            if self.stopped:
                return

    def add(self, delta: Delta) -> None:
        if delta.channel == "final" and delta.recipient is None:
            if not self.stopped:
                self._show(self._stop.add(delta.text))
        elif self._screen:
            self._screen.delta(delta)

    def end(self) -> None:
        if not self.stopped:
            self._show(self._stop.flush())

    def _show(self, text: str) -> None:
        from oss_tools.chat.completion import Delta

        self.text += text
        if self._screen and text:
            self._screen.delta(Delta(text, "final"))


def consume(stream: Iterable[Token], began: float, prompt: int, show: bool) -> dict[str, Any]:
    """Takes all tokens, printing their text if asked to; returns the text and its figures."""
    pieces: list[str] = []
    first = began
    count, finish = 0, None
    for token in stream:
        if not count:
            first = time.perf_counter()
        count += 1
        pieces.append(token.text)
        finish = token.finish
        if show:
            say(token.text)
    if show:
        print()
    seconds = time.perf_counter() - first
    return {
        "text": "".join(pieces),
        "tokens": count,
        "finish": finish,
        "time_to_first_token": first - began,
        "prompt_tokens_per_second": prompt / max(first - began, 1e-9),
        "tokens_per_second": (count - 1) / max(seconds, 1e-9),
    }
