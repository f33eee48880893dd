"""POST /v1/messages, POST /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oss_tools.serve.answering import Asked, Ended, answer
from oss_tools.serve.anthropic.events import MessageEvents
from oss_tools.serve.anthropic.request import MessagesRequest, TokensRequest
from oss_tools.serve.api.chat_completions import broken_answer
from oss_tools.serve.protocol import ApiError, Events, anthropic_error, event_text, read_json, while_connected
from oss_tools.serve.pulse import pulsed
from oss_tools.serve.served import Served, State


def routes(state: State) -> list[Route]:
    async def create(request: Request) -> Response:
        sent = await read_json(request, state.settings, MessagesRequest)
        served = state.model(sent.model)
        asked = await asyncio.to_thread(_asked, sent, served)
        tokens = await _count(served, asked)
        events = MessageEvents(
            served.name, tokens, asked.stop, shows_thinking=sent.shows_thinking, omits=sent.omits_thinking
        )
        if sent.stream:
            return await Events.opened(request, _streamed(served, asked, events), state.settings, _failed)
        return JSONResponse(await while_connected(request, _whole(served, asked, events)))

    async def count(request: Request) -> Response:
        sent = await read_json(request, state.settings, TokensRequest)
        served = state.model(sent.model)
        asked = Asked(await asyncio.to_thread(sent.conversation, served.speaker), tool_choice=sent.choice)
        return JSONResponse({"input_tokens": await _count(served, asked)})

    return [
        Route("/v1/messages", create, methods=["POST"]),
        Route("/v1/messages/count_tokens", count, methods=["POST"]),
    ]


def _asked(sent: MessagesRequest, served: Served) -> Asked:
    choice = sent.tool_choice
    return Asked(
        sent.conversation(served.speaker),
        sent.sampling(),
        sent.max_tokens,
        tuple(stop for stop in sent.stop_sequences or () if stop),
        tool_choice=sent.choice,
        parallel_tool_calls=not (choice and choice.disable_parallel_tool_use),
    )


async def _count(served: Served, asked: Asked) -> int:
    """The tokens of the prompt."""
    return len(await asyncio.to_thread(served.speaker.encode, asked.conversation))


async def _whole(served: Served, asked: Asked, message: MessageEvents) -> dict[str, Any]:
    async with aclosing(answer(served, asked)) as events:
        async for event in events:
            if isinstance(event, Ended) and event.broken:
                raise broken_answer(event.broken)
            message.take(event)
    return message.message


async def _streamed(served: Served, asked: Asked, message: MessageEvents) -> AsyncIterator[str]:
    """The events as they are sent. While the model reads the prompt, pings say that the connection stands."""
    begun = False
    async with aclosing(pulsed(answer(served, asked))) as events:
        async for event in events:
            if not begun:
                begun = True
                for first in message.begin():
                    yield _sent(first)
            if event is None:
                yield _sent({"type": "ping"})
                continue
            if isinstance(event, Ended) and event.broken:
                raise broken_answer(event.broken)
            for following in message.take(event):
                yield _sent(following)


def _sent(event: dict[str, Any]) -> str:
    return event_text(event, event["type"])


def _failed(error: ApiError) -> str:
    return _sent(anthropic_error(error))
