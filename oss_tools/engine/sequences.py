"""Sequences of an engine: opened from what is known, extended by passes, kept for others, shared by several."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from oss_tools.engine.backend import Backend, Run
from oss_tools.engine.prefix import PrefixCache
from oss_tools.engine.requests import Sequence
from oss_tools.engine.sharing import Stem, find_stems
from oss_tools.errors import BadRequest

SHARED = 32  # a common beginning of so many tokens is worth a pass of its own


class Sequences:
    """A backend and the sequences that it works on.

    Attributes:
        backend: carries out the forward pass.
        context: the most positions of a sequence.
        prefixes: keys and values of prompts already seen.
        computed: positions that passes have computed so far, but for wrong guesses, which says what shared prefixes saved.
    """

    def __init__(self, backend: Backend, context: int, prefix_budget: int) -> None:
        self.backend = backend
        self.context = context
        self.prefixes = PrefixCache(prefix_budget)
        self.computed = 0

    def open(self, tokens: list[int], room: int = 0, reuse: int | None = None) -> Sequence:
        """A sequence for `tokens` and `room` more, which begins with as many of them as the prefix cache knows, at most
        `reuse` (by default all but the last, so that there is something to compute). Raises BadRequest."""
        self.check_tokens(tokens)
        capacity = min(len(tokens) + room, self.context)
        sequence = Sequence(self.backend.open(capacity), capacity)
        known, blocks = self.prefixes.longest(tokens[: len(tokens) - 1 if reuse is None else reuse])
        for block in blocks:
            self.backend.write_cache(sequence.cache, len(sequence.tokens), block)
            sequence.tokens += tokens[len(sequence.tokens) : len(sequence.tokens) + len(block)]
        sequence.saved = known
        return sequence

    def check_tokens(self, tokens: list[int]) -> None:
        if not tokens:
            raise BadRequest("the prompt has no tokens")
        if len(tokens) > self.context:
            raise BadRequest(f"{len(tokens)} tokens do not fit into the context of {self.context}; raise it with --context")
        self._check_known(tokens)

    def _check_known(self, tokens: list[int]) -> None:
        """Kernels take tokens' rows as they are told."""
        if min(tokens) < 0 or max(tokens) >= self.backend.vocabulary:
            wrong = next(token for token in tokens if not 0 <= token < self.backend.vocabulary)
            raise BadRequest(f"token {wrong} is outside the vocabulary of {self.backend.vocabulary}")

    def prefill(self, sequence: Sequence, tokens: list[int]) -> np.ndarray:
        """Appends tokens; returns the logits after the last one, float32 [vocabulary]."""
        for start in range(0, len(tokens), self.backend.chunk):
            chunk = tokens[start : start + self.backend.chunk]
            self.run([(sequence, chunk)])
        return self.backend.logits(np.array([len(chunk) - 1]))[0].copy()

    def append(self, sequence: Sequence, tokens: list[int]) -> Iterator[np.ndarray]:
        """Appends tokens, at most `backend.chunk`; the logits after each, a few rows at a time, float32 [n, vocabulary], which
        the next overwrite."""
        self.run([(sequence, tokens)])
        yield from self.logits_of(np.arange(len(tokens)))

    def step(self, sequences: list[Sequence], tokens: list[int]) -> np.ndarray:
        """Appends one token to each of several sequences; returns the logits after each, float32 [n, vocabulary], which
        the next call overwrites."""
        self.run([(sequence, [token]) for sequence, token in zip(sequences, tokens, strict=True)])
        return self.backend.logits(np.arange(len(tokens)))

    def likeliest(self, sequences: list[Sequence], tokens: list[int]) -> np.ndarray:
        """Appends one token to each of several sequences; returns the likeliest token after each, int [n]."""
        self.run([(sequence, [token]) for sequence, token in zip(sequences, tokens, strict=True)])
        return self.backend.likeliest(np.arange(len(tokens)))

    def run(self, parts: list[tuple[Sequence, list[int]]]) -> None:
        """One forward pass. Lengths advance only when it is complete, so an interrupted one leaves the sequences as they
        were."""
        self.compute(parts)
        for sequence, tokens in parts:
            self.keep(sequence, tokens)

    def compute(self, parts: list[tuple[Sequence, list[int]]]) -> None:
        """Makes room for a forward pass, and carries it out."""
        for sequence, tokens in parts:
            self._check_known(tokens)
            needed = len(sequence.tokens) + len(tokens)
            if needed > self.context:
                raise BadRequest(f"the sequence is at the end of its context of {self.context} positions")
            if needed > sequence.capacity:
                sequence.capacity = min(max(2 * sequence.capacity, needed), self.context)
                self.backend.grow(sequence.cache, sequence.capacity)
        self.backend.run([Run(s.cache, np.array(tokens, np.int32), len(s.tokens)) for s, tokens in parts])

    def keep(self, sequence: Sequence, tokens: list[int]) -> None:
        """Takes tokens that a pass has computed into their sequence."""
        sequence.tokens += tokens
        self.computed += len(tokens)
        if len(sequence.tokens) - sequence.saved >= min(self.backend.chunk, self.backend.recent, 256):
            self.save(sequence)

    def save(self, sequence: Sequence) -> None:
        """Puts what the sequence has computed since the last time into the prefix cache."""
        start, stop = sequence.saved, len(sequence.tokens)
        if sequence.kept and self.prefixes.budget and stop > start:
            self.prefixes.insert(sequence.tokens, start, self.backend.read_cache(sequence.cache, start, stop))
        sequence.saved = stop

    def fork(self, sequence: Sequence, room: int = 0) -> Sequence:
        """A sequence that begins with the tokens of this one and has room for more. What both have is not computed again, nor,
        for the most part, copied."""
        length = len(sequence.tokens)
        capacity = min(length + room, self.context)
        cache = self.backend.fork(sequence.cache, length, capacity)
        return Sequence(cache, capacity, list(sequence.tokens), sequence.saved)

    # ---- what several have in common

    def begun(self, tokens: list[int], room: int, reuse: int, stem: Stem | None) -> Sequence:
        """A sequence for `tokens` and `room` more that has as many of the first `reuse` as the stem or, if those are a good deal
        more, the prefix cache has: what a stem has is not copied."""
        if stem and len(stem.tokens) + SHARED > self.prefixes.longest(tokens[:reuse])[0]:
            return self.fork(stem.sequence, len(tokens) - len(stem.tokens) + room)
        return self.open(tokens, room, reuse)

    def share(self, beginnings: list[list[int]]) -> list[Stem | None]:
        """Computes what several of these sequences begin with, each such stem once, into the prefix cache as well; returns the
        stem of each."""
        levels, stems = find_stems(beginnings, SHARED)
        for level in levels:
            for stem in level:
                stem.sequence = self.begun(list(stem.tokens), 0, len(stem.tokens), stem.parent)
            for _ in self.passes([(stem.sequence, list(stem.tokens)) for stem in level]):
                pass
            for stem in level:
                self.save(stem.sequence)
        return stems

    def passes(self, works: list[tuple[Sequence, list[int]]]) -> Iterator[list[tuple[int, int, int]]]:
        """Brings each sequence to have its tokens, in passes over as many tokens of as many sequences as fit. Yields after each
        pass what its rows were: (which sequence, first token, last token exclusive)."""
        waiting = [i for i, (sequence, tokens) in enumerate(works) if len(sequence.tokens) < len(tokens)]
        while waiting:
            parts, room = [], self.backend.chunk
            for i in waiting[: self.backend.sequences]:
                begin = len(works[i][0].tokens)
                end = min(begin + room, len(works[i][1]))
                parts.append((i, begin, end))
                room -= end - begin
                if not room:
                    break
            self.run([(works[i][0], works[i][1][begin:end]) for i, begin, end in parts])
            yield parts
            waiting = [i for i in waiting if len(works[i][0].tokens) < len(works[i][1])]

    # ---- logits

    def logits(self, tokens: list[int]) -> np.ndarray:
        """The logits after every token, float32 [len(tokens), vocabulary]. Uses no cached prefix."""
        return np.concatenate([rows.copy() for rows in self.each_logits(tokens)])

    def each_logits(self, tokens: list[int], start: int = 0) -> Iterator[np.ndarray]:
        """The logits after tokens[start:], a few rows at a time, float32 [n, vocabulary], which the next overwrite."""
        sequence = self.open(tokens, reuse=0)
        for at in range(0, len(tokens), self.backend.chunk):
            chunk = tokens[at : at + self.backend.chunk]
            self.run([(sequence, chunk)])
            yield from self.logits_of(np.arange(min(max(start - at, 0), len(chunk)), len(chunk)))

    def extend(self, sequence: Sequence, tokens: list[int]) -> Iterator[np.ndarray]:
        """Appends tokens, at most as many as one pass takes; the logits after each, a few rows at a time, float32 [n,
        vocabulary], which the next overwrite."""
        self.run([(sequence, tokens)])
        yield from self.logits_of(np.arange(len(tokens)))

    def logits_of(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The logits at these rows of the last run, as many at a time as the backend gives."""
        for start in range(0, len(rows), self.backend.rows):
            yield self.backend.logits(rows[start : start + self.backend.rows])
