"""The figures of a benchmark's rounds: medians and spreads, shares of ceilings, ratios to peers."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from oss_tools.measure.bench_cases import Case, Settings
from oss_tools.measure.counters import figures as counted


@dataclass
class Rounds:
    """What was measured, by round: seconds of each step, what was counted meanwhile, and right after our ceilings and, if we
    stream, the disk's speed; what guesses gained."""

    seconds: dict[tuple[str, Case], list[list[float]]] = field(default_factory=dict)
    counted: dict[tuple[str, Case], list[dict[str, float]]] = field(default_factory=dict)
    disk: dict[Case, list[float]] = field(default_factory=dict)
    ceilings: dict[Case, list[dict[str, float]]] = field(default_factory=dict)
    lookups: list[dict[str, Any] | None] = field(default_factory=list)


def results(kind: str, settings: Settings, rounds: Rounds) -> list[dict[str, Any]]:
    """The figures of one program, case by case."""
    return [_figures(case, rounds.seconds[kind, case]) | _counted(case, kind, rounds) for case in settings.cases()]


def add_comparisons(entry: dict[str, Any], settings: Settings, rounds: Rounds) -> None:
    """Adds to the record of a model what its figures are held against: generation without guesses, an empty context, one
    sequence, the ceilings of memory and kernels, the peers."""
    if lookups := [found for found in rounds.lookups if found]:
        entry["contenders"]["oss-tools"]["lookup"] = _lookup(lookups)
    _add_depths(entry)
    _add_batches(entry)
    _add_shares(entry, settings, rounds)
    _add_ratios(entry, settings, rounds)


def _figures(case: Case, rounds: list[list[float]]) -> dict[str, Any]:
    """tokens/s with median and spread over the rounds, and the times that a user feels."""
    rates = sorted(case.tokens * case.batch / sum(seconds) for seconds in rounds)
    figures: dict[str, Any] = {
        "case": case.label,
        **asdict(case),
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_range": [rates[0], rates[-1]],
        "rounds": [case.tokens * case.batch / sum(seconds) for seconds in rounds],
    }
    if case.kind == "prompt":
        return figures | {"time_to_first_token": statistics.median(s[0] for s in rounds)}
    steps = sorted(step for seconds in rounds for step in seconds)
    return figures | {"step_seconds_p50": _quantile(steps, 0.5), "step_seconds_p95": _quantile(steps, 0.95)}


def _counted(case: Case, kind: str, rounds: Rounds) -> dict[str, Any]:
    """What was counted in a case, for each token."""
    seconds = [sum(steps) for steps in rounds.seconds[kind, case]]
    disk = rounds.disk.get(case, []) if kind == "oss-tools" else []
    return counted(rounds.counted[kind, case], seconds, disk, case.tokens * case.batch)


def _lookup(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """What guesses gain where a text repeats itself: tokens/s with and without them, and the ratio, round by round."""
    gains = sorted(r["seconds"]["without"] / r["seconds"]["with"] for r in rounds)
    rates = {name: statistics.median(r["tokens"] / r["seconds"][name] for r in rounds) for name in ("without", "with")}
    return {
        "tokens": rounds[0]["tokens"],
        "tokens_per_second": rates,
        "gain": {"median": statistics.median(gains), "range": [gains[0], gains[-1]]},
        **{name: sum(r[name] for r in rounds) for name in ("guessed", "right")},
        "same_tokens": all(r["same"] for r in rounds),
    }


def _add_depths(entry: dict[str, Any]) -> None:
    """What share of its rate without anything before it each case behind other tokens has, program by program."""
    for contender in entry["contenders"].values():
        first = {(r["kind"], r["batch"]): r["tokens_per_second"] for r in contender["results"] if not r["depth"]}
        for result in contender["results"]:
            if result["depth"] and (rate := first.get((result["kind"], result["batch"]))):
                result["share_of_depth_0"] = result["tokens_per_second"] / rate


def _add_batches(entry: dict[str, Any]) -> None:
    """How many times the tokens/s of one sequence several of them have together, program by program, round by round."""
    for contender in entry["contenders"].values():
        alone = {(r["kind"], r["depth"]): r["rounds"] for r in contender["results"] if r["batch"] == 1}
        for result in contender["results"]:
            if result["batch"] > 1 and (rounds := alone.get((result["kind"], result["depth"]))):
                gains = sorted(a / b for a, b in zip(result["rounds"], rounds, strict=True))
                result["gain_over_one"] = {"median": statistics.median(gains), "range": [gains[0], gains[-1]]}


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _add_shares(entry: dict[str, Any], settings: Settings, rounds: Rounds) -> None:
    """What share of the ceilings the weights of generated tokens reach, round by round: of the speed at which their memory is
    read, and of matrix × vector alone."""
    ours = entry["contenders"]["oss-tools"]
    weights = ours["facts"].get("bytes_per_token")
    for case, result in zip(settings.cases(), ours["results"], strict=True):
        ceilings = [c for c in rounds.ceilings.get(case, []) if c]
        if not weights or not ceilings:
            continue
        result["weight_bytes_per_second"] = weights * result["tokens_per_second"]
        result["ceilings"] = {name: statistics.median(c[name] for c in ceilings) for name in ceilings[0]}
        result["shares"] = {}
        for name in ceilings[0]:
            shares = sorted(weights * r / c[name] for r, c in zip(result["rounds"], ceilings, strict=True))
            result["shares"][name] = {"median": statistics.median(shares), "range": [shares[0], shares[-1]]}


def _add_ratios(entry: dict[str, Any], settings: Settings, rounds: Rounds) -> None:
    """How many times as fast as each peer, round by round; `ratio` is that to the first of them."""
    for case, result in zip(settings.cases(), entry["contenders"]["oss-tools"]["results"], strict=True):
        ratios = {}
        for peer in settings.peers:
            pairs = zip(rounds.seconds[peer, case], rounds.seconds["oss-tools", case], strict=True)
            values = sorted(sum(theirs) / sum(ours) for theirs, ours in pairs)
            ratios[peer] = {"median": statistics.median(values), "range": [values[0], values[-1]]}
        if ratios:
            result |= {"ratio": ratios[settings.peers[0]], "ratios": ratios}
