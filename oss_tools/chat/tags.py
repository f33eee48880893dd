"""Reads answers of models that speak no harmony: plain text, with reasoning and tool calls between the marks of a dialect.

What stands between the marks is read by `written_calls` (JSON, Python's syntax) and `marked_calls` (marks inside of marks).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from oss_tools.chat.completion import Completion, Delta, Finding, Parser, Problem, ToolCall, excerpt, read_arguments
from oss_tools.chat.dialects import (
    ARG_KEY,
    DEEPSEEK,
    FUNCTION,
    KIMI,
    PYTHON_TAG,
    TOOL,
    TOOL_CALLS,
    Dialect,
    dialect,
)
from oss_tools.chat.marked_calls import Broken, Open, Part, Schemas, Stray, function_calls, keyed_call, section_calls
from oss_tools.chat.messages import Message
from oss_tools.chat.sections import CODE, PYTHON
from oss_tools.chat.written_calls import NAMED, Written, calls_in, name_and_arguments, named_calls_in
from oss_tools.engine.text import Text, overlap

ANSWER, THOUGHT, CALL = "final", "analysis", "commentary"
UNNAMED = "functions"  # the recipient of a call whose name is not known
BEGINNING = ""  # stands for the mark before an answer
BEGINS_LIKE_A_CALL = ("{", "[")
QUOTE = re.compile(r'(?<!\\)(?:\\\\)*"')
LOOKS_LIKE_A_CALL = re.compile(r'\[?\s*\{\s*"(name|type|function)"')


class TagParser(Parser):
    """Tokens of an answer to messages on harmony's channels."""

    def __init__(
        self,
        text: Text,
        tools: Iterable[str] = (),
        thinking: str | bool = False,
        marks: Dialect | None = None,
        schemas: Schemas | None = None,
    ) -> None:
        """
        Args:
            tools: the names of those that were offered; calls are looked for only if there are any.
            thinking: the mark of reasoning inside of which the prompt ends; True: the most common one.
            marks: those of the model; None: those that every model is read for.
            schemas: parameters of the tools, whose types say what a text between tags is.
        """
        self._text = text
        self._tools = frozenset(tools)
        self._marks = marks or dialect()
        self._schemas = schemas or {}
        opened = thinking if isinstance(thinking, str) else next(iter(self._marks.thoughts)) if thinking else BEGINNING
        tokens = text.special
        names = self._marks.names if self._tools else (*self._marks.thoughts, *self._marks.thoughts.values())
        self._names = {tokens[name]: name for name in names if name in tokens}
        self._stream = text.stream()
        self._held = ""
        self._blank = True  # whether nothing but blanks has come since the last mark
        self._parts: list[tuple[str, list[str]]] = [(opened, [])]
        self._quotes = Quotes()  # since the last mark, up to what is held
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
            if self._channel(tag) == ANSWER and self._withheld("".join(texts)):
                deltas += [Delta(message.content, ANSWER) for message in found if message.channel == ANSWER]
            messages += found
        if not self._findings and not self._calls and not any(m.channel == ANSWER for m in messages):
            self._find(Problem.NO_ANSWER, "it ends after its analysis" if messages else "it is empty")
        return deltas, Completion(tuple(messages), tuple(self._calls), tuple(self._findings))

    # ---- cutting at marks -------------------------------------------------------------------------------------------

    def _take(self, text: str, last: bool) -> list[Delta]:
        """Cuts the text at marks; what may be the beginning of one is held back unless it is the last."""
        self._held += text
        deltas: list[Delta] = []
        while True:
            opened, texts = self._parts[-1]
            marks = self._ends(opened)
            found = min(((at, mark) for mark in marks if (at := self._found(mark, opened, texts)) >= 0), default=None)
            keep = 0 if last else max((overlap(self._held, mark) for mark in marks), default=0)
            cut = found[0] if found else len(self._held) - keep
            texts.append(self._held[:cut])
            self._quotes = self._quotes.after(self._held[:cut])
            deltas += self._shown(self._held[:cut], self._channel(opened))
            if not found:
                self._held = self._held[cut:]
                return deltas
            mark = found[1]
            self._held = self._held[cut + len(mark) :]
            if opened == BEGINNING and (begun := self._opening(mark)):  # the answer began inside of reasoning
                self._parts[-1] = (begun, texts)
            self._parts.append((mark, []))
            self._quotes = Quotes()
            self._blank = True

    def _channel(self, mark: str) -> str:
        """Of what comes behind a mark. What closes reasoning or calls begins the answer."""
        return THOUGHT if mark in self._marks.thoughts else CALL if mark in self._marks.calls else ANSWER

    def _opening(self, mark: str) -> str | None:
        """What opens the reasoning that this mark closes."""
        return next((opens for opens, closes in self._marks.thoughts.items() if closes == mark), None)

    def _ends(self, opened: str) -> list[str]:
        """The marks that mean something behind this one: reasoning comes first, and without tools there are no calls."""
        if opened in self._marks.thoughts:
            return [self._marks.thoughts[opened]]
        if opened in self._marks.calls:
            return [self._marks.calls[opened] or opened]
        marks = list(self._marks.calls) if self._tools else []
        if opened == self._marks.calls.get(FUNCTION):
            marks += [str(self._marks.calls[TOOL])]  # the end of a <tool_call> that was left out
        if opened != BEGINNING:
            return marks
        if self._blank:
            text = self._held.lstrip()
            marks += [mark for mark in self._marks.thoughts if text.startswith(mark) or mark.startswith(text)]
        if self._marks.reasons:
            begun = "".join(self._parts[0][1]) + self._held
            marks += [closes for opens, closes in self._marks.thoughts.items() if opens not in begun]
        return marks

    def _found(self, mark: str, opened: str, before: list[str]) -> int:
        """Where the mark comes in what is held, -1 if nowhere. Within a text of a call's JSON, it is a part of that text."""
        at = self._held.find(mark)
        if at < 0 or self._channel(opened) != CALL or opened in (PYTHON_TAG, FUNCTION):
            return at
        if opened == TOOL and not self._first_letter(before).startswith(BEGINS_LIKE_A_CALL):
            return at
        seen, quotes = 0, self._quotes
        while at >= 0 and (quotes := quotes.after(self._held[seen:at])).open:
            seen, at = at, self._held.find(mark, at + 1)
        return at

    def _first_letter(self, before: list[str]) -> str:
        """The first letter since the last mark that is no blank, or nothing."""
        return next((text[0] for part in (*before, self._held) if (text := part.lstrip())), "")

    def _shown(self, text: str, channel: str) -> list[Delta]:
        """The text for a person, without the blank lines around tags. An answer that begins like a call waits for its end."""
        text = text.lstrip() if self._blank else text
        if not text:
            return []
        if self._blank:
            self._began_like_a_call = channel == ANSWER and self._withheld(text)
        self._blank = False
        if self._began_like_a_call:
            return []
        return [Delta(text, channel, UNNAMED if channel == CALL else None, len(self._parts))]

    def _withheld(self, text: str) -> bool:
        return bool(self._tools) and text.lstrip().startswith(BEGINS_LIKE_A_CALL)

    # ---- what stands between marks ----------------------------------------------------------------------------------

    def _messages(self, mark: str, text: str, last: bool) -> list[Message]:
        channel = self._channel(mark)
        if channel == THOUGHT or not self._tools:
            return [Message("assistant", text, channel)] if text else []
        if channel == ANSWER:
            return self._written(calls_in(text, self._tools), text, certain=False)
        closes = self._marks.calls[mark]
        if closes and last and self._ended and not text.endswith(closes) and mark != FUNCTION:
            self._find(Problem.OPEN_TAG, f"{mark} without {closes}")
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
                self._find(Problem.STRAY_TEXT, f"beside a call: {excerpt(part.text)}")
            elif isinstance(part, Open):
                if self._ended and all(finding.problem != Problem.OPEN_TAG for finding in self._findings):
                    self._find(Problem.OPEN_TAG, f"a call without {part.mark}")
            elif isinstance(part, Broken):
                self._findings.append(part.finding)
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
        self._findings.append(fault if isinstance(fault, Finding) else Finding(Problem.BROKEN_JSON, excerpt(written.after)))
        return [*messages, Message("assistant", written.after, CALL)]

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
