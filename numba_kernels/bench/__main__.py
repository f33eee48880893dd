"""Each kernel's speed beside what this machine can do at most, measured in the same run.

    python -m numba_kernels.bench [--threads N] [--only TEXT] [--quick] [--json]

Ceilings: reading memory, the dot products of int8 and of bfloat16 (where there is one) and the fused multiply-add from registers.
Shapes are gpt-oss-20b's.
Figures mean something on a quiet machine only; the load average is part of the record.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version

import llvmlite.binding as llvm
import numpy as np

from numba_kernels.bench.speeds import Bench
from numba_kernels.bench.timing import Result
from numba_kernels.parallel import cores
from numba_kernels.simd import path


def line(r: Result) -> str:
    """One line of the table."""
    held = f"{r.share:7.0%} of {r.ceiling}" if r.share is not None else ""
    return f"{r.name:44s} {r.value:9.1f} {r.unit:8s} {r.microseconds:11.1f} µs ±{r.spread:4.0%} {held}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m numba_kernels.bench", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--threads", type=int, default=cores(), help="threads of the team; by default all cores")
    parser.add_argument(
        "--only", default="", help="kernels whose name holds this text: linear q8_0, experts, attention, rows, …"
    )
    parser.add_argument("--quick", action="store_true", help="short runs")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args(arguments)
    bench = Bench(options.threads, options.quick, options.only)
    head = {
        "cpu": llvm.get_host_cpu_name(), "machine": platform.machine(), "path": path(), "threads": options.threads,
        "numba": version("numba"), "llvmlite": version("llvmlite"), "numpy": np.__version__, "load": os.getloadavg()[0],
    }  # fmt: skip
    if not options.json:
        print(", ".join(f"{k} {v}" for k, v in head.items()))
    results = []
    for result in bench.run():
        results.append(asdict(result))
        if not options.json:
            print(line(result), flush=True)
    bench.team.close()
    if options.json:
        print(json.dumps({**head, "load_after": os.getloadavg()[0], "results": results}, indent=1))


if __name__ == "__main__":
    main()
