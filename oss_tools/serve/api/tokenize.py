"""POST /v1/tokenize and /v1/detokenize: tokens of a text or a conversation, and back. Not OpenAI's; vLLM has the same."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest
from oss_tools.serve.chat_request import ChatRequest, FunctionTool, OwnTool, SentMessage
from oss_tools.serve.protocol import read_json
from oss_tools.serve.served import Served, State


class TokenizeRequest(BaseModel):
    """A prompt, or messages as in /v1/chat/completions."""

    model: str | None = None
    prompt: str | None = None
    messages: list[SentMessage] | None = None
    tools: list[FunctionTool | OwnTool] | None = None
    reasoning_effort: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(BaseModel):
    model: str | None = None
    tokens: list[int]


def routes(state: State) -> list[Route]:
    async def tokenize(request: Request) -> Response:
        sent = await read_json(request, state.settings, TokenizeRequest)
        served = state.model(sent.model)
        tokens = await asyncio.to_thread(_tokens, served, sent)
        found: dict[str, Any] = {"count": len(tokens), "max_model_len": served.engine.context, "tokens": tokens}
        if sent.return_token_strs:
            found["token_strs"] = [served.engine.text.decode([token], skip_special=False) for token in tokens]
        return JSONResponse(found)

    async def detokenize(request: Request) -> Response:
        sent = await read_json(request, state.settings, DetokenizeRequest)
        served = state.model(sent.model)
        if any(not 0 <= token < served.engine.backend.vocabulary for token in sent.tokens):
            raise BadRequest(f"tokens: there are 0..{served.engine.backend.vocabulary - 1}")
        return JSONResponse({"prompt": await asyncio.to_thread(_text, served.engine.text, sent.tokens)})

    return [Route("/v1/tokenize", tokenize, methods=["POST"]), Route("/v1/detokenize", detokenize, methods=["POST"])]


def _tokens(served: Served, sent: TokenizeRequest) -> list[int]:
    if (sent.prompt is None) == (sent.messages is None):
        raise BadRequest("either prompt or messages is needed")
    if sent.prompt is not None:
        return served.engine.text.encode(sent.prompt, sent.add_special_tokens)
    template = served.speaker
    whole = ChatRequest(messages=sent.messages or [], tools=[*(sent.tools or ())], reasoning_effort=sent.reasoning_effort)
    return template.encode(whole.asked(template.efforts).conversation)


def _text(text: Text, tokens: list[int]) -> str:
    return text.decode(tokens, skip_special=False)
