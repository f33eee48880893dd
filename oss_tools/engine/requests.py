"""What an engine is asked, what it answers, and the sequence that it keeps meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oss_tools.engine.constraints import NewConstraint
from oss_tools.engine.sampling import Sampling


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
        constraint: makes what the text is held to; None for nothing.
    """

    tokens: list[int]
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] | None = None
    logprobs: int | None = None
    constraint: NewConstraint | None = None


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
    """A live sequence: the tokens whose keys and values are cached, how many of them the prefix cache has seen, and whether it
    is to see the others."""

    cache: Any
    capacity: int
    tokens: list[int] = field(default_factory=list)
    saved: int = 0
    kept: bool = True
