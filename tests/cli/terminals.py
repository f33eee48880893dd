"""A pseudo-terminal to run things on, and words that would take it over."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

from oss_tools.escapes import visible

ROOT = Path(__file__).parents[2]
TITLE = "\x1b]0;TAKEN\x07"  # sets the window's title
HOSTILE = f"{TITLE}\x1b[41m\x1b[2J\x9b6n\x7f\x08\r\u202e\u2066\u061c\U000e0041"  # colour, clear, a report, direction, tags
OWN = re.compile(r"\x1b\[(?:\?25[lh]|2K|1A|0m|2m|[0-9;]*m)|\r(?=\x1b|\n)")  # what rich draws bars with, and dimmed text


def on_terminal(
    *arguments: object,
    given: str | None = None,
    program: str = "",
    typed: tuple[tuple[str, str], ...] = (),
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> tuple[str, int]:
    """Runs oss-tools (or the Python text `program`) with stdout and stderr on a terminal of 200 columns, and stdin too unless
    text is `given`. Each second text of `typed` is typed once the first one is shown. Returns all that reached the terminal, and
    the exit status."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 200))
    command = [sys.executable, *(("-c", program) if program else ("-m", "oss_tools")), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **(env or {})}
    stdin = theirs if given is None else subprocess.PIPE
    process = subprocess.Popen(command, stdin=stdin, stdout=theirs, stderr=theirs, env=environment, cwd=cwd)
    os.close(theirs)
    if process.stdin is not None:
        process.stdin.write((given or "").encode("utf-8", "surrogateescape"))
        process.stdin.close()
    shown, seen, left = b"", 0, list(typed)
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
            if left and left[0][0].encode() in shown[seen:]:
                seen = len(shown)
                os.write(ours, left.pop(0)[1].encode())
    except OSError:  # the other end is closed, on Linux
        pass
    finally:
        os.close(ours)
    return shown.decode("utf-8", "surrogateescape"), process.wait()


def obeyed(shown: str) -> str:
    """What of the output a terminal would obey although the program did not mean it; "" if all is well."""
    assert "\x1b[41m" not in shown
    rest = OWN.sub("", shown)
    return "".join(c for c in rest if visible(c) != c)
