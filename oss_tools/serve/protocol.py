"""What the APIs have in common on the wire: bodies that are read within limits, errors as JSON, events as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from oss_tools.checkpoints.json_files import MAX_DEPTH, is_deeper
from oss_tools.errors import BadRequest, Busy, OssToolsError
from oss_tools.serve.served import UnknownModel
from oss_tools.serve.settings import Settings

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")
GONE = 499  # nginx's status for a client that does not wait for its answer: nobody sees it but a log


class ApiError(Exception):
    """An answer that says what is wrong.

    Attributes:
        status: of HTTP.
        kind: OpenAI's `type` (invalid_request_error, server_error, …).
        code, parameter: OpenAI's, where there are any.
        headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        parameter: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.code, self.parameter, self.headers = code, parameter, headers or {}


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an error. What is not expected is told by its kind alone."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(429, str(error), "rate_limit_error", "busy", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, UnknownModel):
        return ApiError(404, str(error), code="model_not_found", parameter="model")
    if isinstance(error, BadRequest):
        return ApiError(400, str(error), code="context_length_exceeded" if "into the context" in str(error) else None)
    if isinstance(error, OssToolsError):
        status = 400 if error.exit_status == 2 else 503
        return ApiError(status, str(error), "invalid_request_error" if status == 400 else "server_error")
    return ApiError(500, f"internal error: {type(error).__name__}; a defect of oss-tools", "server_error")


Shape = Callable[[ApiError], dict[str, Any]]


def openai_error(error: ApiError) -> dict[str, Any]:
    """As OpenAI's API words errors."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.parameter, "code": error.code}}


ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """As Anthropic's API words errors."""
    return {"type": "error", "error": {"type": ANTHROPIC_KINDS.get(error.status, "api_error"), "message": error.message}}


def shape_for(path: str) -> Shape:
    """How errors of an address are worded."""
    return anthropic_error if path.startswith("/v1/messages") else openai_error


def error_response(error: BaseException, shape: Shape = openai_error) -> JSONResponse:
    """An error as a response. The connection ends with it: a body that nobody has read would be waited for else, endlessly."""
    told = as_api_error(error)
    return JSONResponse(shape(told), told.status, {"Connection": "close", **told.headers})


# ---- what a client sends ---------------------------------------------------------------------------------------------


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body. Raises ApiError where it is too large or takes too long."""
    too_large = ApiError(413, f"the body is larger than {settings.max_body} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > settings.max_body:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > settings.max_body:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"the body took longer than {settings.body_seconds:g} seconds") from None
    return b"".join(parts)


async def read_json(request: Request, settings: Settings, model: type[Body]) -> Body:
    """The body as a model of pydantic's. Raises ApiError that names the field that is wrong."""
    data = await read_body(request, settings)
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict) or is_deeper(value, MAX_DEPTH):
        raise ApiError(400, f"the body is no JSON object of at most {MAX_DEPTH} levels")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{where or 'the body'}: {first['msg']}", parameter=where or None) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


# ---- what a client gets ----------------------------------------------------------------------------------------------


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes; its body must have been read. Raises ClientDisconnect."""
    return await _unless_gone(request.receive, work)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for other in (task, gone):
            other.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event_text(data: Any, event: str | None = None) -> str:
    """A server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event}\ndata: {text}\n\n" if event else f"data: {text}\n\n"


class Events(Response):
    """Server-sent events as they come. The iterator is closed when the client goes, or does not take what it is sent.

    What the iterator raises before its first event is raised by `opened`, so that it can still become a status; what it raises
    later becomes an event by `failed`.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], settings: Settings, failed: Callable[[ApiError], str]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._settings, self._failed = events, settings, failed
        self._first: str | None = None

    @classmethod
    async def opened(
        cls, request: Request, events: AsyncIterator[str], settings: Settings, failed: Callable[[ApiError], str]
    ) -> Events:
        """The response, when its first event is there."""
        response = cls(events, settings, failed)
        response._first = await while_connected(request, _next(events))
        return response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientDisconnect, TimeoutError, OSError):  # nobody is there to be told
                await _unless_gone(receive, self._send_all(send))
        finally:
            await _close(self._events)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if self._first is not None:
            await self._send(send, self._first)
        try:
            async for text in self._events:
                await self._send(send, text)
        except (OSError, TimeoutError, asyncio.CancelledError):
            raise
        except Exception as error:  # whatever it is, the client is told
            await self._send(send, self._failed(as_api_error(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, text: str) -> None:
        async with asyncio.timeout(self._settings.send_seconds):
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _next(events: AsyncIterator[str]) -> str | None:
    return await anext(events, None)


async def _close(events: AsyncIterator[Any]) -> None:
    close: Callable[[], Awaitable[None]] | None = getattr(events, "aclose", None)
    if close:
        await close()
