"""Starts a server, and ends it in order."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from oss_tools.errors import BadRequest
from oss_tools.serve.app import create_app
from oss_tools.serve.served import Served
from oss_tools.serve.settings import Settings

BACKLOG = 512  # connections that wait to be taken
MOST_CONNECTIONS = 1024  # at a time; more are told 503
LAST_SECONDS = 10  # that answers have to end in when the server is to stop


def listen(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say. Raises BadRequest where it cannot."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, number)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadRequest(
            f"cannot listen on {settings.host} port {settings.port}: {reason}; --port 0 takes a free one"
        ) from None
    found.listen(BACKLOG)
    return found


def address_of(listening: socket.socket) -> str:
    """The address for clients."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, models: dict[str, Served], settings: Settings, ready: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            create_app(models, settings),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LAST_SECONDS,
            limit_concurrency=MOST_CONNECTIONS,
            lifespan="off",
        )
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals end the server, and no more: whoever called it goes on behind it. A second Ctrl-C does not wait for answers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    models: dict[str, Served], settings: Settings, listening: socket.socket, ready: Callable[[], None] = lambda: None
) -> None:
    """Serves until a signal (Ctrl-C, SIGTERM) ends it: running answers have some seconds to end, then they are cancelled."""
    Server(models, settings, ready).run([listening])
