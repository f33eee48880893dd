"""How likely given tokens are: many texts at once, of which what they begin with in common is computed once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oss_tools.engine.requests import Scores
from oss_tools.engine.sampling import log_probability
from oss_tools.engine.sequences import Sequences
from oss_tools.errors import BadRequest

WAVE = 32  # sequences that are worked on at a time


def scores(
    engine: Sequences, requests: list[tuple[list[int], int]], progress: Callable[[int], None] = lambda n: None
) -> list[Scores]:
    """How likely tokens[start:] are after tokens[:start], for each request (tokens, start) with start >= 1.

    Requests that begin alike share the computation of their beginning; `progress` is told of each that is done.
    """
    for tokens, start in requests:
        engine.check_tokens(tokens)
        if not 1 <= start <= len(tokens):
            raise BadRequest(f"scores from token {start} on of {len(tokens)}: the first token has no probability")
    order = sorted(range(len(requests)), key=lambda i: (requests[i][0][: requests[i][1] - 1], requests[i][0]))
    results: dict[int, Scores] = {}
    for at in range(0, len(order), WAVE):
        wave = order[at : at + WAVE]
        results.update(zip(wave, _score(engine, [requests[i] for i in wave]), strict=True))
        progress(len(wave))
    return [results[i] for i in range(len(requests))]


def _score(engine: Sequences, wave: list[tuple[list[int], int]]) -> list[Scores]:
    """Several requests at once: each pass takes as many tokens of as many of them as fit."""
    stems = engine.share([tokens[: start - 1] for tokens, start in wave])
    works = []
    for (tokens, start), stem in zip(wave, stems, strict=True):
        sequence = engine.begun(tokens, 0, start - 1, stem)
        sequence.kept = False  # what follows a beginning is not seen again
        works.append((sequence, tokens[:-1]))
    del stems  # and their pages
    found = [Scores(np.empty(len(t) - start, np.float32), np.empty(len(t) - start, bool)) for t, start in wave]
    for parts in engine.passes(works):
        _collect(engine, wave, parts, found)
    return found


def _collect(
    engine: Sequences, wave: list[tuple[list[int], int]], parts: list[tuple[int, int, int]], found: list[Scores]
) -> None:
    """Takes the wanted log-probabilities from the last pass."""
    rows: list[int] = []
    places: list[tuple[int, int]] = []
    base = 0
    for i, begin, end in parts:
        first = max(wave[i][1] - 1, begin)  # the row that predicts the first token wanted
        rows += range(base + first - begin, base + end - begin)
        places += [(i, n + 1) for n in range(first, end)]
        base += end - begin
    wanted = iter(places)
    for logits in engine.logits_of(np.array(rows, np.int64)):
        for row, (i, n) in zip(logits, wanted, strict=False):
            tokens, start = wave[i]
            found[i].logprobs[n - start] = log_probability(row, tokens[n])
            found[i].greedy[n - start] = row.argmax() == tokens[n]
