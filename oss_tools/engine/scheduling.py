"""Continuous batching: one thread owns the engine, requests join and leave the batch that it works on.

Each pass takes the last token of every sequence that generates and a part of the prompts of those that do not yet. Whoever
waits longest begins first; a pass divides its room for prompts evenly. As the engine's results do not depend on the batch, the
chunks or the cache, a request gets the tokens that it would get alone. Where the keys and values of all do not fit into the room
there is for them, the youngest goes back to the queue and is computed again later.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request, Token
from oss_tools.engine.scheduled_requests import Event, Finished, ScheduledRequest
from oss_tools.engine.scheduler_stats import Stats
from oss_tools.engine.turns import Turns
from oss_tools.errors import Busy

PROMPT = 128  # tokens of prompts in a pass that others generate in, at most: so long do those wait
ROOM = 256  # tokens that a sequence has room for at first; it grows as it needs to
SHARED = 128  # tokens that are worth waiting for while another request computes them
PATIENCE = 60  # seconds, the longest that anybody is told to wait before another try

T = TypeVar("T")


def shares(ahead: list[int], chunk: int) -> list[int]:
    """How many of each sequence's tokens a pass takes: of those that generate, which come first, their one, of the others an even
    part of the room that prompts have in it. `ahead`: how many tokens each has to compute."""
    found = [min(n, 1) for n in ahead]
    generating = sum(n == 1 for n in ahead)
    room = chunk - len(ahead) if generating == 0 else min(PROMPT, chunk - len(ahead))
    open_ = sorted((n - 1, i) for i, n in enumerate(ahead) if n > 1)
    for count, (left, i) in zip(range(len(open_), 0, -1), open_, strict=True):
        part = min(left, room // count)
        found[i] += part
        room -= part
    return found


class Ticket:
    """A request that was handed in."""

    def __init__(self, scheduler: Scheduler, work: ScheduledRequest) -> None:
        self._scheduler, self._work = scheduler, work

    def cancel(self) -> None:
        """Ends the request as soon as the pass at hand is over; nothing more is told of it. Again it does nothing."""
        self._scheduler._cancel(self._work)

    def so_far(self, finish: str) -> Finished:
        """The figures of the request at this moment, ended by `finish`."""
        return self._work.finished(finish, time.perf_counter())


class Scheduler:
    """Requests to one engine, which nobody else may use meanwhile.

    Attributes:
        engine: the model.
        parallel: the most requests that are worked on at once.
        queue: the most that wait.
        positions: the most keys and values of live sequences; at least the engine's context.
    """

    def __init__(
        self,
        engine: Engine,
        parallel: int = 8,
        queue: int = 64,
        positions: int | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.engine = engine
        self.parallel = max(min(parallel, engine.backend.sequences), 1)
        self.queue = queue
        self.positions = max(positions or self.parallel * engine.context, engine.context)
        self._turns = turns or Turns()
        self._changed = threading.Condition()
        self._waiting: deque[ScheduledRequest] = deque()
        self._live: list[ScheduledRequest] = []
        self._jobs: deque[tuple[Callable[[Engine], Any], Future[Any]]] = deque()
        self._stats = Stats()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    # ---- for everybody ----------------------------------------------------------------------------------------------

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Ticket:
        """Hands a request in. `on_event` is called in the engine's thread with each token, and last with Finished or with what
        went wrong. Raises BadRequest for what cannot be asked, Busy where the queue is full."""
        self.engine.check(request)
        work = ScheduledRequest(request, on_event)
        with self._changed:
            self._refuse_if_full()
            self._waiting.append(work)
            self._changed.notify()
        return Ticket(self, work)

    def require_room(self) -> None:
        """Raises Busy where `submit` would: before a prompt is written out."""
        with self._changed:
            self._refuse_if_full()

    def _refuse_if_full(self) -> None:
        if self._closed:
            raise Busy("the server is about to end")
        if len(self._waiting) >= self.queue:
            self._stats.finished["refused"] += 1
            ended = max(sum(self._stats.finished[kind] for kind in ("stop", "length")), 1)
            ahead = len(self._waiting) * self._stats.busy / ended
            raise Busy(f"{len(self._waiting)} requests wait already", int(min(max(ahead, 1), PATIENCE)))

    def run(self, job: Callable[[Engine], T]) -> Future[T]:
        """Has something else done with the engine, between two passes. Raises Busy where too much waits."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed or len(self._jobs) >= self.queue:
                raise Busy("too much waits already")
            self._jobs.append((job, future))
            self._changed.notify()
        return future

    @property
    def stats(self) -> Stats:
        """The figures at this moment."""
        with self._changed:
            return replace(
                self._stats, waiting=len(self._waiting), running=len(self._live), finished=self._stats.finished.copy()
            )

    def close(self) -> None:
        """Ends the thread; what is still waited for fails with Busy. The engine is the caller's again."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _cancel(self, work: ScheduledRequest) -> None:
        with self._changed:
            work.cancelled = True
            if work in self._waiting:
                self._waiting.remove(work)
                self._stats.finished["cancelled"] += 1
            self._changed.notify()

    # ---- the engine's thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._wait():
            try:
                self._do_jobs()
                self._drop_cancelled()
                self._admit()
                if self._live:
                    self._step()
            except BaseException as error:  # whatever it is, whoever waits for an answer is told, and the next are served
                for work in list(self._live):
                    self._fail(work, error)
        self._end_all()

    def _wait(self) -> bool:
        """Until there is something to do; False at the end."""
        with self._changed:
            while not (self._closed or self._jobs or self._waiting or self._live):
                self._changed.wait()
            return not self._closed

    def _do_jobs(self) -> None:
        """One job at a time, so that those who generate do not wait for all of them."""
        with self._changed:
            if not self._jobs:
                return
            job, future = self._jobs.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._turns:
                result = job(self.engine)
        except BaseException as error:  # whatever it is, whoever asked is told
            future.set_exception(error)
        else:
            future.set_result(result)

    def _drop_cancelled(self) -> None:
        for work in [work for work in self._live if work.cancelled]:
            assert work.generation
            self.engine.save(work.generation.sequence)
            self._leave(work, "cancelled")

    def _leave(self, work: ScheduledRequest, kind: str) -> None:
        with self._changed:
            self._live.remove(work)
            self._stats.finished[kind] += 1
            self._stats.positions = self._held()
        work.generation = None  # and its pages

    def _admit(self) -> None:
        """Begins with those who wait longest, as many as there is room for."""
        while True:
            with self._changed:
                work = next((work for work in self._waiting if not self._is_being_computed(work)), None)
                if work is None or len(self._live) >= self.parallel:
                    return
                if self._live and self._held() + self._wanted(work) > self.positions:
                    return
                self._waiting.remove(work)
                self._live.append(work)
            try:
                self._begin(work)
            except BaseException as error:  # whatever it is, whoever asked is told
                self._fail(work, error)

    def _is_being_computed(self, work: ScheduledRequest) -> bool:
        """Whether a prompt begins as one does that is being computed: then it waits, and takes that from the cache."""
        prompts = [live.request.tokens for live in self._live if live.generation and live.prompt_left]
        if not prompts or not self.engine.prefixes.budget:
            return False
        more = self.engine.prefixes.longest(work.request.tokens)[0] + SHARED
        begins = work.request.tokens[:more]
        return len(begins) == more and any(prompt[:more] == begins for prompt in prompts)

    def _begin(self, work: ScheduledRequest) -> None:
        if work.generation is None:
            generation = self.engine.begin(work.request, room=ROOM)
            work.generation, work.cached = generation, len(generation.sequence.tokens)
            with self._changed:
                self._stats.prompt_tokens += len(work.request.tokens)
                self._stats.cached_tokens += work.cached
        else:
            work.generation.resume(self.engine, ROOM)
        with self._changed:
            self._stats.positions = self._held()

    def _wanted(self, work: ScheduledRequest) -> int:
        """Positions that a request begins with."""
        known = len(work.generation.ahead) if work.generation else len(work.request.tokens)
        return min(known + ROOM, self.engine.context)

    def _held(self) -> int:
        return sum(work.generation.sequence.capacity for work in self._live if work.generation)

    def _step(self) -> None:
        """One pass, and what came of it to whom it belongs."""
        self._make_room()
        began = time.perf_counter()
        live = sorted(self._live, key=lambda work: work.prompt_left > 0)  # those who generate first
        generations = [work.generation for work in live if work.generation]
        parts = shares([len(generation.ahead) for generation in generations], self.engine.backend.chunk)
        with self._turns:
            chosen = self.engine.advance(generations, parts)
        now = time.perf_counter()
        with self._changed:
            self._stats.passes += 1
            self._stats.busy += now - began
            self._stats.generated_tokens += len(chosen)
            if pace := self.engine.pace:
                self._stats.guessed_tokens, self._stats.right_guesses = pace.figures.guessed, pace.figures.right
        owners = {work.generation: work for work in live}
        for generation, token in chosen:
            self._tell(owners[generation], token, now)
        for work in live:
            if work.generation and work.generation.failed:
                self._fail(work, work.generation.failed)

    def _make_room(self) -> None:
        """Sends the youngest back to the queue while sequences that grow find no room."""
        while len(self._live) > 1 and self._held() + sum(map(self._growth, self._live)) > self.positions:
            work = self._live[-1]
            assert work.generation
            work.generation.suspend(self.engine)
            with self._changed:
                self._live.pop()
                self._waiting.appendleft(work)
                self._stats.preempted += 1

    def _growth(self, work: ScheduledRequest) -> int:
        """Positions by which a sequence grows if it takes one token more."""
        assert work.generation
        sequence = work.generation.sequence
        full = len(sequence.tokens) + 1 > sequence.capacity
        return min(sequence.capacity, self.engine.context - sequence.capacity) if full else 0

    def _tell(self, work: ScheduledRequest, token: Token, now: float) -> None:
        if not work.first:
            work.first = now
            with self._changed:
                self._stats.first_tokens += 1
                self._stats.first_token_seconds += now - work.began
        work.tokens += 1
        work.tell(token)
        if token.finish:
            self._leave(work, token.finish)
            work.tell(work.finished(token.finish, now))

    def _fail(self, work: ScheduledRequest, error: BaseException) -> None:
        self._leave(work, "failed")
        work.tell(error)

    def _end_all(self) -> None:
        ended = Busy("the server is about to end")
        with self._changed:
            waiting, jobs = list(self._waiting), list(self._jobs)
            self._waiting.clear()
            self._jobs.clear()
        for work in list(self._live):
            self._fail(work, ended)
        for work in waiting:
            work.tell(ended)
        for _, future in jobs:
            future.set_exception(ended)
