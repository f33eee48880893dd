"""Several engines on the same cores: who works next."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """A lock that is given in the order in which it was asked for: several engines share the cores pass by pass."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        own = threading.Lock()
        own.acquire()
        with self._lock:
            self._line.append(own)
            if len(self._line) == 1:
                return
        own.acquire()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._line.popleft()
            if self._line:
                self._line[0].release()
