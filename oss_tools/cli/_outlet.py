"""The one way to stdout and stderr: what others wrote (names, messages, a model's words) is shown there, never obeyed.

`install` puts an `Outlet` in the place of both streams. Whatever prints there, libraries included, comes through it. What the
program itself means the terminal to obey (a colour, a bar) is written to the stream behind it, by this module and by _bars.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from oss_tools.escapes import visible

# So that others send no escape sequences, which would be shown: Python's tracebacks (3.13) and Numba, whose colorama sends one at
# the end.
NO_COLOURS = {"PYTHON_COLORS": "0", "NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING": "1"}
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Outlet:
    """A text stream that writes control characters as escapes.

    It has no `buffer`, as io.StringIO has none: bytes would go past it. All else is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name in ("buffer", "detach"):
            raise AttributeError(f"an outlet has no {name!r}: it takes text only")
        return getattr(self._stream, name)


def behind(stream: TextIO) -> TextIO:
    """The stream behind outlets, and behind what rich puts before a stream while it draws."""
    while True:
        inner = stream._stream if isinstance(stream, Outlet) else getattr(stream, "rich_proxied_file", stream)
        if inner is stream:
            return stream
        stream = inner


def install() -> None:
    """Puts outlets before sys.stdout and sys.stderr; again it does nothing."""
    os.environ.update(NO_COLOURS)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Outlet):
            setattr(sys, name, cast(TextIO, Outlet(stream)))


def say(text: str) -> None:
    """A piece of what a model says, to stdout. A file or a pipe gets the model's very text; a terminal shows it."""
    stream = behind(sys.stdout)
    stream.write(visible(text) if stream.isatty() else text)
    stream.flush()


def whisper(text: str) -> None:
    """A piece of what stands beside an answer (reasoning, calls), to stderr; dimmed on a terminal."""
    stream = behind(sys.stderr)
    stream.write(f"{DIM}{visible(text)}{PLAIN}" if stream.isatty() else visible(text))
    stream.flush()
