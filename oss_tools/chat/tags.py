"""Reads answers of models that speak no harmony: plain text, with reasoning and tool calls between tags.

Known: `<think>…</think>` (Qwen, DeepSeek), `<tool_call>{"name": …, "arguments": …}</tool_call>` (Hermes, Qwen), and a text that
is one JSON object `{"name": …, "parameters": …}` (Llama 3.1).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from oss_tools.chat.completion import Completion, Delta, Finding, Parser, Problem, ToolCall, excerpt, read_arguments
from oss_tools.chat.messages import Message
from oss_tools.engine.text import Text, overlap

THINK, END_THINK, TOOL, END_TOOL = "<think>", "</think>", "<tool_call>", "</tool_call>"
NEXT = {THINK: "analysis", END_THINK: "final", TOOL: "commentary", END_TOOL: "final"}
TAGS = {"final": (THINK, TOOL), "analysis": (END_THINK,), "commentary": (END_TOOL,)}


class TagParser(Parser):
    """Tokens of an answer to messages on harmony's channels."""

    def __init__(self, text: Text, tools: Iterable[str] = (), thinking: bool = False) -> None:
        """
        Args:
            tools: the names of those that were offered; calls are looked for only if there are any.
            thinking: whether the prompt ends inside of `<think>`.
        """
        self._text = text
        self._tools = frozenset(tools)
        self._stream = text.stream()
        self._held = ""
        self._blank = True  # whether nothing but blanks has come on this channel
        self._parts: list[tuple[str, list[str]]] = [("analysis" if thinking else "final", [])]
        self._calling = False  # whether this channel's text is one JSON object
        self._ended = False
        self._calls: list[ToolCall] = []
        self._findings: list[Finding] = []

    def add(self, token: int) -> list[Delta]:
        if self._ended:
            return []
        if token in self._text.stop_tokens:
            self._ended = True
            return []
        return self._take(self._stream.add(token), last=False)

    def finish(self) -> tuple[list[Delta], Completion]:
        deltas = self._take(self._stream.flush(), last=True)
        if not self._ended:
            self._find(Problem.MISSING_END, excerpt("".join(self._parts[-1][1])[-60:]))
        messages = [m for i, (channel, texts) in enumerate(self._parts) if (m := self._message(i, channel, "".join(texts)))]
        if not self._findings and not self._calls and not any(m.channel == "final" for m in messages):
            self._find(Problem.NO_ANSWER, "it ends after its analysis" if messages else "it is empty")
        return deltas, Completion(tuple(messages), tuple(self._calls), tuple(self._findings))

    def _take(self, text: str, last: bool) -> list[Delta]:
        """Cuts the text at tags; what may be the beginning of one is held back unless it is the last."""
        self._held += text
        deltas: list[Delta] = []
        while True:
            channel, texts = self._parts[-1]
            tags = [tag for tag in TAGS[channel] if self._allowed(tag)]
            found = min(((at, tag) for tag in tags if (at := self._held.find(tag)) >= 0), default=None)
            keep = 0 if last else max((overlap(self._held, tag) for tag in tags), default=0)
            cut = found[0] if found else len(self._held) - keep
            texts.append(self._held[:cut])
            deltas += self._shown(self._held[:cut], channel)
            if not found:
                self._held = self._held[cut:]
                return deltas
            self._held = self._held[cut + len(found[1]) :]
            self._parts.append((NEXT[found[1]], []))
            self._blank = True

    def _allowed(self, tag: str) -> bool:
        """Whether the tag means something here: reasoning comes first, and without tools there are no calls."""
        if tag == THINK:
            text = self._held.lstrip()
            return len(self._parts) == 1 and self._blank and (text.startswith(THINK) or THINK.startswith(text))
        return tag != TOOL or bool(self._tools)

    def _shown(self, text: str, channel: str) -> list[Delta]:
        """The text for a person: without the blank lines around tags; a JSON object where tools were offered is a call."""
        text = text.lstrip() if self._blank else text
        if not text:
            return []
        if self._blank:
            self._calling = channel == "final" and bool(self._tools) and text.startswith("{")
        self._blank = False
        return [Delta(text, "commentary" if self._calling else channel)]

    def _message(self, index: int, channel: str, text: str) -> Message | None:
        text = text.strip()
        if channel == "final" and self._tools and text.startswith("{"):
            call = self._read_call(text, certain=False)
            if call:
                return call
        if channel == "commentary":
            if index == len(self._parts) - 1:
                self._find(Problem.MISSING_END, f"{TOOL} without {END_TOOL}")
            return self._read_call(text, certain=True)
        return Message("assistant", text, channel) if text else None

    def _read_call(self, text: str, certain: bool) -> Message | None:
        """A call as a message; None if it is none and need not be one (`certain` if it stands between tags)."""
        call = read_arguments(text)
        if isinstance(call, Finding):
            looks = certain or re.match(r'\{\s*"(name|type|function)"', text)
            if looks:
                self._findings.append(call)
            return Message("assistant", text, "commentary") if looks else None
        name, arguments = _name_and_arguments(call)
        if name is None:
            if certain:
                self._find(Problem.BROKEN_JSON, f"a call without a name or arguments: {excerpt(text)}")
            return Message("assistant", text, "commentary") if certain else None
        if name not in self._tools:
            self._find(Problem.UNKNOWN_TOOL, excerpt(name))
        else:
            self._calls.append(ToolCall(name, arguments))
        return Message("assistant", _dump(arguments), "commentary", f"functions.{name}", "json")

    def _find(self, problem: Problem, detail: str) -> None:
        self._findings.append(Finding(problem, detail))


def _dump(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _name_and_arguments(call: Any) -> tuple[str | None, Any]:
    name = call.get("name")
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str) and not isinstance(parsed := read_arguments(arguments), Finding):
        arguments = parsed
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else (None, None)
