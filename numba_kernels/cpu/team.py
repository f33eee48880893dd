"""A team of threads that replays recorded operations in compiled code, with spinning barriers between them.

One barrier costs a fraction of a microsecond while the threads run, where a parallel loop of Numba's costs many and a call from
Python more: a decode step of hundreds of operations is one call. Threads spin briefly, then yield their core (so that a machine
with other work does not stand still), and sleep when there has been no work for some milliseconds.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import types

from numba_kernels.cpu.op import Op, inner, specialize, to_cell
from numba_kernels.simd.memory import get_i64, set_i64
from numba_kernels.simd.threads import (
    atomic_add,
    atomic_load,
    atomic_store,
    call_address,
    compare_exchange,
    current_core,
    pause,
    yield_core,
)

# The team's shared memory: int64 cells at these byte offsets, each group on cache lines of its own.
ARRIVED, PHASE, NEXT, JOB, PROGRAM, COUNT, THREADS, STATE = 0, 128, 256, 384, 512, 520, 640, 768
READY, BUSY, ASLEEP, STOPPED = 0, 1, 2, 3  # a helper that is BUSY, promised a job, does not fall asleep
CORE, MOVE = 8, 16  # behind a thread's state: the core that it last worked on; the first job before which it may move
SPINS = 200  # pauses before a waiting thread starts to yield its core: some 3 to 10 µs
IDLE = 6000  # yields before a thread without work goes to sleep: 2 ms or more
APART = 100  # jobs from one move of a thread to the next
RECORD = 40  # int64 cells of a recorded operation: the function, then its arguments


@inner
def take(team):  # type: ignore[no-untyped-def]
    """The number of the next piece of work in the running operation: 0, 1, 2, … over all threads."""
    return atomic_add(team + NEXT, 1)


@inner
def thread_count(team):  # type: ignore[no-untyped-def]
    """How many threads the team has."""
    return get_i64(team + THREADS)


@inner
def barrier(team):  # type: ignore[no-untyped-def]
    """Returns when all threads have arrived, with `take` starting from 0 again."""
    threads = get_i64(team + THREADS)
    if threads == 1:
        set_i64(team + NEXT, 0)
        return
    phase = atomic_load(team + PHASE)
    if atomic_add(team + ARRIVED, 1) == threads - 1:
        atomic_store(team + ARRIVED, 0)
        atomic_store(team + NEXT, 0)
        atomic_store(team + PHASE, phase + 1)
        return
    spins = 0
    while atomic_load(team + PHASE) == phase:
        spins += 1
        if spins < SPINS:
            pause()
        else:
            yield_core()


@inner
def replay(team, thread):  # type: ignore[no-untyped-def]
    """One thread's part of the program in the team's memory."""
    record = get_i64(team + PROGRAM)
    for _ in range(get_i64(team + COUNT)):
        call_address(get_i64(record), record + 8, team, thread)
        barrier(team)
        record += 8 * RECORD


@inner
def arrive(team, thread):  # type: ignore[no-untyped-def]
    """Notes the core that a thread works on; whether an earlier thread of the team works on it too. While two share one, they
    wait for each other at every barrier: an operation takes 10 µs and more. The system begins so when other cores seem busy,
    and leaves it so for some time, as threads that wait by yielding look as if they worked."""
    core = current_core()
    own = team + STATE + 128 * thread
    if get_i64(own + CORE) != core:
        set_i64(own + CORE, core)
    for other in range(thread):
        if get_i64(team + STATE + 128 * other + CORE) == core:
            return core >= 0
    return False


def work(team, thread, done):  # type: ignore[no-untyped-def]
    """A helper thread's life: waits for jobs after number `done`; returns the last one done, to sleep or to stop, or −1 − that,
    to be moved to another core."""
    state = team + STATE + 128 * thread
    compare_exchange(state, ASLEEP, READY)
    idle = 0
    while True:
        if atomic_load(team + JOB) != done:
            if arrive(team, thread) and done >= get_i64(state + MOVE):
                set_i64(state + MOVE, done + APART)
                return -1 - done
            done += 1
            replay(team, thread)
            idle = 0
        elif idle < SPINS:
            idle += 1
            pause()
        elif idle < SPINS + IDLE:
            idle += 1
            yield_core()
        elif atomic_load(state) == STOPPED or compare_exchange(state, READY, ASLEEP):
            return done
        else:
            yield_core()


def run(team, program, count):  # type: ignore[no-untyped-def]
    """Replays a program; does nothing but return True if a helper is asleep. One call, so that no signal comes between."""
    threads = get_i64(team + THREADS)
    for thread in range(1, threads):
        if not compare_exchange(team + STATE + 128 * thread, READY, BUSY):
            for other in range(1, thread):
                atomic_store(team + STATE + 128 * other, READY)
            return True
    set_i64(team + PROGRAM, program)
    set_i64(team + COUNT, count)
    arrive(team, 0)
    atomic_add(team + JOB, 1)
    replay(team, 0)
    for thread in range(1, threads):
        atomic_store(team + STATE + 128 * thread, READY)
    return False


def _compiled(function: Callable[..., Any], result: Any) -> Any:
    """A compiled function as a ctypes callable, which gives up the GIL while it runs."""
    signature = result(types.int64, types.int64, types.int64)
    return numba.cfunc(signature, cache=True, error_model="numpy")(specialize(function, function.__name__))


class Program:
    """A list of operations with their arguments, recorded once and replayed by a team.

    Arrays given as arguments are kept alive, and must not be reallocated; their contents, and the arguments in the record,
    may change between replays.
    """

    def __init__(self) -> None:
        self.records: list[np.ndarray] = []
        self.ops: list[Op] = []
        self._kept: list[np.ndarray] = []
        self._table: np.ndarray | None = None
        self._linked = False

    def add(self, op: Op, **arguments: Any) -> int:
        """Appends an operation; arguments by name, arrays as themselves, None for an absent one. Returns its number."""
        cells, kept = op.cells(arguments)
        if len(cells) >= RECORD:
            raise TypeError(f"{op.name}: {len(cells)} arguments, a record holds {RECORD - 1}")
        record = np.zeros(RECORD, np.int64)
        record[1 : 1 + len(cells)] = cells
        self.records.append(record)
        self.ops.append(op)
        self._kept += kept
        self._table = None
        self._linked = False
        return len(self.ops) - 1

    def set(self, number: int, name: str, value: Any) -> None:
        """Changes an argument of operation `number`."""
        op = self.ops[number]
        at = op.names.index(name)
        self.table[number, 1 + at] = to_cell(value, op.parameters[at].annotation in (float, "float"))
        if isinstance(value, np.ndarray):
            self._kept.append(value)

    def replace(self, number: int, op: Op) -> None:
        """Puts another kernel with the same parameters in the place of operation `number`."""
        if op.names != self.ops[number].names:
            raise TypeError(f"{op.name} does not have the parameters of {self.ops[number].name}")
        self.ops[number] = op
        self._linked = False

    @property
    def table(self) -> np.ndarray:
        """The records, int64 [operations, RECORD]: the memory that is replayed."""
        if self._table is None:
            self._table = np.array(self.records, np.int64).reshape(-1, RECORD)
            self.records = list(self._table)  # views: a later change of the table is a change of the record
        return self._table

    def link(self) -> None:
        """Puts the operations' addresses into the table; compiles what is not compiled yet."""
        if not self._linked:
            self.table[:, 0] = [op.address for op in self.ops]
            self._linked = True


class Team:
    """Threads that work together: the calling one and `threads` − 1 helpers. Not to be used by two callers at once."""

    _functions: tuple[Any, Any] | None = None

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"a team needs at least one thread, not {threads}")
        self.threads = threads
        memory = np.zeros((STATE + 128 * threads) // 8 + 16, np.int64)
        skip = -memory.ctypes.data % 128 // 8
        self._memory = memory[skip:]
        self.address = self._memory.ctypes.data
        self._memory[THREADS // 8] = threads
        self._memory[(STATE + CORE) // 8 :: 16] = -2  # none yet
        self._work, self._run = (f.ctypes for f in self.functions())
        self._wake = [threading.Event() for _ in range(threads)]
        self._helpers = [threading.Thread(target=self._help, args=(t,), daemon=True) for t in range(1, threads)]
        for helper in self._helpers:
            helper.start()
        atexit.register(self.close)

    @classmethod
    def functions(cls) -> tuple[Any, Any]:
        """The threads' own code, compiled or from the cache."""
        if cls._functions is None:
            cls._functions = (_compiled(work, types.int64), _compiled(run, types.boolean))
        return cls._functions

    def _state(self, thread: int) -> int:
        return (STATE + 128 * thread) // 8

    def _help(self, thread: int) -> None:
        done = 0
        while True:
            done = self._work(self.address, thread, done)
            if done < 0:
                done = -1 - done
                self._move(thread)
                continue
            if self._memory[self._state(thread)] == STOPPED:
                return
            self._wake[thread].wait()
            self._wake[thread].clear()

    def _move(self, thread: int) -> None:
        """Takes the calling thread to a core on which no other of the team works, if it may use one; the system may take it away
        again."""
        allowed = os.sched_getaffinity(0)
        taken = {int(self._memory[self._state(t) + CORE // 8]) for t in range(self.threads) if t != thread}
        if free := allowed - taken:
            os.sched_setaffinity(0, free)
            os.sched_setaffinity(0, allowed)

    def run(self, program: Program, first: int = 0, stop: int | None = None) -> None:
        """Replays a program, or its operations first … stop − 1; returns when the last one is done."""
        program.link()
        table = program.table[first:stop]
        while len(table) and self._run(self.address, table.ctypes.data, len(table)):
            for thread in range(1, self.threads):
                if self._memory[self._state(thread)] == ASLEEP:
                    self._wake[thread].set()
            time.sleep(0)

    def call(self, op: Op, **arguments: Any) -> None:
        """Runs one operation."""
        program = Program()
        program.add(op, **arguments)
        self.run(program)

    def close(self) -> None:
        """Ends the helpers."""
        atexit.unregister(self.close)
        for thread, helper in enumerate(self._helpers, start=1):
            self._memory[self._state(thread)] = STOPPED
            self._wake[thread].set()
            helper.join()
        self._helpers = []
