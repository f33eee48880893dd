"""How far a model's predictions are from a base model's, token by token, over a text: the statistics of llama.cpp's
`perplexity --kl-divergence` (https://github.com/ggml-org/llama.cpp/tree/master/tools/perplexity), without a file of logits.

Both models read the text in the same chunks; the second half of each is scored, so every prediction has a context of at least
half a chunk. Standard errors are of the chunks' means: positions of one chunk are not independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from oss_tools.engine.engine import Engine
from oss_tools.errors import BadRequest

CHUNK = 512  # tokens
PERCENTILES = (90.0, 95.0, 99.0, 99.9)
ANOTHER = 0.05  # share of tokens that differ from which on it is another vocabulary
ROWS = 16  # positions that are worked on in float64 at a time


@dataclass(frozen=True)
class Positions:
    """What two models predicted at n positions.

    Attributes:
        kld: Kullback–Leibler divergence of the base's distribution from the model's, KL(base ‖ model), in nats, float64 [n].
        nll, base_nll: negative log-probability of the token that came, by the model and by the base, in nats, float64 [n].
        same_top: whether both hold the same token likeliest, bool [n].
    """

    kld: np.ndarray
    nll: np.ndarray
    base_nll: np.ndarray
    same_top: np.ndarray

    def __len__(self) -> int:
        return len(self.kld)

    @property
    def delta_p(self) -> np.ndarray:
        """The probability of the token that came, the model's less the base's, float64 [n]."""
        return np.exp(-self.nll) - np.exp(-self.base_nll)


def joined(parts: Sequence[Positions]) -> Positions:
    return Positions(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Positions)))


def measure_rows(base: np.ndarray, other: np.ndarray, tokens: np.ndarray) -> Positions:
    """Of logits float32 [n, vocabulary] of both models, and the tokens that came, int [n]."""
    parts = []
    for at in range(0, len(tokens), ROWS):
        log_p, log_q = (log_softmax(logits[at : at + ROWS]) for logits in (base, other))
        came = np.asarray(tokens[at : at + ROWS])
        row = np.arange(len(came))
        kld = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        same = log_p.argmax(-1) == log_q.argmax(-1)
        parts.append(Positions(np.maximum(kld, 0.0), -log_q[row, came], -log_p[row, came], same))
    return joined(parts)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def compare_engines(
    base: Engine,
    other: Engine,
    tokens: Sequence[int],
    chunk: int = CHUNK,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Positions]:
    """The positions of each chunk of a text, both models side by side.

    Args:
        tokens: the text's, which both models' vocabularies must have in common.
        chunk: tokens of a chunk; of an incomplete one at the end nothing is scored, unless it is the only one.
        limit: the first so many chunks.
        progress: called with the chunks done, and of how many.

    Raises BadRequest if the models have other tokenizers, or the text is too short.
    """
    both = common_rows(base, other)
    size = min(chunk, base.context, other.context, len(tokens))
    if size < 4:
        raise BadRequest(f"{size} tokens are too few to compare models on")
    chunks = [list(tokens[at : at + size]) for at in range(0, len(tokens) - size + 1, size)][:limit]
    found = []
    for part in chunks:
        found.append(_compare_chunk(base, other, part, both))
        progress(len(found), len(chunks))
    return found


def common_rows(base: Engine, other: Engine) -> int:
    """How many logits of two models stand for the same tokens: those of the one without, or with fewer, rows of padding.

    Raises BadRequest if the tokenizers are not one, or a token of theirs has no row in one of the models.
    """
    sizes = base.backend.vocabulary, other.backend.vocabulary
    ours, theirs = base.text.numbers(), other.text.numbers()
    differing = sum(theirs.get(token) != number for token, number in ours.items()) + len(theirs.keys() - ours.keys())
    if differing > ANOTHER * len(ours) or max(ours.values(), default=-1) >= min(sizes):
        raise BadRequest(
            f"the models' vocabularies have {sizes[0]:,} and {sizes[1]:,} rows, and {differing:,} tokens differ;"
            " only models of one tokenizer can be compared by divergence"
        )
    return min(sizes)


def _compare_chunk(base: Engine, other: Engine, tokens: list[int], both: int) -> Positions:
    first = len(tokens) // 2
    parts, at = [], first
    for p, q in in_step(base.each_logits(tokens[:-1], first), other.each_logits(tokens[:-1], first)):
        parts.append(measure_rows(p[:, :both], q[:, :both], np.array(tokens[at + 1 : at + 1 + len(p)])))
        at += len(p)
    return joined(parts)


def in_step(one: Iterator[np.ndarray], two: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of both, as many at a time as both have ready."""
    p = q = np.empty((0, 0))
    while True:
        p = p if len(p) else next(one, p)
        q = q if len(q) else next(two, q)
        n = min(len(p), len(q))
        if not n:
            return
        yield p[:n], q[:n]
        p, q = p[n:], q[n:]


def clustered_error(chunks: Sequence[np.ndarray]) -> float | None:
    """The standard error of the mean of all values, which depend on each other within a chunk; None of a single chunk."""
    if len(chunks) < 2:
        return None
    total = sum(len(values) for values in chunks)
    mean = sum(values.sum() for values in chunks) / total
    spread = sum(float((values - mean).sum()) ** 2 for values in chunks)
    return math.sqrt(spread * len(chunks) / (len(chunks) - 1)) / total


def summarize(chunks: Sequence[Positions]) -> dict[str, Any]:
    """The statistics over all chunks, as plain values.

    kld: mean with its standard error, median, percentiles, largest; in nats. delta_p: mean, root mean square and percentiles
    of the change of the probability of the token that came, as shares. same_top: share of positions. perplexity: both
    models', and the logarithm of their ratio.
    """
    every = joined(chunks)

    def mean_of(values: Callable[[Positions], np.ndarray]) -> dict[str, Any]:
        return {"mean": float(values(every).mean()), "stderr": clustered_error([values(chunk) for chunk in chunks])}

    squared = mean_of(lambda p: p.delta_p**2)
    rms = math.sqrt(squared["mean"])
    rms_error = squared["stderr"] / (2 * rms) if squared["stderr"] is not None and rms else None
    return {
        "positions": len(every),
        "chunks": len(chunks),
        "kld": mean_of(lambda p: p.kld)
        | {"median": float(np.median(every.kld)), **percentiles(every.kld), "max": float(every.kld.max())},
        "same_top": mean_of(lambda p: p.same_top.astype(np.float64)),
        "delta_p": mean_of(lambda p: p.delta_p)
        | {"rms": rms, "rms_stderr": rms_error, "min": float(every.delta_p.min()), "max": float(every.delta_p.max())}
        | percentiles(every.delta_p, (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, *PERCENTILES)),
        "log_perplexity_ratio": mean_of(lambda p: p.nll - p.base_nll),
        "perplexity": {"model": math.exp(min(every.nll.mean(), 700)), "base": math.exp(min(every.base_nll.mean(), 700))},
    }


def percentiles(values: np.ndarray, wanted: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """By name ("p99.9"), with linear interpolation."""
    return {f"p{q:g}": float(np.percentile(values, q)) for q in wanted}
