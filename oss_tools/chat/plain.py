"""Conversations as Jinja templates know them: messages and tools of the Hugging Face and OpenAI kind
(https://huggingface.co/docs/transformers/chat_templating)."""

from __future__ import annotations

from typing import Any

from oss_tools.chat.calls import name_of, read_call
from oss_tools.chat.completion import Finding
from oss_tools.chat.harmony import NAMESPACE
from oss_tools.chat.messages import Conversation, Message

Plain = dict[str, Any]


def plain_messages(conversation: Conversation) -> list[Plain]:
    """The messages. What the assistant says and calls without an answer between is one message, as these formats have it;
    reasoning stands beside it. Calls have ids of nine letters and digits, which Mistral's templates ask for; results name theirs.
    """
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
