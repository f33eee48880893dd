"""POST /v1/responses, and what was stored by it: GET and DELETE /v1/responses/{id}, GET /v1/responses/{id}/input_items."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oss_tools.serve.answering import Asked, Ended, answer
from oss_tools.serve.api.chat_completions import token_logprobs
from oss_tools.serve.forms import form_of
from oss_tools.serve.protocol import ApiError, Events, event_text, read_json, while_connected
from oss_tools.serve.pulse import pulsed
from oss_tools.serve.responses.events import ResponseEvents
from oss_tools.serve.responses.items import Item, new_id
from oss_tools.serve.responses.prompt import Prompt, read_prompt, shortened
from oss_tools.serve.responses.request import Prompted, ResponseRequest
from oss_tools.serve.responses.store import ResponseStore, Stored
from oss_tools.serve.served import Served, State

PAGE, MOST_IN_PAGE = 20, 100  # items


def routes(state: State) -> list[Route]:
    store = ResponseStore()

    async def create(request: Request) -> Response:
        sent = await read_json(request, state.settings, ResponseRequest)
        served = state.model(sent.model)
        prompt = await asyncio.to_thread(_prompt, sent, served, store)
        making = _making(sent, served, prompt)
        if sent.stream:
            events = _streamed(making, store)
            return await Events.opened(request, events, state.settings, lambda error: _failed(making, error))
        return JSONResponse(await while_connected(request, _whole(making, store)))

    async def count(request: Request) -> Response:
        sent = await read_json(request, state.settings, Prompted)
        served = state.model(sent.model)
        prompt = await asyncio.to_thread(read_prompt, sent, served.speaker, store)
        tokens = await asyncio.to_thread(served.speaker.encode, prompt.conversation)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": len(tokens)})

    def stored(request: Request) -> Stored:
        number = request.path_params["number"]
        found = store.get(number)
        if found is None:
            raise ApiError(404, f"there is no response {number!r}: it was not stored, or it is forgotten", code="not_found")
        return found

    async def get(request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            raise ApiError(400, "stream: a response that is stored is given at once", parameter="stream")
        return JSONResponse(stored(request).response)

    async def delete(request: Request) -> Response:
        number = stored(request).response["id"]
        store.delete(number)
        return JSONResponse({"id": number, "object": "response", "deleted": True})

    async def input_items(request: Request) -> Response:
        found = stored(request)
        return JSONResponse(_page([*found.before, *found.given], dict(request.query_params)))

    async def cancel(request: Request) -> Response:
        stored(request)
        raise ApiError(400, "only a response of the background can be cancelled; closing the connection cancels others")

    one = "/v1/responses/{number}"
    return [
        Route("/v1/responses", create, methods=["POST"]),
        Route("/v1/responses/input_tokens", count, methods=["POST"]),
        Route(one, get, methods=["GET"]),
        Route(one, delete, methods=["DELETE"]),
        Route(f"{one}/input_items", input_items, methods=["GET"]),
        Route(f"{one}/cancel", cancel, methods=["POST"]),
    ]


@dataclass(frozen=True)
class Making:
    """A response that is being made."""

    served: Served
    asked: Asked
    events: ResponseEvents
    prompt: Prompt
    stored: bool

    def keep(self, store: ResponseStore) -> None:
        if self.stored:
            store.put(self.events.response, self.prompt.given, self.prompt.previous)


def _prompt(sent: ResponseRequest, served: Served, store: ResponseStore) -> Prompt:
    prompt = read_prompt(sent, served.speaker, store)
    if sent.truncation == "auto":
        short = shortened(prompt, sent, served.speaker, served.engine.context, sent.max_output_tokens)
        return replace(prompt, conversation=short)
    return prompt


def _making(sent: ResponseRequest, served: Served, prompt: Prompt) -> Making:
    sampling = sent.sampling()
    asked = Asked(
        prompt.conversation,
        sampling,
        sent.max_output_tokens,
        sent.stops,
        sent.logprobs,
        tool_choice=prompt.offer.choice,
        parallel_tool_calls=sent.parallel_tool_calls is not False,
        form=form_of(sent.text.format if sent.text else None, "text.format"),
    )
    text = served.speaker.text
    head = sent.head(new_id("resp"), int(time.time()), served.name, prompt.offer, prompt.conversation.effort, sampling)
    events = ResponseEvents(
        head,
        [str(schema["name"]) for schema in prompt.offer.schemas],
        prompt.offer.custom,
        logprobs=None if sent.logprobs is None else lambda tokens: token_logprobs(tuple(tokens), text),
        sealed=sent.sealed,
    )
    return Making(served, asked, events, prompt, sent.stored)


async def _whole(making: Making, store: ResponseStore) -> dict[str, Any]:
    async with aclosing(answer(making.served, making.asked)) as events:
        async for event in events:
            making.events.take(event)
    making.keep(store)
    return making.events.response


async def _streamed(making: Making, store: ResponseStore) -> AsyncIterator[str]:
    """The events as they are sent. While the model reads the prompt, comments say that the connection stands."""
    begun = False
    async with aclosing(pulsed(answer(making.served, making.asked))) as events:
        async for event in events:
            if not begun:
                begun = True
                for first in making.events.begin():
                    yield _sent(first)
            if event is None:
                yield ": the model reads\n\n"
                continue
            for following in making.events.take(event):
                if isinstance(event, Ended) and "response" in following:
                    making.keep(store)
                yield _sent(following)


def _sent(event: dict[str, Any]) -> str:
    return event_text(event, event["type"])


def _failed(making: Making, error: ApiError) -> str:
    """What a client is told of an error in the middle of an answer."""
    return "".join(map(_sent, making.events.fail(error.message)))


def _page(items: list[Item], query: dict[str, str]) -> dict[str, Any]:
    """A page of a list of items: `order` (desc, asc), `limit`, and `after`, an item's id."""
    order, limit, after = query.get("order", "desc"), query.get("limit", str(PAGE)), query.get("after")
    if order not in ("asc", "desc"):
        raise ApiError(400, f"order is {order!r}; it is asc or desc", parameter="order")
    if not limit.isdecimal() or not 1 <= int(limit) <= MOST_IN_PAGE:
        raise ApiError(400, f"limit is {limit!r}; it is 1 to {MOST_IN_PAGE}", parameter="limit")
    items = items if order == "asc" else items[::-1]
    if after is not None:
        place = next((number for number, item in enumerate(items) if item["id"] == after), None)
        if place is None:
            raise ApiError(400, f"after: no item has the id {after!r}", parameter="after")
        items = items[place + 1 :]
    shown = items[: int(limit)]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, **ends, "has_more": len(items) > len(shown)}
