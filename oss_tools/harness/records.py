"""Scores with their uncertainty, and the record of a run."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from oss_tools.harness.repeats import Repeated, error_of_repeats

SCHEMA = 1
Z = 1.959963984540054  # of a 95 % interval
COUNTED = ("weighted_perplexity", "bits_per_byte")  # aggregations of (log-probability, units)


@dataclass(frozen=True)
class Score:
    """A metric's value over n documents, with its standard error and a 95 % interval; None where there is none.

    `stderr_repeats`, where documents were asked several times: the part of the error that is of repeats, see `error_of_repeats`.
    """

    score: float
    n: int
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = True
    stderr_repeats: float | None = None


def wilson(successes: float, n: float, z: float = Z) -> tuple[float, float]:
    """Wilson's interval for a share (https://doi.org/10.1080/01621459.1927.10502953)."""
    if not n:
        return 0.0, 1.0
    share, spread = successes / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def share_score(values: Sequence[float], higher_is_better: bool = True) -> Score:
    """Of outcomes that are averaged: Wilson's interval if each is 0 or 1, else the normal one."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Score(mean, n, None, None, None, higher_is_better)
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    yes_no = all(v in (0, 1) for v in values)
    low, high = wilson(math.fsum(values), n) if yes_no else (mean - Z * error, mean + Z * error)
    return Score(mean, n, error, low, high, higher_is_better)


def repeated_score(values: Sequence[Repeated], higher_is_better: bool = True) -> Score:
    """Of questions that were asked several times. Error and interval are over questions and repeats: the questions' means are
    what varies, so repeats of one question are not taken for new questions.

    Where outcomes are 0 or 1 the interval is Wilson's for as many independent answers as have this standard error (the effective
    sample size of surveys, https://doi.org/10.1093/jssam/smv024), never more than there were answers.
    """
    n, mean = len(values), math.fsum(values) / len(values)
    again = error_of_repeats(values)
    if n < 2:
        return Score(mean, n, None, None, None, higher_is_better, again)
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    outcomes = [x for value in values for x in value.outcomes]
    if not all(x in (0, 1) for x in outcomes):
        return Score(mean, n, error, mean - Z * error, mean + Z * error, higher_is_better, again)
    alike = n if mean in (0.0, 1.0) else len(outcomes)
    effective = min(mean * (1 - mean) / error**2, len(outcomes)) if error else alike
    low, high = wilson(mean * effective, effective)
    return Score(mean, n, error, low, high, higher_is_better, again)


def perplexity_score(rows: Sequence[tuple[float, int]], aggregation: str) -> Score:
    """Of (log-probability, units) per document: exp of the mean negative log-probability per unit, or bits per unit.

    The standard error is that of a ratio of sums over documents (the delta method); the interval is made on the logarithm.
    """
    units, n = sum(count for _, count in rows), len(rows)
    nats = -math.fsum(logprob for logprob, _ in rows) / units
    error = None
    if n > 1:
        spread = math.fsum((-logprob - nats * count) ** 2 for logprob, count in rows)
        error = math.sqrt(spread * n / (n - 1)) / units
    bits = aggregation == "bits_per_byte"

    def shown(value: float) -> float:
        return value / math.log(2) if bits else _exp(value)

    if error is None:
        return Score(shown(nats), n, None, None, None, False)
    stderr = error / math.log(2) if bits else _exp(nats) * error
    return Score(shown(nats), n, stderr, shown(nats - Z * error), shown(nats + Z * error), False)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def task_record(task: Any, samples: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> dict[str, Any]:
    """A task's part of the record.

    Args:
        task: lm-eval's.
        samples: its logged samples.
        results: its aggregated metrics, "metric,filter" → value, which serve where we have no rule of our own.
    """
    columns: dict[str, dict[int, Any]] = defaultdict(dict)
    docs: dict[int, str] = {}
    kinds: dict[int, str] = {}
    for sample in samples:
        number = sample["doc_id"]
        docs[number] = str(sample["doc_hash"])
        if isinstance(sample["doc"], Mapping) and isinstance(sample["doc"].get("kind"), str):
            kinds[number] = sample["doc"]["kind"]
        for metric in sample["metrics"]:
            columns[_name(metric, sample["filter"])][number] = sample[metric]
    order = sorted(docs)
    metadata = task.config.metadata or {}
    scores = {name: _score(task, name, list(values.values()), results) for name, values in columns.items()}
    whole = "".join(docs[number] for number in order)
    return {
        "version": task.VERSION,
        "num_fewshot": task.config.num_fewshot or 0,
        "repeats": task.config.repeats or 1,
        "prompts": str(metadata.get("prompts") or ""),
        "n": len(order),
        "data_sha256": hashlib.sha256(whole.encode()).hexdigest(),
        "scores": {name: asdict(score) for name, score in scores.items() if score},
        "by_kind": _by_kind(columns, kinds),
        "items": {
            "doc": order,
            "sha256": [docs[number][:16] for number in order],
            **{name: [_plain(values.get(number)) for number in order] for name, values in columns.items()},
        },
    }


def _name(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _score(task: Any, name: str, values: list[Any], results: Mapping[str, Any]) -> Score | None:
    """A metric over a task's documents. None if it is no number (a confusion matrix, …)."""
    metric, _, filter_name = name.partition(",")
    better = bool(task.higher_is_better().get(metric, True))
    aggregation = getattr(task.aggregation().get(metric), "__name__", "mean")
    if aggregation in COUNTED and all(isinstance(v, tuple) for v in values):
        return perplexity_score(values, aggregation)
    if aggregation == "mean" and all(isinstance(v, int | float) for v in values):
        repeated = [v for v in values if isinstance(v, Repeated)]
        if len(repeated) == len(values):
            return repeated_score(repeated, better)
        return share_score([float(v) for v in values], better)
    if aggregation == "clipped_mean" and values:
        return _clipped_score([float(v) for v in values])
    value = results.get(f"{metric},{filter_name or 'none'}")
    return Score(float(value), len(values), higher_is_better=better) if isinstance(value, int | float) else None


def _clipped_score(values: Sequence[float]) -> Score:
    """HealthBench's."""
    from oss_tools.harness.healthbench import bootstrap_error, clipped_mean

    mean, error = clipped_mean(values), bootstrap_error(values)
    return Score(mean, len(values), error, max(mean - Z * error, 0.0), min(mean + Z * error, 1.0))


def _by_kind(columns: Mapping[str, Mapping[int, Any]], kinds: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """Mean outcome and number by the documents' kinds, where they have any."""
    found: dict[str, dict[str, Any]] = {}
    for kind in sorted(set(kinds.values())):
        for name, values in columns.items():
            chosen = [v for number, v in values.items() if kinds.get(number) == kind and isinstance(v, int | float)]
            if chosen:
                found.setdefault(kind, {})[name] = {"score": math.fsum(chosen) / len(chosen), "n": len(chosen)}
    return found


def _plain(value: Any) -> Any:
    """An outcome as JSON has it."""
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return json.loads(json.dumps(value, default=str))
    return int(number) if number in (0.0, 1.0) else number if math.isfinite(number) else None
