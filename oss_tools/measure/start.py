"""From the command to its first token: with all kernels to be compiled, and with all of them in the cache.

python -m oss_tools.measure.start MODEL --threads 2 --cold 3 --warm 10
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numba_kernels.parallel import cores
from oss_tools.machine.description import machine, versions

PROMPT = "The"
CACHE = "NUMBA_CACHE_DIR"


def first_token_seconds(model: str, threads: int, cache: Path) -> float:
    """Seconds from the start of `oss-tools generate` to the first byte of its text, Python's own start and imports included.

    `cache`: where compiled kernels are looked for and put. Raises CalledProcessError with the program's words.
    """
    options = ["--raw", "-n", "1", "-t", str(threads), "--quiet"]
    command = [sys.executable, "-P", "-m", "oss_tools", "generate", model, PROMPT, *options]
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {CACHE: str(cache)}
    ) as process:
        assert process.stdout
        process.stdout.read(1)
        seconds = time.perf_counter() - began
        text, said = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, text, said)
    return seconds


def measure(model: str, threads: int = 0, cold: int = 1, warm: int = 5) -> dict[str, Any]:
    """The record: `cold` runs, each with an empty cache of its own, and `warm` ones with the cache of the last of them."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(max(cold, 1)):
        with tempfile.TemporaryDirectory(prefix="oss-tools-start-") as folder:
            seconds["cold"].append(first_token_seconds(model, threads, Path(folder)))
            if len(seconds["cold"]) == max(cold, 1):
                seconds["warm"] = [first_token_seconds(model, threads, Path(folder)) for _ in range(warm)]
    return {
        "kind": "start",
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": Path(model).name,
        "threads": threads,
        "machine": machine(),
        "versions": versions("numpy", "numba", "llvmlite", "tokenizers"),
        "load": os.getloadavg()[0],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint, or tiny")
    parser.add_argument("--threads", type=int, default=0, help="threads to use; 0 means every core")
    parser.add_argument("--cold", type=int, default=1, help="how many runs with an empty cache; at least 1")
    parser.add_argument("--warm", type=int, default=5, help="how many runs with compiled kernels")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of lines")
    given = parser.parse_args()
    try:
        record = measure(given.model, given.threads or cores(), given.cold, given.warm)
    except subprocess.CalledProcessError as error:
        sys.exit(error.stderr.decode().strip())
    if given.json:
        print(json.dumps(record, indent=1))
        return
    for name, values in record["seconds"].items():
        if values:
            print(f"{name}: {statistics.median(values):.2f} s to the first token ({min(values):.2f}–{max(values):.2f})")


if __name__ == "__main__":
    main()
