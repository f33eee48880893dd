"""From the command to the first token, and the memory that takes: a run-ready file, a GGUF file, and llama.cpp, in turns.

python -m oss_tools.measure.starting MODEL.ready MODEL.gguf [--rounds 2] [--skip two] [--output FILE]

Times are those of whole commands, Python's start included. At its first token a process is stopped and asked what it has:
resident pages, its share of those that several processes have (PSS), and anonymous ones, which the system cannot take
back. `cold` drops the file's pages from the system's cache before. `two` starts two processes and adds up their shares.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numba_kernels.parallel import cores
from oss_tools.checkpoints.files import replace_file
from oss_tools.machine.description import machine, versions
from oss_tools.measure.conversion import forget
from oss_tools.measure.peer import LlamaCpp, MappedLlamaCpp

SCHEMA = 1
PROMPT = "The"
MEMORY = {"Rss": "resident_bytes", "Pss": "shared_out_bytes", "Anonymous": "anonymous_bytes"}


class Plain(LlamaCpp):
    """llama.cpp that reads its file into memory, and orders it anew for its fastest kernels."""

    def loading(self) -> Any:
        params = super().loading()
        params.use_mmap = False
        return params


@dataclass
class Started:
    """A process that has given its first token, and stands still since: after so many seconds, with so much memory."""

    process: subprocess.Popen[bytes]
    seconds: float

    def memory(self) -> dict[str, int]:
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
        return {ours: found[theirs] for theirs, ours in MEMORY.items()}

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def start(command: list[str]) -> Started:
    """Runs a command up to the first byte that it prints. Raises CalledProcessError where none comes."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE)
    assert process.stdout
    first = process.stdout.read(1)
    seconds = time.perf_counter() - began
    if not first:
        _, said = process.communicate()
        raise subprocess.CalledProcessError(process.returncode, command, stderr=said)
    os.kill(process.pid, signal.SIGSTOP)
    return Started(process, seconds)


def ours(model: Path, threads: int, *options: str) -> list[str]:
    common = ["--raw", "-n", "64", "-t", str(threads), "--quiet", *options]
    return [sys.executable, "-P", "-m", "oss_tools", "generate", str(model), PROMPT, *common]


def theirs(model: Path, threads: int, kind: str) -> list[str]:
    return [sys.executable, "-P", "-m", "oss_tools.measure.starting", "--peer", kind, str(model), "--threads", str(threads)]


def run_peer(kind: str, model: Path, threads: int) -> None:
    """llama.cpp's first token, then nothing until stdin ends."""
    contender = (MappedLlamaCpp if kind == "mmap" else Plain)(str(model), threads, 512, 1)
    contender.prompt([1], 0)
    print("x", flush=True)
    sys.stdin.read()


def warm(path: Path) -> None:
    """Has the system's cache take the file's pages."""
    with path.open("rb", buffering=0) as file:
        memory = bytearray(16 << 20)
        while file.readinto(memory):
            pass


def once(commands: list[list[str]], before: Callable[[], None]) -> dict[str, Any]:
    """Starts processes one after the other; their times, and the memory of all of them together."""
    before()
    started: list[Started] = []
    try:
        started.extend(start(command) for command in commands)
        memories = [process.memory() for process in started]
    finally:
        for process in started:
            process.end()
    return {
        "seconds": [process.seconds for process in started],
        **{name: sum(memory[name] for memory in memories) for name in MEMORY.values()},
    }


def ways(ready: Path, gguf: Path, threads: int, skip: list[str]) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by name."""

    def of(command: list[str], before: Callable[[], None], count: int = 1) -> Callable[[], dict[str, Any]]:
        return lambda: once([command] * count, before)

    mapped, resident = ours(ready, threads), ours(ready, threads, "--load", "resident")
    found = {
        "ready, mapped, warm": of(mapped, lambda: warm(ready)),
        "ready, mapped, two": of(mapped, lambda: warm(ready), 2),
        "ready, mapped, cold": of(mapped, lambda: forget(ready)),
        "ready, resident, cold": of(resident, lambda: forget(ready)),
        "gguf, cold": of(ours(gguf, threads), lambda: forget(gguf)),
        "llama.cpp, mmap, cold": of(theirs(gguf, threads, "mmap"), lambda: forget(gguf)),
        "llama.cpp, mmap, warm": of(theirs(gguf, threads, "mmap"), lambda: warm(gguf)),
        "llama.cpp, mmap, two": of(theirs(gguf, threads, "mmap"), lambda: warm(gguf), 2),
        "llama.cpp, no mmap, warm": of(theirs(gguf, threads, "no mmap"), lambda: warm(gguf)),
    }
    return {name: way for name, way in found.items() if not any(word in name for word in skip)}


def measure(ready: Path, gguf: Path, threads: int, rounds: int, skip: list[str]) -> dict[str, Any]:
    """The record."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for name, way in ways(ready, gguf, threads, skip).items():
            found.setdefault(name, []).append(way())
            print(f"{name}: {found[name][-1]}", file=sys.stderr)
    return {
        "schema": SCHEMA,
        "kind": "starting",
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {file.name: file.stat().st_size for file in (ready, gguf)},
        "threads": threads,
        "machine": machine(),
        "versions": versions("numpy", "numba", "llvmlite", "tokenizers", "llama-cpp-python"),
        "load": os.getloadavg()[0],
        "ways": {name: _summary(runs) for name, runs in found.items()},
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [one for run in runs for one in run["seconds"]]
    memory = {name: statistics.median(run[name] for run in runs) for name in MEMORY.values()}
    return {
        "seconds": {"median": statistics.median(seconds), "range": [min(seconds), max(seconds)], "all": seconds},
        **memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="the model as .ready and as .gguf")
    parser.add_argument("--threads", type=int, default=0, help="threads to use; 0 means every core")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--skip", action="append", default=[], help="leave out cases with this word in their name; may be repeated"
    )
    parser.add_argument("--peer", choices=["mmap", "no mmap"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="write the record to this file")
    given = parser.parse_args()
    threads = given.threads or cores()
    if given.peer:
        run_peer(given.peer, given.files[0], threads)
        return
    if len(given.files) != 2:
        parser.error("two files: the model as .ready and as .gguf")
    try:
        ready, gguf = given.files
        record = measure(ready, gguf, threads, given.rounds, given.skip)
    except subprocess.CalledProcessError as error:
        sys.exit(error.stderr.decode(errors="replace").strip() or str(error))
    text = json.dumps(record, indent=1)
    if given.output:
        replace_file(given.output, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
