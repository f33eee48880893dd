"""How likely given tokens are to a model behind an endpoint: a prompt of token numbers is sent, and comes back with its
log-probabilities.

Servers give them in two ways, and both are asked for at once: `echo` with `logprobs` (OpenAI's completions, vLLM, `oss-tools
serve`), and `prompt_logprobs` (vLLM's own). Most hosted models give neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oss_tools.download.failures import Transient
from oss_tools.endpoints.client import Client
from oss_tools.endpoints.replies import Unscored
from oss_tools.errors import BadSource

COMPLETIONS = "/completions"
DISPENSABLE = ("prompt_logprobs", "temperature")
TOLERANCE = 0.2  # share of tokens that may be spelt otherwise (pieces of characters, special ones) by the same tokenizer


@dataclass(frozen=True)
class PromptScores:
    """Of a prompt of n tokens.

    Attributes:
        logprobs: natural, of each token after those before it; None of the first, and where the server says nothing.
        spelt: the tokens as the server writes them; None where it names them by number, which was checked.
    """

    logprobs: tuple[float | None, ...]
    spelt: tuple[str, ...] | None


def read_prompt_scores(answer: Any, tokens: Sequence[int]) -> PromptScores:
    """Of a completion. Raises Transient for what is none, Unscored for one without log-probabilities of these tokens."""
    try:
        choice = answer["choices"][0]
        own = choice.get("prompt_logprobs", answer.get("prompt_logprobs"))
        found = choice.get("logprobs")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Transient("an answer that is no completion") from None
    if isinstance(own, list) and len(own) == len(tokens):
        rows = [_numbered(row, token) for row, token in zip(own, tokens, strict=True)]
        return PromptScores((None, *rows[1:]), None)
    if not isinstance(found, Mapping):
        raise Unscored
    spelt, logprobs = found.get("tokens"), found.get("token_logprobs")
    if not isinstance(spelt, list) or not isinstance(logprobs, list) or len(spelt) != len(logprobs):
        raise Unscored
    if len(logprobs) < len(tokens) or not all(isinstance(piece, str) for piece in spelt):
        raise Unscored
    numbers = [None if value is None else _number(value) for value in logprobs[: len(tokens)]]
    return PromptScores((None, *numbers[1:]), tuple(spelt[: len(tokens)]))


def _numbered(row: Any, token: int) -> float | None:
    """vLLM: a mapping from token numbers, as text, to {"logprob": …}."""
    if row is None:
        return None
    entry = row.get(str(token)) if isinstance(row, Mapping) else None
    if not isinstance(entry, Mapping):
        raise Unscored
    return _number(entry.get("logprob"))


def _number(value: Any) -> float:
    if type(value) not in (int, float) or math.isnan(value) or value > 0.001:
        raise Transient("log-probabilities that are none")
    return float(value)


def score(
    client: Client,
    requests: Sequence[tuple[Sequence[int], int]],
    spelling: Callable[[int], str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """The log-probability of tokens[start:] after tokens[:start], summed, for each request (tokens, start), start >= 1.

    Args:
        spelling: of a token, by the tokenizer whose numbers are sent.

    Raises BadSource where the server gives no log-probabilities, or where its tokens of these numbers are others.
    """

    def ask(i: int) -> tuple[int, float]:
        tokens, start = list(requests[i][0]), requests[i][1]
        body = {
            "model": client.endpoint.model,
            "prompt": tokens,
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        found = client.post(body | {"prompt_logprobs": 0}, lambda answer: read_prompt_scores(answer, tokens), COMPLETIONS)
        _check_spelling(found, tokens, spelling, client.endpoint.name)
        wanted = found.logprobs[start:]
        if None in wanted:
            raise Unscored
        return i, math.fsum(value for value in wanted if value is not None)

    results: dict[int, float] = {}
    try:
        for i, value in client.each(ask, range(len(requests))):
            results[i] = value
            progress(len(results), len(requests))
    except Unscored:
        raise BadSource(f"{client.endpoint.name} gives no log-probabilities of a prompt") from None
    return [results[i] for i in range(len(requests))]


def _check_spelling(found: PromptScores, tokens: Sequence[int], spelling: Callable[[int], str], name: str) -> None:
    if found.spelt is None:
        return
    differing = sum(theirs != spelling(token) for theirs, token in zip(found.spelt, tokens, strict=True))
    if differing > TOLERANCE * len(tokens):
        raise BadSource(f"{name} has another tokenizer: {differing} of {len(tokens)} tokens are other texts there")
