"""Reads answers of models that speak no harmony: plain text, with reasoning and tool calls between the marks of a dialect.

What stands between the marks is read by `tag_contents`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from oss_tools.chat.completion import Completion, Delta, Parser, Problem, excerpt
from oss_tools.chat.dialects import FUNCTION, PYTHON_TAG, TOOL, Dialect, dialect
from oss_tools.chat.marked_calls import Schemas
from oss_tools.chat.messages import Message
from oss_tools.chat.tag_contents import ANSWER, CALL, THOUGHT, Contents
from oss_tools.engine.text import Text, overlap

UNNAMED = "functions"  # the recipient of a call whose name is not known
BEGINNING = ""  # stands for the mark before an answer
BEGINS_LIKE_A_CALL = ("{", "[")
QUOTE = re.compile(r'(?<!\\)(?:\\\\)*"')


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

    def add(self, token: int) -> list[Delta]:
        if self._ended:
            return []
        if token in self._text.stop_tokens:
            self._ended = True
            return []
        return self._take(self._stream.add(token) + self._names.get(token, ""), last=False)

    def finish(self) -> tuple[list[Delta], Completion]:
        deltas = self._take(self._stream.flush(), last=True)
        contents = Contents(self._marks, self._tools, self._schemas, self._ended)
        if not self._ended:
            contents.find(Problem.MISSING_END, excerpt("".join(self._parts[-1][1])[-60:]))
        messages: list[Message] = []
        for i, (tag, texts) in enumerate(self._parts):
            channel = self._channel(tag)
            found = contents.messages(tag, channel, "".join(texts).strip(), last=i == len(self._parts) - 1)
            if channel == ANSWER and self._withheld("".join(texts)):
                deltas += [Delta(message.content, ANSWER) for message in found if message.channel == ANSWER]
            messages += found
        if not contents.findings and not contents.calls and not any(m.channel == ANSWER for m in messages):
            contents.find(Problem.NO_ANSWER, "it ends after its analysis" if messages else "it is empty")
        return deltas, Completion(tuple(messages), tuple(contents.calls), tuple(contents.findings))

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
