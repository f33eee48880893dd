"""What was measured over the wire: seconds a request, tokens, cost."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Price:
    """In dollars for a million tokens, read and written."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, tokens: int) -> float:
        return (self.prompt * prompt_tokens + self.completion * tokens) / 1e6


@dataclass
class Wire:
    """Requests as they were answered. Times hold the network, the server's queue and other people's load.

    Attributes:
        seconds: of each request.
        rates: tokens a second of each that the server counted tokens of.
        prompt_tokens, tokens: in all.
        truncated: answers that ended at their limit.
    """

    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    truncated: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, seconds: float, prompt_tokens: int, tokens: int, truncated: bool) -> None:
        with self._lock:
            self.seconds.append(seconds)
            if tokens and seconds > 0:
                self.rates.append(tokens / seconds)
            self.prompt_tokens += prompt_tokens
            self.tokens += tokens
            self.truncated += truncated

    def to_json(self, price: Price | None = None) -> dict[str, Any]:
        """For records: medians, sums, and the cost where a price is known."""
        ordered = sorted(self.seconds)
        record: dict[str, Any] = {
            "requests": len(ordered),
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "truncated": self.truncated,
        }
        if ordered:
            record |= {
                "seconds_median": median(ordered),
                "seconds_p95": ordered[min(len(ordered) - 1, 95 * len(ordered) // 100)],
            }
        if self.rates:
            record["tokens_per_second_median"] = median(self.rates)
        if price is not None:
            record["dollars"] = price.of(self.prompt_tokens, self.tokens)
        return record
