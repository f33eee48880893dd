"""What a program did beside its arithmetic: pages that it waited for, experts that it found, read and waited for."""

from __future__ import annotations

import resource
import statistics
from typing import Any

STREAMED = ("hits", "misses", "bytes_read", "wait_seconds", "read_seconds")  # of `facts()["streaming"]`, which only grow


def counters(facts: dict[str, Any] | None = None) -> dict[str, float]:
    """This process's so far. facts: of the backend, if it is ours."""
    streaming = (facts or {}).get("streaming", {})
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    return {"major_faults": faults, **{name: streaming[name] for name in STREAMED if name in streaming}}


def between(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What was added from one moment to another."""
    return {name: after[name] - before[name] for name in after}


def figures(rounds: list[dict[str, float]], seconds: list[float], disks: list[float], tokens: int) -> dict[str, Any]:
    """What a record says of a case.

    Args:
        rounds: what was added to the counters in each round; seconds: how long each took.
        disks: bytes per second of the disk, measured beside each round; empty if nothing streams.
        tokens: of a round.
    """
    found: dict[str, Any] = {"major_faults_per_token": statistics.median(r["major_faults"] for r in rounds) / tokens}
    if "hits" not in rounds[0] or not disks:
        return found
    asked = [max(r["hits"] + r["misses"], 1) for r in rounds]
    shares = sorted(r["bytes_read"] / took / disk for r, took, disk in zip(rounds, seconds, disks, strict=True))
    found["streaming"] = {
        "hit_rate": statistics.median(r["hits"] / a for r, a in zip(rounds, asked, strict=True)),
        "bytes_read_per_token": statistics.median(r["bytes_read"] for r in rounds) / tokens,
        "wait_share": statistics.median(r["wait_seconds"] / took for r, took in zip(rounds, seconds, strict=True)),
        "wait_seconds_per_token": statistics.median(r["wait_seconds"] for r in rounds) / tokens,
        "read_seconds_per_token": statistics.median(r["read_seconds"] for r in rounds) / tokens,
        "disk_bytes_per_second": statistics.median(disks),
        "share_of_bound": {"median": statistics.median(shares), "range": [shares[0], shares[-1]]},
    }
    return found
