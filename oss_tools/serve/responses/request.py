"""A request of the Responses API: its fields, and what they ask of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from oss_tools.chat.messages import Effort
from oss_tools.engine.sampling import Sampling
from oss_tools.errors import BadRequest
from oss_tools.serve.chat_request import MOST_LOGPROBS, Sampled
from oss_tools.serve.conversing import effort_of
from oss_tools.serve.responses.tools import Offer

LOGPROBS, SEALED = "message.output_text.logprobs", "reasoning.encrypted_content"
MOST_METADATA, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512


class Reasoning(BaseModel):
    """`reasoning`. A summary cannot be given: the reasoning itself is."""

    effort: str | None = None


class TextConfig(BaseModel):
    """`text`."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Prompted(BaseModel):
    """The fields that a prompt is made of, which is the body of POST /v1/responses/input_tokens."""

    model: str | None = None
    input: str | list[Any] = []
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: Any = None
    prompt: Any = None

    def effort(self, known: Iterable[str]) -> Effort:
        """How much to reason, of a model that knows these efforts. Raises BadRequest."""
        return effort_of(self.reasoning.effort if self.reasoning else None, known)

    def check(self) -> None:
        """Raises BadRequest for what this server cannot do."""
        if self.conversation is not None:
            raise BadRequest(
                "conversation: conversations are not kept here; go on with previous_response_id, or send all items"
            )
        if self.prompt is not None:
            raise BadRequest("prompt: stored prompts are not kept here; send instructions and input")


class ResponseRequest(Prompted, Sampled):
    """The body of POST /v1/responses. `seed`, `stop`, `top_k`, `min_p` and `repetition_penalty` are additions."""

    input: str | list[Any]
    store: bool | None = None
    background: bool | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def check(self) -> None:
        super().check()
        if self.background:
            raise BadRequest("background: answers are made while the client waits; leave it out")
        pairs = (self.metadata or {}).items()
        if len(pairs) > MOST_METADATA or any(len(k) > LONGEST_KEY or len(v) > LONGEST_VALUE for k, v in pairs):
            raise BadRequest(
                f"metadata: {MOST_METADATA} pairs at most, keys of {LONGEST_KEY} and values of {LONGEST_VALUE} letters"
            )

    @property
    def stored(self) -> bool:
        return self.store is not False

    @property
    def logprobs(self) -> int | None:
        """How many of the likeliest tokens are asked for at each place; None without log-probabilities."""
        asked = LOGPROBS in (self.include or []) or self.top_logprobs
        return (self.top_logprobs or 0) if asked else None

    @property
    def sealed(self) -> bool:
        """Whether reasoning is to be given in a form that the client need not understand, too."""
        return SEALED in (self.include or [])

    def head(self, number: str, created: int, model: str, offer: Offer, effort: str, sampling: Sampling) -> dict[str, Any]:
        """The response's fields that are known before there is an answer."""
        text = self.text or TextConfig()
        return {
            "id": number,
            "object": "response",
            "created_at": created,
            "model": model,
            "instructions": self.instructions,
            "previous_response_id": self.previous_response_id,
            "tools": list(offer.echo),
            "tool_choice": offer.echoed_choice,
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "reasoning": {"effort": effort, "summary": None},
            "text": {"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"},
            "truncation": self.truncation or "disabled",
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_logprobs": self.top_logprobs or 0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "store": self.stored,
            "background": False,
            "service_tier": "default",
            "metadata": self.metadata or {},
            "user": self.user,
            "safety_identifier": self.safety_identifier,
            "prompt_cache_key": self.prompt_cache_key,
        }
