"""The team of threads: every piece of work once, in order, whether helpers spin, yield or sleep."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from numba_kernels.cpu.op import op
from numba_kernels.cpu.team import Program, Team, take
from numba_kernels.simd.memory import get_i64, set_i64


@op
def add_to_each(x, amount, n, team, thread):  # type: ignore[no-untyped-def]
    i = take(team)
    while i < n:
        set_i64(x + 8 * i, get_i64(x + 8 * i) + amount)
        i = take(team)


@op
def prefix_sum(x, y, n, team, thread):  # type: ignore[no-untyped-def]
    i = take(team)
    while i < n:
        total = 0
        for j in range(i + 1):
            total += get_i64(x + 8 * j)
        set_i64(y + 8 * i, total)
        i = take(team)


@op
def scale_by(x, factor: float, team, thread):  # type: ignore[no-untyped-def]
    if take(team) == 0:
        set_i64(x, int(get_i64(x) * factor))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_operations_run_in_order_and_whole(threads):
    """Each operation reads all that the one before wrote; more threads than cores as well."""
    team = Team(threads)
    x, y = np.zeros(37, np.int64), np.zeros(37, np.int64)
    program = Program()
    for amount in range(1, 21):
        program.add(add_to_each, x=x, amount=amount, n=37)
        program.add(prefix_sum, x=x, y=y, n=37)
        program.add(prefix_sum, x=y, y=x, n=37)
        program.add(add_to_each, x=x, amount=-amount, n=37)
    expected = np.zeros(37, np.int64)
    for amount in range(1, 21):
        expected = np.cumsum(np.cumsum(expected + amount)) - amount
    for _ in range(10):
        x[:] = 0
        team.run(program)
        np.testing.assert_array_equal(x, expected)
    team.close()


def test_sleeping_helpers_wake():
    team = Team(3)
    x = np.zeros(5, np.int64)
    program = Program()
    program.add(add_to_each, x=x, amount=1, n=5)
    for i in range(4):
        team.run(program)
        assert (x == i + 1).all()
        deadline = time.monotonic() + 20
        while not (team._memory[[team._state(1), team._state(2)]] == 2).all():  # asleep
            assert time.monotonic() < deadline
            time.sleep(0.01)
    team.close()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_threads_that_share_a_core_part(monkeypatch):
    """What the system does where other cores seem busy: it leaves both threads where they are."""
    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    moves, cores = [], set()
    move = Team._move
    monkeypatch.setattr(Team, "_move", lambda team, thread: (moves.append(thread), move(team, thread)))
    x = np.zeros(5, np.int64)
    program = Program()
    program.add(add_to_each, x=x, amount=1, n=5)
    team = Team(2)
    helper = team._helpers[0].native_id
    try:
        os.sched_setaffinity(0, {core})
        for _ in range(20):
            os.sched_setaffinity(helper, {core})
            team.run(program)
            os.sched_setaffinity(helper, allowed)  # which may take it away, but need not
            before = len(moves)
            for _ in range(150):
                team.run(program)
                if len(moves) > before:
                    break
            team.run(program)
            cores.add(int(team._memory[team._state(1) + 1]))
        assert moves
        assert cores - {core}
        assert os.sched_getaffinity(helper) == allowed
    finally:
        os.sched_setaffinity(0, allowed)
        team.close()
    assert (x == x[0]).all()


def test_arguments_can_change_between_replays():
    team = Team(2)
    x = np.ones(3, np.int64)
    program = Program()
    number = program.add(add_to_each, x=x, amount=1, n=3)
    last = program.add(scale_by, x=x, factor=2.5)
    team.run(program)
    assert x.tolist() == [5, 2, 2]
    program.set(number, "amount", 10)
    program.set(last, "factor", 0.5)
    team.run(program)
    assert x.tolist() == [7, 12, 12]
    program.add(add_to_each, x=x, amount=1, n=1)  # the changed arguments stay
    team.run(program)
    assert x.tolist() == [9, 22, 22]
    team.close()


def test_closing_ends_the_threads():
    before = threading.active_count()
    team = Team(4)
    assert threading.active_count() == before + 3
    team.close()
    assert threading.active_count() == before


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="amount"):
        Program().add(add_to_each, x=np.zeros(1, np.int64), n=1)
    with pytest.raises(TypeError, match="team and thread"):
        op(lambda x, y: None)
    with pytest.raises(ValueError, match="at least one thread"):
        Team(0)
