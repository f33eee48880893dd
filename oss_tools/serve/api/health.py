"""GET /health, GET /metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from oss_tools.serve.metrics import exposition
from oss_tools.serve.served import State


def routes(state: State) -> list[Route]:
    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(exposition(state), media_type="text/plain; version=0.0.4")

    return [Route("/health", health), Route("/metrics", metrics)]
