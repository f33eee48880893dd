"""A pool of threads that stops at the first error, and at Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")


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
    """Runs work on every item, in turn, `workers` at a time. The first error is raised once all threads have stopped."""
    stop = Stop()
    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(work, item, stop) for item in items]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
