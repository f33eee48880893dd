"""Continue a text, or answer a message, with a model.

The text goes to stdout as it comes, figures to stderr. A model with a chat template answers PROMPT as a message of the
user; --raw continues it as plain text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oss_tools.cli._engine import Activations, BackendName, Context, Model, Threads, loaded
from oss_tools.cli._options import JsonFlag, QuietFlag
from oss_tools.cli._output import print_json, remark

if TYPE_CHECKING:
    from oss_tools.engine.engine import Engine, Token

EXAMPLES = """
oss-tools generate gpt-oss-20b/ "Why is the sky blue?"
oss-tools generate model.gguf "Once upon a time" --raw --max-tokens 64 --temperature 0.8 --seed 1
oss-tools generate model.gguf - --stop END < prompt.txt
"""


def run(
    model: Model,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text; - reads it from stdin.")],
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without a chat template.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="The most tokens to generate.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Only the K likeliest tokens; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Only the likeliest that reach this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", help="Only tokens this probable beside the likeliest.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1, tokens already there become less likely.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="The same seed draws the same text.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End where this text comes; may be repeated.")
    ] = None,
    threads: Threads = 0,
    backend: BackendName = "numba",
    activations: Activations = "int8",
    context: Context = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    from oss_tools.engine.engine import Request
    from oss_tools.engine.sampling import Sampling

    sampling = Sampling(repetition_penalty, temperature, top_k, top_p, min_p, seed)
    text = sys.stdin.read() if prompt == "-" else prompt
    with loaded(model, backend=backend, threads=threads, context=context, activations=activations, quiet=quiet) as engine:
        tokens = prompt_tokens(engine, text, raw, quiet)
        began = time.perf_counter()
        stream = engine.generate(Request(tokens, max_tokens, sampling, tuple(stop or ())))
        record = {"prompt_tokens": len(tokens)} | consume(stream, began, len(tokens), show=not as_json)
    if as_json:
        print_json(record)
    elif not quiet:
        remark(
            f"prompt {record['prompt_tokens']} tokens, {record['prompt_tokens_per_second']:.1f} tokens/s; "
            f"generated {record['tokens']} tokens, {record['tokens_per_second']:.1f} tokens/s; ended by {record['finish']}"
        )


def prompt_tokens(engine: Engine, text: str, raw: bool, quiet: bool) -> list[int]:
    """The prompt's tokens, in the checkpoint's chat template if it has one and `raw` does not forbid it."""
    from oss_tools.chat.template import render

    if raw or not engine.metadata.chat_template:
        if not raw and not quiet:
            remark("the checkpoint has no chat template: the prompt is continued as plain text")
        return engine.text.encode(text)
    return engine.text.encode(render(engine.metadata, [{"role": "user", "content": text}]), special=False)


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
            print(token.text, end="", flush=True)
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
