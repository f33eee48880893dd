"""Figures in Prometheus' text form (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from oss_tools.engine.scheduler_stats import Stats
from oss_tools.serve.served import State

Row = tuple[dict[str, str], float]

SUMS = {  # counter -> attribute of Stats, what it is
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts."),
    "cached_prompt_tokens": ("cached_tokens", "Tokens of prompts that the prefix cache had."),
    "generated_tokens": ("generated_tokens", "Tokens generated; its rate is tokens per second."),
    "guessed_tokens": ("guessed_tokens", "Tokens that passes took along as guesses."),
    "right_guesses": ("right_guesses", "Guesses that were right."),
    "passes": ("passes", "Passes over the weights."),
    "busy_seconds": ("busy", "Time in passes."),
    "preemptions": ("preempted", "Requests that went back to the queue for want of room for keys and values."),
    "first_tokens": ("first_tokens", "Requests that got a first token."),
    "first_token_seconds": ("first_token_seconds", "Time that they waited for it."),
}
LEVELS = {
    "requests_waiting": ("waiting", "Requests that wait."),
    "requests_running": ("running", "Requests that are worked on."),
    "cache_positions": ("positions", "Positions that live sequences have room for in the KV cache."),
}


def exposition(state: State) -> str:
    """The figures of all models, and of the process."""
    stats = {name: served.scheduler.stats for name, served in state.models.items()}
    lines: list[str] = []
    for name, (attribute, what) in SUMS.items():
        lines += _metric(f"{name}_total", "counter", what, _each(stats, attribute))
    for name, (attribute, what) in LEVELS.items():
        lines += _metric(name, "gauge", what, _each(stats, attribute))
    ended = [({"model": m, "finish": kind}, float(n)) for m, s in stats.items() for kind, n in sorted(s.finished.items())]
    lines += _metric("requests_total", "counter", "Requests by how they ended.", ended)
    caches = [({"model": name}, float(served.engine.prefixes.nbytes)) for name, served in state.models.items()]
    lines += _metric("prefix_cache_bytes", "gauge", "Bytes of the prefix cache.", caches)
    lines += _metric("resident_memory_bytes", "gauge", "Memory of the process.", [({}, float(resident_bytes()))])
    return "\n".join(lines) + "\n"


def _each(stats: dict[str, Stats], attribute: str) -> list[Row]:
    return [({"model": name}, float(getattr(s, attribute))) for name, s in stats.items()]


def _metric(name: str, kind: str, what: str, rows: list[Row]) -> Iterator[str]:
    name = f"oss_tools_{name}"
    yield f"# HELP {name} {what}"
    yield f"# TYPE {name} {kind}"
    for labels, value in rows:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{{{inside}}} {value:.10g}" if labels else f"{name} {value:.10g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def resident_bytes() -> int:
    """Memory of this process that is in use now; where the system does not say, the most that it ever was."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
