"""Servers as processes, and a client that costs little: it shares the cores with what it measures."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oss_tools.errors import Unreachable

READY = re.compile(r"http://([\d.]+):(\d+)")
START_SECONDS = 180.0


@dataclass(frozen=True)
class Address:
    host: str
    port: int


@contextmanager
def started(command: list[str], port: int | None = None) -> Iterator[tuple[Address, int]]:
    """A server and its process, until the block ends. `port`: where it will listen; None reads it from the line that it prints
    when it is ready. Raises Unreachable."""
    stdout = subprocess.PIPE if port is None else subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL, text=True)
    try:
        yield (_announced(process) if port is None else _answering(process, port)), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _announced(process: subprocess.Popen[str]) -> Address:
    assert process.stdout
    for line in process.stdout:
        if found := READY.search(line):
            return Address(found[1], int(found[2]))
    raise Unreachable(f"the server did not start: exit status {process.wait()}")


def _answering(process: subprocess.Popen[str], port: int) -> Address:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return Address("127.0.0.1", port)
    raise Unreachable("the server did not start")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def our_command(model: Path | str, threads: int, parallel: int, *more: str) -> list[str]:
    """What starts this program's server."""
    options = ["--port", "0", "--threads", str(threads), "--parallel", str(parallel), "--quiet", *more]
    return [sys.executable, "-P", "-m", "oss_tools", "serve", f"model={model}", *options]


def resident_bytes(process: int) -> int:
    """Memory of a process (Linux), 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Answer:
    """A response: its status, then its body as it comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.status = 0
        self.headers: dict[str, str] = {}

    async def begin(self) -> None:
        self.status = int((await self._line()).split()[1])
        while line := await self._line():
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()

    async def _line(self) -> str:
        line = await self._reader.readline()
        if not line:
            raise ConnectionResetError("the server closed the connection")
        return line.decode("latin-1").rstrip("\r\n")

    async def parts(self) -> AsyncIterator[bytes]:
        """The body, in the pieces in which it was sent."""
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(await self._line(), 16):
                yield await self._reader.readexactly(size)
                await self._line()
            await self._line()
        else:
            yield await self._reader.readexactly(int(self.headers.get("content-length", 0)))

    async def events(self) -> AsyncIterator[Any]:
        """The data of server-sent events, without the last."""
        held = b""
        async for part in self.parts():
            *whole, held = (held + part).replace(b"\r\n", b"\n").split(b"\n\n")
            for text in whole:
                if text.startswith(b"data: ") and not text.endswith(b"[DONE]"):
                    yield json.loads(text[6:])

    async def json(self) -> Any:
        return json.loads(b"".join([part async for part in self.parts()]))

    def close(self) -> None:
        self.writer.close()


async def post(address: Address, path: str, body: Any, claimed: int | None = None) -> Answer:
    """Sends a body (bytes as they are, else as JSON) and waits for the head of the answer. `claimed`: the length that is
    announced, where that is another than the body's."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    head = f"POST {path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data) if claimed is None else claimed}\r\n\r\n".encode() + data)
    answer = Answer(reader, writer)
    try:
        await writer.drain()
        await answer.begin()
    except BaseException:
        writer.close()
        raise
    return answer
