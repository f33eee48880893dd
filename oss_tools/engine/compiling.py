"""Says when Numba compiles, as against taking machine code from its cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

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


def compile_all(jobs: Sequence[tuple[str, Callable[[], Any]]], on_compile: Callable[[int, int, str], None]) -> None:
    """Carries out jobs that compile, or take from the cache.

    `on_compile` is called as each compilation begins, with how many jobs are done, how many there are, and the job's name; and
    once at the end if anything was compiled.
    """
    done = 0
    compiled: set[int] = set()

    def begins() -> None:
        if done not in compiled:
            compiled.add(done)
            on_compile(done, len(jobs), jobs[done][0])

    with listening(begins):
        for _, job in jobs:
            job()
            done += 1
    if compiled:
        on_compile(len(jobs), len(jobs), "")
