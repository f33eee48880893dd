"""What lm-eval's string interface cannot carry: the conversation behind a prompt, with tools and earlier turns.

lm-eval asks the model to render a chat history into a string long before the request runs, and without the document. Ours
gives it a string that remembers the history; when the request runs, its document says the rest.

A document may have a field `conversation`, an object with any of

    messages      [{"role": "user", "content": "…"}, …], in place of the text that doc_to_text gives; roles are system,
                  user, assistant and tool (with `name`, and on an assistant's call `recipient` and `content_type`)
    tools         [{"name": "…", "description": "…", "parameters": {JSON schema}}, …]
    instructions  what the developer says, in place of a system message's text
    effort        low, medium or high, unless the user sets one

Tasks without it, which is to say all of lm-eval's own, are prompted with doc_to_text and their few-shot examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from oss_tools.chat.messages import Conversation, Effort, Message
from oss_tools.errors import BadRecipe

FIELD = "conversation"
FIELDS = {"messages", "tools", "instructions", "effort"}
MESSAGE_FIELDS = {"role", "content", "channel", "recipient", "content_type", "name"}


class ChatPrompt(str):
    """A rendered prompt that remembers its chat history.

    Attributes:
        history: messages {"role", "content"}.
        continued: the last message is the beginning of the answer, not a turn of its own.
    """

    history: list[dict[str, str]]
    continued: bool

    def __new__(cls, text: str, history: list[dict[str, str]] | None = None, continued: bool = False) -> ChatPrompt:
        prompt = super().__new__(cls, text)
        prompt.history, prompt.continued = history or [], continued
        return prompt


def needs_chat(doc: Any) -> bool:
    """Whether a document asks for what only a chat can hold."""
    extra = doc.get(FIELD) if isinstance(doc, Mapping) else None
    return isinstance(extra, Mapping) and bool(extra.get("messages") or extra.get("tools"))


def has_tools(doc: Any) -> bool:
    """Whether a document offers functions."""
    extra = doc.get(FIELD) if isinstance(doc, Mapping) else None
    return isinstance(extra, Mapping) and bool(extra.get("tools"))


def conversation_of(prompt: ChatPrompt, doc: Any, effort: Effort | None = None) -> Conversation:
    """The conversation of a request, without the beginning of an answer. Raises BadRecipe if the document's is malformed.

    A system message (a task's description) becomes the developer's instructions, as harmony wants it.
    """
    extra = doc.get(FIELD) if isinstance(doc, Mapping) else None
    extra = {} if extra is None else extra
    if not isinstance(extra, Mapping) or set(extra) - FIELDS:
        raise BadRecipe(f"a document's `{FIELD}` must be an object with {', '.join(sorted(FIELDS))}")
    history: Sequence[Mapping[str, Any]] = prompt.history[:-1] if prompt.continued else prompt.history
    if extra.get("messages"):
        history = [*(fields for fields in history if fields["role"] == "system"), *extra["messages"]]
    messages = [message_of(fields) for fields in history]
    said = [message.content for message in messages if message.role == "system"]
    if extra.get("instructions"):
        said = [extra["instructions"]]
    wanted = effort or extra.get("effort") or "medium"
    if wanted not in get_args(Effort):
        raise BadRecipe(f"reasoning effort {wanted!r}: it is low, medium or high, or none")
    return Conversation(
        messages=tuple(message for message in messages if message.role != "system"),
        tools=tuple(extra.get("tools") or ()),
        effort=wanted,
        instructions="\n\n".join(said) or None,
    )


def message_of(fields: Mapping[str, Any]) -> Message:
    """A message of its fields; an assistant's without a channel goes to commentary if it is a call, else to final."""
    if not isinstance(fields, Mapping) or set(fields) - MESSAGE_FIELDS or not {"role", "content"} <= set(fields):
        raise BadRecipe(
            f"a message has role and content, and may have {', '.join(sorted(MESSAGE_FIELDS))}; not {fields!r:.80}"
        )
    answered = fields["role"] == "assistant" and not fields.get("channel")
    channel = ("commentary" if fields.get("recipient") else "final") if answered else fields.get("channel")
    return Message(**{**fields, "channel": channel})
