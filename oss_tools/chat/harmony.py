"""The harmony format, in which gpt-oss speaks (https://cookbook.openai.com/articles/openai-harmony).

Written as openai-harmony writes it, token for token, but for any vocabulary that has its special tokens.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.sections import has_own_section, sections
from oss_tools.chat.typescript import Schema, namespace

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"
CHANNELS = "# Valid channels: analysis, commentary, final. Channel must be included for every message."
TOOLS_CHANNEL = "Calls to these tools must go to the commentary channel: 'functions'."
NAMESPACE = "functions."  # of tools that have no section of their own


class Special(str):
    """The name of a special token, as opposed to a text that may happen to read like one."""


START, MESSAGE, CHANNEL, CONSTRAIN = (
    Special("<|start|>"),
    Special("<|message|>"),
    Special("<|channel|>"),
    Special("<|constrain|>"),
)
END, CALL, RETURN = Special("<|end|>"), Special("<|call|>"), Special("<|return|>")


@dataclass(frozen=True)
class Preamble:
    """What the system message opens with, and where a call's recipient stands; both as the model was trained."""

    identity: str | None = None
    knowledge_cutoff: str | None = None
    date: str | None = None  # ISO 8601
    recipient_in_role: bool = False  # `assistant to=NAME<|channel|>commentary`, not `<|channel|>commentary to=NAME`
    own_sections: bool = False  # `python` and `browser.NAME` are declared in the system message, as gpt-oss has learnt them

    @classmethod
    def of_gpt_oss(cls, date: datetime.date | None = None) -> Preamble:
        """As openai-harmony writes it for gpt-oss. `date`: today's if None."""
        today = date or datetime.date.today()
        return cls(IDENTITY, KNOWLEDGE_CUTOFF, today.isoformat(), recipient_in_role=True, own_sections=True)

    def lines(self) -> list[str]:
        cutoff = f"Knowledge cutoff: {self.knowledge_cutoff}" if self.knowledge_cutoff else None
        date = f"Current date: {self.date}" if self.date else None
        return [line for line in (self.identity, cutoff, date) if line]


def render(conversation: Conversation, preamble: Preamble | None = None, complete: bool = False) -> list[str]:
    """The conversation as pieces: `Special` names of tokens, and plain texts, each to be encoded by itself.

    A system message is written from the effort and the preamble, a developer message from instructions and tools, unless
    the conversation has messages with these roles, which are then written as they are.

    Args:
        preamble: none for models that were trained without one (`tiny`).
        complete: False asks for the assistant's next message: the text ends with `<|start|>assistant`. True is for
            training: the assistant's messages at the end are the answer, kept whole, and a final one ends with <|return|>.

    Analysis before the first final answer is dropped when the last thing the assistant said (before the answer, if
    `complete`) was a final answer, which is openai-harmony's rule.
    """
    preamble = preamble or Preamble()
    messages = list(conversation.messages)
    answer: list[Message] = []
    while complete and messages and messages[-1].role == "assistant":
        answer.insert(0, messages.pop())
    roles = {message.role for message in messages}
    shown = _without_old_analysis(messages) + answer
    if "developer" not in roles and (text := _developer_text(conversation, preamble)):
        at = 1 if shown and shown[0].role == "system" else 0
        shown.insert(at, Message("developer", text))
    if "system" not in roles:
        shown.insert(0, Message("system", _system_text(conversation, preamble)))
    pieces = [piece for message in shown for piece in _message(message, preamble.recipient_in_role)]
    if not complete:
        return [*pieces, START, "assistant"]
    if answer and answer[-1].channel == "final" and pieces[-1] == END:
        pieces[-1] = RETURN
    return pieces


def plain_text(pieces: Sequence[str]) -> str:
    """The pieces in one string, special tokens by their names. Not for texts of strangers, who may write such names."""
    return "".join(pieces)


def _without_old_analysis(messages: list[Message]) -> list[Message]:
    channels = [message.channel for message in messages if message.role == "assistant"]
    if not channels or channels[-1] != "final":
        return messages[:]
    first = next(i for i, message in enumerate(messages) if message.channel == "final")
    return [message for i, message in enumerate(messages) if i >= first or message.channel != "analysis"]


def _system_text(conversation: Conversation, preamble: Preamble) -> str:
    own, functions = _by_section(conversation, preamble)
    tools = ["# Tools", *sections(own)] if own else []
    channels = f"{CHANNELS}\n{TOOLS_CHANNEL}" if functions else CHANNELS
    parts = ["\n".join(preamble.lines()), f"Reasoning: {conversation.effort}", *tools, channels]
    return "\n\n".join(part for part in parts if part)


def _developer_text(conversation: Conversation, preamble: Preamble) -> str:
    _, functions = _by_section(conversation, preamble)
    parts = ["# Instructions", conversation.instructions] if conversation.instructions is not None else []
    if functions:
        parts += ["# Tools", namespace(NAMESPACE.rstrip("."), functions)]
    return "\n\n".join(parts)


def _by_section(conversation: Conversation, preamble: Preamble) -> tuple[list[Schema], list[Schema]]:
    """The tools with sections of their own in the system message, and the functions of the developer's."""
    own = [tool for tool in conversation.tools if preamble.own_sections and has_own_section(tool)]
    return own, [tool for tool in conversation.tools if tool not in own]


def _message(message: Message, recipient_in_role: bool) -> list[str]:
    """One message. A tool's answer goes to the assistant's commentary unless it says otherwise."""
    role, recipient, channel = message.role, message.recipient, message.channel
    if role == "tool":
        role, recipient, channel = message.name or "tool", recipient or "assistant", channel or "commentary"
    elif message.name:
        role += f":{message.name}"
    to = [f" to={recipient}"] if recipient and recipient != "all" else []
    before, after = (to, []) if recipient_in_role or message.role != "assistant" or not channel else ([], to)
    header = [role, *before, *([CHANNEL, channel] if channel else []), *after]
    if message.content_type:
        header += [" ", CONSTRAIN, message.content_type]
    calls = message.role == "assistant" and message.recipient is not None
    return [START, *header, MESSAGE, message.content, CALL if calls else END]
