"""Addresses: which may be asked, whether two lie on one server, how they are shown."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urljoin, urlsplit

from oss_tools.errors import BadSource

PORTS = {"http": 80, "https": 443}
USER = re.compile(r"^((?:[A-Za-z][\w+.-]*:)?//)[^/?#]*@", re.ASCII)
IN_A_TEXT = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{0,15}://[^\s'\"<>]+")


def check_address(url: str) -> None:
    """Raises BadSource unless it is an http(s) address without a password in it."""
    parts = split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadSource(f"{shown(url)}: not an address that can be downloaded from; expected https://… or file://…")
    if _port(parts) is None:
        raise BadSource(f"{shown(url)}: its port is no number from 0 to 65535")
    if parts.username is not None or parts.password is not None:
        raise BadSource("an address with a user name or password in it; refused, as it would end in logs and manifests")


def check_endpoint(url: str) -> None:
    """Raises BadSource unless it is the address of a hub."""
    parts = split(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise BadSource(f"'{shown(url)}' is no hub's address (HF_ENDPOINT, --endpoint); it is like https://huggingface.co")
    check_address(url)


def split(url: str) -> SplitResult:
    """The parts of an address. Raises BadSource for what has none (an unfinished IPv6 address, …)."""
    try:
        return urlsplit(url)
    except ValueError as error:
        raise BadSource(f"{shown(url)}: no address: {without_addresses(str(error))[:100]}") from None


def joined(base: str, target: str) -> str:
    """The address that a server's answer at `base` names. Raises BadSource."""
    try:
        return urljoin(base, target)
    except ValueError:
        raise BadSource(f"{shown(base)}: redirects to what is no address: '{shown(target)}'") from None


def same_origin(a: str, b: str) -> bool:
    """Whether scheme, host and port agree. Raises BadSource for what is no address."""

    def origin(url: str) -> tuple[str, str, int | None]:
        parts = split(url)
        return parts.scheme, (parts.hostname or "").lower(), _port(parts)

    return a.isascii() and b.isascii() and origin(a) == origin(b) and None not in origin(a)


def is_exposed(url: str) -> bool:
    """Whether what is sent there can be read on the way: http to another machine."""
    parts = split(url)
    host = (parts.hostname or "").lower()
    if parts.scheme != "http" or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def _port(parts: SplitResult) -> int | None:
    """The port that is written or usual; None for a number that is none."""
    try:
        return PORTS.get(parts.scheme) if parts.port is None else parts.port
    except ValueError:
        return None


def shown(url: str) -> str:
    """An address without its query, which may hold a signature, without a name and password, control characters escaped."""
    text = USER.sub(r"\1", re.split(r"[?#]", url, maxsplit=1)[0])[:200]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def without_addresses(text: str) -> str:
    """A text of somebody else's, its addresses as `shown`."""
    return IN_A_TEXT.sub(lambda found: shown(found[0]), text)
