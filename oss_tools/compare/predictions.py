"""Predictions of a candidate and the base over the same texts, chunk by chunk: exact, without a file of logits.

Where the base's logits are few they are computed once, held in memory for all candidates; else both models run side by side.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from oss_tools.engine.engine import Engine
from oss_tools.errors import BadRequest
from oss_tools.harness.data import read_jsonl
from oss_tools.harness.prompts import ChatPrompt, conversation_of
from oss_tools.harness.speech import Speech
from oss_tools.harness.suites import SuiteTask, task_files
from oss_tools.measure.fidelity import CHUNK, Positions, clustered_error, in_step, joined, measure_rows, percentiles
from oss_tools.report.fidelity import DeltaP, Divergence, Fidelity
from oss_tools.resources import resource
from oss_tools.statistics.figures import Estimate
from oss_tools.statistics.repeats import estimate

HELD = 1 << 30  # bytes of the base's logits that are held in memory
DELTA_POINTS = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
TEXT, PROMPTS = "text", "prompts"
LARGEST = 700.0  # whose exponential is a float


@dataclass(frozen=True)
class Passage:
    """A text to be predicted.

    Attributes:
        name: TEXT or PROMPTS.
        chunks: tokens of each chunk, which is read with nothing before it and scored in its second half. It begins with the
            token that the tokenizer puts before a text, if it has one, in place of its own first one.
    """

    name: str
    chunks: tuple[tuple[int, ...], ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(repr(self.chunks).encode()).hexdigest()

    @property
    def tokens(self) -> int:
        return sum(map(len, self.chunks))


def passages(
    engine: Engine, tasks: Sequence[SuiteTask], limit: int | None, seed: int = 0, chunk: int = CHUNK
) -> list[Passage]:
    """The text suite's prose, and the prompts of those tasks whose questions travel with the program.

    Args:
        limit: so many chunks of each; None for all.
        seed: of their choice; 0 takes the first.
    """
    prose = "\n\n".join(doc["text"] for doc in read_jsonl(resource("evals/text/smoke.jsonl")))
    first, size = engine.text.encode(""), min(chunk, engine.context)
    texts = {TEXT: engine.text.encode(prose), PROMPTS: _prompts(engine, tasks)}
    found = {name: _chunks(tokens, size, first) for name, tokens in texts.items() if tokens}
    return [Passage(name, _chosen(chunks, limit, seed)) for name, chunks in found.items()]


def _chunks(tokens: list[int], size: int, first: list[int]) -> list[tuple[int, ...]]:
    """A text in pieces of one size, each beginning with `first` in place of as many of its own tokens."""
    size = min(size, len(tokens))
    if size < 4:
        raise BadRequest(f"{size} tokens are too few to compare models on")
    return [(*first, *tokens[at + len(first) : at + size]) for at in range(0, len(tokens) - size + 1, size)]


def _chosen(chunks: list[tuple[int, ...]], limit: int | None, seed: int) -> tuple[tuple[int, ...], ...]:
    if limit is None or not seed:
        return tuple(chunks[:limit])
    numbers = random.Random(seed).sample(range(len(chunks)), min(limit, len(chunks)))
    return tuple(chunks[number] for number in sorted(numbers))


def _prompts(engine: Engine, tasks: Sequence[SuiteTask]) -> list[int]:
    """Tokens of the rendered questions, one behind the other; none without a chat template."""
    speech = Speech(engine)
    if speech.template is None:
        return []
    tokens: list[int] = []
    for task in tasks:
        file = task_files()[task.task].with_name("smoke.jsonl") if task.task.endswith("_smoke") else None
        for doc in read_jsonl(file) if file else []:
            if "question" not in doc:
                break
            prompt = ChatPrompt("", [{"role": "user", "content": doc["question"]}])
            tokens += speech.encode(conversation_of(prompt, doc, "low"))
    return tokens


class BaseLogits:
    """The base's logits over chunks, held in memory while they fit into `room` bytes, else computed anew each time."""

    def __init__(self, engine: Engine, room: int = HELD) -> None:
        self.engine, self.room = engine, room
        self._held: dict[tuple[int, ...], np.ndarray] = {}

    def rows(self, chunk: tuple[int, ...]) -> Iterator[np.ndarray]:
        """The logits after each token of the second half but the last, float32 [n, vocabulary], some at a time."""
        first = len(chunk) // 2
        if chunk in self._held:
            yield self._held[chunk]
            return
        computed = self.engine.each_logits(list(chunk[:-1]), first)
        size = 4 * (len(chunk) - 1 - first) * self.engine.backend.vocabulary
        if size > self.room:
            yield from computed
            return
        self.room -= size
        self._held[chunk] = np.concatenate([rows.copy() for rows in computed])
        yield self._held[chunk]


def compare_predictions(
    base: BaseLogits, engine: Engine, passage: Passage, progress: Callable[[int, int], None] = lambda done, total: None
) -> Fidelity:
    """The statistics of llama.cpp's `perplexity --kl-divergence` over a passage, over the vocabulary that both have: one of
    them may have rows of padding more.

    Standard errors are of chunks, since the positions of one depend on each other; intervals are Student's. `engine` may be
    the base's own: then only its perplexity is given.
    """
    found = []
    for chunk in passage.chunks:
        found.append(_chunk(base, engine, chunk))
        progress(len(found), len(passage.chunks))
    return fidelity_of(passage, found, own=engine is base.engine)


def _chunk(base: BaseLogits, engine: Engine, chunk: tuple[int, ...]) -> Positions:
    first = len(chunk) // 2
    own = engine is base.engine
    both = min(base.engine.backend.vocabulary, engine.backend.vocabulary)
    pairs = (
        ((p, p) for p in base.rows(chunk)) if own else in_step(base.rows(chunk), engine.each_logits(list(chunk[:-1]), first))
    )
    parts, at = [], first
    for p, q in pairs:
        parts.append(measure_rows(p[:, :both], q[:, :both], np.array(chunk[at + 1 : at + 1 + len(p)])))
        at += len(p)
    return joined(parts)


def fidelity_of(passage: Passage, chunks: list[Positions], own: bool, kld_bound: float | None = None) -> Fidelity:
    """The statistics of positions, chunk by chunk; `own`: they are the base's. `kld_bound`: of a divergence that is not exact."""
    every = joined(chunks)

    def mean_of(values: Callable[[Positions], np.ndarray], shown: Callable[[float], float] = float) -> Estimate:
        stderr = clustered_error([values(chunk) for chunk in chunks])
        return estimate(float(values(every).mean()), stderr, len(chunks), shown)

    perplexity = mean_of(lambda p: p.nll, lambda nats: math.exp(min(nats, LARGEST)))
    about = (passage.name, passage.sha256, passage.tokens, len(every), len(chunks), perplexity)
    if own:
        return Fidelity(*about)
    return Fidelity(
        *about,
        exact=kld_bound is None,
        kld_bound=kld_bound,
        log_perplexity_ratio=mean_of(lambda p: p.nll - p.base_nll),
        kld=_divergence(every, mean_of(lambda p: p.kld)),
        same_top=mean_of(lambda p: p.same_top.astype(np.float64)),
        delta_p=_delta_p(every, mean_of(lambda p: p.delta_p), mean_of(lambda p: p.delta_p**2)),
    )


def _divergence(every: Positions, mean: Estimate) -> Divergence:
    points = percentiles(every.kld)
    return Divergence(
        mean.value,
        mean.stderr,
        None if mean.low is None else max(mean.low, 0.0),
        mean.high,
        float(np.median(every.kld)),
        points["p90"],
        points["p95"],
        points["p99"],
        points["p99.9"],
        float(every.kld.max()),
    )


def _delta_p(every: Positions, mean: Estimate, square: Estimate) -> DeltaP:
    rms = math.sqrt(square.value)
    rms_error = square.stderr / (2 * rms) if square.stderr is not None and rms else None
    values = every.delta_p
    points = percentiles(values, DELTA_POINTS)
    return DeltaP(mean.value, mean.stderr, rms, rms_error, float(values.min()), float(values.max()), points)
