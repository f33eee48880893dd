"""Reading stretches of remote files, and documents in JSON: redirects, the hub's token, retries, limits.

Requests go through huggingface_hub's session, so proxies, certificates and HF_HUB_OFFLINE are as everywhere with the hub; it
reads no netrc. The token is sent to the hub's own origin only (scheme, host and port), never along a redirect to another one.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from oss_tools import __version__
from oss_tools.download.addresses import check_address, check_endpoint, is_exposed, joined, same_origin, shown, split
from oss_tools.download.bodies import in_time, paced, whole_body
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
from oss_tools.download.library import constants, get_session, token
from oss_tools.errors import BadSource

REDIRECTS = 8
PATIENCE = 6  # times HF_HUB_DOWNLOAD_TIMEOUT, which is between two pieces: that headers and documents have to come in all
MAX_DOCUMENT = 4 << 20  # bytes of a hub's answer in JSON
MAX_SKIPPED = 256 << 20  # bytes before a stretch, of a server that gives whole files only
MAX_SIZE = 1 << 50  # bytes of a file
MAX_ETAG = 256  # characters
PIECE = 256 << 10  # bytes of a local file read at a time
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Document:
    """A hub's answer in JSON.

    Attributes:
        content: what it says.
        nbytes: of its text.
        link: the header Link, or "".
    """

    content: Any
    nbytes: int
    link: str


@dataclass(frozen=True)
class Answer:
    """An opened stretch of a remote file.

    Attributes:
        start: where it begins; 0 if the server ignores ranges.
        size: of the whole file, or None if the server does not say.
        ranges: whether the server gave the stretch that was asked for, and not the whole.
        etag: names this version of the file, or "".
        sha256: of the file as the hub publishes it, or "".
        pieces: the bytes as they are stored, in order; nothing is unpacked. Raises Transient.
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

    Raises BadSource for an endpoint that is no address, or a token that is none.
    """

    def __init__(self, endpoint: str | None = None, say: Say = lambda line: None) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        check_endpoint(self.endpoint)
        self.say = say
        found = token()
        self._token = f"Bearer {found}" if found else ""
        self.has_token = bool(found)
        if found and is_exposed(self.endpoint):
            say(f"{shown(self.endpoint)}: the token for the hub goes there without encryption; use https, or unset HF_TOKEN")
        self._headers = {"User-Agent": f"oss-tools/{__version__}", "Accept-Encoding": "identity"}
        self._answering: set[str] = set()  # servers that have

    @contextmanager
    def open(self, url: str, start: int = 0, stop: int | None = None, etag: str = "") -> Iterator[Answer]:
        """Bytes [start, stop) of a file, of the version `etag` if one is given. One try: raises Transient for what may pass,
        Missing, BadSource."""
        if split(url).scheme == "file":
            with _open_file(url, start, stop) as answer:
                yield answer
            return
        headers = dict(self._headers)
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
            if etag and not etag.startswith("W/"):
                headers["If-Range"] = etag
        with self._follow(url, headers, shown(url)) as (response, sha256):
            yield _answer(response, sha256, start, url)

    def document(self, url: str, where: str, limit: int = MAX_DOCUMENT) -> Document:
        """A document in JSON of at most so many bytes. `where` is for messages. Raises Unreachable, Missing, BadSource."""
        patience = Patience(where, self.say)
        while True:
            try:
                with self._follow(url, self._headers | {"Accept": "application/json"}, where) as (response, _):
                    data, link = whole_body(response, url, limit, _patience()), response.headers.get("Link", "")
                return Document(json.loads(data), len(data), link)
            except (ValueError, RecursionError):  # no JSON, no UTF-8, a number of thousands of digits
                raise BadSource(
                    f"{where}: {shown(self.endpoint)} does not answer as a hub does: what it says is no JSON"
                ) from None
            except Transient as failure:
                patience.wait(failure)

    @contextmanager
    def asking(self, url: str) -> Iterator[None]:
        """Around a request: its failures are Transient, worth fewer tries if that server has never answered."""
        server = split(url).netloc
        with transient_failures(url, lambda: TRIES if server in self._answering else FIRST_TRIES):
            yield
        self._answering.add(server)

    @contextmanager
    def _follow(self, url: str, headers: dict[str, str], where: str) -> Iterator[tuple[Any, str]]:
        """The response after all redirects, and the sha256 that the hub named on the way."""
        origin, sha256 = url, ""
        for _ in range(REDIRECTS):
            check_address(url)
            with self.asking(url), self._answer_of(url, headers) as response:
                self._answering.add(split(url).netloc)
                linked = (response.headers.get("X-Linked-Etag") or response.headers.get("ETag") or "").strip('"')
                if not sha256 and same_origin(url, self.endpoint) and SHA256.fullmatch(linked):
                    sha256 = linked
                if response.status_code not in (301, 302, 303, 307, 308):
                    self._check_status(response, url, origin, where)
                    yield response, sha256
                    return
                target = joined(url, response.headers.get("Location", ""))
            if split(url).scheme == "https" and split(target).scheme != "https":
                raise BadSource(f"{where}: redirects from https to {shown(target)}; refused")
            url = target
        raise BadSource(f"{where}: more than {REDIRECTS} redirects")

    @contextmanager
    def _answer_of(self, url: str, headers: dict[str, str]) -> Iterator[Any]:
        """The response to one request, without its body."""
        client = get_session()
        request = client.build_request("GET", url, headers=headers, timeout=float(constants.HF_HUB_DOWNLOAD_TIMEOUT))
        if self._token and same_origin(str(request.url), self.endpoint):  # the address as the client understands it
            request.headers["Authorization"] = self._token
        response = in_time(
            lambda: client.send(request, stream=True, auth=None, follow_redirects=False),
            _patience(),
            discard=lambda late: late.close(),
        )
        try:
            yield response
        finally:
            response.close()

    def _check_status(self, response: Any, url: str, origin: str, where: str) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if status in TRANSIENT:
            raise Transient(f"the server answers {status}", retry_after(response.headers))
        if status == 416:
            raise Changed(f"{where}: has become shorter")
        if status == 403 and not same_origin(url, origin):
            raise Transient("a signed address has expired")
        raise refusal(status, response.headers.get("X-Error-Code", ""), where, self.has_token)

    def read(self, url: str, start: int, stop: int) -> tuple[bytes, int | None]:
        """Bytes [start, stop) of a file, or fewer at its end, and the file's size. Raises Unreachable, Missing, BadSource."""
        patience = Patience(url, self.say)
        while True:
            try:
                with self.open(url, start, stop) as answer:
                    if start - answer.start > MAX_SKIPPED:
                        raise BadSource(f"{shown(url)}: the server gives no stretches of files; download it whole")
                    data = bytearray()
                    for piece in pieces_between(answer.pieces, answer.start, start, stop):
                        data += piece
                    return bytes(data), answer.size
            except Transient as failure:
                patience.wait(failure)


def _patience() -> float:
    """Seconds that headers, or a document, have to come in all."""
    return PATIENCE * float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _answer(response: Any, sha256: str, start: int, url: str) -> Answer:
    ranged = response.status_code == 206
    size = expected = _number(response.headers.get("Content-Length"))
    if ranged:
        match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != start:
            raise BadSource(f"{shown(url)}: the server answers with another range than the one asked for")
        size = None if match[2] == "*" else int(match[2])
    if size is not None and size >= MAX_SIZE:
        raise BadSource(f"{shown(url)}: the server says that the file has {size} bytes, which no file has")
    etag = response.headers.get("ETag", "")
    etag = etag if etag.isascii() and etag.isprintable() and len(etag) <= MAX_ETAG else ""
    pieces = _whole(paced(response.iter_raw(), _patience()), expected)  # as they come: nothing received waits to be counted
    return Answer(start if ranged else 0, size, ranged, etag, sha256, pieces)


def _whole(pieces: Iterator[bytes], expected: int | None) -> Iterator[bytes]:
    """The pieces; a body that ends early is a failure that may pass."""
    got = 0
    for piece in pieces:
        got += len(piece)
        yield piece
    if expected is not None and got < expected:
        raise Transient(f"the connection ended after {got} of {expected} bytes")


def pieces_between(pieces: Iterator[bytes], at: int, start: int, stop: int) -> Iterator[bytes]:
    """Of bytes that begin at position `at`, those in [start, stop); what comes behind them is not waited for."""
    for piece in pieces:
        part = piece[max(start - at, 0) : max(stop - at, 0)]
        at += len(piece)
        if part:
            yield part
        if at >= stop:
            return


@contextmanager
def _open_file(url: str, start: int, stop: int | None) -> Iterator[Answer]:
    path = Path(unquote(split(url).path))
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
    """Seconds of a Retry-After header, which holds a number or a date; None of anything else."""
    text = headers.get("Retry-After", "").strip()
    if (seconds := _number(text)) is not None:
        return float(seconds)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0) if text else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and len(text) < 20 and text.isascii() and text.isdecimal() else None


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return bool(constants.HF_HUB_OFFLINE)
