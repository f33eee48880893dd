"""Conversations as Jinja templates know them: messages and tools of the Hugging Face and OpenAI kind
(https://huggingface.co/docs/transformers/chat_templating)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from oss_tools.chat.calls import name_of, read_call
from oss_tools.chat.completion import Finding
from oss_tools.chat.harmony import NAMESPACE
from oss_tools.chat.messages import Conversation, Message

Plain = dict[str, Any]


@dataclass(frozen=True)
class CallForm:
    """How a template wants messages with calls, where templates differ.

    Attributes:
        text: arguments are JSON text (DeepSeek), not an object.
        null: the content of a message that only calls is null (DeepSeek), not an empty text.
        single: a message has one call at most, and its result comes next (Llama 3.1).
    """

    text: bool = False
    null: bool = False
    single: bool = False


def plain_messages(conversation: Conversation, form: CallForm | None = None) -> list[Plain]:
    """The messages. What the assistant says and calls without an answer between is one message, as these formats have it;
    reasoning stands beside it. Calls have ids of nine letters and digits, which Mistral's templates ask for; results name theirs.
    """
    form = form or CallForm()
    plain = _messages(conversation)
    if form.single:
        plain = _one_by_one(plain)
    if form.null:
        plain = [part for message in plain for part in _apart(message)]
    for call in (call for message in plain for call in message.get("tool_calls", ()) if form.text):
        arguments = call["function"]["arguments"]
        if not isinstance(arguments, str):
            call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return plain


def _apart(message: Plain) -> list[Plain]:
    """A message's text, and its calls in one without text."""
    if not message.get("tool_calls"):
        return [message]
    said = {key: value for key, value in message.items() if key != "tool_calls"}
    calls = {"role": message["role"], "content": None, "tool_calls": message["tool_calls"]}
    return [said, calls] if message["content"] else [{**said, **calls}]


def _one_by_one(plain: list[Plain]) -> list[Plain]:
    """Each call in a message of its own, before its result."""
    results = {message["tool_call_id"]: message for message in plain if "tool_call_id" in message}
    found: list[Plain] = []
    for message in plain:
        calls = message.get("tool_calls", ())
        for i, call in enumerate(calls):
            own = message if i == 0 else {"role": "assistant", "content": ""}
            found += [{**own, "tool_calls": [call]}, *([results[call["id"]]] if call["id"] in results else [])]
        if not calls and "tool_call_id" not in message:
            found.append(message)
    return found


def _messages(conversation: Conversation) -> list[Plain]:
    plain: list[Plain] = []
    if conversation.instructions is not None:
        plain.append({"role": "system", "content": conversation.instructions})
    thoughts: list[str] = []
    open_calls: list[Plain] = []
    count = 0
    for message in conversation.messages:
        if message.role == "assistant" and message.channel == "analysis" and not message.recipient:
            thoughts.append(message.content)
            continue
        if message.role == "assistant" and message.recipient:
            call = _call(message, count)
            count += 1
            open_calls.append(call)
            if thoughts or not plain or plain[-1]["role"] != "assistant":
                plain.append({"role": "assistant", "content": "", **_reasoning(thoughts)})
            plain[-1].setdefault("tool_calls", []).append(call)
        elif message.role == "tool":
            plain.append(_result(message, open_calls))
        else:
            own = _reasoning(thoughts) if message.role == "assistant" else {}
            name = {"name": message.name} if message.name else {}
            plain.append({"role": message.role, "content": message.content, **name, **own})
        thoughts = []
    return plain


def plain_tools(conversation: Conversation) -> list[Plain] | None:
    """The tools' schemas; None without any."""
    return [{"type": "function", "function": dict(tool)} for tool in conversation.tools] or None


def _reasoning(thoughts: list[str]) -> Plain:
    """Under Qwen's name and gpt-oss's."""
    return dict.fromkeys(("reasoning_content", "thinking"), "\n".join(thoughts)) if thoughts else {}


def _call(message: Message, number: int) -> Plain:
    arguments = read_call(message)
    function = {
        "name": name_of(message),
        "arguments": message.content if isinstance(arguments, Finding) else dict(arguments),
    }
    return {"type": "function", "id": f"call{number:05d}", "function": function}


def _result(message: Message, open_calls: list[Plain]) -> Plain:
    """A tool's answer, to the first call of it that has none yet."""
    name = (message.name or "").removeprefix(NAMESPACE)
    call = next((call for call in open_calls if call["function"]["name"] == name), open_calls[0] if open_calls else None)
    found = {"role": "tool", "content": message.content, **({"name": name} if name else {})}
    if call is not None:
        open_calls.remove(call)
        found["tool_call_id"] = call["id"]
    return found
