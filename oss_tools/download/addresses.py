"""Addresses: which may be asked, whether two lie on one server, how they are shown."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from oss_tools.errors import BadSource

PORTS = {"http": 80, "https": 443}


def check_address(url: str) -> None:
    """Raises BadSource unless it is an http(s) address without a password in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadSource(f"{shown(url)}: not an address that can be downloaded from; expected https://… or file://…")
    if _port(parts) is None:
        raise BadSource(f"{shown(url)}: its port is no number from 0 to 65535")
    if parts.username or parts.password:
        raise BadSource("an address with a user name or password in it; refused, as it would end in logs and manifests")


def same_origin(a: str, b: str) -> bool:
    """Whether scheme, host and port agree."""

    def origin(url: str) -> tuple[str, str, int | None]:
        parts = urlsplit(url)
        return parts.scheme, (parts.hostname or "").lower(), _port(parts)

    return origin(a) == origin(b)


def _port(parts: SplitResult) -> int | None:
    """The port that is written or usual; None for a number that is none."""
    try:
        return parts.port or PORTS.get(parts.scheme)
    except ValueError:
        return None


def shown(url: str) -> str:
    """An address without its query, which may hold a signature."""
    return url.partition("?")[0][:200]
