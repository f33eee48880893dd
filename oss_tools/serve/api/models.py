"""GET /v1/models, GET /v1/models/{name}."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oss_tools.serve.served import Served, State


def routes(state: State) -> list[Route]:
    async def listed(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(served) for served in state.models.values()]})

    async def one(request: Request) -> Response:
        return JSONResponse(described(state.model(request.path_params["name"])))

    return [Route("/v1/models", listed), Route("/v1/models/{name:path}", one)]


def described(served: Served) -> dict[str, Any]:
    """A model in OpenAI's form; `context_length` and what stands behind it are additions, named as other servers name them."""
    template = served.template
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "oss-tools",
        "context_length": served.engine.context,
        "max_model_len": served.engine.context,
        "capabilities": {
            "chat": template is not None,
            "tools": bool(template and template.takes_tools),
            "reasoning": bool(template and template.has_channels),
            "efforts": list(template.efforts) if template and template.has_channels else [],
        },
    }
