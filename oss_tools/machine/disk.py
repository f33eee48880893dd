"""How fast a disk gives large pieces of a file: the ceiling of a model that streams.

python -m oss_tools.machine.disk FILE [--seconds 1] [--block 4MiB] [--json]

Blocks at random places, by as many threads as read experts, past the system's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from numba_kernels.cpu.huge_pages import empty_bytes
from oss_tools.errors import OssToolsError
from oss_tools.machine import remembered
from oss_tools.machine.direct import DirectFile
from oss_tools.sizes import format_size

THREADS = 4
BLOCK = 4 << 20  # about an expert
LEAST_BLOCKS = 8  # that a file must have, or nothing is measured on it
SECONDS = 1.0
KEPT_SECONDS = 7 * 24 * 3600  # after which a disk is measured again
FILE, MAX_BYTES = "disks.json", 1 << 16  # that remembers speeds


def read_speed(file: Path, seconds: float = SECONDS, block: int = BLOCK, threads: int = THREADS) -> float | None:
    """Bytes per second that the file's disk gives; None for a file that is too small to tell. Raises BadCheckpoint, OSError."""
    size = file.stat().st_size
    if size < LEAST_BLOCKS * block:
        return None
    descriptor = os.open(file, os.O_RDONLY)
    try:
        direct = DirectFile(descriptor, file)
    finally:
        os.close(descriptor)
    began = time.perf_counter()

    def read(worker: int) -> int:
        rng, memory, done = np.random.default_rng(worker), empty_bytes(block), 0
        while time.perf_counter() - began < seconds:
            direct.read(int(rng.integers(size // block)) * block, memory)
            done += block
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(read, range(threads)))
    direct.close()
    return done / (time.perf_counter() - began)


def largest_file(model: Path) -> Path | None:
    """Of a checkpoint, the file to measure its disk on; None if it is not there."""
    files = [model] if model.is_file() else list(model.glob("*.safetensors"))
    return max(files, key=lambda file: file.stat().st_size, default=None)


def known_speed(file: Path) -> float | None:
    """Bytes per second of the disk on which a file lies: measured for a second, and remembered for a week. None where that cannot
    be had."""
    try:
        device = str(file.stat().st_dev)
        known = _remembered()
        if device in known and 0 <= time.time() - known[device][0] < KEPT_SECONDS:
            return known[device][1]
        speed = read_speed(file)
    except (OssToolsError, OSError):
        return None
    if speed:
        remembered.write(FILE, known | {device: (time.time(), speed)})
    return speed


def _remembered() -> dict[str, tuple[float, float]]:
    """Device → when it was measured, and bytes per second."""
    return {
        device: (float(pair[0]), float(pair[1]))
        for device, pair in remembered.read(FILE, MAX_BYTES).items()
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, float) for n in pair) and pair[1] > 0
    }


def main() -> None:
    from oss_tools.sizes import parse_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a large file on the disk")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--block", default=str(BLOCK), help="bytes of one read")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        block = parse_size(given.block)
        speed = read_speed(given.file, given.seconds, block, given.threads)
    except (OssToolsError, OSError, ValueError) as error:
        sys.exit(str(error))
    if speed is None:
        sys.exit(f"{given.file}: too small to measure a disk on; {format_size(LEAST_BLOCKS * block)} are enough")
    if given.json:
        print(json.dumps({"kind": "disk", "bytes_per_second": speed, "block": block, "threads": given.threads}))
    else:
        print(f"{format_size(speed)}/s in blocks of {format_size(block)}, by {given.threads} threads")


if __name__ == "__main__":
    main()
