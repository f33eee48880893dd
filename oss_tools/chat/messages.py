"""What a conversation is made of, whatever template a model speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Effort = Literal["none", "low", "medium", "high"]


@dataclass(frozen=True)
class Message:
    """One message. Channels, recipients and content types are harmony's (https://cookbook.openai.com/articles/openai-harmony)."""

    role: str  # system, developer, user, assistant, tool
    content: str
    channel: str | None = None  # of the assistant: analysis, commentary, final
    recipient: str | None = None  # of a tool call: functions.NAME
    content_type: str | None = None  # json: written as <|constrain|>json
    name: str | None = None  # of a tool's answer: functions.NAME


@dataclass(frozen=True)
class Conversation:
    """Messages, oldest first, and what the model is told before them."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()  # function schemas: name, description, parameters (JSON schema)
    effort: Effort = "medium"
    instructions: str | None = None  # the developer's
