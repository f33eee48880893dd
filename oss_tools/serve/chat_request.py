"""What /v1/chat/completions is sent (https://platform.openai.com/docs/api-reference/chat/create), and what it asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.tools.base import Tool
from oss_tools.engine.sampling import Sampling
from oss_tools.errors import BadRequest
from oss_tools.serve import conversing
from oss_tools.serve.answering import Asked
from oss_tools.serve.forms import form_of
from oss_tools.serve.own_tools import named
from oss_tools.serve.settings import Settings

NAME = r"^[\w.:-]{1,128}$"
MOST_STOPS, LONGEST_STOP, MOST_CHOICES, MOST_LOGPROBS = 16, 1000, 16, 20


class Part(BaseModel):
    """A part of a message's content; only text is understood."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(BaseModel):
    name: Annotated[str, Field(pattern=NAME)]
    arguments: str | dict[str, Any] = "{}"


class SentCall(BaseModel):
    id: str = ""
    type: str = "function"
    function: CalledFunction


class SentMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[SentCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Function(BaseModel):
    name: Annotated[str, Field(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(BaseModel):
    type: Literal["function"]
    function: Function


class OwnTool(BaseModel):
    """A tool that the server carries out itself."""

    type: Annotated[str, Field(pattern=NAME)]


class ChosenFunction(BaseModel):
    name: str


class ToolChoice(BaseModel):
    type: Literal["function"]
    function: ChosenFunction


class StreamOptions(BaseModel):
    include_usage: bool = False


class Sampled(BaseModel):
    """What completions of both kinds are told of sampling. The ranges are OpenAI's; top_k, min_p and repetition_penalty are
    additions that other servers have too."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=1000)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: str | list[Annotated[str, Field(max_length=LONGEST_STOP)]] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def sampling(self, choice: int = 0) -> Sampling:
        """The rule of one of n choices, each of which has a seed of its own. Raises BadRequest for what there is not."""
        for name, off in (("presence_penalty", 0), ("frequency_penalty", 0), ("logit_bias", {})):
            if getattr(self, name) not in (None, off):
                raise BadRequest(f"{name} is not supported; repetition_penalty is")
        return Sampling(
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(self.top_k or 0, 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None else (self.seed + choice) % (1 << 63),
        )

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(given) > MOST_STOPS:
            raise BadRequest(f"stop: {len(given)} texts, {MOST_STOPS} are the most")
        return tuple(filter(None, given))

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Sampled):
    messages: list[SentMessage]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: list[FunctionTool | OwnTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    response_format: dict[str, Any] | None = None
    functions: list[Any] | None = None

    def asked(self, efforts: tuple[str, ...], choice: int = 0, settings: Settings | None = None) -> Asked:
        """What it asks for, of a model that knows these efforts, and a server that has tools. Raises BadRequest."""
        if self.functions:
            raise BadRequest("functions: use tools")
        chosen = self.tool_choice
        name = chosen.function.name if isinstance(chosen, ToolChoice) else chosen or "auto"
        tools = self.functions_offered
        if any(tool.type == "function" for tool in self.tools or [] if isinstance(tool, OwnTool)):
            raise BadRequest("tools: a tool of type function needs a `function` with a name")
        own = named(
            [tool.type for tool in self.tools or [] if isinstance(tool, OwnTool)], settings.tools if settings else {}
        )
        if isinstance(chosen, ToolChoice) and name not in [*[tool.name for tool in tools], *own]:
            raise BadRequest(f"tool_choice: no tool named {name!r}")
        if name == "required" and not tools and not own:
            raise BadRequest("tool_choice is required, and there are no tools")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return Asked(
            self._conversation(efforts, own),
            self.sampling(choice),
            self.max_completion_tokens or self.max_tokens,
            self.stops,
            logprobs,
            tool_choice=name,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            form=form_of(self.response_format, "response_format"),
            own_tools=own,
            rounds=settings.rounds if settings else 1,
        )

    @property
    def functions_offered(self) -> list[Function]:
        """Those that the client carries out."""
        return [tool.function for tool in self.tools or [] if isinstance(tool, FunctionTool)]

    def _conversation(self, efforts: tuple[str, ...], own: Mapping[str, Tool]) -> Conversation:
        schemas = [conversing.function_schema(function.model_dump()) for function in self.functions_offered]
        schemas += [dict(tool.schema) for tool in own.values()]
        told = [text_of(m.content) for m in self.messages if m.role in ("system", "developer")]
        effort = conversing.effort_of(self.reasoning_effort, efforts)
        return conversing.conversation(self._messages(), schemas, effort, filter(None, told))

    def _messages(self) -> Iterator[Message]:
        names: dict[str, str] = {}  # of the functions called, by the call's id
        for at, sent in enumerate(self.messages):
            text = text_of(sent.content)
            if sent.role == "user":
                yield Message("user", text)
            elif sent.role == "assistant":
                if reasoning := sent.reasoning_content or sent.reasoning:
                    yield conversing.thought(reasoning)
                if text:
                    yield conversing.said(text, calling=bool(sent.tool_calls))
                for made in sent.tool_calls or ():
                    names[made.id] = made.function.name
                    arguments = made.function.arguments
                    yield conversing.call(
                        made.function.name, arguments if isinstance(arguments, str) else json.dumps(arguments)
                    )
            elif sent.role in ("tool", "function"):
                name = sent.name or names.get(sent.tool_call_id or "")
                if not name:
                    raise BadRequest(f"messages.{at}: no call has the id {sent.tool_call_id!r}")
                yield conversing.result(name, text)


def text_of(content: str | list[Part] | None) -> str:
    """The text of a content. Raises BadRequest for pictures and sounds."""
    if content is None or isinstance(content, str):
        return content or ""
    if strange := next((part.type for part in content if part.text is None and part.refusal is None), None):
        raise BadRequest(f"content of type {strange!r}: these models read text only")
    return "".join(part.text or part.refusal or "" for part in content)
