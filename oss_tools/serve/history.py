"""Conversations as HTTP clients send them, item by item, to the conversation that a chat template takes.

Clients name calls by ids, in any order; templates want each result behind its call. What is told in the middle of a conversation
by a system or developer message stands before it here, as templates know one place for it only.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from oss_tools.chat.chat_template import ChatTemplate, HarmonyTemplate
from oss_tools.chat.harmony import NAMESPACE
from oss_tools.chat.messages import Conversation, Effort, Message
from oss_tools.chat.sections import CODE, PYTHON, has_own_section
from oss_tools.errors import BadRequest

Schema = Mapping[str, Any]
PARAGRAPH = "\n\n"


def own_names(template: ChatTemplate, tools: Sequence[Schema]) -> frozenset[str]:
    """The tools that the model calls by their own names, without the namespace `functions.`."""
    if not isinstance(template, HarmonyTemplate) or not template.preamble.own_sections:
        return frozenset()
    return frozenset(str(tool["name"]) for tool in tools if has_own_section(tool))


class History:
    """Gathers a conversation. Each method takes the next thing that was said, and raises BadRequest where it cannot follow."""

    def __init__(self, own: Collection[str] = ()) -> None:
        """`own`: the tools that the model calls by their own names."""
        self._own = frozenset(own)
        self._told: list[str] = []
        self._messages: list[Message] = []
        self._open: dict[str, Message] = {}  # calls by id that have no result yet
        self._results: dict[str, str] = {}
        self._ids: set[str] = set()

    def tell(self, text: str) -> None:
        """What a system or developer message says."""
        if text:
            self._told.append(text)

    def ask(self, text: str) -> None:
        """What the user says. Messages in a row are one, as many templates want turns in alternation."""
        self._close()
        if self._messages and self._messages[-1].role == "user":
            text = f"{self._messages.pop().content}{PARAGRAPH}{text}"
        self._messages.append(Message("user", text))

    def think(self, text: str) -> None:
        """The assistant's reasoning."""
        self._give()
        self._messages.append(Message("assistant", text, "analysis"))

    def say(self, text: str, final: bool = True) -> None:
        """What the assistant says to the user: its answer, or something on the way to it."""
        self._give()
        self._messages.append(Message("assistant", text, "final" if final else "commentary"))

    def call(self, name: str, arguments: str, number: str) -> None:
        """The assistant calls a tool with arguments in JSON, under an id."""
        self._give()
        if number in self._ids:
            raise BadRequest(f"two calls have the id {number!r}; each has one of its own")
        self._ids.add(number)
        message = Message("assistant", arguments, "commentary", NAMESPACE + name, "json")
        if name in self._own:
            code = _code(arguments) if name == PYTHON else None
            message = replace(message, channel="analysis", recipient=name)
            message = message if code is None else replace(message, content=code, content_type=None)
        self._messages.append(message)
        self._open[number] = message

    def result(self, number: str, text: str) -> None:
        """What the call with this id gave."""
        if number not in self._open or number in self._results:
            raise BadRequest(f"a result for the call {number!r}, which is not open: a call stands before its one result")
        self._results[number] = text

    def _give(self) -> None:
        """Writes the results that have come, in the order of their calls."""
        for number in [number for number in self._open if number in self._results]:
            call = self._open.pop(number)
            text = self._results.pop(number)
            self._messages.append(Message("tool", text, call.channel, "assistant", name=call.recipient))

    def _close(self) -> None:
        self._give()
        if self._open:
            raise BadRequest(f"the call {next(iter(self._open))!r} has no result; the conversation cannot go on without it")

    def conversation(self, tools: Sequence[Schema] = (), effort: Effort = "medium") -> Conversation:
        """All of it, for the assistant to go on. Raises BadRequest if it is not the assistant's turn."""
        self._close()
        if not self._messages and not self._told:
            raise BadRequest("there is no message to answer")
        if self._messages and self._messages[-1].role == "assistant":
            raise BadRequest("the last message is the assistant's; the user or a tool has the last word before an answer")
        return Conversation(tuple(self._messages), tuple(tools), effort, PARAGRAPH.join(self._told) if self._told else None)


def _code(arguments: str) -> str | None:
    """The code of a call of `python`, which gpt-oss writes as it is; None where the arguments hold anything else."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return found[CODE] if isinstance(found, dict) and set(found) == {CODE} and isinstance(found[CODE], str) else None
