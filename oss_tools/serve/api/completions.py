"""POST /v1/completions: texts, or tokens, that are continued (https://platform.openai.com/docs/api-reference/completions)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oss_tools.engine.requests import Request, Token
from oss_tools.engine.scheduled_requests import Finished
from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest
from oss_tools.serve.answering import Stream
from oss_tools.serve.chat_request import MOST_LOGPROBS, Sampled
from oss_tools.serve.merging import merged
from oss_tools.serve.prompt_scores import prompt_scores
from oss_tools.serve.protocol import Events, event_text, openai_error, read_json, while_connected
from oss_tools.serve.served import Served, State

MOST_PROMPTS = 64
DEFAULT_TOKENS = 16
DONE = event_text("[DONE]")


class CompletionRequest(Sampled):
    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    def prompts(self, text: Text) -> list[list[int]]:
        """The prompts' tokens. Raises BadRequest."""
        if isinstance(self.prompt, str) or (self.prompt and isinstance(self.prompt[0], int)):
            several: list[Any] = [self.prompt]
        else:
            several = list(self.prompt)
        if not 1 <= len(several) <= MOST_PROMPTS:
            raise BadRequest(f"prompt: {len(several)} of them, 1..{MOST_PROMPTS} can be asked for at once")
        return [text.encode(prompt) if isinstance(prompt, str) else prompt for prompt in several]


@dataclass(frozen=True)
class Choice:
    """One of the texts asked for.

    Attributes:
        request: what the engine is asked; its max_tokens is 1 where none are wanted.
        echo: whether the prompt comes back before the text.
        generates: whether anything is wanted beside the prompt.
    """

    request: Request
    echo: bool
    generates: bool


def routes(state: State) -> list[Route]:
    async def create(request: HttpRequest) -> Response:
        sent = await read_json(request, state.settings, CompletionRequest)
        served = state.model(sent.model)
        choices = await asyncio.to_thread(_choices, served, sent)
        head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        if sent.stream:
            events = _chunks(served, choices, head, sent.with_usage)
            return await Events.opened(request, events, state.settings, lambda error: event_text(openai_error(error)))
        return JSONResponse({**head, **await while_connected(request, _all(served, choices))})

    return [Route("/v1/completions", create, methods=["POST"])]


def _choices(served: Served, sent: CompletionRequest) -> list[Choice]:
    if sent.suffix or sent.best_of not in (None, sent.n or 1):
        raise BadRequest("suffix and best_of are not supported")
    wanted = DEFAULT_TOKENS if sent.max_tokens is None else sent.max_tokens
    if not wanted and not sent.echo:
        raise BadRequest("max_tokens is 0, which makes sense with echo only")
    served.scheduler.require_room()
    found = []
    for prompt in sent.prompts(served.engine.text):
        for choice in range(sent.n or 1):
            request = Request(prompt, max(wanted, 1), sent.sampling(choice), sent.stops, logprobs=sent.logprobs)
            served.engine.check(request)
            found.append(Choice(request, bool(sent.echo), wanted > 0))
    return found


async def _texts(served: Served, choice: Choice) -> AsyncGenerator[Token | Finished, None]:
    """The prompt, if it is wanted, as tokens; those generated; Finished."""
    request, text = choice.request, served.engine.text
    if choice.echo:
        if request.logprobs is None:
            scored = [Token(number) for number in request.tokens]
        else:
            scored = await prompt_scores(served.scheduler, request.tokens, request.logprobs)
        stream = text.stream()
        pieces = [stream.add(token.id) for token in scored]
        pieces[-1] += stream.flush()
        for token, piece in zip(scored, pieces, strict=True):
            yield replace(token, text=piece)
    if not choice.generates:
        yield Finished("length", len(request.tokens), 0, 0, 0.0, 0.0)
        return
    async with aclosing(Stream(served.scheduler, request)) as events:
        async for event in events:
            yield event


# ---- at once ---------------------------------------------------------------------------------------------------------


async def _all(served: Served, choices: list[Choice]) -> dict[str, Any]:
    answers = await asyncio.gather(*(_whole(served, choice, index) for index, choice in enumerate(choices)))
    return {"choices": [answer for answer, _ in answers], "usage": _usage([usage for _, usage in answers])}


async def _whole(served: Served, choice: Choice, index: int) -> tuple[dict[str, Any], Finished]:
    pieces = _Pieces(served.engine.text, choice.request.logprobs)
    tokens: list[Token] = []
    async with aclosing(_texts(served, choice)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return pieces.choice(index, tokens, event.finish), event
            tokens.append(event)
    raise AssertionError("a stream ends with Finished")


# ---- as it comes -----------------------------------------------------------------------------------------------------


async def _chunks(served: Served, choices: list[Choice], head: dict[str, Any], with_usage: bool) -> AsyncIterator[str]:
    pieces = [_Pieces(served.engine.text, choice.request.logprobs) for choice in choices]
    usages: list[Finished] = []
    async with aclosing(merged([_texts(served, choice) for choice in choices])) as events:
        async for index, event in events:
            if isinstance(event, Finished):
                usages.append(event)
                yield event_text({**head, "choices": [pieces[index].choice(index, [], event.finish)]})
            elif event.text or event.logprob is not None:
                yield event_text({**head, "choices": [pieces[index].choice(index, [event], None)]})
    if with_usage:
        yield event_text({**head, "choices": [], "usage": _usage(usages)})
    yield DONE


# ---- forms that both have --------------------------------------------------------------------------------------------


class _Pieces:
    """A text's tokens in OpenAI's form, with the places at which they begin."""

    def __init__(self, text: Text, logprobs: int | None) -> None:
        self._text, self._logprobs = text, logprobs
        self._at = 0

    def choice(self, index: int, tokens: list[Token], finish: str | None) -> dict[str, Any]:
        found = self._scored(tokens) if self._logprobs is not None else None
        return {"text": "".join(token.text for token in tokens), "index": index, "logprobs": found, "finish_reason": finish}

    def _scored(self, tokens: list[Token]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._at)
            self._at += len(token.text)
        return {
            "tokens": [self._spelt(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                None if token.logprob is None else {self._spelt(number): logprob for number, logprob in reversed(token.top)}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _spelt(self, token: int) -> str:
        return self._text.decode([token], skip_special=False)


def _usage(usages: list[Finished]) -> dict[str, Any]:
    prompt, generated = sum(usage.prompt_tokens for usage in usages), sum(usage.tokens for usage in usages)
    cached = sum(usage.cached_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
