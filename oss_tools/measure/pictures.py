"""What a terminal shows, as SVG: a command, what is typed, and what the program says.

python -m oss_tools.measure.pictures docs/images/chat.svg

The conversation is with the embedded model; nothing in the picture is made up.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path

from oss_tools.checkpoints.files import replace_file

COLUMNS, ROWS = 112, 40
COMMAND = ("chat", "tiny", "--tools", "calculator", "--max-tokens", "200")
TYPED = ("What is 4831 * 27?", "/reset", "What is 47 + 38?", "/quit")
PROMPT = b"> "
PATIENCE = 0.4  # seconds without a word, after which the program waits
RULES = re.compile(rb"\x1b\[\?[0-9]+[hl]")  # modes of a terminal: they draw nothing


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="an SVG file")
    args = parser.parse_args(arguments)
    shown = typed_into([sys.executable, "-P", "-m", "oss_tools", *COMMAND], TYPED)
    replace_file(args.output, picture(f"$ oss-tools {' '.join(COMMAND)}\n".encode() + shown))


def typed_into(command: list[str], lines: tuple[str, ...]) -> bytes:
    """All that a terminal shows of a program into which these lines are typed, one at every prompt."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
    environment = {**os.environ, "TERM": "dumb", "XDG_STATE_HOME": os.devnull}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown, seen, left = b"", 0, list(lines)
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
            if left and PROMPT in shown[seen:]:
                time.sleep(PATIENCE)
                seen = len(shown)
                os.write(ours, f"{left.pop(0)}\n".encode())
    except OSError:  # the program has ended, on Linux
        pass
    finally:
        os.close(ours)
        if process.wait():
            raise SystemExit(shown.decode(errors="replace"))
    return RULES.sub(b"", shown)


def picture(shown: bytes) -> str:
    """SVG of a terminal's text, dimmed where it is dimmed."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115 (it lives as long)
    text = shown.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "")
    console.print(Text.from_ansi(text.rstrip()), soft_wrap=False)
    return console.export_svg(title="oss-tools", theme=MONOKAI, unique_id="terminal")


if __name__ == "__main__":
    main()
