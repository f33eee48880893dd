"""Requests that join and leave a running batch get the tokens that each would get alone."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request, Token
from oss_tools.engine.sampling import Sampling
from oss_tools.engine.scheduled_requests import Event, Finished
from oss_tools.engine.scheduling import Scheduler, shares
from oss_tools.engine.turns import Turns
from oss_tools.errors import BadRequest, Busy


class Heard:
    """The events of a request."""

    def __init__(self) -> None:
        self._events: queue.Queue[Event] = queue.Queue()

    def __call__(self, event: Event) -> None:
        self._events.put(event)

    def next(self) -> Event:
        return self._events.get(timeout=120)

    def all(self) -> tuple[list[int], Any]:
        """The tokens, and what came last."""
        tokens = []
        while isinstance(event := self.next(), Token):
            tokens.append(event.id)
        return tokens, event


@pytest.fixture(params=["gpt_oss", pytest.param("llama", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest, tiny_gpt_oss: Path, tiny_llama: Path) -> Iterator[Engine]:
    path = tiny_gpt_oss if request.param == "gpt_oss" else tiny_llama
    with Engine.load(path, context=1024, threads=2) as found:
        yield found


def requests(engine: Engine, count: int, seed: int = 0) -> list[Request]:
    """Prompts of many lengths, some with a common beginning; greedy, drawn, with penalties, with log-probabilities."""
    chance = np.random.default_rng(seed)
    common = chance.integers(0, engine.backend.vocabulary, 200).tolist()
    found = []
    for number in range(count):
        own = chance.integers(0, engine.backend.vocabulary, int(chance.integers(1, 300))).tolist()
        tokens = common[: int(chance.integers(0, 200))] + own if number % 2 else own
        kinds = (
            Sampling(),
            Sampling(temperature=1.0, seed=number),
            Sampling(1.3, 0.8, top_k=20, top_p=0.9, min_p=0.01, seed=number),
        )
        most = int(chance.integers(1, 40))
        found.append(
            Request(tokens, most, kinds[number % 3], stop_tokens=frozenset(), logprobs=2 if number % 5 == 0 else None)
        )
    return found


def alone(engine: Engine, request: Request) -> list[int]:
    return [token.id for token in engine.generate(request)]


def test_tokens_are_those_of_each_request_alone(engine: Engine) -> None:
    """They come at random times, and some are cancelled at random tokens."""
    asked = requests(engine, 24)
    expected = [alone(engine, request) for request in asked]
    chance = random.Random(1)
    scheduler = Scheduler(engine, parallel=5, queue=64)
    heard: list[tuple[int, Heard, int | None, Any]] = []
    for number, request in enumerate(asked):
        own = Heard()
        ends = chance.randrange(1, len(expected[number]) + 1) if number % 4 == 3 else None
        heard.append((number, own, ends, scheduler.submit(request, own)))
        if chance.random() < 0.5:  # others go on meanwhile
            threading.Event().wait(chance.random() / 50)
    for number, own, ends, ticket in heard:
        if ends is None:
            tokens, last = own.all()
            assert tokens == expected[number]
            assert isinstance(last, Finished)
            assert last.tokens == len(tokens)
            assert last.prompt_tokens == len(asked[number].tokens)
        else:
            first = [own.next() for _ in range(ends)]
            ticket.cancel()
            assert [token.id for token in first if isinstance(token, Token)] == expected[number][:ends]
    scheduler.close()


def test_who_goes_back_for_want_of_room_gets_the_same_tokens(engine: Engine) -> None:
    chance = np.random.default_rng(3)
    asked = [
        Request(chance.integers(0, engine.backend.vocabulary, 150).tolist(), 400, Sampling(temperature=1.0, seed=n),
                stop_tokens=frozenset())
        for n in range(4)
    ]  # fmt: skip
    expected = [alone(engine, request) for request in asked]
    scheduler = Scheduler(engine, parallel=4, positions=1024)  # of 4 · 550
    heard = [Heard() for _ in asked]
    for request, own in zip(asked, heard, strict=True):
        scheduler.submit(request, own)
    assert [own.all()[0] for own in heard] == expected
    assert scheduler.stats.preempted > 0
    assert scheduler.stats.positions == 0
    scheduler.close()


def test_the_second_of_a_prompt_takes_it_from_the_cache(engine: Engine) -> None:
    scheduler = Scheduler(engine)
    request = Request(list(range(3, 103)), 4, stop_tokens=frozenset())
    ends = []
    for _ in range(2):
        own = Heard()
        scheduler.submit(request, own)
        ends.append(own.all())
    assert ends[0][0] == ends[1][0]
    assert [end.cached_tokens for _, end in ends] == [0, 99]
    assert scheduler.stats.cached_tokens == 99
    scheduler.close()


def test_a_prompt_that_is_being_computed_is_not_computed_again(engine: Engine) -> None:
    prompt = np.random.default_rng(5).integers(0, engine.backend.vocabulary, 900).tolist()
    asked = [Request([*prompt, 5 + n], 3, stop_tokens=frozenset()) for n in range(3)] + [Request([5, 6], 3)]
    scheduler = Scheduler(engine)
    gate = Gate(scheduler)
    heard = [Heard() for _ in asked]
    for request, own in zip(asked, heard, strict=True):
        scheduler.submit(request, own)
    gate.open()
    found = [own.all() for own in heard]
    assert sum(end.cached_tokens > 600 for _, end in found) == 2
    scheduler.close()
    assert [tokens for tokens, _ in found] == [alone(engine, request) for request in asked]


class Gate:
    """Holds the engine between two passes until it is opened."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._open, begun = threading.Event(), threading.Event()

        def job(engine: Engine) -> None:
            begun.set()
            assert self._open.wait(120)

        self._done = scheduler.run(job)
        assert begun.wait(120)

    def open(self) -> None:
        self._open.set()
        self._done.result(120)


def test_the_queue_is_bounded(engine: Engine) -> None:
    scheduler = Scheduler(engine, parallel=1, queue=2)
    gate = Gate(scheduler)
    heard = [Heard(), Heard()]
    tickets = [scheduler.submit(Request([5, 6], 3, stop_tokens=frozenset()), own) for own in heard]
    with pytest.raises(Busy) as full:
        scheduler.submit(Request([5, 6], 3), Heard())
    assert full.value.retry_after >= 1
    tickets[0].cancel()
    third = Heard()
    scheduler.submit(Request([5, 6], 3, stop_tokens=frozenset()), third)  # whoever goes makes room
    gate.open()
    assert heard[1].all()[0] == third.all()[0]
    stats = scheduler.stats
    assert (stats.finished["refused"], stats.finished["cancelled"], stats.waiting, stats.running) == (1, 1, 0, 0)
    scheduler.close()


def test_what_fails_is_told_and_others_go_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(engine)
    with pytest.raises(BadRequest, match="outside the vocabulary"):
        scheduler.submit(Request([1 << 30], 3), Heard())
    with pytest.raises(BadRequest, match="do not fit"):
        scheduler.submit(Request([1] * 1025, 3), Heard())
    run = engine.backend.run

    def fail(runs: Any) -> None:
        monkeypatch.setattr(engine.backend, "run", run)
        raise MemoryError("no pages")

    monkeypatch.setattr(engine.backend, "run", fail)
    own, after = Heard(), Heard()
    scheduler.submit(Request([5, 6], 3), own)
    assert isinstance(own.next(), MemoryError)
    scheduler.submit(Request([5, 6], 3, stop_tokens=frozenset()), after)
    assert len(after.all()[0]) == 3
    with pytest.raises(ZeroDivisionError):
        scheduler.run(lambda engine: 1 / 0).result(60)
    scheduler.close()


def test_a_fault_beside_a_pass_ends_no_more_than_those_at_hand(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(engine)
    leaving, staying, after = Heard(), Heard(), Heard()
    ticket = scheduler.submit(Request([5, 6], 900, stop_tokens=frozenset()), leaving)
    scheduler.submit(Request([7, 8], 900, stop_tokens=frozenset()), staying)
    leaving.next()
    staying.next()

    def fail(sequence: Any) -> None:
        monkeypatch.undo()
        raise MemoryError("no room for a block")

    monkeypatch.setattr(engine, "save", fail)
    ticket.cancel()
    assert isinstance(staying.all()[1], MemoryError)
    scheduler.submit(Request([5, 6], 3, stop_tokens=frozenset()), after)
    assert len(after.all()[0]) == 3
    scheduler.close()


def test_closing_ends_what_is_waited_for(engine: Engine) -> None:
    scheduler = Scheduler(engine, parallel=1)
    running, waiting = Heard(), Heard()
    scheduler.submit(Request([5, 6], 900, stop_tokens=frozenset()), running)
    scheduler.submit(Request([5, 6], 3), waiting)
    running.next()
    scheduler.close()
    assert isinstance(running.all()[1], Busy)
    assert isinstance(waiting.next(), Busy)
    with pytest.raises(Busy):
        scheduler.submit(Request([5, 6], 3), Heard())


def test_a_pass_divides_its_room(engine: Engine) -> None:
    assert shares([1, 1, 1], 512) == [1, 1, 1]
    assert shares([600], 512) == [512]
    assert shares([1, 600], 512) == [1, 129]  # who generates does not wait for a whole prompt
    assert shares([1, 10, 600, 600], 512) == [1, 10, 60, 61]
    assert sum(shares([700, 700, 700], 512)) == 512
    assert all(part >= 1 for part in shares([500] * 64, 512))


def test_turns_are_taken_in_order() -> None:
    turns, order = Turns(), []
    with turns:
        threads = []
        for number in range(5):
            thread = threading.Thread(target=lambda number=number: _take(turns, order, number))
            thread.start()
            threads.append(thread)
            while len(turns._line) < number + 2:
                threading.Event().wait(0.001)
    for thread in threads:
        thread.join(60)
    assert order == [0, 1, 2, 3, 4]


def _take(turns: Turns, order: list[int], number: int) -> None:
    with turns:
        order.append(number)
