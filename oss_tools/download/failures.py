"""What goes wrong on the network: which failures may pass, how long to wait, and what a failure or a refusal means in words."""

from __future__ import annotations

import importlib
import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import gaierror
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from oss_tools.download.addresses import shown, without_addresses
from oss_tools.download.library import constants, get_session
from oss_tools.errors import BadSource, Unreachable

TRIES = 6  # without a byte of progress, of a server that has answered before
FIRST_TRIES = 2  # of one that never has
LONGEST_PAUSE = 300.0  # seconds; a server that asks for more is told of and left
TRANSIENT = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)
Say = Callable[[str], None]


class Transient(Exception):
    """A failure that may pass.

    Attributes:
        pause: seconds to wait, if the server said so.
        tries: how often in a row it is worth trying.
    """

    def __init__(self, message: str, pause: float | None = None, tries: int = TRIES) -> None:
        super().__init__(message)
        self.pause, self.tries = pause, tries


class Missing(BadSource):
    """There is no such file or repository (404)."""


class Changed(BadSource):
    """The file is another one than when the transfer began."""


class Patience:
    """Waits between tries, longer each time; gives up after as many without progress as the failure is worth."""

    def __init__(self, where: str, say: Say, sleep: Callable[[float], object] | None = None) -> None:
        self.where, self.say, self.sleep = where, say, sleep or time.sleep
        self.failures = 0

    def progress(self) -> None:
        self.failures = 0

    def wait(self, failure: Transient) -> None:
        """Raises Unreachable when it is time to give up."""
        self.failures += 1
        pause = min(2.0 ** (self.failures - 1), 30.0) if failure.pause is None else failure.pause
        if self.failures >= failure.tries or pause > LONGEST_PAUSE:
            times = f", {self.failures} times in a row" if failure.tries == TRIES else ""
            asked = f" and asks to wait {pause:.0f} s" if pause > LONGEST_PAUSE else times
            raise Unreachable(f"{shown(self.where)}: {failure}{asked}; the same command later goes on from here")
        if failure.tries == TRIES:
            self.say(f"{shown(self.where)}: {failure}; trying again in {pause:.0f} s")
        self.sleep(pause)


@contextmanager
def transient_failures(url: str, tries: Callable[[], int]) -> Iterator[None]:
    """Turns the HTTP library's failures of transport into Transient, worth so many `tries`, and what cannot pass (a certificate
    that is not trusted, offline mode) into Unreachable."""
    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])  # httpx, or its successor
    try:
        yield
    except library.TransportError as error:
        said = in_words(error, url)
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
            raise Unreachable(said) from None
        raise Transient(said, tries=tries()) from None
    except (library.InvalidURL, library.StreamError, UnicodeError) as error:
        raise BadSource(f"{shown(url)}: {without_addresses(str(error))[:200]}") from None
    except (ConnectionError, TimeoutError) as error:
        if constants.HF_HUB_OFFLINE:
            raise Unreachable(f"{shown(url)}: HF_HUB_OFFLINE is set; unset it to download") from None
        raise Transient(in_words(error, url), tries=tries()) from None


def in_words(error: BaseException, url: str) -> str:
    """What kept a server from answering, in a sentence that begins with its name, or that of the proxy on the way to it."""
    host = _host_and_port(url)
    kind, chain = type(error).__name__, list(_causes(error))
    proxy = _proxy_for(url)
    if kind == "ProxyError" or (proxy and kind.startswith("Connect")):
        host = f"the proxy {_host_and_port(proxy) if proxy else ''} on the way to {host}".replace("  ", " ")
    for cause in chain:
        if isinstance(cause, gaierror):
            return f"{host}: no address is found for this name: there is no network, or the name is wrong"
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message or "verification failed"
            return f"{host}: its certificate is not trusted ({reason}); SSL_CERT_FILE names further certificates to trust"
        if isinstance(cause, ssl.SSLError):
            return f"{host}: no secure connection: {(cause.reason or str(cause)).replace('_', ' ').lower()}"
        if isinstance(cause, ConnectionRefusedError):
            return f"{host} refuses the connection: nothing serves there"
    if "Timeout" in kind or any(isinstance(cause, TimeoutError) for cause in chain):
        return f"{host} does not answer in time"
    system = next((cause for cause in reversed(chain) if isinstance(cause, OSError) and cause.errno), None)
    if system is not None:
        return f"{host} cannot be reached: {os.strerror(system.errno or 0).lower()}"
    return f"{host}: {without_addresses(str(error))[:200] or kind}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was made of."""
    for _ in range(16):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _host_and_port(url: str) -> str:
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
    except ValueError:
        return shown(url)
    try:
        return f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname or shown(url)
    except ValueError:  # a port beyond 65535
        return parts.hostname or shown(url)


def _proxy_for(url: str) -> str:
    """The proxy that the environment names for an address, or ""."""
    parts, proxies = urlsplit(url), getproxies()
    if not parts.hostname or proxy_bypass(parts.hostname):
        return ""
    return proxies.get(parts.scheme) or proxies.get("all") or ""


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
    if status == 407:
        return BadSource(f"{where}: the proxy wants a name and a password (407); HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT")
    return BadSource(f"{where}: the server answers {status}; is this the address of a hub, or of a file?")
