"""Compiling: says when Numba does, as against taking machine code from its cache, and has several processes do it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock, Thread
from typing import Any

Job = tuple[str, Callable[[], Any]]  # its name, and what it does
BEGINS, DONE = "begins\n", "done\n"  # what a helper says of a job

# Where it is told that a pass of the compiler begins, by module; from the cache there is none. numba-cuda has its own.
PASSES = {"numba.core.event": "numba:run_pass", "numba.cuda.core.event": "numba-cuda:run_pass"}


def _listener(module: Any, begins: Callable[[], None]) -> Any:
    class Listener(module.Listener):
        def on_start(self, event: Any) -> None:
            begins()

        def on_end(self, event: Any) -> None:
            """Nothing: what counts is that it began."""

    return Listener()


@contextmanager
def listening(begins: Callable[[], None]) -> Iterator[None]:
    """Calls `begins` at every pass of a compilation within it."""
    with ExitStack() as installed:
        for name, kind in PASSES.items():
            if module := sys.modules.get(name):
                installed.enter_context(module.install_listener(kind, _listener(module, begins)))
        yield


def compile_all(jobs: Sequence[Job], on_compile: Callable[[int, int, str], None], crew: Crew | None = None) -> None:
    """Carries out jobs that compile, or take from the cache.

    `on_compile` is called as each compilation begins, with how many jobs are done, how many there are, and the job's name; and
    once at the end if anything was compiled. `crew`: who compiles some of them into the cache meanwhile, once there is anything
    to compile.
    """
    left = Left(jobs)
    name = ""
    compiled: set[str] = set()

    def announce(name: str) -> None:
        if name not in compiled:
            compiled.add(name)
            on_compile(left.done, len(jobs), name)

    def begins() -> None:
        announce(name)
        if crew:
            crew.start(left, announce)

    collects = gc.isenabled()
    gc.disable()  # a compiler makes many objects that stay: looking through them again and again takes a seventh of the time
    try:
        with listening(begins):
            while job := left.take() or (crew and crew.take_back()):
                name = job[0]
                job[1]()
                left.finished(name)
    finally:
        if collects:
            gc.enable()
        if crew:
            crew.end()
    if compiled:
        on_compile(len(jobs), len(jobs), "")


class Left:
    """Jobs that nobody has taken yet, for several threads.

    Attributes:
        done: how many are done.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._lock = Lock()
        self._jobs = deque(jobs)
        self._finished: set[str] = set()

    def take(self, among: Container[str] | None = None) -> Job | None:
        """The next job, or the next whose name is among these."""
        with self._lock:
            job = next((job for job in self._jobs if among is None or job[0] in among), None)
            if job:
                self._jobs.remove(job)
            return job

    def finished(self, name: str) -> None:
        self._finished.add(name)

    @property
    def done(self) -> int:
        return len(self._finished)


class Crew:
    """Processes that compile into the cache what this one would have to compile (`compile_helper`): in one process, only one
    thread compiles at a time.

    Attributes:
        recipes: what a helper is told of a job, by the job's name; others it is not given.
        helpers: the most processes.
    """

    def __init__(self, recipes: Mapping[str, Any], helpers: int) -> None:
        self.recipes, self.helpers = recipes, helpers
        self._lock = Lock()
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[Thread] = []
        self._taken: list[Job] = []

    def start(self, left: Left, announce: Callable[[str], None]) -> None:
        """From now on helpers take jobs, too. Again it does nothing."""
        if not self._threads:
            self._threads = [Thread(target=self._help, args=(left, announce), daemon=True) for _ in range(self.helpers)]
            for thread in self._threads:
                thread.start()

    def take_back(self) -> Job | None:
        """A job that helpers have taken, once they are through: to be taken from the cache, or carried out if they failed."""
        for thread in self._threads:
            thread.join()
        return self._taken.pop() if self._taken else None

    def end(self) -> None:
        """Ends what still runs."""
        with self._lock:
            self.helpers = 0
            for process in self._processes:
                process.kill()
        for thread in self._threads:
            thread.join()

    def _help(self, left: Left, announce: Callable[[str], None]) -> None:
        """One helper's work, a job at a time."""
        command = [sys.executable, "-P", "-m", "oss_tools.engine.compile_helper"]
        pipe = subprocess.PIPE
        with self._lock:
            if not self.helpers:
                return
            try:
                process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
            except OSError:  # all is compiled here
                return
            self._processes.append(process)
        with process:
            while job := left.take(self.recipes):
                self._taken.append(job)
                if not self._has_done(process, job[0], announce):
                    break
                left.finished(job[0])
            process.kill()

    def _has_done(self, process: subprocess.Popen[str], name: str, announce: Callable[[str], None]) -> bool:
        """Has one job done; False if the helper is gone."""
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps(self.recipes[name]) + "\n")
            process.stdin.flush()
        except OSError:
            return False
        while line := process.stdout.readline():
            if line == BEGINS:
                announce(name)
            elif line == DONE:
                return True
        return False
