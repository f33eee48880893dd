"""Runs a guide: the commands of a page (indented, behind `$`) and the files that it shows (fenced, below their name), in order.

What stands in for what, so that a guide that names a model of 14 GB can be run anywhere:

- `pip install` is passed over, `download X --to Y` lays the embedded model at Y, `curl` and `python` are this Python's.
- `--limit N` asks 2 questions, `--context N` is 4,096 at most, which the embedded model was made for.
- Port 8000 is a free one. A command that ends with `&` runs until the guide ends; the next waits until it serves.
- `LAID` says which folders lie there before the first command.

python tests/guides/guide.py [NAME …] walks through all guides, or these, and prints how long every command took.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from oss_tools.compare.models import make, recipe_called
from oss_tools.resources import resource

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
TINY = Path(resource("tiny/checkpoint"))
PART = re.compile(
    r"^    \$ (?P<command>[^\n]+)$|^`(?P<file>[\w./-]+)`[^\n]*:\n\n```\w*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
QUESTIONS, CONTEXT = 2, 4096
SECONDS = 900  # of one command, on a machine that does other things as well


@dataclass(frozen=True)
class Done:
    """A command as the guide has it, what came of it, and after how many seconds."""

    command: str
    status: int
    said: str
    seconds: float


def tiny(at: Path) -> None:
    shutil.copytree(TINY, at)


def made(recipe: str) -> Callable[[Path], None]:
    """The embedded model by another recipe."""

    def lay(at: Path) -> None:
        make(TINY, recipe_called(recipe), at.parent / "made").rename(at)

    return lay


def adapter(at: Path) -> None:
    from tests.adapters.written import lora, random_pair, write_peft

    write_peft(at, lora("model.layers.0.self_attn.q_proj", *random_pair(128, 160, size=0.3)))


LAID: dict[str, dict[str, Callable[[Path], None]]] = {
    "fine-tune": {"my-tune-bf16": made("bf16"), "my-base": tiny, "adapter": adapter},
    "hospital": {"gpt-oss-20b": tiny},
    "ci": {"base": tiny, "candidate": made("int8")},
    "agents": {"gpt-oss-20b": tiny},
}


def parts(name: str) -> Iterator[re.Match[str]]:
    """Commands and files of a guide, in its order."""
    return PART.finditer((GUIDES / f"{name}.md").read_text(encoding="utf-8"))


def run_guide(name: str, folder: Path) -> list[Done]:
    """Carries a guide out in a folder."""
    for place, lay in LAID.get(name, {}).items():
        lay(folder / place)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = []
    with ExitStack() as stack:
        for part in parts(name):
            if file := part["file"]:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(part["text"].replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
                continue
            command, began = part["command"], time.monotonic()
            words = shlex.split(command.replace("127.0.0.1:8000", f"127.0.0.1:{port}"), comments=True)
            if words[-1] == "&":
                _begin([*_substituted(words[:-1]), "--port", str(port)], folder, stack)
                done.append(Done(command, 0, "", time.monotonic() - began))
            elif words[0] == "curl":
                with urllib.request.urlopen(words[-1], timeout=SECONDS) as answer:
                    done.append(Done(command, 0, answer.read().decode(), time.monotonic() - began))
            elif words[:2] == ["oss-tools", "download"]:
                tiny(folder / words[words.index("--to") + 1])
            elif words[0] != "pip":
                found = subprocess.run(_substituted(words), **_surroundings(folder), capture_output=True, timeout=SECONDS)
                done.append(Done(command, found.returncode, found.stdout + found.stderr, time.monotonic() - began))
    return done


def _substituted(words: list[str]) -> list[str]:
    for option, most in (("--limit", QUESTIONS), ("--context", CONTEXT)):
        if option in words:
            at = words.index(option) + 1
            words[at] = str(min(int(words[at]), most))
    if words[0] == "oss-tools":
        return [sys.executable, "-m", "oss_tools", *words[1:]]
    assert words[0] == "python", words
    return [sys.executable, *words[1:]]


def _surroundings(folder: Path) -> dict[str, object]:
    return {"cwd": folder, "text": True, "env": {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}}


def _begin(words: list[str], folder: Path, stack: ExitStack) -> None:
    """A server, which ends with the guide."""
    log = folder / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(words, **_surroundings(folder), stdout=out, stderr=out)  # type: ignore[call-overload]
    stack.callback(server.wait, 60)
    stack.callback(server.terminate)
    end = time.monotonic() + SECONDS
    while "serving " not in log.read_text():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    for name in sys.argv[1:] or sorted(file.stem for file in GUIDES.glob("*.md") if file.stem != "README"):
        with tempfile.TemporaryDirectory() as folder:
            done = run_guide(name, Path(folder))
        print(f"{sum(one.seconds for one in done):6.1f} s  {name}")
        for one in done:
            print(f"    {one.seconds:6.1f} s  status {one.status}  {one.command}", flush=True)


if __name__ == "__main__":
    main()
