"""The figures of a scheduler."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Stats:
    """What a scheduler has done. Times are in seconds.

    Attributes:
        waiting, running: requests now.
        finished: requests by how they ended: stop, length, cancelled, failed, refused.
        prompt_tokens, cached_tokens, generated_tokens: of all requests so far.
        guessed_tokens, right_guesses: tokens that passes took along as guesses, and those that were right (`lookup`).
        preempted: how often a request went back to the queue for want of room.
        positions: keys and values that live sequences have room for now.
        passes, busy: passes over the weights, and their time.
        first_tokens, first_token_seconds: requests that got a first token, and how long they waited for it in all.
    """

    waiting: int = 0
    running: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    guessed_tokens: int = 0
    right_guesses: int = 0
    preempted: int = 0
    positions: int = 0
    passes: int = 0
    busy: float = 0.0
    first_tokens: int = 0
    first_token_seconds: float = 0.0
