"""Pages over HTTP for a model, which may ask for any address: only what was named is reached.

Every address is checked, those of redirects too. A name is resolved once, each of its addresses is checked, and the connection
goes to one that was. Nothing of the environment is used: no proxy, no netrc, no cookies.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from oss_tools import __version__
from oss_tools.chat.tools.base import ToolError
from oss_tools.errors import BadRequest

REDIRECTS = 5
SECONDS = 20.0  # for a page, redirects and all
MOST_BYTES = 4 << 20  # of a page, unpacked
LONGEST_ADDRESS = 4096
READ = 65536
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses in IPv6's
TEXTS = re.compile(r"(text/[\w.+-]+|application/(json|xml|xhtml\+xml|[\w.-]+\+(json|xml)))", re.IGNORECASE)
CHARSET = re.compile(r"charset\s{0,9}=\s{0,9}[\"']?([\w-]{1,40})", re.IGNORECASE)
HOST = re.compile(r"(\*\.)?[a-z0-9_](?:[a-z0-9._-]{0,250}[a-z0-9_])?|\[[0-9a-f:.]{2,45}\]", re.IGNORECASE)
UNQUOTED = "/%:@!$&'()*+,;=~?"
PUBLIC = "public"
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Place:
    """Hosts that may be reached: one, or (`*.example.org`) all below it. `port` None: the usual ones. `private`: its name may
    lead to loopback and private addresses."""

    host: str
    port: int | None = None
    private: bool = False

    @classmethod
    def of(cls, text: str, where: str, private: bool = False) -> Place:
        """From `host`, `host:port`, `*.host`. Raises BadRequest."""
        host, _, port = text.rpartition(":") if re.search(r":\d+\Z", text) and not text.endswith("::") else (text, "", "")
        if not HOST.fullmatch(host) or (port and not 0 < int(port) < 65536):
            raise BadRequest(f"{where}: {ascii(text)[:60]} is no host; write example.org, *.example.org or intranet:8080")
        return cls(host.lower().strip("[]"), int(port) if port else None, private)

    @classmethod
    def of_address(cls, url: str, where: str) -> Place:
        """The origin of an address that the user names, wherever it lies. Raises BadRequest."""
        try:
            scheme, host, port = _split(url)
        except ToolError as error:
            raise BadRequest(f"{where}: {error}") from None
        return cls(host, port if port is not None else PORTS[scheme], private=True)

    def holds(self, scheme: str, host: str, port: int) -> bool:
        fits = host.endswith(self.host[1:]) if self.host.startswith("*.") else host == self.host
        return fits and port == (PORTS[scheme] if self.port is None else self.port)


@dataclass(frozen=True)
class Answer:
    """What an address gave: where it was found in the end, its type, its text."""

    url: str
    kind: str
    text: str


class Fetcher:
    """Fetches texts from the places that were named.

    Attributes:
        places: that may be reached.
        public: whether every public address may be, at the usual ports.
    """

    def __init__(self, places: Iterable[Place] = (), public: bool = False, seconds: float = SECONDS) -> None:
        self.places, self.public, self._seconds = tuple(places), public, seconds

    def get(self, url: str, accept: str = "text/html, text/*;q=0.9, application/json;q=0.5") -> Answer:
        """A text. Raises ToolError for what may not be reached, does not answer, is too large or no text."""
        deadline = time.monotonic() + self._seconds
        for _ in range(REDIRECTS + 1):
            with self._asked(url, accept, deadline) as response:
                location = response.getheader("Location", "")
                if response.status in (301, 302, 303, 307, 308) and location:
                    target = _joined(url, location)
                    if url.startswith("https:") and not target.startswith("https:"):
                        raise ToolError(f"{shown(url)} redirects from https to {shown(target)}; refused")
                    url = target
                    continue
                return _read(response, url)
        raise ToolError(f"{shown(url)}: more than {REDIRECTS} redirects")

    @contextlib.contextmanager
    def _asked(self, url: str, accept: str, deadline: float) -> Iterator[http.client.HTTPResponse]:
        scheme, host, given = _split(url)
        port = PORTS[scheme] if given is None else given
        address = self._allowed(url, scheme, host, port)
        left = max(deadline - time.monotonic(), 0.001)
        connection = _Pinned(scheme, host, port, address, left)
        watch = threading.Timer(left, connection.abort)  # a server that sends a letter now and then is waited for no longer
        watch.daemon = True
        try:
            watch.start()
            headers = {"User-Agent": f"oss-tools/{__version__}", "Accept": accept, "Accept-Encoding": "identity, gzip"}
            connection.request("GET", _target(url), headers=headers)
            yield connection.getresponse()
            if connection.aborted:  # what was read may end too early
                raise TimeoutError
        except (OSError, http.client.HTTPException, ValueError, zlib.error) as error:
            late = time.monotonic() >= deadline
            why = f"no answer within {self._seconds:g} seconds" if late else _reason(error)
            raise ToolError(f"{shown(url)}: {why}") from None
        finally:
            watch.cancel()
            connection.close()

    def _allowed(self, url: str, scheme: str, host: str, port: int) -> tuple[int, str]:
        """The address to connect to: family and number. Raises ToolError if it may not be reached."""
        place = next((place for place in self.places if place.holds(scheme, host, port)), None)
        if place is None and not (self.public and port == PORTS[scheme]):
            raise ToolError(f"{shown(url)} is not among the pages that may be opened: {self._named()}")
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise ToolError(f"{shown(url)}: there is no host {host[:100]}") from None
        addresses = [(int(family), str(address[0])) for family, _, _, _, address in found]
        if not (place and place.private) and (bad := [a for _, a in addresses if not is_public(a)]):
            raise ToolError(f"{shown(url)} leads to {bad[0]}, an address of this machine or its network; refused")
        if not addresses:
            raise ToolError(f"{shown(url)}: there is no host {host[:100]}")
        return addresses[0]

    def _named(self) -> str:
        names = [place.host + (f":{place.port}" if place.port else "") for place in self.places]
        return ", ".join([*(["public addresses"] if self.public else []), *names]) or "none"


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also one that stands in another (IPv4 in IPv6)."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in NAT64 or (found.packed[:12] == bytes(12) and int(found) > 1):
            inner = ipaddress.IPv4Address(found.packed[12:])
        if found.teredo or found.is_site_local or (inner is not None and not is_public(str(inner))):
            return False
        if inner is not None:
            return True
    return found.is_global and not found.is_multicast and not found.is_reserved and not found.is_unspecified


def shown(url: str) -> str:
    """An address for messages: without what may be secret in it, and not long."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return ascii(url)[:100]
    text = f"{parts.scheme}://{host}{parts.path}"
    return text if len(text) <= 200 else text[:200] + "…"


def _split(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of an address. Raises ToolError for what is none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ToolError(f"{ascii(url)[:100]} is no address") from None
    if len(url) > LONGEST_ADDRESS or parts.scheme not in PORTS or not host or re.search(r"[\x00-\x20\x7f\\]", url):
        raise ToolError(f"{ascii(url)[:100]} is no address of http or https")
    if parts.username is not None or parts.password is not None:
        raise ToolError(f"{shown(url)}: an address with a user's name is refused")
    return parts.scheme, host.lower().rstrip("."), port


def _target(url: str) -> str:
    """The path and the query that are asked for."""
    parts = urlsplit(url)
    path, query = quote(parts.path or "/", safe=UNQUOTED), quote(parts.query, safe=UNQUOTED)
    return f"{path}?{query}" if query else path


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location.strip())
    except ValueError:
        raise ToolError(f"{shown(url)} redirects to {ascii(location)[:60]}, which is no address") from None


def _reason(error: Exception) -> str:
    text = str(getattr(error, "strerror", "") or error) or type(error).__name__
    return " ".join(text.split())[:200]


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, whatever its name leads to by then."""

    def __init__(self, scheme: str, host: str, port: int, address: tuple[int, str], timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._scheme, self._address = scheme, address
        self.aborted = False
        self._live: socket.socket | None = None  # the library forgets it when an answer has begun
        if port == PORTS[scheme]:
            self.default_port = port  # not told in the header Host

    def connect(self) -> None:
        family, address = self._address
        plain = socket.socket(family, socket.SOCK_STREAM)
        self.sock = self._live = plain
        plain.settimeout(self.timeout)
        plain.connect((address, self.port))
        if self._scheme == "https":
            context = ssl.create_default_context()
            self.sock = self._live = context.wrap_socket(plain, server_hostname=self.host)
        if self.aborted:
            self.abort()

    def abort(self) -> None:
        """From another thread: whoever waits for this connection waits no more."""
        self.aborted = True
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.shutdown(socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse, url: str) -> Answer:
    kind = response.getheader("Content-Type", "text/plain")
    if response.status != 200:
        raise ToolError(f"{shown(url)}: the server answers {response.status}")
    if not TEXTS.match(kind.strip()):
        raise ToolError(f"{shown(url)}: is {ascii(kind)[1:60].rstrip(chr(39))}, no text")
    data = _unpacked(response, url)
    found = CHARSET.search(kind) or (CHARSET.search(data[:2048].decode("latin-1")) if "html" in kind else None)
    try:
        text = data.decode(found[1] if found else "utf-8", "replace")
    except LookupError:
        text = data.decode("utf-8", "replace")
    return Answer(url, kind.partition(";")[0].strip().lower(), text.removeprefix("\ufeff"))


def _unpacked(response: http.client.HTTPResponse, url: str) -> bytes:
    """The body, at most MOST_BYTES."""
    encoding = response.getheader("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip"):
        raise ToolError(f"{shown(url)}: is packed as {ascii(encoding)[:30]}, which was not asked for")
    unpacker = zlib.decompressobj(31) if "gzip" in encoding else None
    found = bytearray()
    while len(found) <= MOST_BYTES and (piece := response.read1(READ)):
        found += unpacker.decompress(piece, MOST_BYTES + 1) if unpacker else piece
    if len(found) > MOST_BYTES:
        raise ToolError(f"{shown(url)}: is larger than {MOST_BYTES >> 20} MiB")
    return bytes(found)
