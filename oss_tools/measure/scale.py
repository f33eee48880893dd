"""How far a comparison spreads: the times of its parts, and what they allow on so many nodes.

    python -m oss_tools.measure.scale comparison/            # of a run that is finished, in whatever way it was done
    python -m oss_tools.measure.scale --dispatch 500         # how many empty parts a cluster of this machine does in a second

A part goes to the node that is free first, the longest first; margins begin when all else
is done. Loading of weights is in a part's time, putting the answers together is not.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from oss_tools.cluster.nodes import LOCAL, Cluster, Need, Part
from oss_tools.errors import BadSource
from oss_tools.tables import print_table

NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WAVES = (("weights", "predict", "share"), ("margins",))  # that nodes do; each waits for the one before
LARGEST = 64 << 20  # bytes of a part


def part_times(folder: Path) -> dict[str, list[float]]:
    """Seconds of every finished part of a comparison, by kind. Raises BadSource."""
    found: dict[str, list[float]] = {}
    for file in sorted((folder / "parts").glob("*.json")):
        try:
            if file.stat().st_size > LARGEST:
                raise ValueError(f"larger than {LARGEST >> 20} MiB")
            seconds = float(json.loads(file.read_text(encoding="utf-8"))["seconds"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadSource(f"{file}: no part of a comparison: {error}") from None
        found.setdefault(file.name.partition("-")[0], []).append(seconds)
    if not found:
        raise BadSource(f"{folder}: has no finished parts; name the folder that `oss-tools compare --output` named")
    return found


def wall_seconds(times: Mapping[str, Sequence[float]], nodes: int, overhead: float = 0.0) -> float:
    """How long so many nodes take, each with one part at a time. `overhead`: of the command for each part, before it is begun."""
    end = 0.0
    for kinds in WAVES:
        free = [end] * nodes
        for number, seconds in enumerate(sorted((t for kind in kinds for t in times.get(kind, ())), reverse=True), 1):
            began = max(heapq.heappop(free), end + number * overhead)
            heapq.heappush(free, began + seconds)
        end = max(free)
    return end


def nothing(order: Mapping[str, object], cores: int) -> None:
    """A part that does nothing."""


def dispatch_seconds(count: int) -> float:
    """Seconds that each of so many empty parts takes, one core doing them one after the other."""
    part = Part("nothing", "oss_tools.measure.scale:nothing", {}, Need(1, 1 << 20))
    with Cluster.connect(LOCAL) as cluster:
        list(cluster.run([part]))  # the process is started
        began = time.perf_counter()
        list(cluster.run([part] * count))
        return (time.perf_counter() - began) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="the folder of a comparison")
    parser.add_argument("--dispatch", type=int, metavar="N", help="time N empty parts")
    options = parser.parse_args()
    if options.dispatch:
        each = dispatch_seconds(options.dispatch)
        print(f"{options.dispatch} empty parts: {1000 * each:.1f} ms each, {1 / each:.0f} a second")
    if options.folder:
        times = part_times(options.folder)
        rows = [
            (kind, len(t), f"{statistics.median(t):.2f}", f"{max(t):.2f}", f"{sum(t):.1f}")
            for kind, t in sorted(times.items())
        ]
        print_table(rows, ("part", "number", "median, s", "longest, s", "together, s"), right=(1, 2, 3, 4))
        alone = wall_seconds(times, 1)
        spread = [(n, wall_seconds(times, n)) for n in NODES]
        lines = [(n, f"{s:.1f}", f"{alone / s:.1f}", f"{100 * alone / s / n:.0f} %") for n, s in spread]
        print()
        print_table(lines, ("nodes", "seconds", "times as fast", "of the nodes in use"), right=(0, 1, 2, 3))


if __name__ == "__main__":
    main()
