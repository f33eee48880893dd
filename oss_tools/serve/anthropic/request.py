"""A request of the Messages API: its fields, and what they ask of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from oss_tools.chat.chat_template import ChatTemplate
from oss_tools.chat.messages import Conversation, Effort
from oss_tools.engine.sampling import Sampling
from oss_tools.errors import BadRequest
from oss_tools.escapes import json_text
from oss_tools.serve.conversing import effort_of
from oss_tools.serve.history import History, own_names
from oss_tools.serve.sealed import unseal

NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
LITTLE, MUCH = 4096, 16384  # tokens of a thinking budget below which to reason little, and from which on much


class Thinking(BaseModel):
    """`thinking`. A budget in tokens becomes an effort, which is what the models know."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputConfig(BaseModel):
    """`output_config`."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class ToolChoice(BaseModel):
    """`tool_choice`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class SentMessage(BaseModel):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class TokensRequest(BaseModel):
    """The fields that a prompt is made of, which is the body of POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: list[SentMessage]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def conversation(self, template: ChatTemplate) -> Conversation:
        """The conversation as the model is told of it. Raises BadRequest, which names the place."""
        tools = [_schema(tool, f"tools.{number}") for number, tool in enumerate(self.tools or [])]
        names = [tool["name"] for tool in tools]
        if len(set(names)) < len(names):
            raise BadRequest(f"tools: two of them are named {next(n for n in names if names.count(n) > 1)!r}")
        if tools and not template.takes_tools:
            raise BadRequest("tools: this model's chat template has no place for them")
        history = History(own_names(template, tools))
        history.tell(_texts(self.system or "", "system"))
        for number, message in enumerate(self.messages):
            _tell(message, f"messages.{number}", history)
        return history.conversation(tools, self._effort(template))

    def _effort(self, template: ChatTemplate) -> Effort:
        """As asked for by output_config, or as a budget or its absence lets guess."""
        word = self.output_config.effort if self.output_config else None
        if self.thinking and self.thinking.type == "disabled":
            word = "none"
        elif word is None and self.thinking and self.thinking.budget_tokens:
            budget = self.thinking.budget_tokens
            word = "low" if budget < LITTLE else "high" if budget >= MUCH else "medium"
        return effort_of(word, template.efforts)

    @property
    def choice(self) -> str:
        """auto, none, required, or a tool's name. Raises BadRequest."""
        given, names = self.tool_choice, [tool.get("name") for tool in self.tools or []]
        if given is None or given.type in ("auto", "none"):
            return given.type if given else "auto"
        if given.type == "any" and names:
            return "required"
        if given.type == "tool" and given.name in names:
            return str(given.name)
        raise BadRequest(f"tool_choice: no tool named {given.name!r}" if given.name else "tool_choice: there are no tools")


class MessagesRequest(TokensRequest):
    """The body of POST /v1/messages. `seed` is an addition; what is not named here is not looked at."""

    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool = False
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None

    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
        )

    @property
    def shows_thinking(self) -> bool:
        """Whether reasoning is given. It is where nothing is said, as the model needs it back with the results of its calls."""
        return self.thinking is None or self.thinking.type != "disabled"

    @property
    def omits_thinking(self) -> bool:
        """Whether reasoning is given sealed only."""
        return bool(self.thinking and self.thinking.display == "omitted")


def _schema(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind, name, about = tool.get("type") or "custom", tool.get("name"), tool.get("description") or ""
    if kind != "custom":
        raise BadRequest(f"{where}: tools of the type {kind!r} are not carried out here; leave it out")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise BadRequest(f"{where}.name is {name!r}; 1 to 128 letters, digits, dots, _ and - are wanted")
    if not isinstance(about, str) or not isinstance(tool.get("input_schema"), Mapping):
        raise BadRequest(f"{where}: a description in text and an input_schema are wanted")
    strict = {"strict": True} if tool.get("strict") else {}
    return {"name": name, "description": about, "parameters": tool["input_schema"], **strict}


# ---- messages -------------------------------------------------------------------------------------------------------


def _tell(message: SentMessage, where: str, history: History) -> None:
    """Adds what a message says to a conversation."""
    blocks = [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content
    if message.role == "system":
        history.tell(_texts(blocks, where))
    elif message.role == "user":
        _tell_user(blocks, where, history)
    else:
        _tell_assistant(blocks, where, history)


def _tell_user(blocks: Sequence[Mapping[str, Any]], where: str, history: History) -> None:
    """Results of calls first, then what the user says, wherever they stand among each other."""
    said = []
    for number, block in enumerate(blocks):
        place = f"{where}.content.{number}"
        if block.get("type") != "tool_result":
            said.append(_text(block, place))
            continue
        text = _texts(block.get("content") or "", f"{place}.content")
        failed = block.get("is_error") and "error" not in text.lower()
        history.result(_field(block, "tool_use_id", place), f"Error: {text}" if failed else text)
    if said:
        history.ask("\n".join(said))


def _tell_assistant(blocks: Sequence[Mapping[str, Any]], where: str, history: History) -> None:
    last_call = max((n for n, block in enumerate(blocks) if block.get("type") == "tool_use"), default=-1)
    for number, block in enumerate(blocks):
        place, kind = f"{where}.content.{number}", block.get("type")
        if kind == "thinking":
            if thought := block.get("thinking") or unseal(str(block.get("signature") or "")):
                history.think(str(thought))
        elif kind == "tool_use":
            arguments = block.get("input")
            if not isinstance(arguments, Mapping):
                raise BadRequest(f"{place}.input: an object is wanted")
            history.call(_field(block, "name", place), json_text(arguments), _field(block, "id", place))
        elif kind != "redacted_thinking":  # another server's, which nobody here can read
            history.say(_text(block, place), final=number > last_call)


def _texts(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{where}: a text or a list of blocks is wanted")
    return "\n".join(_text(block, f"{where}.{number}") for number, block in enumerate(content))


def _text(block: Any, where: str) -> str:
    """The text of a block; a document that is a text is one."""
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    source = block.get("source") if kind == "document" else None
    if isinstance(source, Mapping) and source.get("type") == "text" and isinstance(source.get("data"), str):
        return str(source["data"])
    raise BadRequest(f"{where}: a block of the type {kind!r} is not taken here; this model reads texts only")


def _field(block: Mapping[str, Any], name: str, where: str) -> str:
    found = block.get(name)
    if not isinstance(found, str) or not found:
        raise BadRequest(f"{where}.{name}: a text is wanted")
    return found
