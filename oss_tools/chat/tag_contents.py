"""Reads what stands between the marks of an answer: reasoning and text as they are, calls in the ways of several families.

The calls themselves are read by `written_calls` (JSON, Python's syntax) and `marked_calls` (marks inside of marks).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from oss_tools.chat.completion import Finding, Problem, ToolCall, excerpt, read_arguments
from oss_tools.chat.dialects import ARG_KEY, DEEPSEEK, FUNCTION, KIMI, TOOL, TOOL_CALLS, Dialect
from oss_tools.chat.marked_calls import Broken, Open, Part, Schemas, Stray, function_calls, keyed_call, section_calls
from oss_tools.chat.messages import Message
from oss_tools.chat.sections import CODE, PYTHON
from oss_tools.chat.written_calls import NAMED, Written, calls_in, name_and_arguments, named_calls_in

ANSWER, THOUGHT, CALL = "final", "analysis", "commentary"
LOOKS_LIKE_A_CALL = re.compile(r'\[?\s*\{\s*"(name|type|function)"')


class Contents:
    """Messages of what stands between marks.

    Attributes:
        calls: those of tools that were offered.
        findings: what is wrong with the answer.
    """

    def __init__(self, marks: Dialect, tools: frozenset[str], schemas: Schemas, ended: bool) -> None:
        """`ended`: whether the answer was ended by a token that means so. The others: as of `TagParser`."""
        self._marks, self._tools, self._schemas, self._ended = marks, tools, schemas, ended
        self.calls: list[ToolCall] = []
        self.findings: list[Finding] = []

    def messages(self, mark: str, channel: str, text: str, last: bool) -> list[Message]:
        """The messages of the text behind a mark, which belongs to this channel. `last`: whether no other mark follows."""
        if channel == THOUGHT or not self._tools:
            return [Message("assistant", text, channel)] if text else []
        if channel == ANSWER:
            return self._written(calls_in(text, self._tools), text, certain=False)
        closes = self._marks.calls[mark]
        if closes and last and self._ended and not text.endswith(closes) and mark != FUNCTION:
            self.find(Problem.OPEN_TAG, f"{mark} without {closes}")
        text = text.removesuffix(closes or "").strip()
        if mark == FUNCTION:
            return self._read(function_calls(f"{FUNCTION}{text}{'' if last else closes}", self._schemas))
        if mark in (DEEPSEEK, KIMI):
            return self._read(section_calls(mark, text))
        if mark == TOOL_CALLS:
            return self._named(text)
        if text.startswith(FUNCTION):
            return self._read(function_calls(text, self._schemas))
        if mark == TOOL:
            if not text.startswith("{") and (ARG_KEY in text or (self._marks.keyed and text in self._tools)):
                return self._read([keyed_call(text, self._schemas)])
            return self._read_certain(text)
        written = calls_in(text, self._tools if PYTHON in self._tools else None)
        if not written.calls and PYTHON in self._tools and text:
            return [self._call(PYTHON, {CODE: text})]
        return self._written(written, text, certain=True)

    def _read(self, parts: Iterable[Part]) -> list[Message]:
        """The messages of calls that were read one by one."""
        messages: list[Message] = []
        for part in parts:
            if isinstance(part, Stray):
                self.find(Problem.STRAY_TEXT, f"beside a call: {excerpt(part.text)}")
            elif isinstance(part, Open):
                if self._ended and all(finding.problem != Problem.OPEN_TAG for finding in self.findings):
                    self.find(Problem.OPEN_TAG, f"a call without {part.mark}")
            elif isinstance(part, Broken):
                self.findings.append(part.finding)
                messages.append(Message("assistant", part.text.strip(), CALL))
            else:
                messages.append(self._call(*part))
        return messages

    def _named(self, text: str) -> list[Message]:
        """What stands behind Mistral's [TOOL_CALLS]."""
        written = named_calls_in(text)
        broken = NAMED.match(written.after)
        if broken is None:
            return self._written(written, text, certain=True)
        fault = read_arguments(written.after[broken.end() :])
        messages = [self._call(name, arguments) for name, arguments in written.calls]
        self.findings.append(fault if isinstance(fault, Finding) else Finding(Problem.BROKEN_JSON, excerpt(written.after)))
        return [*messages, Message("assistant", written.after, CALL)]

    def _read_certain(self, text: str) -> list[Message]:
        """The one call that stands between tags."""
        call = read_arguments(text)
        if isinstance(call, Finding):
            written = calls_in(text, self._tools)
            return self._written(written, text, certain=True)
        found = name_and_arguments(call)
        if found is None:
            self.find(Problem.BROKEN_JSON, f"a call without a name or arguments: {excerpt(text)}")
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
            self.findings.append(Finding(Problem.BROKEN_JSON, excerpt(text)) if sound else fault)  # type: ignore[arg-type]
            return [Message("assistant", text, CALL)]
        before = [Message("assistant", written.before, ANSWER)] if written.before else []
        if written.before:
            self.find(Problem.STRAY_TEXT, f"before a call: {excerpt(written.before)}")
        messages = before + [self._call(name, arguments) for name, arguments in written.calls]
        if LOOKS_LIKE_A_CALL.match(written.after) and isinstance(fault := read_arguments(written.after), Finding):
            self.findings.append(fault)
        elif written.after:
            self.find(Problem.STRAY_TEXT, f"after a call: {excerpt(written.after)}")
        return messages

    def _call(self, name: str, arguments: Mapping[str, Any]) -> Message:
        if name not in self._tools:
            self.find(Problem.UNKNOWN_TOOL, excerpt(name))
        else:
            self.calls.append(ToolCall(name, arguments))
        return Message("assistant", json.dumps(arguments, ensure_ascii=False), CALL, f"functions.{name}", "json")

    def find(self, problem: Problem, detail: str) -> None:
        self.findings.append(Finding(problem, detail))
