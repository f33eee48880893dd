"""Conversations in files: JSON Lines, each line `{"messages": […], "tools": […]}` as OpenAI's API has them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from oss_tools.chat.harmony import NAMESPACE
from oss_tools.chat.messages import Conversation, Message
from oss_tools.errors import BadRequest
from oss_tools.texts import read_words

LARGEST = 256 << 20  # bytes of a file
REASONING = ("reasoning_content", "reasoning", "thinking")


def read_chats(path: Path) -> list[Conversation]:
    """The conversations of a file. Raises BadRequest that names the line which is none."""
    found = []
    for number, line in enumerate(read_words(path, LARGEST).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(conversation_of(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            raise BadRequest(
                f'{path}, line {number}: no conversation; each line is {{"messages": [{{"role": …, "content": …}}, …]}}'
            ) from None
    return found


def conversation_of(line: Any) -> Conversation:
    """Of a line's content; system and developer messages become the instructions. Raises ValueError if it is none."""
    if not isinstance(line, Mapping) or not isinstance(line.get("messages"), list):
        raise ValueError("no messages")
    told: list[str] = []
    messages = tuple(_messages(line["messages"], told))
    if not messages:
        raise ValueError("no messages")
    return Conversation(messages, tuple(map(_tool, line.get("tools") or [])), instructions="\n\n".join(told) or None)


def _messages(sent: list[Any], told: list[str]) -> Iterator[Message]:
    names: dict[Any, str] = {}  # of the functions called, by the call's id
    last = ""
    for message in sent:
        if not isinstance(message, Mapping):
            raise ValueError("no message")
        role, content = message.get("role"), _text(message.get("content"))
        if role in ("system", "developer"):
            told.append(content)
        elif role == "user":
            yield Message("user", content)
        elif role == "assistant":
            if reasoning := next((message[key] for key in REASONING if message.get(key)), None):
                yield Message("assistant", _text(reasoning), "analysis")
            calls = message.get("tool_calls") or []
            if content or not calls:
                yield Message("assistant", content, "commentary" if calls else "final")
            for call in calls:
                function = call.get("function") if isinstance(call, Mapping) else None
                if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                    raise ValueError("no call")
                last = names[_text(call.get("id"))] = function["name"]
                arguments = function.get("arguments") or {}
                arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
                yield Message("assistant", arguments, "commentary", NAMESPACE + last, "json")
        elif role in ("tool", "function"):
            name = message.get("name") or names.get(_text(message.get("tool_call_id")), last)
            yield Message("tool", content, "commentary", "assistant", name=NAMESPACE + _text(name))
        else:
            raise ValueError("no role")


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    raise ValueError("no text")


def _tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError("no tool")
    kept = {key: function[key] for key in ("name", "description", "parameters") if function.get(key) is not None}
    return {"description": "", "parameters": {"type": "object", "properties": {}}, **kept}
