"""What clients say as a conversation of ours: what the translations of all protocols share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from oss_tools.chat.harmony import NAMESPACE
from oss_tools.chat.messages import Conversation, Effort, Message
from oss_tools.errors import BadRequest

MOST_TOOLS = 1024
EFFORTS: Mapping[str, Effort] = {
    "none": "none", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip


def effort_of(word: str | None, known: Iterable[str]) -> Effort:
    """A client's word for how much to reason in ours. A model that cannot leave reasoning out reasons little where none is
    asked for. Raises BadRequest."""
    if word is None:
        return "medium"
    if word not in EFFORTS:
        raise BadRequest(f"reasoning effort {word!r}: there are {', '.join(EFFORTS)}")
    effort = EFFORTS[word]
    return "low" if effort == "none" and "none" not in known else effort


def thought(text: str) -> Message:
    """Reasoning that the model is given back."""
    return Message("assistant", text, "analysis")


def said(text: str, calling: bool = False) -> Message:
    """What the assistant said. `calling`: beside calls of tools, so that it is no final answer."""
    return Message("assistant", text, "commentary" if calling else "final")


def call(name: str, arguments: str) -> Message:
    """A call of a function, its arguments as JSON."""
    return Message("assistant", arguments, "commentary", NAMESPACE + name, "json")


def result(name: str, text: str) -> Message:
    """What a function gave."""
    return Message("tool", text, "commentary", "assistant", name=NAMESPACE + name)


def function_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool as templates are given it."""
    kept = {key: function[key] for key in ("name", "description", "parameters", "strict") if function.get(key) is not None}
    return {"description": "", "parameters": {"type": "object", "properties": {}}, **kept}


def conversation(
    messages: Iterable[Message],
    tools: Iterable[Mapping[str, Any]],
    effort: Effort,
    instructions: Iterable[str],
) -> Conversation:
    """The whole. Raises BadRequest for no messages, or two tools of one name."""
    messages, tools = tuple(messages), tuple(tools)
    if not messages:
        raise BadRequest("messages: there are none")
    names = [str(tool["name"]) for tool in tools]
    if len(set(names)) < len(names) or len(names) > MOST_TOOLS:
        raise BadRequest(f"tools: each needs a name of its own, and {MOST_TOOLS} are the most")
    told = "\n\n".join(instructions)
    return Conversation(messages, tools, effort, told or None)
