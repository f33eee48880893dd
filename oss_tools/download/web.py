"""Reading stretches of remote files: redirects, the hub's token, retries.

Requests go through huggingface_hub's session, so proxies, certificates and HF_HUB_OFFLINE are as everywhere with the hub.
The token is sent to the hub's own origin only, never along a redirect to another one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers

from oss_tools import __version__
from oss_tools.download.addresses import check_address, same_origin, shown
from oss_tools.download.failures import (
    FIRST_TRIES,
    TRANSIENT,
    TRIES,
    Changed,
    Missing,
    Patience,
    Say,
    Transient,
    refusal,
    transient_failures,
)
from oss_tools.errors import BadSource

REDIRECTS = 8
PIECE = 256 << 10  # bytes of a local file read at a time
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Answer:
    """An opened stretch of a remote file.

    Attributes:
        start: where it begins; 0 if the server ignores ranges.
        size: of the whole file, or None if the server does not say.
        ranges: whether the server gave the stretch that was asked for, and not the whole.
        etag: names this version of the file, or "".
        sha256: of the file as the hub publishes it, or "".
        pieces: the bytes, in order. Raises Transient.
    """

    start: int
    size: int | None
    ranges: bool
    etag: str
    sha256: str
    pieces: Iterator[bytes]


class Web:
    """Opens remote files of a hub and elsewhere.

    Attributes:
        endpoint: the hub's address, without a slash at the end.
        say: is told, in a line, of every retry.
        has_token: whether there is a token for the hub.

    Raises BadSource for an endpoint that is no address.
    """

    def __init__(self, endpoint: str | None = None, say: Say = lambda line: None) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadSource(
                f"{self.endpoint!r} is no hub's address (HF_ENDPOINT, --endpoint); it is like https://huggingface.co"
            )
        self.say = say
        headers = build_hf_headers(library_name="oss-tools", library_version=__version__)
        self._token = headers.pop("authorization", "")
        self.has_token = bool(self._token)
        self._headers = headers | {"Accept-Encoding": "identity"}
        self._answering: set[str] = set()  # servers that have

    @contextmanager
    def open(self, url: str, start: int = 0, stop: int | None = None, etag: str = "") -> Iterator[Answer]:
        """Bytes [start, stop) of a file, of the version `etag` if one is given. One try: raises Transient for what may pass,
        Missing, BadSource."""
        if urlsplit(url).scheme == "file":
            with _open_file(url, start, stop) as answer:
                yield answer
            return
        headers = dict(self._headers)
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
            if etag and not etag.startswith("W/"):
                headers["If-Range"] = etag
        with self._follow(url, headers) as (response, sha256):
            yield _answer(response, sha256, start, url)

    @contextmanager
    def asking(self, url: str) -> Iterator[None]:
        """Around a request: its failures are Transient, worth fewer tries if that server has never answered."""
        server = urlsplit(url).netloc
        with transient_failures(url, lambda: TRIES if server in self._answering else FIRST_TRIES):
            yield
        self._answering.add(server)

    @contextmanager
    def _follow(self, url: str, headers: dict[str, str]) -> Iterator[tuple[Any, str]]:
        """The response after all redirects, and the sha256 that the hub named on the way."""
        origin, sha256 = url, ""
        for _ in range(REDIRECTS):
            check_address(url)
            allowed = {"authorization": self._token} if self._token and same_origin(url, self.endpoint) else {}
            timeout = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
            with (
                self.asking(url),
                get_session().stream(
                    "GET", url, headers=headers | allowed, follow_redirects=False, timeout=timeout
                ) as response,
            ):
                self._answering.add(urlsplit(url).netloc)
                linked = (response.headers.get("X-Linked-Etag") or response.headers.get("ETag") or "").strip('"')
                if not sha256 and same_origin(url, self.endpoint) and SHA256.fullmatch(linked):
                    sha256 = linked
                if response.status_code not in (301, 302, 303, 307, 308):
                    self._check_status(response, url, origin)
                    yield response, sha256
                    return
                target = urljoin(url, response.headers.get("Location", ""))
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise BadSource(f"{shown(origin)}: redirects from https to {shown(target)}; refused")
            url = target
        raise BadSource(f"{shown(origin)}: more than {REDIRECTS} redirects")

    def _check_status(self, response: Any, url: str, origin: str) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if status in TRANSIENT:
            raise Transient(f"the server answers {status}", retry_after(response.headers))
        if status == 416:
            raise Changed(f"{shown(origin)}: has become shorter")
        if status == 403 and not same_origin(url, origin):
            raise Transient("a signed address has expired")
        raise refusal(status, response.headers.get("X-Error-Code", ""), shown(origin), self.has_token)

    def read(self, url: str, start: int, stop: int) -> tuple[bytes, int | None]:
        """Bytes [start, stop) of a file, or fewer at its end, and the file's size. Raises Unreachable, Missing, BadSource."""
        patience = Patience(url, self.say)
        while True:
            try:
                with self.open(url, start, stop) as answer:
                    data, skip = b"", start - answer.start
                    for piece in answer.pieces:
                        data += piece
                        if len(data) >= skip + stop - start:
                            break
                    return data[skip : skip + stop - start], answer.size
            except Transient as failure:
                patience.wait(failure)


def _answer(response: Any, sha256: str, start: int, url: str) -> Answer:
    ranged = response.status_code == 206
    size = _number(response.headers.get("Content-Length"))
    if ranged:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != start:
            raise BadSource(f"{shown(url)}: the server answers with another range than the one asked for")
        size = None if match[3] == "*" else int(match[3])
    expected = _number(response.headers.get("Content-Length"))
    pieces = _whole(response.iter_raw(), expected)  # as they come: nothing received waits to be counted
    return Answer(start if ranged else 0, size, ranged, response.headers.get("ETag", ""), sha256, pieces)


def _whole(pieces: Iterator[bytes], expected: int | None) -> Iterator[bytes]:
    """The pieces; a body that ends early is a failure that may pass."""
    got = 0
    for piece in pieces:
        got += len(piece)
        yield piece
    if expected is not None and got < expected:
        raise Transient(f"the connection ended after {got} of {expected} bytes")


@contextmanager
def _open_file(url: str, start: int, stop: int | None) -> Iterator[Answer]:
    path = Path(unquote(urlsplit(url).path))
    if not path.is_file():
        raise Missing(f"{path}: no such file")
    status = path.stat()
    end = status.st_size if stop is None else min(stop, status.st_size)

    def pieces() -> Iterator[bytes]:
        left = end - start
        while left > 0 and (piece := file.read(min(PIECE, left))):
            left -= len(piece)
            yield piece

    with path.open("rb") as file:
        file.seek(start)
        yield Answer(start, status.st_size, True, f"{status.st_mtime_ns}-{status.st_size}", "", pieces())


def retry_after(headers: Any) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date."""
    text = headers.get("Retry-After", "").strip()
    if (seconds := _number(text)) is not None:
        return float(seconds)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0) if text else None
    except ValueError:
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) < 20 and text.isascii() and text.isdecimal() else None


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return bool(constants.HF_HUB_OFFLINE)
