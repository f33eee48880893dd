"""The application: routes of all APIs behind the guard."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from oss_tools.errors import OssToolsError
from oss_tools.rooms import modules_of
from oss_tools.serve import api
from oss_tools.serve.guard import Guard
from oss_tools.serve.protocol import GONE, ApiError, error_response, shape_for
from oss_tools.serve.served import Served, State
from oss_tools.serve.settings import Settings


def create_app(models: dict[str, Served], settings: Settings) -> Starlette:
    """The ASGI application that serves these models, by name."""
    state = State(models, settings)
    middleware = [Middleware(Guard, settings=settings)]
    if settings.origins:
        cors = Middleware(CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"])
        middleware.insert(0, cors)
    handlers = dict.fromkeys((ApiError, OssToolsError, ClientDisconnect, HTTPException, Exception), _failed)
    return Starlette(routes=list(_routes(state)), middleware=middleware, exception_handlers=handlers)


def _routes(state: State) -> Iterator[BaseRoute]:
    """Of every module in `api/`."""
    for module in modules_of(api.__name__):
        yield from module.routes(state)


async def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=GONE)
    if isinstance(error, HTTPException):
        what = f"{request.method} {request.url.path}"
        message = {404: f"there is no {what}", 405: f"{what}: no such method"}.get(error.status_code, error.detail)
        error = ApiError(error.status_code, message, code="not_found" if error.status_code == 404 else None)
    return error_response(error, shape_for(request.url.path))
