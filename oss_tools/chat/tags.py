"""Reads answers of models that speak no harmony: plain text, with reasoning and tool calls between tags.

Known: `<think>…</think>` (Qwen, DeepSeek), `<tool_call>{"name": …, "arguments": …}</tool_call>` (Hermes, Qwen),
`<|python_tag|>` and bare JSON (Llama 3), `[TOOL_CALLS]` (Mistral); see `written_calls`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from oss_tools.chat.completion import Completion, Delta, Finding, Parser, Problem, ToolCall, excerpt, read_arguments
from oss_tools.chat.messages import Message
from oss_tools.chat.sections import CODE, PYTHON
from oss_tools.chat.written_calls import Written, calls_in, name_and_arguments, named_calls_in
from oss_tools.engine.text import Text, overlap

THINK, END_THINK, TOOL, END_TOOL = "<think>", "</think>", "<tool_call>", "</tool_call>"
PYTHON_TAG, TOOL_CALLS = "<|python_tag|>", "[TOOL_CALLS]"
ANSWER, THOUGHT, CALL = "final", "analysis", "commentary"
# What a tag opens, and which tags end that. An answer begins as if behind END_THINK.
CHANNEL = {THINK: THOUGHT, END_THINK: ANSWER, TOOL: CALL, END_TOOL: ANSWER, PYTHON_TAG: CALL, TOOL_CALLS: CALL}
ENDS = {
    THINK: (END_THINK,),
    TOOL: (END_TOOL,),
    PYTHON_TAG: (PYTHON_TAG,),
    TOOL_CALLS: (TOOL_CALLS,),
    END_THINK: (THINK, TOOL, PYTHON_TAG, TOOL_CALLS),
    END_TOOL: (TOOL, PYTHON_TAG, TOOL_CALLS),
}
OF_CALLS = (TOOL, PYTHON_TAG, TOOL_CALLS)
NAMES = (*CHANNEL, "[ARGS]", "[CALL_ID]")  # where these are special tokens, decoding leaves them out
BEGINS_LIKE_A_CALL = ("{", "[")
QUOTE = re.compile(r'(?<!\\)(?:\\\\)*"')
LOOKS_LIKE_A_CALL = re.compile(r'\[?\s*\{\s*"(name|type|function)"')


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
        names = NAMES if self._tools else (THINK, END_THINK)
        self._names = {text.special[name]: name for name in names if name in text.special}
        self._stream = text.stream()
        self._held = ""
        self._blank = True  # whether nothing but blanks has come since the last tag
        self._parts: list[tuple[str, list[str]]] = [(THINK if thinking else END_THINK, [])]
        self._quotes = Quotes()  # up to what is held
        self._began_like_a_call = False
        self._ended = False
        self._calls: list[ToolCall] = []
        self._findings: list[Finding] = []

    def add(self, token: int) -> list[Delta]:
        if self._ended:
            return []
        if token in self._text.stop_tokens:
            self._ended = True
            return []
        return self._take(self._stream.add(token) + self._names.get(token, ""), last=False)

    def finish(self) -> tuple[list[Delta], Completion]:
        deltas = self._take(self._stream.flush(), last=True)
        if not self._ended:
            self._find(Problem.MISSING_END, excerpt("".join(self._parts[-1][1])[-60:]))
        messages: list[Message] = []
        for i, (tag, texts) in enumerate(self._parts):
            found = self._messages(tag, "".join(texts).strip(), last=i == len(self._parts) - 1)
            if CHANNEL[tag] == ANSWER and self._withheld("".join(texts)):
                deltas += [Delta(message.content, ANSWER) for message in found if message.channel == ANSWER]
            messages += found
        if not self._findings and not self._calls and not any(m.channel == ANSWER for m in messages):
            self._find(Problem.NO_ANSWER, "it ends after its analysis" if messages else "it is empty")
        return deltas, Completion(tuple(messages), tuple(self._calls), tuple(self._findings))

    # ---- cutting at tags --------------------------------------------------------------------------------------------

    def _take(self, text: str, last: bool) -> list[Delta]:
        """Cuts the text at tags; what may be the beginning of one is held back unless it is the last."""
        self._held += text
        deltas: list[Delta] = []
        while True:
            opened, texts = self._parts[-1]
            tags = [tag for tag in ENDS[opened] if self._allowed(tag)]
            found = min(((at, tag) for tag in tags if (at := self._found(tag)) >= 0), default=None)
            keep = 0 if last else max((overlap(self._held, tag) for tag in tags), default=0)
            cut = found[0] if found else len(self._held) - keep
            texts.append(self._held[:cut])
            self._quotes = self._quotes.after(self._held[:cut])
            deltas += self._shown(self._held[:cut], CHANNEL[opened])
            if not found:
                self._held = self._held[cut:]
                return deltas
            self._held = self._held[cut + len(found[1]) :]
            self._parts.append((found[1], []))
            self._quotes = Quotes()
            self._blank = True

    def _found(self, tag: str) -> int:
        """Where the tag comes in what is held, -1 if nowhere. Within a text of a call's JSON, its end is a part of that text."""
        at = self._held.find(tag)
        seen, quotes = 0, self._quotes
        while tag == END_TOOL and at >= 0 and (quotes := quotes.after(self._held[seen:at])).open:
            seen, at = at, self._held.find(tag, at + 1)
        return at

    def _allowed(self, tag: str) -> bool:
        """Whether the tag means something here: reasoning comes first, and without tools there are no calls."""
        if tag == THINK:
            text = self._held.lstrip()
            return len(self._parts) == 1 and self._blank and (text.startswith(THINK) or THINK.startswith(text))
        return tag not in OF_CALLS or bool(self._tools)

    def _shown(self, text: str, channel: str) -> list[Delta]:
        """The text for a person, without the blank lines around tags. An answer that begins like a call waits for its end."""
        text = text.lstrip() if self._blank else text
        if not text:
            return []
        if self._blank:
            self._began_like_a_call = channel == ANSWER and self._withheld(text)
        self._blank = False
        return [] if self._began_like_a_call else [Delta(text, channel)]

    def _withheld(self, text: str) -> bool:
        return bool(self._tools) and text.lstrip().startswith(BEGINS_LIKE_A_CALL)

    # ---- what stands between tags -----------------------------------------------------------------------------------

    def _messages(self, tag: str, text: str, last: bool) -> list[Message]:
        if CHANNEL[tag] == THOUGHT or not self._tools:
            return [Message("assistant", text, CHANNEL[tag])] if text else []
        if tag == TOOL:
            if last and self._ended and not text.endswith(END_TOOL):
                self._find(Problem.OPEN_TAG, f"{TOOL} without {END_TOOL}")
            return self._read_certain(text.removesuffix(END_TOOL))
        if CHANNEL[tag] == ANSWER:
            return self._written(calls_in(text, self._tools), text, certain=False)
        if tag == TOOL_CALLS:
            return self._written(named_calls_in(text), text, certain=True)
        written = calls_in(text, self._tools)
        if not written.calls and PYTHON in self._tools and text:
            return [self._call(PYTHON, {CODE: text})]
        return self._written(written, text, certain=True)

    def _read_certain(self, text: str) -> list[Message]:
        """The one call that stands between tags."""
        call = read_arguments(text)
        if isinstance(call, Finding):
            written = calls_in(text, self._tools)
            return self._written(written, text, certain=True)
        found = name_and_arguments(call)
        if found is None:
            self._find(Problem.BROKEN_JSON, f"a call without a name or arguments: {excerpt(text)}")
            return [Message("assistant", text, CALL)]
        return [self._call(*found)]

    def _written(self, written: Written, text: str, certain: bool) -> list[Message]:
        """The messages of a text with calls; `certain`: it should be calls and nothing else."""
        if not written.calls and not certain and not LOOKS_LIKE_A_CALL.match(text):
            return [Message("assistant", text, ANSWER)] if text else []
        if not written.calls:
            fault = read_arguments(text)
            sound = not isinstance(fault, Finding)
            if sound and not certain:
                return [Message("assistant", text, ANSWER)]
            self._findings.append(Finding(Problem.BROKEN_JSON, excerpt(text)) if sound else fault)  # type: ignore[arg-type]
            return [Message("assistant", text, CALL)]
        before = [Message("assistant", written.before, ANSWER)] if written.before else []
        if written.before:
            self._find(Problem.STRAY_TEXT, f"before a call: {excerpt(written.before)}")
        messages = before + [self._call(name, arguments) for name, arguments in written.calls]
        if LOOKS_LIKE_A_CALL.match(written.after) and isinstance(fault := read_arguments(written.after), Finding):
            self._findings.append(fault)
        elif written.after:
            self._find(Problem.STRAY_TEXT, f"after a call: {excerpt(written.after)}")
        return messages

    def _call(self, name: str, arguments: Mapping[str, Any]) -> Message:
        if name not in self._tools:
            self._find(Problem.UNKNOWN_TOOL, excerpt(name))
        else:
            self._calls.append(ToolCall(name, arguments))
        return Message("assistant", json.dumps(arguments, ensure_ascii=False), CALL, f"functions.{name}", "json")

    def _find(self, problem: Problem, detail: str) -> None:
        self._findings.append(Finding(problem, detail))


@dataclass(frozen=True)
class Quotes:
    """What a part of a JSON text leaves open: a text, and an escape."""

    open: bool = False
    escapes: bool = False

    def after(self, text: str) -> Quotes:
        """The same after more of it."""
        if not text:
            return self
        text = text[1:] if self.escapes else text
        return Quotes(self.open != (len(QUOTE.findall(text)) % 2 == 1), (len(text) - len(text.rstrip("\\"))) % 2 == 1)
