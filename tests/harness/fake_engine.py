"""An engine that says what it is told to: a real tokenizer, and answers from a function instead of weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.engine.requests import Request, Scores, Token
from oss_tools.engine.text import Text
from oss_tools.models import open_checkpoint

Answering = Callable[[str], str]  # prompt → answer, both with special tokens by name


class FakeEngine:
    """What `EngineLM` uses of an engine. `prompts` are those it was given, `scored` the requests."""

    def __init__(self, checkpoint: Path, answering: Answering, context: int = 4096) -> None:
        with open_checkpoint(checkpoint) as opened:
            self.metadata = opened.metadata()
        self.text = Text(self.metadata)
        self.context, self.computed, self.answering = context, 0, answering
        self.prompts: list[str] = []
        self.requests: list[Request] = []
        self.scored: list[tuple[list[int], int]] = []

    def generate_batch(self, requests: list[Request], batch: int = 8) -> Iterator[tuple[int, Token]]:
        """Tokens of all requests in turns, as an engine gives them; the shortest answers end first."""
        self.requests += requests
        streams = {i: self._tokens(request) for i, request in enumerate(requests)}
        while streams:
            for i in list(streams):
                token = next(streams[i], None)
                if token is None:
                    del streams[i]
                else:
                    yield i, token

    def _tokens(self, request: Request) -> Iterator[Token]:
        prompt = self.text.decode(request.tokens, skip_special=False)
        self.prompts.append(prompt)
        ids = self.text.encode(self.answering(prompt), special=False)
        self.computed += len(request.tokens) + len(ids) - 1
        stream = self.text.stream(request.stop)
        for n, token in enumerate(ids, 1):
            text = "" if token in self.text.stop_tokens else stream.add(token)
            end = token in self.text.stop_tokens or stream.stopped
            finish = "stop" if end else "length" if n == min(request.max_tokens, len(ids)) else None
            yield Token(token, text + (stream.flush() if finish else ""), finish=finish)
            if finish:
                return

    def score(self, requests: list[tuple[list[int], int]], progress: Any = None) -> list[Scores]:
        """The log-probability of a token is minus its number, divided by 1000."""
        self.scored += requests
        self.computed += sum(len(tokens) - 1 for tokens, _ in requests)
        parts = [np.array(tokens[start:], np.float32) for tokens, start in requests]
        return [Scores(-part / 1000, part < 100) for part in parts]
