"""A text that is being written: what is left to compute, how its next token is chosen, and when it ends."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from oss_tools.engine.backend import Draw
from oss_tools.engine.constraints import Constraint
from oss_tools.engine.lookup import MOST, Lookup
from oss_tools.engine.requests import Request, Sequence, Token
from oss_tools.engine.sampling import Sampler, log_softmax
from oss_tools.errors import BadRequest

if TYPE_CHECKING:
    from oss_tools.engine.decoding import Decoding


class Generation:
    """A request being worked on.

    Attributes:
        index: which of several requests this is.
        sequence: what has been computed of it.
        ahead: the tokens that the next passes are given.
        generated: how many tokens have been chosen.
        ended: whether the last one has.
        failed: why there is no next token, though the text has not ended.
        lookup: what the text so far says of its next tokens.
    """

    def __init__(self, engine: Decoding, index: int, request: Request, sequence: Sequence) -> None:
        self.index, self.request, self.sequence = index, request, sequence
        self.ahead = request.tokens[len(sequence.tokens) :]  # what the next passes are given
        self.sampler = Sampler(request.sampling, set(request.tokens))
        self.seed = int(np.random.default_rng(request.sampling.seed).integers(1 << 31))  # for a backend that draws
        has_text = engine.has_text
        self.stream = engine.text.stream(request.stop) if has_text else None
        own = engine.text.stop_tokens if has_text else frozenset()
        self.stop_tokens = own if request.stop_tokens is None else request.stop_tokens
        self.constraint: Constraint | None = request.constraint() if request.constraint else None
        self.left = min(request.max_tokens, engine.context - len(request.tokens) + 1)
        self.generated = 0
        self.ended = False
        self.failed: BadRequest | None = None

    @cached_property
    def lookup(self) -> Lookup:
        return Lookup(self.sequence.tokens + self.ahead)

    @property
    def room_for_guesses(self) -> int:
        """Tokens that may be guessed without more memory, and that may be chosen."""
        return max(min(self.left - 1, self.sequence.capacity - len(self.sequence.tokens) - 1, MOST), 0)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is all that is asked for."""
        s = self.request.sampling
        return s.temperature == 0 and s.repetition_penalty == 1.0 and self._is_token_all

    @property
    def is_drawn(self) -> bool:
        """Whether the token is drawn from all there are, and nothing but the token is asked for."""
        s = self.request.sampling
        plain = s.repetition_penalty == 1.0 and s.top_k == 0 and s.top_p == 1.0 and s.min_p == 0.0
        return plain and self._is_token_all

    @property
    def _is_token_all(self) -> bool:
        """Whether nothing is asked for that needs all logits."""
        return self.request.logprobs is None and self.constraint is None

    @property
    def draw(self) -> Draw:
        return Draw(self.request.sampling.temperature, self.seed, len(self.sequence.tokens) - 1)

    def suspend(self, engine: Decoding) -> None:
        """Gives the keys and values up, but for what the prefix cache keeps of them, until `resume`."""
        engine.save(self.sequence)
        self.ahead = self.sequence.tokens + self.ahead
        self.sequence = Sequence(None, 0)

    def resume(self, engine: Decoding, room: int) -> None:
        """Goes on after `suspend`: what is no longer known is computed again."""
        tokens = self.ahead
        self.sequence = engine.open(tokens, min(room, self.left))
        self.ahead = tokens[len(self.sequence.tokens) :]

    def choose(self, logits: np.ndarray) -> Token | None:
        """The next token from logits [vocabulary]; sets `ended` on the last one. None, and `failed`, if what the text is held to
        lets no token come."""
        allowed = logits
        try:
            if self.constraint:
                allowed = logits.copy()
                self.constraint.mask(allowed)
            token = self.sampler(allowed)
            return self.take(token, *self._logprobs(logits, token))
        except BadRequest as error:
            self.failed, self.ended = error, True
            return None

    def take(self, token: int, logprob: float | None = None, top: tuple[tuple[int, float], ...] = ()) -> Token:
        """The token that was chosen, with its text."""
        self.ahead = [token]
        if "lookup" in self.__dict__:
            self.lookup.add(token)
        self.left -= 1
        self.generated += 1
        text = ""
        if self.constraint:
            self.constraint.accept(token)
        if token in self.stop_tokens:
            finish: str | None = "stop"
        else:
            text = self.stream.add(token) if self.stream else ""
            over = self.constraint is not None and self.constraint.ended and not self.stop_tokens
            finish = "stop" if over or (self.stream and self.stream.stopped) else "length" if self.left == 0 else None
        self.ended = finish is not None
        if self.ended and self.stream and not self.stream.stopped:
            text += self.stream.flush()
        return Token(token, text, logprob, top, finish=finish)

    def _logprobs(self, logits: np.ndarray, token: int) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        n = self.request.logprobs
        if n is None:
            return None, ()
        logprobs = log_softmax(logits)
        best = np.argsort(-logprobs, kind="stable")[:n]
        return float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best)
