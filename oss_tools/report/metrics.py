"""The metrics of sheets: how each is called, which direction is better, and how figures are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from oss_tools.sizes import format_size


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; without bounds the figure is exact, or nothing is known of its spread."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval; the figure itself where there is none."""
        return (self.value if self.low is None else self.low), (self.value if self.high is None else self.high)

    @property
    def known(self) -> bool:
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class Metric:
    """How a metric is called and written.

    Attributes:
        title: of its column.
        about: in a sentence.
        lower: whether less is better; None if neither is.
        unit: "bytes", "percent", "ms" (written; figures are in seconds), "count", "" (a number).
        shown: whether tables have a column for it.
        exact: whether it is counted and not a sample, so that any difference is one.
    """

    title: str
    about: str
    lower: bool | None = True
    unit: str = ""
    shown: bool = True
    exact: bool = False


METRICS: dict[str, Metric] = {
    "size": Metric("size", "bytes of the checkpoint's files", unit="bytes", exact=True),
    "bits_per_weight": Metric("bits", "bits per weight, over all tensors", exact=True),
    "weight_error": Metric("weight err", "‖candidate − base‖ / ‖base‖ over all weights", unit="percent", exact=True),
    "weight_error.worst": Metric(
        "worst slice", "the largest relative error of a tensor or expert", unit="percent", shown=False
    ),
    "perplexity": Metric("ppl", "perplexity of the text"),
    "perplexity_ratio": Metric("ppl ratio", "perplexity over the base's, paired by chunk", shown=False),
    "kld.mean": Metric("KLD", "mean KL divergence from the base, nats per token"),
    "kld.median": Metric("KLD 50 %", "median KL divergence", shown=False),
    "kld.p90": Metric("KLD 90 %", "its 90th percentile", shown=False),
    "kld.p95": Metric("KLD 95 %", "its 95th percentile", shown=False),
    "kld.p99": Metric("KLD 99 %", "its 99th percentile"),
    "kld.p99_9": Metric("KLD 99.9 %", "its 99.9th percentile", shown=False),
    "kld.max": Metric("KLD max", "its maximum", shown=False),
    "same_top": Metric("top-1", "share of positions whose likeliest token is the base's", False, "percent"),
    "delta_p.mean": Metric("Δp mean", "mean change of the probability of the token that came", None, "percent", False),
    "delta_p.rms": Metric("Δp RMS", "root mean square of that change", True, "percent", False),
    "margin.ratio": Metric(
        "margin", "median margin of decisions (letters, calls, functions) over the base's", False, "percent"
    ),
    "margin.flips": Metric("flips", "share of decisions that the candidate would take otherwise", True, "percent"),
    "margin.shift": Metric("margin shift", "mean change of the margins, nats", False, shown=False),
    "margin.hanging": Metric("hanging", "decisions that hang by less than a nat", True, "count", False),
    "drift.depth": Metric(
        "drift", "mean KL divergence from the base behind the deepest context, nats per token", shown=False
    ),
    "drift.cache": Metric("drift by cache", "the same of a bfloat16 KV cache from a float32 one", shown=False),
    "drift.cache-q8": Metric("drift by 8-bit cache", "the same of an 8-bit KV cache from a float32 one", shown=False),
    "drift.backends": Metric("drift by backend", "the same of another backend from this one", shown=False),
    "task": Metric("", "a task's score", False, "percent"),
    "suite": Metric("", "mean score of a suite's tasks", False, "percent", False),
    "time_to_first_token": Metric("first token", "milliseconds from the prompt to the first new token", unit="ms"),
    "time_per_token": Metric("ms/token", "milliseconds of a step of generation", unit="ms"),
    "tokens_per_second": Metric("tokens/s", "tokens generated per second", False),
    "prompt_tokens_per_second": Metric("prompt/s", "tokens of the prompt read per second", False, shown=False),
    "time_per_token_per_reference": Metric(
        "per ref.", "time of a round's fastest steps over that of a reference kernel beside them", shown=False
    ),
    "peer_ratio": Metric("of peer", "tokens per second over the peer's, in turns", False),
    "wire.seconds": Metric("s/request (wire)", "seconds of a request over the network, with other people's load in it"),
    "wire.tokens_per_second": Metric("tokens/s (wire)", "tokens per second of an answer over the network", False),
    "wire.dollars": Metric("dollars", "cost of all answers at the price that was named", exact=True),
    "load_seconds": Metric("load s", "seconds to load"),
    "peak_memory": Metric(
        "peak memory", "resident memory of a process that loads the model and answers", unit="bytes", exact=True
    ),
    "own_memory": Metric(
        "own memory",
        "resident memory of that process without the files of programs and shared libraries",
        unit="bytes",
        shown=False,
        exact=True,
    ),
    "weight_memory": Metric("weights", "bytes of the weights in memory", unit="bytes", shown=False),
    "differences": Metric(
        "differences",
        "what the candidate says otherwise than the base: configuration, tokenizer, chat template",
        unit="count",
        shown=False,
    ),
    "findings": Metric("findings", "things wrong with the candidate that the figures show", unit="count", shown=False),
}


def metric_of(name: str) -> Metric:
    """How a metric is written: `task.NAME` and `suite.NAME` as tasks and suites, `NAME@TEXT` as NAME of another text."""
    plain, _, text = name.partition("@")
    family, _, rest = plain.partition(".")
    if plain in METRICS and rest + text == "":
        return METRICS[plain]
    if family in ("task", "suite"):
        return replace(METRICS[family], title=rest)
    if family == "perplexity" and rest:
        return replace(METRICS[family], title=f"ppl {rest}", about=f"perplexity, or the like, of {rest}")
    found = METRICS.get(plain) or METRICS.get(family) or Metric(plain, plain, None)
    title = f"{found.title} ({text})" if text else found.title
    return replace(found, title=title, shown=found.shown and not text and plain in METRICS)


# --- how figures are written


def formatted(name: str, value: float) -> str:
    """A metric's value as tables have it: three or four digits, in the unit of the column's title."""
    return _WRITERS[metric_of(name).unit](value)


def formatted_interval(name: str, interval: Interval) -> str:
    """The value, and its interval in parentheses where there is one."""
    text = formatted(name, interval.value)
    if not interval.known:
        return text
    low, high = (formatted(name, bound) for bound in interval.bounds)
    return f"{text} (95 %: {low} to {high})"


def format_number(value: float) -> str:
    """Three digits, without an exponent where that stays short."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "?"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        text = f"{value:.2e}"
    elif size >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"
    return text.replace("-", "−") if text.startswith("-") else text


def _percent(value: float) -> str:
    size = abs(100 * value)
    digits = 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{100 * value:.{digits}f} %".replace("-", "−") if value else "0 %"


_WRITERS: dict[str, Callable[[float], str]] = {
    "": format_number,
    "bytes": format_size,
    "percent": _percent,
    "ms": lambda value: format_number(1000 * value),
    "count": lambda value: f"{value:.0f}",
}
