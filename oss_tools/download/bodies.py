"""Answers of servers within limits: headers by a deadline, bodies not too slow and not too large, however they are packed."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any, TypeVar

from oss_tools.download.addresses import shown
from oss_tools.download.failures import Transient
from oss_tools.errors import BadSource

Result = TypeVar("Result")
SLOWEST = 1024  # bytes a second, on average, that a body must bring
IDENTITY = ("", "identity")
GZIP = ("gzip", "x-gzip")


def in_time(work: Callable[[], Result], seconds: float, discard: Callable[[Result], object] = lambda result: None) -> Result:
    """What `work` returns, or raises. Raises TimeoutError if that takes longer than `seconds`: a timeout between two bytes does
    not end a server that sends one now and then. What comes later is given to `discard`, in another thread."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # it is raised where the result is waited for
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    done = False
    try:
        done = bool(wait([future], seconds).done)
    finally:
        if not done:  # or after Ctrl-C
            future.add_done_callback(lambda late: late.exception() or discard(late.result()))
    if not done:
        raise TimeoutError(f"nothing within {seconds:g} s")
    return future.result()


def paced(pieces: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    """The pieces of a body. Raises Transient if after `seconds` they have come slower than `SLOWEST` on average."""
    began, got = time.monotonic(), 0
    for piece in pieces:
        got += len(piece)
        yield piece
        passed = time.monotonic() - began
        if passed > seconds and got < SLOWEST * passed:
            raise Transient(f"the server sent {got} bytes in {passed:.0f} s")


def whole_body(response: Any, url: str, limit: int, seconds: float) -> bytes:
    """A body, unpacked where it comes as gzip, within `seconds` (from now) and `limit` (bytes, packed and unpacked).

    Raises BadSource for what is larger, damaged or packed otherwise; Transient for what is slow or breaks off.
    """
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding not in (*IDENTITY, *GZIP):
        raise BadSource(f"{shown(url)}: the answer is packed as {coding[:40]!r}, which was not asked for")
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16) if coding in GZIP else None
    ends, received, content = time.monotonic() + seconds, 0, bytearray()
    for piece in response.iter_raw():
        received += len(piece)
        try:
            content += unpacking.decompress(piece, limit + 1 - len(content)) if unpacking else piece
        except zlib.error:
            raise BadSource(f"{shown(url)}: the answer is no gzip, though its header says so") from None
        if max(received, len(content)) > limit:
            raise BadSource(f"{shown(url)}: an answer of more than {limit >> 20} MiB; no such answer needs that")
        if time.monotonic() > ends:
            raise Transient(f"no whole answer within {seconds:g} s")
    if unpacking and not unpacking.eof:
        raise Transient("the answer ended early")
    return bytes(content)
