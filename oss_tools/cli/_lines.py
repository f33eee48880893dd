"""What a user types in `chat`: lines with editing, a history that outlasts the program, and texts of several lines."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PROMPT, MORE = "> ", "… "
BLOCK = '"""'  # begins and ends a text of several lines
KEPT = 1000  # lines of the history


def texts() -> Iterator[str]:
    """One text after the other, from a terminal or a pipe.

    A line that ends with a backslash goes on in the next; lines between two marks of three quotes are one text."""
    on_terminal = sys.stdin.isatty()
    with history() if on_terminal else contextlib.nullcontext():
        read = input if on_terminal else _piped
        while True:
            try:
                yield _whole(read)
            except EOFError:
                if on_terminal:
                    print()
                return
            except KeyboardInterrupt:  # drops the text being typed
                print(file=sys.stderr)


def _piped(prompt: str) -> str:
    return input("")


def _whole(read: Callable[[str], str]) -> str:
    line = read(PROMPT)
    if line.lstrip().startswith(BLOCK):
        parts = [line.lstrip().removeprefix(BLOCK)]
        while not parts[-1].rstrip().endswith(BLOCK):
            parts.append(read(MORE))
        parts[-1] = parts[-1].rstrip().removesuffix(BLOCK)
        return "\n".join(parts).strip("\n")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + read(MORE)
    return line


def history_file() -> Path:
    """Where lines are kept: oss-tools/chat-history in XDG_STATE_HOME."""
    home = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(home, "oss-tools", "chat-history")


@contextlib.contextmanager
def history() -> Iterator[None]:
    """Line editing with the lines of earlier conversations; these are added to them at the end. A history that cannot be read or
    written is none."""
    import readline  # input() uses it once it is imported

    file = history_file()
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(KEPT)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))  # the user's alone
            readline.write_history_file(file)
