"""What `generate` and `chat` share: asking a model for an answer, and showing it as it comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from oss_tools.cli._outlet import say, whisper

if TYPE_CHECKING:
    from oss_tools.chat.completion import Delta
    from oss_tools.engine.constraints import NewConstraint
    from oss_tools.engine.engine import Engine
    from oss_tools.engine.sampling import Sampling

EFFORTS = ("none", "low", "medium", "high")


def effort(text: str) -> str:
    if text not in EFFORTS:
        raise typer.BadParameter(f"{text!r} is not one of none, low, medium, high")
    return text


Reasoning = Annotated[
    str,
    typer.Option("--reasoning", parser=effort, metavar="none|low|medium|high", help="How much to reason."),
]


class Screen:
    """The answer on stdout; reasoning, calls and remarks on stderr, dimmed where it is a terminal."""

    def __init__(self, show_analysis: bool) -> None:
        self.show_analysis = show_analysis
        self._open: TextIO | None = None  # where a line has been begun

    def delta(self, delta: Delta) -> None:
        """Shows text as it comes, in the answer or in the reasoning; calls are shown when they are complete."""
        if delta.recipient is None and delta.channel == "final":
            self._write(delta.text, sys.stdout)
        elif delta.recipient is None and self.show_analysis:
            self._write(delta.text, sys.stderr)

    def aside(self, text: str) -> None:
        """A line that is not part of the answer."""
        self.end_line()
        self._write(text, sys.stderr)
        self.end_line()

    def _write(self, text: str, stream: TextIO) -> None:
        if self._open is not stream:
            self.end_line()
            self._open = stream
        say(text) if stream is sys.stdout else whisper(text)

    def end_line(self) -> None:
        """Ends a line that has been begun, so that what follows has one of its own."""
        if self._open:
            print(file=self._open, flush=True)
        self._open = None


@dataclass
class Figures:
    """Tokens and times of all that a model was asked for one answer."""

    prompt_tokens: int = 0
    tokens: int = 0
    finish: str | None = None
    time_to_first_token: float = 0.0
    seconds: float = 0.0  # of generating all tokens but each first one
    guessed: int = 0
    right: int = 0
    _steps: int = field(default=0, repr=False)

    def record(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "finish": self.finish,
            "time_to_first_token": self.time_to_first_token,
            "prompt_tokens_per_second": self.prompt_tokens / max(self.time_to_first_token, 1e-9),
            "tokens_per_second": self._steps / max(self.seconds, 1e-9),
            "guessed": self.guessed,
            "right": self.right,
        }


def figures_line(record: dict[str, Any]) -> str:
    """The figures in one line."""
    guessed = f", {record['right']} of {record['guessed']} guesses right" if record["guessed"] else ""
    return (
        f"prompt {record['prompt_tokens']} tokens, {record['prompt_tokens_per_second']:.1f} tokens/s; "
        f"generated {record['tokens']} tokens, {record['tokens_per_second']:.1f} tokens/s{guessed}; ended by {record['finish']}"
    )


def guesses(engine: Engine) -> dict[str, int]:
    """Tokens that an engine has guessed so far, and those that were right."""
    figures = engine.pace.figures if engine.pace else None
    return {"guessed": figures.guessed if figures else 0, "right": figures.right if figures else 0}


@dataclass(frozen=True)
class Speaker:
    """A model that completes prompts, with its settings. `max_tokens` None: as many as the context has room for. `constraint`:
    what its texts are held to. `heard`: the last prompt, and the tokens that followed it."""

    engine: Engine
    sampling: Sampling
    max_tokens: int | None
    constraint: NewConstraint | None = None
    heard: list[int] = field(default_factory=list)

    def complete(self, tokens: list[int], figures: Figures) -> Iterator[int]:
        """The tokens that follow, as they come."""
        from oss_tools.engine.requests import Request

        began = last = time.perf_counter()
        figures.prompt_tokens += len(tokens)
        self.heard[:] = tokens
        limit = self.max_tokens or self.engine.context
        first, before = True, guesses(self.engine)
        said = figures.guessed, figures.right
        for token in self.engine.generate(Request(tokens, limit, self.sampling, constraint=self.constraint)):
            now = time.perf_counter()
            if first:
                figures.time_to_first_token += now - began
            else:
                figures.seconds += now - last
                figures._steps += 1
            first, last = False, now
            figures.tokens += 1
            figures.finish = token.finish
            after = guesses(self.engine)
            figures.guessed = said[0] + after["guessed"] - before["guessed"]
            figures.right = said[1] + after["right"] - before["right"]
            self.heard.append(token.id)
            yield token.id
