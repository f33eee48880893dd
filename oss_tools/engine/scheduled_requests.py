"""A request in a scheduler, from its arrival to its end, and what its owner is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from oss_tools.engine.generation import Generation
from oss_tools.engine.requests import Request, Token


@dataclass(frozen=True)
class Finished:
    """How a request ended.

    Attributes:
        finish: "stop" or "length".
        prompt_tokens, cached_tokens, tokens: of the prompt, of it found in the prefix cache, and generated.
        time_to_first_token, seconds: since it was handed in.
    """

    finish: str
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    time_to_first_token: float
    seconds: float


Event = Token | Finished | BaseException


@dataclass(eq=False)
class ScheduledRequest:
    """A request from its arrival to its end."""

    request: Request
    on_event: Callable[[Event], None]
    began: float = field(default_factory=time.perf_counter)
    generation: Generation | None = None
    cached: int = 0
    tokens: int = 0
    first: float = 0.0
    cancelled: bool = False

    @property
    def prompt_left(self) -> int:
        """Tokens that are still to be computed before a token comes, beyond the one that was chosen last."""
        assert self.generation
        return len(self.generation.ahead) - 1 if self.generation.ahead else 0

    def finished(self, finish: str, now: float) -> Finished:
        first = (self.first or now) - self.began
        return Finished(finish, len(self.request.tokens), self.cached, self.tokens, first, now - self.began)

    def tell(self, event: Event) -> None:
        """Tells of an event; who cannot hear it any more is cancelled."""
        if self.cancelled:
            return
        try:
            self.on_event(event)
        except Exception:  # whatever it is, others' requests go on
            self.cancelled = True
