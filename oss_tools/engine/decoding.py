"""The decode loop: passes over the sequences of several requests, each of which gives every one of them a token or, where next
tokens were guessed, several."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from time import perf_counter

import numpy as np

from oss_tools.checkpoints import Metadata
from oss_tools.engine.backend import Backend
from oss_tools.engine.generation import Generation
from oss_tools.engine.lookup import MOST, SHARE, Pace
from oss_tools.engine.requests import Request, Token
from oss_tools.engine.sequences import Sequences
from oss_tools.engine.sharing import Stem
from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest


class Decoding(Sequences):
    """Generates the texts of requests.

    Attributes:
        metadata: the checkpoint's tokenizer, templates, configs.
        pace: what is known of passes that take guessed tokens along (`lookup`); None where none do.
    """

    def __init__(
        self, backend: Backend, context: int, prefix_budget: int, metadata: Metadata, text: Text | None, speculate: bool
    ) -> None:
        super().__init__(backend, context, prefix_budget)
        self.metadata = metadata
        self.pace = Pace() if speculate and backend.rewinds else None
        self._text = text

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

    def generate(self, request: Request) -> Iterator[Token]:
        """The tokens of one request as they come. Closing the iterator ends it."""
        for _, token in self.generate_batch([request]):
            yield token

    def generate_batch(self, requests: list[Request], batch: int = 8) -> Iterator[tuple[int, Token]]:
        """The tokens of several requests as they come, each with its request's index; up to `batch` requests share each
        pass over the weights, and a request that ends makes room for the next."""
        for request in requests:
            self.check(request)
        waiting, live, held = deque(enumerate(requests)), list[Generation](), list[Stem]()
        batch = max(min(batch, self.backend.sequences), 1)
        while waiting or live:
            live += self._admit([waiting.popleft() for _ in range(min(batch - len(live), len(waiting)))], held)
            yield from [(generation.index, token) for generation, token in self.advance(live)]
            for failed in (generation.failed for generation in live if generation.failed):
                raise failed
            live = [generation for generation in live if not generation.ended]

    def _admit(self, requests: list[tuple[int, Request]], held: list[Stem]) -> list[Generation]:
        """Opens a sequence for each request; what several begin with is computed once, and now. `held`: the last stem that was
        found and its parents, which a request that comes alone may begin with."""
        stems = self.share([request.tokens[:-1] for _, request in requests])
        admitted = []
        for (index, request), stem in zip(requests, stems, strict=True):
            if stem:
                held[:] = stem.line()
            begun = next((s for s in held if request.tokens[:-1][: len(s.tokens)] == s.tokens), None)
            sequence = self.begun(request.tokens, request.max_tokens, len(request.tokens) - 1, begun)
            admitted.append(Generation(self, index, request, sequence))
        return admitted

    def begin(self, request: Request, index: int = 0, room: int | None = None) -> Generation:
        """A request to be worked on by `advance`, with as much of its prompt as the prefix cache has. `room`: how many tokens to
        make room for at first; None for all that it may generate. Raises BadRequest."""
        self.check(request)
        wanted = request.max_tokens if room is None else min(room, request.max_tokens)
        return Generation(self, index, request, self.open(request.tokens, wanted))

    def check(self, request: Request) -> None:
        """Raises BadRequest if this cannot be asked of the model."""
        self.check_tokens(request.tokens)
        if request.max_tokens < 1:
            raise BadRequest(f"max_tokens is {request.max_tokens}, at least 1 is needed")

    def advance(self, live: list[Generation], shares: list[int] | None = None) -> list[tuple[Generation, Token]]:
        """One pass: the last token of every sequence that generates, and as much as fits of the prompts of those that do not
        yet. Returns a token of each whose prompt is complete; several of one whose next tokens were guessed.

        Args:
            live: at most as many as the backend takes in one pass.
            shares: how many tokens of each the pass takes at most; None gives the first all they have.
        """
        if self.pace is None or any(len(generation.ahead) != 1 for generation in live):
            return self._advance(live, shares)
        guesses, began = self._guesses(live, self.pace), perf_counter()
        if not any(guesses):
            chosen = self._advance(live, None)
            self.pace.plain(len(live), perf_counter() - began)
            won = 0.0
        else:
            chosen = self._advance_guessed(live, guesses)
            won = self.pace.guessed(len(live), len(live) + sum(map(len, guesses)), len(chosen), perf_counter() - began)
        for generation in live:
            generation.lookup.balance += SHARE + won / len(live)
        return chosen

    def _guesses(self, live: list[Generation], pace: Pace) -> list[list[int]]:
        """What the next pass takes along of each text."""
        found = [(-chance, i) for i, g in enumerate(live) for chance in g.lookup.chances(g.room_for_guesses)]
        if not found:
            return []
        found.sort()
        balance = sum(generation.lookup.balance for generation in live)
        count = pace.best([-chance for chance, _ in found[:MOST]], len(live), balance)
        of = Counter(i for _, i in found[:count])
        return [g.lookup.guess(of[i]) for i, g in enumerate(live)]

    def _advance_guessed(self, live: list[Generation], guesses: list[list[int]]) -> list[tuple[Generation, Token]]:
        """One pass over the last token of each sequence and the guessed ones behind it. What was guessed wrong leaves nothing
        behind, also where choosing is interrupted."""
        given = [generation.ahead + guess for generation, guess in zip(live, guesses, strict=True)]
        self.compute([(generation.sequence, tokens) for generation, tokens in zip(live, given, strict=True)])
        owners = [(i, place) for i, tokens in enumerate(given) for place in range(len(tokens))]
        right = [0] * len(live)  # rows whose input was right, of those that were looked at
        chosen: list[tuple[Generation, Token]] = []
        try:
            waiting = iter(owners)
            for logits in self.logits_of(np.arange(len(owners))):
                for row, (i, place) in zip(logits, waiting, strict=False):
                    generation = live[i]
                    if place == right[i] and not generation.ended and generation.ahead == given[i][place : place + 1]:
                        if token := generation.choose(row):
                            chosen.append((generation, token))
                        right[i] += 1
        finally:
            if right != [len(tokens) for tokens in given]:
                ends = [len(generation.sequence.tokens) + n for generation, n in zip(live, right, strict=True)]
                self.backend.rewind([(g.sequence.cache, end) for g, end in zip(live, ends, strict=True)])
            for generation, tokens, n in zip(live, given, right, strict=True):
                self.keep(generation.sequence, tokens[:n])
        for generation in live:
            if generation.ended:
                self.save(generation.sequence)
        return chosen

    def _advance(self, live: list[Generation], shares: list[int] | None) -> list[tuple[Generation, Token]]:
        """One pass without guesses."""
        parts, rows, ready, room = [], [], [], self.backend.chunk
        for i, generation in enumerate(live):
            if part := generation.ahead[: room if shares is None else min(room, shares[i])]:
                parts.append((generation.sequence, part))
                room -= len(part)
                if len(part) == len(generation.ahead):
                    ready.append(generation)
                    rows.append(self.backend.chunk - room - 1)
                del generation.ahead[: len(part)]
        self.run(parts)
        chosen = self._choose(list(zip(ready, rows, strict=True)))
        for generation in ready:
            if generation.ended or generation.generated == 1:  # the prompt is known now, or the whole text
                self.save(generation.sequence)
        return chosen

    def _choose(self, ready: list[tuple[Generation, int]]) -> list[tuple[Generation, Token]]:
        """The next token of each, after its row of the last pass. What a token is drawn by does not depend on the others."""
        chosen: dict[Generation, Token] = {}
        here = [(g, row) for g, row in ready if g.is_greedy or (g.is_drawn and self.backend.draws)]
        for at in range(0, len(here), self.backend.rows):  # a GPU does not send the logits of these
            some = here[at : at + self.backend.rows]
            rows = np.array([row for _, row in some], np.int64)
            greedy = all(g.is_greedy for g, _ in some)
            found = self.backend.likeliest(rows) if greedy else self.backend.drawn(rows, [g.draw for g, _ in some])
            chosen |= {g: g.take(int(token)) for (g, _), token in zip(some, found, strict=True)}
        others = [(g, row) for g, row in ready if g not in chosen]
        waiting = iter(others)
        for logits in self.logits_of(np.array([row for _, row in others], np.int64)):
            chosen |= {g: token for row, (g, _) in zip(logits, waiting, strict=False) if (token := g.choose(row))}
        return [(g, chosen[g]) for g, _ in ready if g in chosen]
