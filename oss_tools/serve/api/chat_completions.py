"""POST /v1/chat/completions (https://platform.openai.com/docs/api-reference/chat).

Reasoning stands in `reasoning` and `reasoning_content`, the names that clients know it by. Calls are sent when they are complete
and known to be sound.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oss_tools.chat.completion import Finding, ToolCall
from oss_tools.engine.requests import Token
from oss_tools.engine.scheduled_requests import Finished
from oss_tools.engine.text import Text
from oss_tools.serve.answering import Asked, Ended, Piece, answer, is_answer
from oss_tools.serve.chat_request import ChatRequest
from oss_tools.serve.merging import merged
from oss_tools.serve.protocol import (
    ApiError,
    Events,
    event_text,
    openai_error,
    read_json,
    while_connected,
)
from oss_tools.serve.served import Served, State

DONE = event_text("[DONE]")


def routes(state: State) -> list[Route]:
    async def create(request: Request) -> Response:
        sent = await read_json(request, state.settings, ChatRequest)
        served = state.model(sent.model)
        asked = [sent.asked(served.speaker.efforts, choice, state.settings) for choice in range(sent.n or 1)]
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
        if sent.stream:
            events = _chunks(served, asked, {**head, "object": "chat.completion.chunk"}, sent.with_usage)
            return await Events.opened(request, events, state.settings, lambda error: event_text(openai_error(error)))
        choices = await while_connected(request, _all(served, asked))
        return JSONResponse({**head, "object": "chat.completion", **choices})

    return [Route("/v1/chat/completions", create, methods=["POST"])]


# ---- at once ---------------------------------------------------------------------------------------------------------


async def _all(served: Served, asked: list[Asked]) -> dict[str, Any]:
    answers = await asyncio.gather(*(_choice(served, one, index) for index, one in enumerate(asked)))
    return {"choices": [choice for choice, _ in answers], "usage": usage_of([ended for _, ended in answers])}


async def _choice(served: Served, asked: Asked, index: int) -> tuple[dict[str, Any], Answered]:
    answered = Answered()
    content: list[str] = []
    thoughts: list[str] = []
    logprobs: list[dict[str, Any]] = []
    async with aclosing(answer(served, asked)) as events:
        async for event in events:
            answered.add(event)
            if isinstance(event, Ended):
                continue
            if is_shown(event):
                content.append(event.delta.text)
                logprobs += token_logprobs(event.tokens, served.speaker.text)
            elif event.delta.recipient is None:
                thoughts.append(event.delta.text)
    ended = answered.ended
    if ended.broken:
        raise broken_answer(ended.broken)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(content) or (None if ended.calls else "")}
    if thoughts:
        message |= dict.fromkeys(("reasoning", "reasoning_content"), "".join(thoughts))
    if ended.calls:
        message["tool_calls"] = [described_call(call) for call in ended.calls]
    found = {"content": logprobs, "refusal": None} if asked.logprobs is not None else None
    return {"index": index, "message": message, "logprobs": found, "finish_reason": ended.finish}, answered


# ---- as it comes -----------------------------------------------------------------------------------------------------


async def _chunks(served: Served, asked: list[Asked], head: dict[str, Any], with_usage: bool) -> AsyncIterator[str]:
    """The events of all choices, in the order in which they come."""
    answers = [Answered() for _ in asked]
    async with aclosing(merged([answer(served, one) for one in asked])) as events:
        async for index, event in events:
            if not answers[index].begun:
                yield _chunk(head, index, {"role": "assistant", "content": ""})
            answers[index].add(event)
            if isinstance(event, Piece):
                if chunk := _piece(head, index, event, served.speaker.text, asked[index].logprobs is not None):
                    yield chunk
                continue
            if event.broken:
                raise broken_answer(event.broken)
            for number, call in enumerate(event.calls):
                yield _chunk(head, index, {"tool_calls": [{"index": number, **described_call(call)}]})
            yield _chunk(head, index, {}, event.finish)
    if with_usage:
        yield event_text({**head, "choices": [], "usage": usage_of(answers)})
    yield DONE


def _piece(head: dict[str, Any], index: int, piece: Piece, text: Text, with_logprobs: bool) -> str | None:
    if is_shown(piece):
        found = {"content": token_logprobs(piece.tokens, text), "refusal": None} if with_logprobs else None
        return _chunk(head, index, {"content": piece.delta.text}, logprobs=found)
    if piece.delta.recipient is None:
        return _chunk(head, index, dict.fromkeys(("reasoning", "reasoning_content"), piece.delta.text))
    return None


def _chunk(
    head: dict[str, Any],
    index: int,
    delta: dict[str, Any],
    finish: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> str:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return event_text({**head, "choices": [choice]})


# ---- forms that both have --------------------------------------------------------------------------------------------


class Answered:
    """What an answer's usage is counted from."""

    def __init__(self) -> None:
        self.reasoning = 0
        self.begun = False
        self._ended: Ended | None = None

    def add(self, event: Piece | Ended) -> None:
        self.begun = True
        if isinstance(event, Ended):
            self._ended = event
        elif event.delta.channel == "analysis":
            self.reasoning += len(event.tokens)

    @property
    def ended(self) -> Ended:
        assert self._ended
        return self._ended


def is_shown(piece: Piece) -> bool:
    """Whether a text is content: the answer, or what is said before a call."""
    return is_answer(piece.delta) or (piece.delta.channel == "commentary" and piece.delta.recipient is None)


def usage_of(answers: list[Answered]) -> dict[str, Any]:
    """Tokens of one prompt and of all its answers."""
    usages: list[Finished] = [answered.ended.usage for answered in answers]
    prompt, generated = usages[0].prompt_tokens, sum(usage.tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": usages[0].cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": sum(answered.reasoning for answered in answers)},
    }


def described_call(call: ToolCall) -> dict[str, Any]:
    """A call in OpenAI's form, with an id of its own."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def token_logprobs(tokens: tuple[Token, ...], text: Text) -> list[dict[str, Any]]:
    """Tokens and the likeliest at their places in OpenAI's form."""
    return [
        {
            **_named(token.id, token.logprob, text),
            "top_logprobs": [_named(number, logprob, text) for number, logprob in token.top],
        }
        for token in tokens
        if token.logprob is not None
    ]


def _named(number: int, logprob: float | None, text: Text) -> dict[str, Any]:
    """A token by its text. The bytes are null where it is a part of a character."""
    spelt = text.decode([number], skip_special=False)
    return {"token": spelt, "logprob": logprob, "bytes": None if "\ufffd" in spelt else list(spelt.encode())}


def broken_answer(findings: tuple[Finding, ...]) -> ApiError:
    """What a client is told of an answer that is none."""
    what = "; ".join(finding.sentence for finding in findings[:3])
    return ApiError(502, f"the model's answer is malformed and not sent on: {what}", "server_error", "malformed_answer")
