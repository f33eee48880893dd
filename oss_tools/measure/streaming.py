"""A model larger than memory, beside llama.cpp's mmap under the same limit, in turns.

python -m oss_tools.measure.streaming MODEL.ready --peer-file MODEL.gguf --limit 8GB [--rounds 2] [--output FILE]

Each program runs in a control group of that limit, pages of files included, so that neither can use the rest of the
machine's memory; where no group can be made, the record says so, and ours keeps to its --memory alone. llama.cpp uses its
weights where they are mapped: the copies that it makes by default do not fit. First the model runs without a limit, where that
fits: its tokens are those that the limited run has to choose, and its rate is the ceiling of the arithmetic. The disk's speed
is measured after each turn of ours. Every turn generates some tokens that are not timed, so that caches are full.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from numba_kernels.parallel import cores
from oss_tools.checkpoints.files import replace_file
from oss_tools.engine.weights import embedding_name
from oss_tools.errors import OssToolsError
from oss_tools.machine.description import machine, versions
from oss_tools.machine.disk import read_speed
from oss_tools.machine.memory import available_memory
from oss_tools.measure.conversion import forget
from oss_tools.measure.counters import figures
from oss_tools.measure.expert_cache import accesses_of, measure
from oss_tools.measure.memory_group import MemoryGroup, memory_group
from oss_tools.measure.worker import Child
from oss_tools.models import open_checkpoint

SCHEMA = 1
LEFT = 0.04  # of the limit, which --memory leaves to pages of libraries and of the file that pass through
SCATTER = 7919  # successive tokens are far apart, as those of a text are


@dataclass(frozen=True)
class Trial:
    """What is run: our file, the peer's, bytes of memory for each, threads, tokens that are timed and before."""

    model: Path
    peer_file: Path | None
    limit: int
    threads: int
    tokens: int
    warm: int
    peer_tokens: int

    @cached_property
    def vocabulary(self) -> int:
        """Tokens that both programs are given are below this."""
        with open_checkpoint(self.model) as checkpoint:
            return min(checkpoint.entries[embedding_name(checkpoint)].spec.shape[0], 20000)


def tokens_of(count: int, vocabulary: int, first: int = 13) -> list[int]:
    return [(SCATTER * i + first) % vocabulary for i in range(count)]


def run_child(kind: str, file: Path, trial: Trial, count: int, group: MemoryGroup | None, **options: Any) -> dict[str, Any]:
    """Loads a model, generates tokens that are not timed and `count` that are."""
    context = max(trial.tokens, trial.warm) + 8
    with Child(kind, group=group, model=str(file), threads=trial.threads, context=context, batch=1, **options) as child:
        vocabulary = trial.vocabulary
        child.ask("generate", tokens=tokens_of(min(trial.warm, count), vocabulary, first=101), depth=0, batch=1)
        seconds = child.ask("generate", tokens=tokens_of(count, vocabulary), depth=0, batch=1)
        result = {
            "load_seconds": child.ready["load_seconds"],
            "facts": child.ready["facts"],
            "seconds": sum(seconds),
            "tokens": count,
            "tokens_per_second": count / sum(seconds),
            "counted": child.ask("added"),
            "chosen": child.ask("chosen") if kind == "oss-tools" else None,
        }
    result["peak_bytes"] = child.peak_bytes
    result["group_peak_bytes"] = group.peak_bytes() if group else None
    return result


def resident_run(trial: Trial) -> dict[str, Any] | None:
    """Without a limit; None where that does not fit into this machine."""
    if 1.15 * trial.model.stat().st_size > available_memory():
        return None
    return run_child("oss-tools", trial.model, trial, trial.tokens, None, load="resident")


def limited_round(trial: Trial, trace: Path | None) -> dict[str, Any]:
    """Ours, the disk, the peer. Pages that are in the cache from before would count for another group."""
    found: dict[str, Any] = {}
    print("ours", file=sys.stderr)
    forget(trial.model)
    with memory_group(trial.limit, "ours") as group:
        options = {"memory": int(trial.limit * (1 - LEFT)), **({"trace_experts": str(trace)} if trace else {})}
        found["oss-tools"] = run_child("oss-tools", trial.model, trial, trial.tokens, group, **options)
        found["enforced"] = f"control group, version {group.version}" if group else None
    found["disk"] = read_speed(trial.model)
    if trial.peer_file:
        print("llama.cpp", file=sys.stderr)
        forget(trial.peer_file)
        with memory_group(trial.limit, "peer") as group:
            found["llama.cpp"] = run_child("llama.cpp, mapped", trial.peer_file, trial, trial.peer_tokens, group)
    return found


def measure_trial(trial: Trial, rounds: int) -> dict[str, Any]:
    """The record."""
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "streaming",
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": trial.model.name,
        "bytes": trial.model.stat().st_size,
        "peer_file": trial.peer_file.name if trial.peer_file else None,
        "limit_bytes": trial.limit,
        "threads": trial.threads,
        "tokens": trial.tokens,
        "machine": machine(),
        "versions": versions("numpy", "numba", "llvmlite", "llama-cpp-python"),
        "load": os.getloadavg()[0],
    }
    resident = resident_run(trial)
    with tempfile.TemporaryDirectory(prefix="oss-tools-streaming-") as folder:
        trace = Path(folder, "trace")
        turns = [limited_round(trial, trace if number == 0 else None) for number in range(rounds)]
        record["expert_cache"] = cache_figures(trace, turns[0]["oss-tools"]["facts"]["streaming"]["slots"])
    ours = [turn["oss-tools"] for turn in turns]
    disks = [turn["disk"] for turn in turns]
    record |= {
        "enforced_by": turns[0]["enforced"],
        "resident": summary([resident]) if resident else None,
        "oss-tools": summary(ours)
        | figures([o["counted"] for o in ours], [o["seconds"] for o in ours], disks, trial.tokens),
        "identical_tokens": all(o["chosen"] == resident["chosen"] for o in ours) if resident else None,
    }
    record["oss-tools"]["facts"] = ours[0]["facts"]
    if resident:
        record["share_of_resident"] = spread([o["tokens_per_second"] / resident["tokens_per_second"] for o in ours])
        record["share_of_both_bounds"] = spread([_of_both(o, d, resident) for o, d in zip(ours, disks, strict=True)])
    if trial.peer_file:
        peers = [turn["llama.cpp"] for turn in turns]
        counted = figures([p["counted"] for p in peers], [p["seconds"] for p in peers], [], trial.peer_tokens)
        record["llama.cpp"] = summary(peers) | counted | {"facts": peers[0]["facts"]}
        pairs = zip(ours, peers, strict=True)
        record["ratio"] = spread([o["tokens_per_second"] / p["tokens_per_second"] for o, p in pairs])
    return record


def _of_both(ours: dict[str, Any], disk: float, resident: dict[str, Any]) -> float:
    """Share of the rate that the slower of the two allows: the disk for what was read, the arithmetic with all in memory."""
    bytes_a_token = ours["counted"]["bytes_read"] / ours["tokens"]
    bound = min(disk / max(bytes_a_token, 1), resident["tokens_per_second"])
    return float(ours["tokens_per_second"] / bound)


def cache_figures(trace: Path, slots: int) -> dict[str, Any] | None:
    """What caches of that size and others hit by the trace of the first round, its tokens that are not timed included."""
    from oss_tools.engine.stream.trace import read_trace

    if not trace.exists():
        return None
    record = measure(accesses_of(read_trace(trace)), [slots // 4, slots // 2, slots, slots * 3 // 2])
    return {name: record[name] for name in ("tokens", "accesses", "first_uses", "chosen", "sizes")}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the rounds of a program."""
    return {
        "tokens_per_second": spread([run["tokens_per_second"] for run in runs]),
        "load_seconds": spread([run["load_seconds"] for run in runs]),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "group_peak_bytes": max((run["group_peak_bytes"] or 0 for run in runs), default=0) or None,
    }


def spread(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "range": [min(values), max(values)], "rounds": values}


def main() -> None:
    from oss_tools.sizes import parse_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the model for oss-tools")
    parser.add_argument("--peer-file", type=Path, help="the same model as GGUF, for llama.cpp")
    parser.add_argument("--limit", default="8GB", help="the memory limit of each program")
    parser.add_argument("--threads", type=int, default=0, help="threads to use; 0 means every core")
    parser.add_argument("--tokens", type=int, default=48, help="how many tokens to time")
    parser.add_argument("--warm", type=int, default=48, help="how many tokens to generate before")
    parser.add_argument(
        "--peer-tokens", type=int, default=4, help="how many tokens to time of llama.cpp, which takes longer for each"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write the record to this file")
    given = parser.parse_args()
    try:
        trial = Trial(
            given.model, given.peer_file, parse_size(given.limit), given.threads or cores(), given.tokens, given.warm,
            given.peer_tokens,
        )  # fmt: skip
        record = measure_trial(trial, given.rounds)
    except (OssToolsError, OSError, ValueError) as error:
        sys.exit(str(error))
    text = json.dumps(record, indent=1)
    if given.output:
        replace_file(given.output, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
