"""The CUDA kernels on a GPU, one by one: the bandwidth that each reaches beside a copy's, and their tests.

The launches of a problem (`cuda_problems.py`) are recorded in a graph and timed by events.
"""

from __future__ import annotations

import importlib.util
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numba_kernels.cuda.device import Device
from oss_tools.engine import cuda_backend
from oss_tools.errors import MissingPackage
from oss_tools.measure.cuda_problems import SIZES, Sizes, problems
from oss_tools.sizes import format_size

ROUNDS = 5


def device_facts() -> Iterator[dict[str, Any]]:
    """The GPU, its memory, and how fast a copy from it to itself is."""
    device = cuda_backend.open_device()
    free, total = device.memory()
    copy = device.copy_bandwidth()
    yield {
        "name": device.name, "architecture": list(device.architecture), "driver": device.driver,
        "multiprocessors": device.multiprocessors, "memory_bytes": total, "free_bytes": free, "copy_bytes_per_second": copy,
        "summary": f"{device.name}, driver {device.driver}, {format_size(free)} of {format_size(total)} free, "
        f"copies {copy / 1e9:.0f} GB/s, bytes read and written",
    }  # fmt: skip


def kernel_speeds(sizes: Sizes = SIZES) -> Iterator[dict[str, Any]]:
    """Each kernel's bytes per second as a share of the copy's, and the operations per second of those on the tensor cores."""
    device = cuda_backend.open_device()
    copy = device.copy_bandwidth()
    kernels: list[dict[str, Any]] = []
    for make in problems(sizes):
        problem = make(device)
        seconds = seconds_each(device, problem.launches)
        found = {"name": problem.name, "microseconds": 1e6 * seconds}
        if problem.nbytes:
            found |= {"bytes": problem.nbytes, "bytes_per_second": problem.nbytes / seconds}
            found["share_of_copy"] = problem.nbytes / seconds / copy
        if problem.operations:
            found["operations_per_second"] = problem.operations / seconds
        kernels.append(found)
        yield {"copy_bytes_per_second": copy, "kernels": kernels}
    shares = {k["name"]: k["share_of_copy"] for k in kernels if "share_of_copy" in k and "attention" not in k["name"]}
    slowest = min(shares, key=lambda name: shares[name])
    yield {
        "targets_on_an_h100": {"least_share_of_copy": {"wanted": 0.75, "reached": shares[slowest]}},
        "summary": f"{len(kernels)} kernels; matrix × vector at {shares[slowest]:.0%} ({slowest}) to "
        f"{max(shares.values()):.0%} of the copy's {copy / 1e9:.0f} GB/s",
    }


def seconds_each(device: Device, launches: list[Callable[[], None]]) -> float:
    """Of one launch: the median over rounds of a graph that has all of them, less the first round."""

    def work() -> None:
        for launch in launches:
            launch()

    graph, seconds = device.graph(work), []
    for _ in range(ROUNDS + 1):
        began = device.event()
        graph.replay()
        seconds.append(device.seconds(began, device.event()))
    return statistics.median(seconds[1:]) / len(launches)


# ---- their tests ----------------------------------------------------------------------------------------------------

MOST_WORKERS = 12
TESTS = ("test_cuda_kernels.py", "test_cuda_prefill.py", "test_cuda_families_kernels.py")


def kernel_tests(folder: Path = Path("tests/numba_kernels/cuda")) -> Iterator[dict[str, Any]]:
    """Every kernel against its plain definition, on this device: the tests of a checkout, run by pytest."""
    files = [str(folder / name) for name in TESTS if (folder / name).exists()]
    if not files:
        raise MissingPackage(f"the kernels' tests are in a checkout, at {folder}, which is not here")
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "-m", "slow or not slow", *files]
    if importlib.util.find_spec("xdist"):  # most of the time goes into compiling
        command += ["-n", str(min(os.cpu_count() or 1, MOST_WORKERS))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", done.stdout)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    yield {
        "counts": counts, "failed": failed, "passed": done.returncode == 0,
        "summary": ", ".join(f"{n} {word}" for word, n in counts.items()) or done.stdout.strip()[-200:],
    }  # fmt: skip
