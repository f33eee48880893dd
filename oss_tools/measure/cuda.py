"""Everything that is to be known of the CUDA kernels on a GPU, in one run: `python -m oss_tools.measure.cuda`.

First whether they are right: against the engine on the CPU, on the embedded model and on random gpt-oss shapes. Then how fast
they are: each kernel's share of the bandwidth of a copy from the device to itself, measured in the same process; synthetic
gpt-oss-20b and, where it fits, 120b; transformers on the same GPU. Each part runs in a process of its own and leaves a record
of its own, so that one that fails, or runs out of time, takes no other with it. Without a GPU: one line, exit status 3.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.files import replace_file
from oss_tools.errors import MissingPackage, NoRoom, OssToolsError, Unsupported
from oss_tools.machine.description import machine, versions
from oss_tools.measure.worker import how_it_ended

SCHEMA = 1
DONE, WRONG, FAILED, SKIPPED = "done", "wrong", "failed", "skipped"
TAIL = 2000  # characters of what a failed part printed
PACKAGES = (
    "numpy", "numba", "llvmlite", "numba-cuda", "cuda-bindings", "cuda-core", "nvidia-nvvm", "nvidia-nvjitlink", "torch",
    "transformers", "triton",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One record of the run.

    Attributes:
        function: MODULE:NAME of a function that yields findings, which add up; `summary` is for people, and `passed` is false
            where a result is wrong.
        arguments: for it.
        least: seconds without which it is not begun.
    """

    function: str
    arguments: dict[str, Any]
    least: float

    def findings(self) -> Iterator[dict[str, Any]]:
        """Carries it out."""
        module, _, name = self.function.partition(":")
        found: Iterator[dict[str, Any]] = getattr(importlib.import_module(module), name)(**self.arguments)
        return found


CORRECTNESS, SPEED = "oss_tools.measure.cuda_correctness", "oss_tools.measure.cuda_speed"
KERNELS = "oss_tools.measure.cuda_kernels"
PARTS = {
    "device": Part(f"{KERNELS}:device_facts", {}, 10),
    "tiny": Part(f"{CORRECTNESS}:embedded_model", {}, 30),
    "shapes": Part(f"{CORRECTNESS}:random_shapes", {}, 60),
    "families": Part(f"{CORRECTNESS}:families", {}, 60),
    "kernels": Part(f"{KERNELS}:kernel_speeds", {}, 60),
    "gpt-oss-20b": Part(f"{SPEED}:speed", {"shape": "gpt-oss-20b"}, 60),
    "gpt-oss-120b": Part(f"{SPEED}:speed", {"shape": "gpt-oss-120b"}, 90),
    "transformers-20b": Part("oss_tools.measure.cuda_peer:speed", {"shape": "gpt-oss-20b"}, 60),
    "gpt-oss-20b-q8": Part(f"{SPEED}:speed", {"shape": "gpt-oss-20b", "recipe": "mxfp4-q8"}, 60),
    "tests": Part(f"{KERNELS}:kernel_tests", {}, 60),
}


def run(
    parts: dict[str, Part],
    output: Path,
    seconds: float,
    say: Callable[[str], None],
    run_part: Callable[[str, float], dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Carries out the parts one after another within so many seconds; writes and returns their records."""
    output.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + seconds
    records = []
    for name, part in parts.items():
        left = ends - time.monotonic()
        began = time.monotonic()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        if left < part.least:
            outcome = {"status": SKIPPED, "error": f"{max(left, 0):.0f} s were left, it needs {part.least:.0f} s or more"}
        else:
            outcome = (run_part or in_process)(name, left)
        record = {
            "schema": SCHEMA, "kind": "cuda", "part": name, "began": started, "seconds": round(time.monotonic() - began, 1),
            "machine": machine(), "versions": versions(*PACKAGES), **outcome,
        }  # fmt: skip
        replace_file(output / f"{name}.json", json.dumps(record, indent=1) + "\n")
        say(line(record))
        records.append(record)
    return records


def line(record: dict[str, Any]) -> str:
    """A record for people."""
    words = record.get("error") or record.get("result", {}).get("summary", "")
    return f"{record['part']}: {record['status']} in {record['seconds']:.0f} s: {words}"


def in_process(name: str, seconds: float, command: list[str] | None = None) -> dict[str, Any]:
    """What comes of a part in a process of its own, which is ended after so many seconds: its findings up to there are kept."""
    command = command or [sys.executable, "-P", "-m", "oss_tools.measure.cuda", "--part", name]
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=printed, stderr=complaints, text=True)
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        printed.seek(0)
        complaints.seek(0)
        return outcome_of(status, printed.read(), complaints.read())


def outcome_of(status: int | None, printed: str, complaints: str) -> dict[str, Any]:
    """Status, error and result of a part from its exit status (None: out of time) and what it printed: lines of findings."""
    result: dict[str, Any] = {}
    for text in printed.splitlines():
        if text.startswith("{") and text.endswith("}"):  # the last line may be cut off
            result |= json.loads(text)
    ending = result.pop("ending", None)
    outcome: dict[str, Any] = {"status": DONE, "result": result}
    if ending:
        outcome |= ending
    elif status is None:
        outcome |= {"status": FAILED, "error": "the time ran out"}
    elif status != 0:
        outcome |= {"status": FAILED, "error": how_it_ended(status), "printed": complaints[-TAIL:]}
    elif not result.get("passed", True):
        outcome["status"] = WRONG
    return outcome


def serve(part: Part) -> int:
    """The process of one part: prints findings as they come, a line each, and at the end, where it failed, how. Whatever
    libraries print goes to stderr. Returns an exit status."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(found: dict[str, Any]) -> None:
        replies.write(json.dumps(found) + "\n")
        replies.flush()

    try:
        for found in part.findings():
            reply(found)
    except (NoRoom, MissingPackage, Unsupported) as error:
        reply({"ending": {"status": SKIPPED, "error": str(error)}})
    except OssToolsError as error:
        reply({"ending": {"status": FAILED, "error": str(error)}})
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 if all that was begun is done and right, 1 if not, 2 for bad usage, 3 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m oss_tools.measure.cuda", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("results/cuda"), help="the folder for the records [results/cuda]"
    )
    parser.add_argument("--minutes", type=float, default=10, help="how many minutes all parts may take [10]")
    parser.add_argument("--only", default="", help=f"only these parts, separated by commas: {','.join(PARTS)}")
    parser.add_argument("--compile", action="store_true", help="compile the parts' kernels for sm_90 and end; needs no GPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        return serve(PARTS[given.part])
    names = [name.strip() for name in given.only.split(",") if name.strip()] or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part named {unknown[0]!r}; there are {', '.join(PARTS)}")
    if given.compile:
        importlib.import_module("oss_tools.measure.cuda_code").compile_parts(names, print)
        return 0
    try:
        importlib.import_module("oss_tools.engine.cuda_backend").check_device()
    except OssToolsError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    records = run({name: PARTS[name] for name in names}, given.output, 60 * given.minutes, print)
    return int(any(record["status"] in (WRONG, FAILED) for record in records))


if __name__ == "__main__":
    sys.exit(main())
