"""Reading stretches of remote files: redirects, the hub's token, retries, and what a refusal means in words.

Requests go through huggingface_hub's session, so proxies, certificates and HF_HUB_OFFLINE are as everywhere with the hub.
The token is sent to the hub's own origin only, never along a redirect to another one.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers

from oss_tools import __version__
from oss_tools.errors import BadSource, Unreachable

REDIRECTS = 8
PIECE = 256 << 10  # bytes of a local file read at a time
TRIES = 6  # without a byte of progress
LONGEST_PAUSE = 300.0  # seconds; a server that asks for more is told of and left
TRANSIENT = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
SHA256 = re.compile(r"[0-9a-f]{64}")
Say = Callable[[str], None]


class Transient(Exception):
    """A failure that may pass: worth another try, after `pause` seconds if the server said so."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class Missing(BadSource):
    """There is no such file or repository (404)."""


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
    """

    def __init__(self, endpoint: str | None = None, say: Say = lambda line: None) -> None:
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.say = say
        headers = build_hf_headers(library_name="oss-tools", library_version=__version__)
        self._token = headers.pop("authorization", "")
        self.has_token = bool(self._token)
        self._headers = headers | {"Accept-Encoding": "identity"}

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
        with transient_failures(url), self._follow(url, headers) as (response, sha256):
            yield _answer(response, sha256, start, url)

    @contextmanager
    def _follow(self, url: str, headers: dict[str, str]) -> Iterator[tuple[Any, str]]:
        """The response after all redirects, and the sha256 that the hub named on the way."""
        origin, sha256 = url, ""
        for _ in range(REDIRECTS):
            check_address(url)
            allowed = {"authorization": self._token} if self._token and same_origin(url, self.endpoint) else {}
            timeout = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
            with get_session().stream(
                "GET", url, headers=headers | allowed, follow_redirects=False, timeout=timeout
            ) as response:
                linked = (response.headers.get("X-Linked-Etag") or response.headers.get("ETag") or "").strip('"')
                if not sha256 and same_origin(url, self.endpoint) and SHA256.fullmatch(linked):
                    sha256 = linked
                if response.status_code not in (301, 302, 303, 307, 308):
                    self._check_status(response, url, origin)
                    yield response, sha256
                    return
                target = urljoin(url, response.headers.get("Location", ""))
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                raise BadSource(f"{origin}: redirects from https to {shown(target)}; refused")
            url = target
        raise BadSource(f"{origin}: more than {REDIRECTS} redirects")

    def _check_status(self, response: Any, url: str, origin: str) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        if status in TRANSIENT:
            raise Transient(f"the server answers {status}", retry_after(response.headers))
        if status == 416:
            raise Changed(f"{origin}: has become shorter")
        if status == 403 and not same_origin(url, origin):
            raise Transient("a signed address has expired")
        raise refusal(status, response.headers.get("X-Error-Code", ""), origin, self.has_token)

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


class Changed(BadSource):
    """The file is another one than when the transfer began."""


class Patience:
    """Waits between tries, longer each time; gives up after `TRIES` without progress."""

    def __init__(self, where: str, say: Say, sleep: Callable[[float], object] | None = None) -> None:
        self.where, self.say, self.sleep = where, say, sleep or time.sleep
        self.failures = 0

    def progress(self) -> None:
        self.failures = 0

    def wait(self, failure: Transient) -> None:
        """Raises Unreachable when it is time to give up."""
        self.failures += 1
        pause = min(2.0 ** (self.failures - 1), 30.0) if failure.pause is None else failure.pause
        if self.failures >= TRIES or pause > LONGEST_PAUSE:
            asked = f" and asks to wait {pause:.0f} s" if pause > LONGEST_PAUSE else f", {self.failures} times in a row"
            raise Unreachable(f"{shown(self.where)}: {failure}{asked}; the same command later goes on from here")
        self.say(f"{shown(self.where)}: {failure}; trying again in {pause:.0f} s")
        self.sleep(pause)


def refusal(status: int, code: str, where: str, has_token: bool) -> BadSource:
    """What a refusing answer means, and what to do."""
    gated = code == "GatedRepo"
    login = "set HF_TOKEN to a token of https://huggingface.co/settings/tokens, or run `hf auth login`"
    if gated and not has_token:
        return BadSource(f"{where}: this repository is gated: accept its terms on its web page, then {login}")
    if gated:
        return BadSource(f"{where}: this repository is gated and your token has no access: accept its terms on its web page")
    if code == "RevisionNotFound":
        return Missing(f"{where}: there is no such revision; check --revision")
    if status == 401 and not has_token:
        return Missing(f"{where}: there is no such repository, or it is private: check the name, or {login}")
    if status in (404, 410) or (code == "RepoNotFound"):
        hint = "check the name" if has_token else f"check the name; if it is private, {login}"
        return Missing(f"{where}: not found ({status}); {hint}")
    if status in (401, 403):
        return BadSource(
            f"{where}: access refused ({status}); your token may have expired or lack the right to read; {login}"
        )
    return BadSource(f"{where}: the server answers {status}")


def check_address(url: str) -> None:
    """Raises BadSource unless it is an http(s) address without a password in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadSource(f"{shown(url)}: not an address that can be downloaded from; expected https://… or file://…")
    if parts.username or parts.password:
        raise BadSource("an address with a user name or password in it; refused, as it would end in logs and manifests")


def same_origin(a: str, b: str) -> bool:
    """Whether scheme, host and port agree."""
    ports = {"http": 80, "https": 443}

    def origin(url: str) -> tuple[str, str, int | None]:
        parts = urlsplit(url)
        return parts.scheme, (parts.hostname or "").lower(), parts.port or ports.get(parts.scheme)

    return origin(a) == origin(b)


def shown(url: str) -> str:
    """An address without its query, which may hold a signature."""
    return url.partition("?")[0][:200]


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
def transient_failures(url: str) -> Iterator[None]:
    """Turns the HTTP library's failures of transport into Transient, and refusal by offline mode into Unreachable."""
    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])  # httpx, or its successor
    try:
        yield
    except library.TransportError as error:
        raise Transient(str(error) or type(error).__name__) from None
    except (library.InvalidURL, library.StreamError) as error:
        raise BadSource(f"{shown(url)}: {error}") from None
    except ConnectionError as error:
        if constants.HF_HUB_OFFLINE:
            raise Unreachable(f"{shown(url)}: HF_HUB_OFFLINE is set; unset it to download") from None
        raise Transient(str(error)) from None


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
    if text.isdigit():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0) if text else None
    except ValueError:
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """The hub's cache: HF_HUB_CACHE, or HF_HOME/hub."""
    return Path(os.path.expanduser(constants.HF_HUB_CACHE))
