"""How `eval` prints its record."""

from __future__ import annotations

from typing import Any

from oss_tools.cli._output import print_facts, print_table

DIVERGENCE = "divergence"


def print_record(record: dict[str, Any]) -> None:
    """Scores as a table, then what the run took."""
    rows = []
    for name, task in record["tasks"].items():
        metrics = sorted(task["scores"], key=lambda metric: metric != task["metric"])
        for i, metric in enumerate(metrics):
            rows.append((name if i == 0 else "", metric, *_figures(metric, task["scores"][metric])))
    print_table(rows, ("task", "metric", "score", "95 % interval", "n"), right=(2, 3, 4))
    if DIVERGENCE in record:
        _print_divergence(record[DIVERGENCE])
    print()
    print_facts(_facts(record))


def _figures(metric: str, score: dict[str, Any]) -> tuple[str, str, str]:
    """Shares in percent, anything else as it is."""
    share = 0 <= score["score"] <= 1 and not any(word in metric for word in ("perplexity", "bits"))

    def shown(value: float) -> str:
        return f"{100 * value:.1f} %" if share else f"{value:.4g}"

    interval = "" if score["low"] is None else f"{shown(score['low'])} … {shown(score['high'])}"
    return shown(score["score"]), interval, f"{score['n']:,}"


def _print_divergence(found: dict[str, Any]) -> None:
    kld, delta, top = found["kld"], found["delta_p"], found["same_top"]

    def error(value: float | None, scale: float = 1) -> str:
        return "" if value is None else f" ± {scale * value:.2g}"

    points = ", ".join(f"{name[1:]} %: {kld[name]:.3g}" for name in ("p90", "p95", "p99", "p99.9"))
    facts = {
        f"divergence from {found['base']['name']}": f"{found['positions']:,} positions in {found['chunks']} chunks",
        "mean KL divergence": f"{kld['mean']:.4g}{error(kld['stderr'])} nats",
        "median, percentiles, largest": f"{kld['median']:.3g}; {points}; {kld['max']:.3g}",
        "same likeliest token": f"{100 * top['mean']:.2f}{error(top['stderr'], 100)} %",
        "change of the right token's probability": f"mean {100 * delta['mean']:+.3f}{error(delta['stderr'], 100)} %, "
        f"root mean square {100 * delta['rms']:.3f} %",
        "perplexity": f"{found['perplexity']['model']:.4f}, of the base {found['perplexity']['base']:.4f}",
    }
    print()
    print_facts(facts)


def _wire(wire: dict[str, Any] | None) -> str | None:
    """What was measured of an endpoint: network, queue and other people's load included."""
    if not wire or not wire["requests"]:
        return None
    said = [f"{wire['requests']:,} requests, median {wire['seconds_median']:.2f} s, 95 % below {wire['seconds_p95']:.2f} s"]
    if "tokens_per_second_median" in wire:
        said.append(f"median {wire['tokens_per_second_median']:.0f} tokens/s")
    if wire["truncated"]:
        said.append(f"{wire['truncated']:,} answers ended at their limit")
    if "dollars" in wire:
        said.append(f"{wire['dollars']:,.4f} dollars")
    return "; ".join(said)


def _grading(tally: dict[str, Any] | None) -> str | None:
    if tally is None:
        return None
    asked = f"{tally['graded']:,} grades, {tally['kept']:,} kept from before, {tally['ungraded']:,} that it did not give"
    trouble = f"{tally['retries']:,} retries, {tally['malformed']:,} malformed"
    return f"{tally['model']}: {asked}; {trouble}; {tally['prompt_tokens']:,} tokens read, {tally['tokens']:,} written"


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    usage = [task["usage"] for task in record["tasks"].values()]
    total = {
        name: sum(u[name] for u in usage)
        for name in ("prompt_tokens", "tokens", "positions", "computed", "no_final", "answers")
    }
    problems: dict[str, int] = {}
    for entry in usage:
        for kind, count in entry["problems"].items():
            problems[kind] = problems.get(kind, 0) + count
    shared = 1 - total["computed"] / total["positions"] if total["positions"] else None
    return {
        "model": ", ".join(filter(None, (record["model"]["name"], record["model"].get("kernels")))),
        "over the wire": _wire(record["model"].get("wire")),
        "no final answer": f"{total['no_final']} of {total['answers']}" if total["answers"] else None,
        "problems": ", ".join(f"{kind} {count}" for kind, count in sorted(problems.items())),
        "tokens": f"{total['prompt_tokens']:,} read, {total['tokens']:,} generated",
        "grader": _grading(record.get("grader")),
        "shared prefixes": None if shared is None else f"saved {100 * shared:.0f} % of the positions",
        "time": f"{record['seconds']:.0f} s",
    }
