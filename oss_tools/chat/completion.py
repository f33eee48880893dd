"""What a model's answer says, and what is wrong with it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from oss_tools.chat.messages import Message
from oss_tools.checkpoints.json_files import MAX_DEPTH, is_deeper


class Problem(StrEnum):
    """What can be wrong with a completion. The values are the names under which problems are counted."""

    NO_HEADER = "no_header"  # a text without the header that says its channel
    BROKEN_HEADER = "broken_header"  # a header that cannot be read
    MISSING_CHANNEL = "missing_channel"
    UNKNOWN_CHANNEL = "unknown_channel"
    WRONG_ROLE = "wrong_role"  # the model speaks for the user or a tool
    SPELT_MARKER = "spelt_marker"  # `assistantfinal` or `<|channel|>` in letters instead of special tokens
    STRAY_TEXT = "stray_text"  # text or special tokens where a message should begin
    MISSING_END = "missing_end"  # the text breaks off
    OPEN_TAG = "open_tag"  # a call that ends with the text, without its closing tag
    MISSING_NAMESPACE = "missing_namespace"  # a call of NAME where functions.NAME was offered
    REPEATED_HEADER = "repeated_header"  # a part of a header comes twice, and says the same
    RAW_ARGUMENTS = "raw_arguments"  # code where its JSON was wanted
    UNKNOWN_TOOL = "unknown_tool"
    CUT_JSON = "cut_json"  # arguments that are the beginning of a JSON text
    BROKEN_JSON = "broken_json"  # arguments that are no JSON object
    NO_ANSWER = "no_answer"  # neither a final answer nor a call
    TOO_MANY_ROUNDS = "too_many_rounds"  # calls without end


# What a person is told: first what happened, then where.
BROKE_OFF, MALFORMED = "the model's answer broke off", "the model's answer is malformed"
SAID = {
    Problem.NO_HEADER: f"{MALFORMED}: a header is missing, which says whether reasoning or the answer follows",
    Problem.BROKEN_HEADER: f"{MALFORMED}: the header of a message cannot be read",
    Problem.MISSING_CHANNEL: f"{MALFORMED}: a header does not say whether reasoning or the answer follows",
    Problem.UNKNOWN_CHANNEL: f"{MALFORMED}: a header names a channel that does not exist",
    Problem.WRONG_ROLE: f"{MALFORMED}: the model speaks for somebody else",
    Problem.SPELT_MARKER: f"{MALFORMED}: a marker is spelt in letters, where one special token should stand",
    Problem.STRAY_TEXT: f"{MALFORMED}: text or a special token stands where none belongs",
    Problem.MISSING_END: f"{BROKE_OFF} within a message",
    Problem.OPEN_TAG: f"{BROKE_OFF} within a call of a tool",
    Problem.MISSING_NAMESPACE: f"{MALFORMED}: a call names a tool without `functions.` before it",
    Problem.REPEATED_HEADER: f"{MALFORMED}: a part of a header comes twice",
    Problem.RAW_ARGUMENTS: f"{MALFORMED}: a call has code where JSON was wanted",
    Problem.UNKNOWN_TOOL: "the model calls a tool that it was not offered",
    Problem.CUT_JSON: f"{BROKE_OFF} within the arguments of a call",
    Problem.BROKEN_JSON: f"{MALFORMED}: the arguments of a call are no JSON object",
    Problem.NO_ANSWER: "the model gave no answer",
    Problem.TOO_MANY_ROUNDS: "the model called tools without end",
}

# Offences beside which it is clear what a call asks for: it is carried out, and they are counted.
SLIPS = frozenset(
    {
        Problem.MISSING_CHANNEL,
        Problem.UNKNOWN_CHANNEL,
        Problem.STRAY_TEXT,
        Problem.OPEN_TAG,
        Problem.MISSING_NAMESPACE,
        Problem.REPEATED_HEADER,
        Problem.RAW_ARGUMENTS,
    }
)


@dataclass(frozen=True)
class Finding:
    """A problem and where it is: a few characters of the text around it."""

    problem: Problem
    detail: str = ""

    @property
    def sentence(self) -> str:
        """For a person who does not know the format: what happened, and the text around it in parentheses."""
        return f"{SAID[self.problem]} ({self.detail})" if self.detail else SAID[self.problem]

    def __str__(self) -> str:
        what = self.problem.replace("_", " ")
        return f"{what}: {self.detail}" if self.detail else what


@dataclass(frozen=True)
class ToolCall:
    """A call of one of the tools that were offered.

    Attributes:
        name: without the namespace `functions.`.
        recipient, channel: as the answer goes back: under this name, on this channel.
    """

    name: str
    arguments: Mapping[str, Any]
    recipient: str | None = field(default=None, compare=False)
    channel: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Completion:
    """A model's answer.

    Attributes:
        messages: the assistant's, as far as they can be read.
        calls: those that can be carried out: the tool is known, the arguments are a JSON object, or code for `python`.
        findings: everything that is wrong, in order.
    """

    messages: tuple[Message, ...]
    calls: tuple[ToolCall, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def final(self) -> str | None:
        """The answer; None if there is none, or anything at all is wrong with the completion."""
        return None if self.findings else self.shown

    @property
    def shown(self) -> str | None:
        """What a person would be shown: the last text on the final channel, cut off or not; None if there is none."""
        texts = [m.content for m in self.messages if m.channel == "final" and not m.recipient and m.role == "assistant"]
        return texts[-1] if texts else None

    @property
    def to_carry_out(self) -> tuple[ToolCall, ...]:
        """The calls, unless something is wrong with the completion that makes it doubtful what it asks for."""
        return self.calls if all(finding.problem in SLIPS for finding in self.findings) else ()

    @property
    def analysis(self) -> str:
        """All of its reasoning."""
        return "\n".join(m.content for m in self.messages if m.channel == "analysis" and not m.recipient)

    @property
    def problems(self) -> Counter[str]:
        """How often each problem occurs."""
        return Counter(finding.problem.value for finding in self.findings)


@dataclass(frozen=True)
class Delta:
    """Text that became certain with a token, and the message that it belongs to.

    Attributes:
        recipient: of a call; `functions` while the name of what is called is not known.
        message: tells messages of one kind in a row apart.
    """

    text: str
    channel: str | None
    recipient: str | None = None
    message: int = field(default=0, compare=False)


class Parser(ABC):
    """Reads a completion token by token. No sequence of tokens makes it fail."""

    @abstractmethod
    def add(self, token: int) -> list[Delta]:
        """The next token; returns the text that is certain after it."""

    @abstractmethod
    def finish(self) -> tuple[list[Delta], Completion]:
        """The end of the tokens: the text that was held back, and the whole."""

    def read(self, tokens: Iterable[int]) -> Completion:
        """All tokens at once."""
        for token in tokens:
            self.add(token)
        return self.finish()[1]


def read_arguments(text: str) -> Mapping[str, Any] | Finding:
    """The JSON object that a call's arguments are, or what is wrong with them."""
    try:
        arguments = json.loads(text, parse_constant=refuse_constant)
        json.dumps(arguments, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip())
        return Finding(Problem.CUT_JSON if cut else Problem.BROKEN_JSON, excerpt(text))
    except (ValueError, RecursionError):
        return Finding(Problem.BROKEN_JSON, excerpt(text))
    sound = isinstance(arguments, dict) and not is_deeper(arguments, MAX_DEPTH)
    return arguments if sound else Finding(Problem.BROKEN_JSON, excerpt(text))


def refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def excerpt(text: str, size: int = 60) -> str:
    """The text, shortened, with control characters visible."""
    return repr(text if len(text) <= size else text[:size] + "…")
