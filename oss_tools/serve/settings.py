"""What a server is started with."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from oss_tools.chat.tools.base import Tool
from oss_tools.errors import BadRequest

MOST_BODY = 32 << 20


@dataclass(frozen=True)
class Settings:
    """The settings of a server.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        api_key: what clients must send; None for a server that only this machine reaches.
        origins: of pages in browsers that may call it, beside its own.
        parallel, queue: the most requests that a model works on, and that wait for it.
        max_body: bytes of a request.
        body_seconds, send_seconds: how long a client may take to send a body, or to take a piece of an answer.
        tools: those that the server carries out itself, by name.
        rounds: how often the model is asked for one answer when it calls them.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    parallel: int = 8
    queue: int = 64
    max_body: int = MOST_BODY
    body_seconds: float = 30.0
    send_seconds: float = 60.0
    tools: Mapping[str, Tool] = field(default_factory=dict)
    rounds: int = 8

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.api_key:
            raise BadRequest(f"--host {self.host} lets other machines in: name a file that holds a key with --api-key-file")


def is_loopback(host: str) -> bool:
    """Whether an address, or a name for one, is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
