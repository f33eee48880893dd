"""Conversations as files: JSON with messages, tools, effort and instructions. What is absent is left out."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args

from oss_tools.chat.messages import Conversation, Effort, Message
from oss_tools.checkpoints.files import PRIVATE, opener, read_small
from oss_tools.checkpoints.json_files import parse_value
from oss_tools.errors import BadRequest
from oss_tools.escapes import json_text

MOST = 64 << 20  # bytes of a file
ROLES = ("system", "developer", "user", "assistant", "tool")


def save(conversation: Conversation, path: Path) -> None:
    """Writes a new file, which is the user's alone. Raises OSError; FileExistsError for a file that is there."""
    with open(path, "x", encoding="utf-8", opener=opener(PRIVATE)) as file:
        file.write(json_text(_without_none(asdict(conversation)), indent=2) + "\n")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(part) for name, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list | tuple) else value


def load(path: Path) -> Conversation:
    """The conversation of a file that `save` wrote, or a list of messages with role and content, as OpenAI's API has it.

    Raises BadCheckpoint for a file that is no JSON, BadRequest for JSON that is no conversation.
    """
    found = parse_value(read_small(path, MOST), str(path))
    record = {"messages": found} if isinstance(found, list) else found
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        raise BadRequest(f"{path}: no conversation: it needs `messages`, a list")
    effort, instructions = record.get("effort", "medium"), record.get("instructions")
    if effort not in get_args(Effort):
        raise BadRequest(f"{path}: effort is {str(effort)[:40]!r}, not one of {', '.join(get_args(Effort))}")
    if instructions is not None and not isinstance(instructions, str):
        raise BadRequest(f"{path}: `instructions` must be a text")
    messages = tuple(_message(message, f"{path}: message {number}") for number, message in enumerate(record["messages"]))
    return Conversation(messages, effort=effort, instructions=instructions)


def _message(found: Any, where: str) -> Message:
    names = {field.name for field in fields(Message)}
    if not isinstance(found, dict) or not isinstance(found.get("content"), str) or found.get("role") not in ROLES:
        raise BadRequest(f"{where}: needs a role ({', '.join(ROLES)}) and a content, which is text")
    if unknown := sorted(map(str, found.keys() - names)):
        raise BadRequest(f"{where}: unknown field {unknown[0][:40]!r}; known: {', '.join(sorted(names))}")
    if wrong := [name for name, value in found.items() if value is not None and not isinstance(value, str)]:
        raise BadRequest(f"{where}: `{wrong[0]}` must be a text")
    return Message(**found)
