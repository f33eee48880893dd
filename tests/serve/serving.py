"""Servers on loopback, in a thread of the tests' process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from oss_tools.engine.engine import Engine
from oss_tools.engine.turns import Turns
from oss_tools.serve.running import Server, address_of, listen
from oss_tools.serve.served import Served
from oss_tools.serve.settings import Settings


@dataclass
class Running:
    """A server that stands.

    Attributes:
        address: http://127.0.0.1:PORT.
        models: what it serves.
    """

    address: str
    models: dict[str, Served]

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=120, **options)  # type: ignore[arg-type]


@contextmanager
def running(engines: dict[str, Engine], settings: Settings | None = None) -> Iterator[Running]:
    """A server of these models; it ends with the block, and the engines with it."""
    settings = settings or Settings(port=0)
    turns = Turns()
    models = {name: Served.of(name, engine, settings, turns) for name, engine in engines.items()}
    listening = listen(settings)
    ready = threading.Event()
    server = Server(models, settings, ready.set)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield Running(address_of(listening), models)
    finally:
        server.should_exit = True
        thread.join(60)
        for served in models.values():
            served.scheduler.close()
            served.engine.close()
        listening.close()
