"""Who may call: checked before anything else of a request is looked at."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from oss_tools.serve.protocol import ApiError, error_response, shape_for
from oss_tools.serve.settings import Settings, is_loopback

OPEN = ("/", "/health", "/favicon.ico")  # the page, which asks for the key, and whether the server stands
OPEN_FOLDER = "/page/"


class Guard:
    """Refuses requests to names that are not the server's (DNS rebinding), from pages of other sites, and without the key."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._key = (settings.api_key or "").encode()
        self._origins = frozenset(origin.rstrip("/") for origin in settings.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope["method"], scope["path"], Headers(scope=scope))):
            await error_response(refusal, shape_for(scope["path"]))(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, method: str, path: str, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if not self._is_own(host):
            return ApiError(403, f"{host!r} is no name of this server: use the address that it printed")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and _host_of(origin) != host:
            return ApiError(403, f"pages of {origin!r} may not call this server; --allow-origin names those that may")
        preflight = method == "OPTIONS" and "access-control-request-method" in headers
        if not self._key or preflight or path in OPEN or path.startswith(OPEN_FOLDER):
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if hmac.compare_digest(given.encode(), self._key):
            return None
        return ApiError(401, "a key is needed: Authorization: Bearer KEY", code="invalid_api_key")

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this server. One that listens to other machines goes by names that it cannot know; its
        key keeps others out."""
        name = urlsplit(f"//{host}").hostname or ""
        return is_loopback(name) or name == self._settings.host.strip("[]") or not is_loopback(self._settings.host)


def _host_of(origin: str) -> str:
    return origin.partition("://")[2]
