"""Threads that share work, and results that are taken in turn."""

import random
import threading
import time

import pytest

from oss_tools.convert.threads import InTurn, Stop, in_threads


def test_results_are_taken_in_order_and_by_one_thread_at_a_time() -> None:
    taken: list[int] = []
    inside = threading.Lock()

    def take(number: int) -> None:
        assert inside.acquire(blocking=False), "two threads at once"
        time.sleep(0.0002)
        taken.append(number)
        inside.release()

    turn, chance = InTurn(take, 4), random.Random(1)
    waits = [chance.random() * 0.002 for _ in range(200)]

    def work(number: int, stop: Stop) -> None:
        time.sleep(waits[number])
        turn.bring(number, number, stop)

    in_threads(work, range(200), 6)
    assert taken == list(range(200))


def test_no_more_results_wait_than_may() -> None:
    """While result 0 is missing, threads that are far ahead stand still."""
    first, most, taken = threading.Event(), 3, []
    turn = InTurn(taken.append, most)
    brought: list[int] = []

    def work(number: int, stop: Stop) -> None:
        if number == 0:
            first.wait(timeout=30)
        turn.bring(number, number, stop)
        brought.append(number)
        if len(brought) == most:
            time.sleep(0.05)  # time in which one too many would come through
            assert max(brought) <= most
            first.set()

    in_threads(work, range(20), 8)
    assert taken == list(range(20))


def test_the_error_that_stopped_the_others_is_the_one_that_is_raised() -> None:
    turn = InTurn(lambda _: None, 2)

    def work(number: int, stop: Stop) -> None:
        if number == 0:
            time.sleep(0.02)
            raise ValueError("the first piece")
        turn.bring(number, number, stop)  # waits for it, until it is told to stop

    with pytest.raises(ValueError, match="the first piece"):
        in_threads(work, range(50), 4)


def test_what_takes_results_may_fail_too() -> None:
    def take(number: int) -> None:
        if number == 5:
            raise OSError("no room")

    turn = InTurn(take, 2)
    with pytest.raises(OSError, match="no room"):
        in_threads(lambda number, stop: turn.bring(number, number, stop), range(100), 4)
