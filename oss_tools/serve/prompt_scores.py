"""How likely the tokens of a prompt are, computed between the passes of those who generate."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import numpy as np

from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Sequence, Token
from oss_tools.engine.sampling import log_softmax
from oss_tools.engine.scheduling import PROMPT, Scheduler
from oss_tools.errors import Busy


async def prompt_scores(scheduler: Scheduler, tokens: list[int], likeliest: int) -> list[Token]:
    """The tokens with their log-probabilities and the likeliest ones at their places; the first has none. Raises BadRequest."""
    scores = _Scores(tokens, likeliest)
    try:
        while not scores.complete:
            await asyncio.wrap_future(scheduler.run(scores.go_on))
    finally:
        with suppress(Busy):  # at the server's end
            scheduler.run(scores.end)
    return scores.found


class _Scores:
    """A prompt of which a part is known. All but the first line is done in the engine's thread."""

    def __init__(self, tokens: list[int], likeliest: int) -> None:
        self._tokens, self._likeliest = tokens, likeliest
        self._sequence: Sequence | None = None
        self.found = [Token(tokens[0])]

    @property
    def complete(self) -> bool:
        return len(self.found) == len(self._tokens)

    def go_on(self, engine: Engine) -> None:
        """A few tokens more."""
        self._sequence = self._sequence or engine.open(self._tokens, reuse=0)
        start = len(self._sequence.tokens)
        for rows in engine.extend(self._sequence, self._tokens[start : min(start + PROMPT, len(self._tokens) - 1)]):
            self.found += [self._scored(row, len(self.found) + i) for i, row in enumerate(rows)]

    def _scored(self, logits: np.ndarray, place: int) -> Token:
        token = self._tokens[place]
        logprobs = log_softmax(logits)
        best = np.argsort(-logprobs, kind="stable")[: self._likeliest]
        top = tuple((int(number), float(logprobs[number])) for number in best)
        return Token(token, logprob=float(logprobs[token]), top=top)

    def end(self, engine: Engine) -> None:
        """Gives its keys and values back."""
        self._sequence = None
