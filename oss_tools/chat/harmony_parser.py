"""Reads what a model writes in the harmony format; any tokens at all, since damaged models write anything.

Accepts what openai-harmony accepts: the recipient in the role's part or in the channel's, `<|constrain|>` or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from oss_tools.chat.calls import is_raw_code, name_of, read_call
from oss_tools.chat.completion import Completion, Delta, Finding, Parser, Problem, ToolCall, excerpt
from oss_tools.chat.harmony import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, NAMESPACE, RETURN, START
from oss_tools.chat.messages import Message
from oss_tools.chat.sections import is_own_name
from oss_tools.engine.text import Text

CHANNELS = ("analysis", "commentary", "final")
ENDS = (END, CALL, RETURN)
MARKERS = (START, MESSAGE, CHANNEL, CONSTRAIN, *ENDS)
SPELT = re.compile(
    r"assistant(?:analysis|commentary|final)|assistant to=functions\.|<\|(?:start|channel|message|constrain|end|call|return)\|>"
)
EXCERPT = 60
BROKEN_BYTES = "\ufffd"  # what decoding makes of bytes that are no UTF-8


class HarmonyParser(Parser):
    """Tokens of an assistant's turn, which begins after `<|start|>assistant`, to messages."""

    def __init__(self, text: Text, tools: Iterable[str] = ()) -> None:
        """`tools`: the names of those that were offered."""
        self._text = text
        self._tools = frozenset(tools)
        self._names = {text.special[marker]: marker for marker in MARKERS if marker in text.special}
        self._special = {number: name for name, number in text.special.items()}
        self._messages: list[Message] = []
        self._calls: list[ToolCall] = []
        self._findings: list[Finding] = []
        self._stray: list[int] = []
        self._begin_header("assistant")

    def _begin_header(self, role: str | None) -> None:
        self._role = role
        self._header: list[tuple[str, list[int]]] = [("", [])]  # the tokens after each marker
        self._message: Message | None = None
        self._outside = False

    def add(self, token: int) -> list[Delta]:
        marker = self._names.get(token)
        if self._outside:
            return self._add_outside(token, marker)
        if self._message is None:
            return self._add_to_header(token, marker)
        return self._add_to_content(token, marker)

    def finish(self) -> tuple[list[Delta], Completion]:
        deltas: list[Delta] = []
        if self._message is not None:
            deltas = self._end_message(None)
        elif not self._outside:
            self._break_header(cut=True)
        self._report_stray()
        if not self._calls and not self._findings and not any(_is_answer(m) for m in self._messages):
            self._find(Problem.NO_ANSWER, "it ends after its analysis" if self._messages else "it is empty")
        return deltas, Completion(tuple(self._messages), tuple(self._calls), tuple(self._findings))

    # ---- between messages -------------------------------------------------------------------------------------------

    def _add_outside(self, token: int, marker: str | None) -> list[Delta]:
        if marker == START:
            self._report_stray()
            self._begin_header(None)
        elif marker is not None or token not in self._text.stop_tokens:
            self._stray.append(token)
        return []

    def _report_stray(self) -> None:
        text = self._text.decode(self._stray, skip_special=False)
        if text.strip():
            spelt = text.lstrip().startswith("assistant") or SPELT.search(text)
            self._find(Problem.SPELT_MARKER if spelt else Problem.STRAY_TEXT, excerpt(text))
        self._stray = []

    # ---- headers ----------------------------------------------------------------------------------------------------

    def _add_to_header(self, token: int, marker: str | None) -> list[Delta]:
        if marker == MESSAGE:
            self._message = self._read_header()
            self._content: list[int] = []
            self._stream = self._text.stream()
            self._streamed = ""
            self._strange = False
        elif marker == START:
            self._break_header()
            self._begin_header(None)
        elif marker in ENDS:
            self._break_header()
            self._outside = True
        elif marker is not None:
            self._header.append((marker, []))
        else:
            self._header[-1][1].append(token)
        return []

    def _parts(self) -> list[tuple[str, str]]:
        return [(marker, self._text.decode(tokens, skip_special=False)) for marker, tokens in self._header]

    def _break_header(self, cut: bool = False) -> None:
        """A header without a message; `cut`: because the tokens end."""
        parts = self._parts()
        text = "".join(marker + part for marker, part in parts)
        if self._role is None or len(parts) > 1:
            self._find(Problem.MISSING_END if cut else Problem.BROKEN_HEADER, f"header {excerpt(text)}")
        elif SPELT.search(text) or text.lstrip().startswith(("assistant", *CHANNELS)):
            self._find(Problem.SPELT_MARKER, excerpt(text))
        elif text.strip():
            self._find(Problem.NO_HEADER, excerpt(text))

    def _read_header(self) -> Message:
        """The message that the header announces, with the findings about it."""
        parts = self._parts()
        header = "".join(marker + part for marker, part in parts)
        words = parts[0][1].split()
        role = self._role or (words[0] if words else "")
        if words and words[0] == role:
            del words[0]
        channels = [part for marker, part in parts if marker == CHANNEL]
        types = [part.split() for marker, part in parts if marker == CONSTRAIN]
        channel = None
        if channels and channels[0][:1].strip():
            channel, *more = channels[0].split()
            words += more
        repeated = channel is not None and all(part.split()[:1] == [channel] for part in channels[1:])
        words += [word for part in channels[1:] for word in part.split()[1:]] if repeated else []
        written_twice = len(words) == 2 and types == [[words[1]]]
        words = words[:1] if written_twice else words
        recipient, content_type = _recipient_and_type(words)
        kind = types[0][0] if types and types[0] else content_type
        sound = repeated or len(channels) <= 1
        sound = sound and len(words) <= (1 if types else 2) and [len(t) for t in types] in ([], [1])
        if not role or not sound or recipient == "" or (channels and channel is None) or BROKEN_BYTES in header:
            self._find(Problem.BROKEN_HEADER, excerpt(header))
            recipient = None  # which part of it would be meant is a guess
        elif role != "assistant":
            self._find(Problem.WRONG_ROLE, excerpt(header))
        elif channel is None:
            self._find(Problem.MISSING_CHANNEL, excerpt(header))
        elif channel not in CHANNELS:
            self._find(Problem.UNKNOWN_CHANNEL, excerpt(channel))
        elif len(channels) > 1 or written_twice:
            self._find(Problem.REPEATED_HEADER, excerpt(header))
        return Message(role or "assistant", "", channel, recipient, kind)

    # ---- contents ---------------------------------------------------------------------------------------------------

    def _add_to_content(self, token: int, marker: str | None) -> list[Delta]:
        if marker == START:
            deltas = self._end_message(None)
            self._begin_header(None)
            return deltas
        if marker in ENDS:
            deltas = self._end_message(marker)
            self._outside = True
            return deltas
        if marker is None and token in self._text.stop_tokens:
            deltas = self._end_message(None)
            self._outside = True
            return deltas
        if token in self._special and not self._strange:
            self._strange = True  # one finding for each message
            self._find(Problem.STRAY_TEXT, f"{self._special[token]} inside a message")
        self._content.append(token)
        return self._delta(self._stream.add(token))

    def _delta(self, text: str) -> list[Delta]:
        assert self._message
        self._streamed += text
        if not text:
            return []
        return [Delta(text, self._message.channel, self._message.recipient, len(self._messages))]

    def _end_message(self, end: str | None) -> list[Delta]:
        assert self._message
        header = self._message
        content = self._text.decode(self._content)
        deltas = self._delta(content[len(self._streamed) :] if content.startswith(self._streamed) else "")
        if end is None:
            self._find(Problem.MISSING_END, excerpt(content[-EXCERPT:]))
        if found := SPELT.search(content):
            self._find(Problem.SPELT_MARKER, excerpt(content[found.start() :]))
        message = Message(header.role, content, header.channel, header.recipient, header.content_type, header.name)
        if header.recipient and header.role == "assistant":
            self._read_call(message, cut=end is None)
        self._messages.append(message)
        self._message = None
        return deltas

    def _read_call(self, message: Message, cut: bool) -> None:
        """The call that a message is. `cut`: its end is missing; code that breaks off is not carried out."""
        recipient, name = message.recipient or "", name_of(message)
        known = name in self._tools
        if not known:
            self._find(Problem.UNKNOWN_TOOL, excerpt(recipient))
        elif not recipient.startswith(NAMESPACE) and not is_own_name(name):
            self._find(Problem.MISSING_NAMESPACE, excerpt(recipient))
        arguments = read_call(message)
        raw = is_raw_code(message)
        if isinstance(arguments, Finding):
            self._findings.append(arguments)
        elif known and not (raw and cut):
            if raw and recipient.startswith(NAMESPACE):
                self._find(Problem.RAW_ARGUMENTS, excerpt(message.content))
            back = recipient if is_own_name(recipient) else NAMESPACE + name
            self._calls.append(ToolCall(name, arguments, back, message.channel if is_own_name(recipient) else None))

    def _find(self, problem: Problem, detail: str) -> None:
        self._findings.append(Finding(problem, detail))


def _recipient_and_type(words: list[str]) -> tuple[str | None, str | None]:
    """From what a header holds beside role and channel: `to=NAME`, `NAME`, or either and a content type."""
    recipient = words[0].removeprefix("to=") if words else None
    return None if recipient == "all" else recipient, words[1] if len(words) > 1 else None


def _is_answer(message: Message) -> bool:
    return message.channel == "final" and message.role == "assistant"
