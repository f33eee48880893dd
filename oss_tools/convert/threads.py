"""Threads that stop at the first error, and at Ctrl-C; and what they bring out of turn, taken in turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):
    """Raised by work that was told to stop: another item failed, or the user interrupted."""


class Stop:
    """Tells work in progress to stop; `check` is called between chunks."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raises Stopped if the work is to stop."""
        if self._event.is_set():
            raise Stopped


def in_threads(work: Callable[[Item, Stop], None], items: Iterable[Item], workers: int) -> None:
    """Runs work on every item, begun in turn, `workers` at a time. The first error is raised once all threads have stopped."""
    stop, taken = Stop(), _Shared(items)

    def worker() -> None:
        for item in taken:
            stop.check()
            work(item, stop)

    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(worker) for _ in range(workers)]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in sorted(
                done, key=lambda future: isinstance(future.exception(), Stopped)
            ):  # what stopped them first
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


class _Shared(Generic[Item]):
    """An iterator that several threads take from."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        with self._lock:
            return next(self._items)


class InTurn(Generic[Result]):
    """Hands results on in the order of their numbers, 0, 1, 2, …, one at a time, in whatever order threads bring them.

    A thread that brings the next result hands on those that wait behind it too; the others do not wait for it, unless so many
    results wait already that memory would fill.
    """

    def __init__(self, take: Callable[[Result], None], most: int) -> None:
        """take: is called with each result. most: how many may wait."""
        self._take = take
        self._most = most
        self._waiting: dict[int, Result] = {}
        self._next = 0
        self._taking = False
        self._changed = threading.Condition()

    def bring(self, number: int, result: Result, stop: Stop) -> None:
        """Raises Stopped if the work is to stop while it waits."""
        with self._changed:
            while number - self._next > self._most:
                stop.check()
                self._changed.wait(timeout=0.1)
            self._waiting[number] = result
            if self._taking:
                return
            self._taking = True
        while True:
            with self._changed:
                if self._next not in self._waiting:
                    self._taking = False
                    return
                found = self._waiting.pop(self._next)
            self._take(found)
            with self._changed:
                self._next += 1
                self._changed.notify_all()
