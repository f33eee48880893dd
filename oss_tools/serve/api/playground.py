"""The page at `/`, and what it asks for beside the public APIs: models and tools, raw texts, calls, two models side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oss_tools.chat import harmony
from oss_tools.chat.chat_template import ChatTemplate, HarmonyTemplate
from oss_tools.chat.completion import read_arguments
from oss_tools.chat.messages import Conversation
from oss_tools.chat.tools.base import Tool
from oss_tools.errors import Busy
from oss_tools.serve.chat_request import ChatRequest
from oss_tools.serve.protocol import ApiError, Events, event_text, openai_error, read_json
from oss_tools.serve.served import Served, State
from oss_tools.serve.side_by_side import side_by_side

PAGE = Path(__file__).parents[1] / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}


class CompareRequest(ChatRequest):
    models: Annotated[list[str], Field(min_length=2, max_length=2)]


class Called(BaseModel):
    name: str
    arguments: str


def routes(state: State) -> list[Route]:
    files = {file.name: file for file in PAGE.iterdir() if file.suffix in KINDS}
    comparing = asyncio.Lock()  # the keys and values of one comparison at a time

    async def page(request: Request) -> Response:
        file = files.get(request.path_params.get("name", "index.html"))
        if file is None:
            raise ApiError(404, f"the page has no file {request.path_params['name']!r}")
        return Response(file.read_bytes(), media_type=KINDS[file.suffix], headers=HEADERS)

    async def models(request: Request) -> Response:
        schemas = [dict(tool.schema) for tool in state.settings.tools.values()]
        return JSONResponse({"models": [described(served) for served in state.models.values()], "tools": schemas})

    async def render(request: Request) -> Response:
        sent = await read_json(request, state.settings, ChatRequest)
        served = state.model(sent.model)
        asked = sent.asked(served.speaker.efforts)
        pieces, tokens = await asyncio.to_thread(raw, served.speaker, asked.conversation)
        return JSONResponse({"pieces": pieces, "tokens": tokens})

    async def tool(request: Request) -> Response:
        sent = await read_json(request, state.settings, Called)
        found = state.settings.tools.get(sent.name)
        if found is None:
            raise ApiError(404, f"the server carries out no tool named {sent.name!r}: start it with --tools")
        return JSONResponse({"result": await asyncio.to_thread(carried_out, found, sent.arguments)})

    async def compare(request: Request) -> Response:
        sent = await read_json(request, state.settings, CompareRequest)
        first, second = (state.model(name) for name in sent.models)
        if first is second:
            raise ApiError(400, "models: name two different ones")
        if comparing.locked():
            raise Busy("two models are being compared already", 10)
        asked = sent.asked(first.speaker.efforts)
        if asked.sampling.seed is None:
            seed = int(np.random.default_rng().integers(1 << 31))
            asked = replace(asked, sampling=replace(asked.sampling, seed=seed))
        messages = [message.model_dump(exclude_none=True) for message in sent.messages]

        async def events() -> AsyncIterator[str]:
            async with comparing, aclosing(side_by_side((first, second), asked, messages)) as found:
                async for name, event in found:
                    yield event_text(event, name)

        return await Events.opened(request, events(), state.settings, lambda error: event_text(openai_error(error), "error"))

    return [
        Route("/", page),
        Route("/page/{name}", page),
        Route("/playground/models", models),
        Route("/playground/render", render, methods=["POST"]),
        Route("/playground/tool", tool, methods=["POST"]),
        Route("/playground/compare", compare, methods=["POST"]),
    ]


def described(served: Served) -> dict[str, Any]:
    """A model as the page shows it; one without a chat template has no efforts."""
    template = served.template
    about = f"{served.engine.architecture.model_type}, on {served.engine.backend.name}"
    efforts = list(template.efforts) if template else []
    return {"name": served.name, "about": about, "context": served.engine.context, "efforts": efforts}


def carried_out(tool: Tool, arguments: str) -> str:
    """A call's result; that its arguments are no JSON object is one too."""
    read = read_arguments(arguments)
    return tool.call(read) if not hasattr(read, "problem") else f"error: {read}"


def raw(template: ChatTemplate, conversation: Conversation) -> tuple[list[tuple[str, bool]], int]:
    """A conversation as the model has it before it: (text, whether it is a special token), and of how many tokens. In harmony,
    answers at its end are as the model wrote them; other templates ask for the next one."""
    if isinstance(template, HarmonyTemplate):
        answered = conversation.messages[-1].role == "assistant"
        pieces = harmony.render(conversation, template.preamble, complete=answered)
        written = [(str(piece), isinstance(piece, harmony.Special)) for piece in pieces]
        return written, sum(1 if special else len(template.text.encode_plain(text)) for text, special in written)
    names = {number: name for name, number in (template.text.special | template.text.marks).items()}
    tokens = template.encode(conversation)
    found: list[tuple[str, bool]] = []
    plain: list[int] = []
    for token in [*tokens, None]:
        if token is not None and token not in names:
            plain.append(token)
            continue
        if plain:
            found.append((template.text.decode(plain, skip_special=False), False))
            plain = []
        if token is not None:
            found.append((names[token], True))
    return found, len(tokens)
