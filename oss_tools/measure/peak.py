"""The most memory that the engine takes: a process of its own loads a model, fills a context and generates.

python -m oss_tools.measure.peak MODEL --context 4096 --threads 2 [--limit 16]

With --limit the process may not take more than so many GiB of address space (RLIMIT_AS, which counts more than what is resident).
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

from oss_tools.errors import OssToolsError
from oss_tools.machine.description import machine, versions

GENERATED = 8  # tokens


def peak_bytes(model: Path, context: int, threads: int = 0) -> int:
    """Bytes of resident memory at the highest, of a process that fills `context` positions. Raises CalledProcessError."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "oss_tools.measure.peak",
        str(model),
        "--context",
        str(context),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout)["peak_bytes"])


def fill(model: Path, context: int, threads: int) -> None:
    """Loads the model and generates the last tokens of a full context."""
    from oss_tools.engine.engine import Engine
    from oss_tools.engine.requests import Request

    with Engine.load(model, context=context, threads=threads) as engine:
        vocabulary = min(engine.backend.vocabulary, 256)
        tokens = [(17 * i) % vocabulary for i in range(context - GENERATED)]
        for _ in engine.generate(Request(tokens, GENERATED, stop_tokens=frozenset())):
            pass


def own_peak() -> int:
    """The highest resident memory of this process, in bytes. Linux counts the parent's in ru_maxrss, so not from there."""
    status = Path("/proc/self/status")
    if status.exists() and (match := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--limit", type=float, help="limit the address space to this many GiB")
    given = parser.parse_args()
    limit = int(given.limit * (1 << 30)) if given.limit else None
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        fill(given.model, given.context, given.threads)
    except OssToolsError as error:
        sys.exit(f"{given.model}: {error}")
    peak = own_peak()
    record = {"kind": "peak", "model": given.model.name, "context": given.context, "limit_bytes": limit, "peak_bytes": peak}
    print(json.dumps(record | {"machine": machine(), "versions": versions("numpy", "numba", "llvmlite")}))


if __name__ == "__main__":
    main()
