"""The engine: an architecture with weights on a device, ready to take tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.checkpoints import Metadata
from oss_tools.engine import memory
from oss_tools.engine.backend import Backend, Options, Progress, Run, backend_class
from oss_tools.engine.prefix import PrefixCache
from oss_tools.engine.sampling import Sampler, Sampling, log_softmax
from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest
from oss_tools.models import Checkpoint, open_checkpoint

DEFAULT_CONTEXT = 4096
PREFIX_SHARE = 8  # the prefix cache may take one part in so many of the memory that is free after loading
WAVE = 32  # sequences that `score` works on at a time
SHARED = 32  # a common beginning of so many tokens is worth a pass of its own


@dataclass(frozen=True)
class Request:
    """What to generate.

    Attributes:
        tokens: the prompt, at least one token.
        max_tokens: the most tokens to generate.
        sampling: how tokens are chosen.
        stop: strings at which the text ends; they are cut off.
        stop_tokens: ids that end it; None takes the tokenizer's.
        logprobs: None for none; 0 for the chosen tokens' log-probabilities, n for the n likeliest as well.
    """

    tokens: list[int]
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A generated token.

    Attributes:
        id: in the vocabulary.
        text: the text that became certain with it; "" while a character or a stop string may be incomplete.
        logprob: natural logarithm of its probability before any sampling rule, if asked for.
        top: the likeliest tokens with theirs.
        finish: on the last token "stop" or "length".
    """

    id: int
    text: str = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: str | None = None


@dataclass(frozen=True)
class Scores:
    """How likely given tokens were: natural log-probabilities float32 [n], and which were the likeliest, bool [n]."""

    logprobs: np.ndarray
    greedy: np.ndarray


@dataclass(eq=False)
class Sequence:
    """A live sequence: the tokens whose keys and values are cached, and how many of them the prefix cache has seen."""

    cache: Any
    capacity: int
    tokens: list[int] = field(default_factory=list)
    saved: int = 0


class Engine:
    """A loaded model.

    Attributes:
        architecture: of the checkpoint.
        backend: carries out the forward pass.
        context: the most positions of a sequence.
        metadata: the checkpoint's tokenizer, templates, configs.
        prefixes: keys and values of prompts already seen.
        computed: positions that forward passes have computed so far, which says what shared prefixes saved.
    """

    def __init__(self, checkpoint: Checkpoint, backend: Backend, context: int, prefix_budget: int) -> None:
        self.architecture = checkpoint.architecture
        self.metadata: Metadata = checkpoint.metadata()
        self.backend = backend
        self.context = context
        self.prefixes = PrefixCache(prefix_budget)
        self.computed = 0
        self._text: Text | None = None

    @classmethod
    def load(
        cls,
        path: str | Path | Checkpoint,
        *,
        backend: str = "numba",
        threads: int = 0,
        context: int | None = None,
        activations: str = "int8",
        prefix_budget: int | None = None,
        progress: Progress = lambda nbytes: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> Engine:
        """Loads a checkpoint's weights.

        Args:
            path: a checkpoint, or where one lies.
            backend: "numba" or "torch".
            threads: 0 for every core that this process may use.
            context: the most positions of a sequence; None for 4096, or fewer if the model was made for fewer.
            activations: "int8" or "f32", see `Options`.
            prefix_budget: bytes for the prefix cache; None for a share of the free memory, 0 turns it off.
            progress: called with the stored bytes that were read.
            say: is told what the user should know.

        Raises BadCheckpoint, MissingPackage, BadRequest, NoRoom.
        """
        if not isinstance(path, Checkpoint):
            with open_checkpoint(path) as checkpoint:
                return cls.load(
                    checkpoint,
                    backend=backend,
                    threads=threads,
                    context=context,
                    activations=activations,
                    prefix_budget=prefix_budget,
                    progress=progress,
                    say=say,
                )
        made_for = path.architecture.context
        if context is not None and not 1 <= context <= made_for:
            raise BadRequest(f"a context of {context} positions: this model was made for 1..{made_for}")
        options = Options(threads, activations, context or min(DEFAULT_CONTEXT, made_for), say)
        chosen = backend_class(backend)
        per_position = chosen.position_bytes(path.architecture, options)
        weights = chosen.weight_bytes(path, options)
        memory.require(weights, per_position * options.context, options.context, per_position)
        loaded = chosen(path, options, progress)
        if prefix_budget is None:
            prefix_budget = memory.available_memory() // PREFIX_SHARE
        return cls(path, loaded, options.context, prefix_budget)

    @property
    def text(self) -> Text:
        """The tokenizer. Raises BadCheckpoint if the checkpoint has none, MissingPackage if a published one is needed."""
        if self._text is None:
            self._text = Text(self.metadata)
        return self._text

    @property
    def has_text(self) -> bool:
        """Whether generated tokens get texts: there is a tokenizer, or a published one has been asked for by `text`."""
        return self.metadata.tokenizer is not None or self._text is not None

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- sequences --------------------------------------------------------------------------------------------------

    def open(self, tokens: list[int], room: int = 0, reuse: int | None = None) -> Sequence:
        """A sequence for `tokens` and `room` more, which begins with as many of them as the prefix cache knows, at most
        `reuse` (by default all but the last, so that there is something to compute). Raises BadRequest."""
        self._check(tokens)
        capacity = min(len(tokens) + room, self.context)
        sequence = Sequence(self.backend.open(capacity), capacity)
        known, blocks = self.prefixes.longest(tokens[: len(tokens) - 1 if reuse is None else reuse])
        for block in blocks:
            self.backend.write_cache(sequence.cache, len(sequence.tokens), block)
            sequence.tokens += tokens[len(sequence.tokens) : len(sequence.tokens) + len(block)]
        sequence.saved = known
        return sequence

    def _check(self, tokens: list[int]) -> None:
        vocabulary = self.backend.vocabulary
        if not tokens:
            raise BadRequest("the prompt has no tokens")
        if len(tokens) > self.context:
            raise BadRequest(f"{len(tokens)} tokens do not fit into the context of {self.context}; raise it with --context")
        if min(tokens) < 0 or max(tokens) >= vocabulary:
            raise BadRequest(f"token {max(tokens)} is outside the vocabulary of {vocabulary}")

    def prefill(self, sequence: Sequence, tokens: list[int]) -> np.ndarray:
        """Appends tokens; returns the logits after the last one, float32 [vocabulary]."""
        for start in range(0, len(tokens), self.backend.chunk):
            chunk = tokens[start : start + self.backend.chunk]
            self._run([(sequence, chunk)])
        return self.backend.logits(np.array([len(chunk) - 1]))[0].copy()

    def step(self, sequences: list[Sequence], tokens: list[int]) -> np.ndarray:
        """Appends one token to each of several sequences; returns the logits after each, float32 [n, vocabulary], which
        the next call overwrites."""
        self._run([(sequence, [token]) for sequence, token in zip(sequences, tokens, strict=True)])
        return self.backend.logits(np.arange(len(tokens)))

    def _run(self, parts: list[tuple[Sequence, list[int]]]) -> None:
        """One forward pass. Lengths advance only when it is complete, so an interrupted one leaves the sequences as they
        were."""
        for sequence, tokens in parts:
            needed = len(sequence.tokens) + len(tokens)
            if needed > self.context:
                raise BadRequest(f"the sequence is at the end of its context of {self.context} positions")
            if needed > sequence.capacity:
                sequence.capacity = min(max(2 * sequence.capacity, needed), self.context)
                self.backend.grow(sequence.cache, sequence.capacity)
        self.backend.run([Run(s.cache, np.array(tokens, np.int32), len(s.tokens)) for s, tokens in parts])
        for sequence, tokens in parts:
            sequence.tokens += tokens
            self.computed += len(tokens)
            if len(sequence.tokens) - sequence.saved >= min(self.backend.chunk, self.backend.recent, 256):
                self.save(sequence)

    def save(self, sequence: Sequence) -> None:
        """Puts what the sequence has computed since the last time into the prefix cache."""
        if self.prefixes.budget and len(sequence.tokens) > sequence.saved:
            start, stop = max(sequence.saved, len(sequence.tokens) - self.backend.chunk), len(sequence.tokens)
            self.prefixes.insert(sequence.tokens, start, self.backend.read_cache(sequence.cache, start, stop))
        sequence.saved = len(sequence.tokens)

    @contextmanager
    def _live(self, sequences: list[Sequence]) -> Iterator[None]:
        """On an orderly end, saves what the sequences computed."""
        yield
        for sequence in sequences:
            self.save(sequence)

    # ---- what to do with them ---------------------------------------------------------------------------------------

    def logits(self, tokens: list[int]) -> np.ndarray:
        """The logits after every token, float32 [len(tokens), vocabulary]. Uses no cached prefix."""
        return np.concatenate([rows.copy() for rows in self.each_logits(tokens)])

    def each_logits(self, tokens: list[int], start: int = 0) -> Iterator[np.ndarray]:
        """The logits after tokens[start:], a few rows at a time, float32 [n, vocabulary], which the next overwrite."""
        sequence = self.open(tokens, reuse=0)
        for at in range(0, len(tokens), self.backend.chunk):
            chunk = tokens[at : at + self.backend.chunk]
            self._run([(sequence, chunk)])
            yield from self._logits(np.arange(min(max(start - at, 0), len(chunk)), len(chunk)))

    def _logits(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The logits at these rows of the last run, as many at a time as the backend gives."""
        for start in range(0, len(rows), self.backend.rows):
            yield self.backend.logits(rows[start : start + self.backend.rows])

    def score(self, requests: list[tuple[list[int], int]], progress: Callable[[int], None] = lambda n: None) -> list[Scores]:
        """How likely tokens[start:] are after tokens[:start], for each request (tokens, start) with start >= 1.

        Requests that begin alike share the computation of their beginning; `progress` is told of each that is done.
        """
        for tokens, start in requests:
            self._check(tokens)
            if not 1 <= start <= len(tokens):
                raise BadRequest(f"scores from token {start} on of {len(tokens)}: the first token has no probability")
        order = sorted(range(len(requests)), key=lambda i: requests[i][0])
        results: dict[int, Scores] = {}
        for at in range(0, len(order), WAVE):
            wave = order[at : at + WAVE]
            self._share([requests[i][0][: requests[i][1] - 1] for i in wave])
            results.update(zip(wave, self._score([requests[i] for i in wave]), strict=True))
            progress(len(wave))
        return [results[i] for i in range(len(requests))]

    def _share(self, beginnings: list[list[int]]) -> None:
        """Computes the longest common beginning once, into the prefix cache, if it is worth it."""
        first, last = min(beginnings), max(beginnings)  # what these two share, all share
        common = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
        if len(beginnings) < 2 or common < SHARED or not self.prefixes.budget:
            return
        sequence = self.open(first[:common], reuse=common)
        if len(sequence.tokens) + SHARED <= common:
            with self._live([sequence]):
                self._append(sequence, first[len(sequence.tokens) : common])

    def _append(self, sequence: Sequence, tokens: list[int]) -> None:
        for start in range(0, len(tokens), self.backend.chunk):
            self._run([(sequence, tokens[start : start + self.backend.chunk])])

    def _score(self, wave: list[tuple[list[int], int]]) -> list[Scores]:
        """Several requests at once: each pass takes as many tokens of as many of them as fit."""
        sequences = [self.open(tokens, reuse=start - 1) for tokens, start in wave]
        found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in wave]
        pending = list(range(len(wave)))
        while pending:
            parts, room = [], self.backend.chunk
            for i in pending:
                tokens, done = wave[i][0], len(sequences[i].tokens)
                part = tokens[done : min(done + room, len(tokens) - 1)]
                if part:
                    parts.append((i, done, part))
                    room -= len(part)
                if not room:
                    break
            if parts:
                self._run([(sequences[i], part) for i, _, part in parts])
                self._collect(wave, parts, found)
            pending = [i for i in pending if len(sequences[i].tokens) < len(wave[i][0]) - 1]
        return [_joined(pieces) for pieces in found]

    def _collect(
        self,
        wave: list[tuple[list[int], int]],
        parts: list[tuple[int, int, list[int]]],
        found: list[list[tuple[np.ndarray, np.ndarray]]],
    ) -> None:
        """Takes the wanted log-probabilities from the last pass."""
        rows, targets, owners, base = [], [], [], 0
        for i, done, part in parts:
            tokens, start = wave[i]
            for row in range(max(start - 1 - done, 0), len(part)):
                rows.append(base + row)
                targets.append(tokens[done + row + 1])
                owners.append(i)
            base += len(part)
        at = 0
        for logits in self._logits(np.array(rows, np.int64)):
            wanted = np.array(targets[at : at + len(logits)])
            greedy = logits.argmax(-1) == wanted
            logprobs = _target_logprobs(logits, wanted)
            for row in range(len(logits)):
                found[owners[at + row]].append((logprobs[row : row + 1], greedy[row : row + 1]))
            at += len(logits)

    def generate(self, request: Request) -> Iterator[Token]:
        """The tokens of one request as they come. Closing the iterator ends it."""
        for _, token in self.generate_batch([request]):
            yield token

    def generate_batch(self, requests: list[Request], batch: int = 8) -> Iterator[tuple[int, Token]]:
        """The tokens of several requests as they come, each with its request's index; up to `batch` requests share each
        pass over the weights, and a request that ends makes room for the next."""
        waiting = list(enumerate(requests))[::-1]
        live: list[_Generation] = []
        batch = min(batch, self.backend.sequences)
        while waiting or live:
            while waiting and len(live) < batch:
                generation = _Generation(self, *waiting.pop())
                yield generation.index, generation.choose(self._begin(generation))
                if not generation.ended:
                    live.append(generation)
            if not live:
                continue
            rows = self.step([g.sequence for g in live], [g.last for g in live])
            for generation, row in zip(live, rows.copy() if len(live) > 1 else rows, strict=True):
                yield generation.index, generation.choose(row)
            for generation in live:
                if generation.ended:
                    self.save(generation.sequence)
            live = [g for g in live if not g.ended]

    def _begin(self, generation: _Generation) -> np.ndarray:
        sequence, tokens = generation.sequence, generation.request.tokens
        logits = self.prefill(sequence, tokens[len(sequence.tokens) :])
        self.save(sequence)
        return logits


class _Generation:
    """A request being worked on."""

    def __init__(self, engine: Engine, index: int, request: Request) -> None:
        if request.max_tokens < 1:
            raise BadRequest(f"max_tokens is {request.max_tokens}, at least 1 is needed")
        self.index, self.request = index, request
        self.sequence = engine.open(request.tokens, request.max_tokens)
        self.sampler = Sampler(request.sampling, set(request.tokens))
        has_text = engine.has_text
        self.stream = engine.text.stream(request.stop) if has_text else None
        own = engine.text.stop_tokens if has_text else frozenset()
        self.stop_tokens = own if request.stop_tokens is None else request.stop_tokens
        self.left = min(request.max_tokens, engine.context - len(request.tokens) + 1)
        self.last = -1
        self.ended = False

    def choose(self, logits: np.ndarray) -> Token:
        """The next token from logits [vocabulary]; sets `ended` on the last one."""
        self.last = self.sampler(logits)
        self.left -= 1
        text = ""
        if self.last in self.stop_tokens:
            finish: str | None = "stop"
        else:
            text = self.stream.add(self.last) if self.stream else ""
            finish = "stop" if self.stream and self.stream.stopped else "length" if self.left == 0 else None
        self.ended = finish is not None
        if self.ended and self.stream and not self.stream.stopped:
            text += self.stream.flush()
        return Token(self.last, text, *self._logprobs(logits), finish=finish)

    def _logprobs(self, logits: np.ndarray) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        n = self.request.logprobs
        if n is None:
            return None, ()
        logprobs = log_softmax(logits)
        best = np.argsort(-logprobs, kind="stable")[:n]
        return float(logprobs[self.last]), tuple((int(i), float(logprobs[i])) for i in best)


def _target_logprobs(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log-probabilities of one token per row: float32 [n] from logits [n, vocabulary]."""
    top = logits.max(-1)
    total = np.exp(logits - top[:, None]).sum(-1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets]
    return (chosen - top - np.log(total)).astype(np.float32)


def _joined(pieces: list[tuple[np.ndarray, np.ndarray]]) -> Scores:
    if not pieces:
        return Scores(np.empty(0, np.float32), np.empty(0, bool))
    return Scores(np.concatenate([p for p, _ in pieces]), np.concatenate([g for _, g in pieces]))
