"""One interface to every way of speaking: conversations to tokens, tokens to messages.

A vocabulary with harmony's special tokens is spoken to in harmony, any other through the checkpoint's Jinja template.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Self

from oss_tools.chat import harmony, template
from oss_tools.chat.completion import Completion, Parser
from oss_tools.chat.dialects import dialect
from oss_tools.chat.harmony import Preamble, Special
from oss_tools.chat.harmony_parser import MARKERS, HarmonyParser
from oss_tools.chat.messages import Conversation
from oss_tools.chat.plain import CallForm, plain_messages, plain_tools
from oss_tools.chat.probing import call_form
from oss_tools.chat.tags import TagParser
from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.templates import by_name
from oss_tools.engine import o200k
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint, BadRequest

EFFORTS = ("low", "medium", "high")
SWITCHES = ("enable_thinking", "thinking is defined")  # of a template in which reasoning can be switched off
PRIVATE_USE = range(0xF0000, 0xFFFFE)  # Unicode's characters without a meaning


class ChatTemplate(ABC):
    """How a model is spoken to.

    Attributes:
        text: its tokenizer.
        has_channels: whether reasoning and answer come apart.
        takes_tools: whether the model is told of tools.
        efforts: how much it may be asked to reason.
    """

    text: Text
    has_channels: bool
    takes_tools: bool
    efforts: tuple[str, ...] = EFFORTS

    def _check(self, effort: str) -> None:
        """Raises BadRequest for an effort that the template has no word for."""
        if effort not in self.efforts:
            raise BadRequest(f"reasoning {effort}: this model's chat template knows {', '.join(self.efforts)} only")

    @abstractmethod
    def encode(self, conversation: Conversation) -> list[int]:
        """The tokens that ask for the assistant's next message. What messages say never becomes special tokens."""

    @abstractmethod
    def render(self, conversation: Conversation) -> str:
        """The same as text, special tokens by their names: for people and logs."""

    @abstractmethod
    def parser(self, conversation: Conversation) -> Parser:
        """Reads an answer to this conversation token by token."""

    @abstractmethod
    def at(self, moment: datetime) -> Self:
        """The same, telling this moment's date on any day where it tells the date."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What tells ways of speaking apart."""

    def parse(self, tokens: Iterable[int], conversation: Conversation) -> Completion:
        """An answer to this conversation. Never fails: what is wrong is told in its findings."""
        return self.parser(conversation).read(tokens)


def chat_template(metadata: Metadata, text: Text) -> ChatTemplate:
    """The way to speak to a checkpoint's model. Raises BadCheckpoint if it has no chat template."""
    if speaks_harmony(metadata, text):
        return HarmonyTemplate(text, preamble_of(metadata))
    return JinjaTemplate(text, metadata)


def speaks_harmony(metadata: Metadata, text: Text | None = None) -> bool:
    """Whether the vocabulary has harmony's special tokens: of its tokenizer, or of what a checkpoint says of it."""
    if text is not None:
        return set(MARKERS) <= set(text.special)
    if metadata.tokenizer is None:
        return o200k.belongs_to(metadata.config)
    added = metadata.tokenizer.get("added_tokens")
    tokens = [token for token in added if isinstance(token, Mapping)] if isinstance(added, list) else []
    return set(MARKERS) <= {token.get("content") for token in tokens if token.get("special")}


def has_chat_template(metadata: Metadata, text: Text | None = None) -> bool:
    """Whether the model can be spoken to."""
    return any(by_name(metadata).values()) or speaks_harmony(metadata, text)


def takes_tools(metadata: Metadata, text: Text | None = None) -> bool:
    """Whether the model can be told of tools."""
    named = by_name(metadata)
    return speaks_harmony(metadata, text) or template.TOOL_USE in named or "tools" in named.get(template.DEFAULT, "")


def preamble_of(metadata: Metadata) -> Preamble:
    """What a harmony model's system message opens with."""
    own = metadata.chat_template  # gpt-oss's own says "Knowledge cutoff"; the embedded model's has no such lines
    return Preamble() if own and "Knowledge cutoff" not in own else Preamble.of_gpt_oss()


def tool_names(conversation: Conversation) -> list[str]:
    return [str(tool["name"]) for tool in conversation.tools]


class HarmonyTemplate(ChatTemplate):
    """The harmony format, in any vocabulary that has its special tokens."""

    has_channels = takes_tools = True

    def __init__(self, text: Text, preamble: Preamble) -> None:
        self.text, self.preamble = text, preamble

    def encode(self, conversation: Conversation) -> list[int]:
        self._check(conversation.effort)
        tokens: list[int] = []
        for piece in harmony.render(conversation, self.preamble):
            tokens += [self.text.special[piece]] if isinstance(piece, Special) else self.text.encode_plain(piece)
        return tokens

    def render(self, conversation: Conversation) -> str:
        return harmony.plain_text(harmony.render(conversation, self.preamble))

    def parser(self, conversation: Conversation) -> Parser:
        return HarmonyParser(self.text, tool_names(conversation))

    def at(self, moment: datetime) -> Self:
        found = copy.copy(self)
        if self.preamble.date:
            found.preamble = replace(self.preamble, date=moment.date().isoformat())
        return found

    @property
    def description(self) -> str:
        return f"harmony {self.preamble}"


class JinjaTemplate(ChatTemplate):
    """A checkpoint's own template, or templates by name."""

    def __init__(self, text: Text, metadata: Metadata) -> None:
        """Raises BadCheckpoint if there is none."""
        named = by_name(metadata)
        if not any(named.values()):
            raise BadCheckpoint("the checkpoint has no chat template")
        self.text, self._metadata = text, metadata
        self.marks = dialect(named.values(), {*text.special, *text.marks})
        self.has_channels = self.marks.reasons
        if any(switch in source for source in named.values() for switch in SWITCHES):
            self.efforts = ("none", *EFFORTS)
        self.takes_tools = takes_tools(metadata, text)
        self._now: Callable[[], datetime] = datetime.now
        self._form: CallForm | None = None  # unknown until a conversation has calls

    def render(self, conversation: Conversation) -> str:
        return self._render(conversation.effort, *self._plain(conversation))

    def _plain(self, conversation: Conversation) -> tuple[Any, Any]:
        """The conversation's messages and tools in the form that the template wants."""
        if self._form is None and any(
            message.role == "assistant" and message.recipient for message in conversation.messages
        ):
            self._form = call_form(
                lambda probe, form: self._render(probe.effort, plain_messages(probe, form), plain_tools(probe))
            )
        return plain_messages(conversation, self._form), plain_tools(conversation)

    def _render(self, effort: str, messages: Any, tools: Any) -> str:
        self._check(effort)
        reasons = effort != "none"  # Qwen's and GLM's name for it, and DeepSeek's; medium leaves all to the template
        chosen = {} if effort == "medium" else {"reasoning_effort": effort, "enable_thinking": reasons, "thinking": reasons}
        return template.render(self._metadata, messages, tools, now=self._now, **chosen)

    def at(self, moment: datetime) -> Self:
        found = copy.copy(self)
        found._now = lambda: moment
        return found

    @property
    def description(self) -> str:
        named = by_name(self._metadata)
        return named["default"] if list(named) == ["default"] else repr(named)

    def encode(self, conversation: Conversation) -> list[int]:
        given = self._plain(conversation)
        rendered = self._render(conversation.effort, *given)
        marks = self.text.special | self.text.marks
        disguise = _Disguise(marks, rendered)
        hidden = _changed(given, disguise.hide)
        if hidden == given:
            return self.text.encode(rendered, special=False)
        tokens: list[int] = []
        for piece in disguise.pieces(self._render(conversation.effort, *hidden)):
            special = marks.get(piece)
            tokens += self.text.encode_plain(disguise.reveal(piece)) if special is None else [special]
        return tokens

    def parser(self, conversation: Conversation) -> Parser:
        end = self.render(conversation).rstrip()
        thinking = next((mark for mark in self.marks.thoughts if end.endswith(mark)), False)
        schemas = {str(tool["name"]): tool.get("parameters") or {} for tool in conversation.tools}
        return TagParser(self.text, schemas, thinking, self.marks, schemas)


class _Disguise:
    """Special tokens that strangers' texts spell travel through a template as characters of private use."""

    def __init__(self, special: Iterable[str], avoid: str) -> None:
        self._names = frozenset(filter(None, special))
        self._lengths: dict[str, set[int]] = {}  # of the names, by their first letters
        for name in self._names:
            self._lengths.setdefault(name[0], set()).add(len(name))
        self._first = re.compile(f"[{''.join(map(re.escape, self._lengths))}]" if self._names else "(?!)")
        self._free = (chr(number) for number in PRIVATE_USE if chr(number) not in avoid)
        self._characters: dict[str, str] = {}

    def pieces(self, text: str) -> Iterator[str]:
        """The text cut at the special tokens that it spells, the longest of those that begin at one place."""
        start = at = 0
        while found := self._first.search(text, at):
            at = found.start()
            fitting = [n for n in self._lengths[text[at]] if text[at : at + n] in self._names]
            if not fitting:
                at += 1
                continue
            yield text[start:at]
            start, at = at, at + max(fitting)
            yield text[start:at]
            start = at
        yield text[start:]

    def hide(self, text: str) -> str:
        return "".join(self._character(piece) if piece in self._names else piece for piece in self.pieces(text))

    def _character(self, name: str) -> str:
        if name not in self._characters:
            character = next(self._free, None)
            if character is None:
                raise BadRequest(f"the conversation spells more than {len(self._characters)} special tokens of the model")
            self._characters[name] = character
        return self._characters[name]

    def reveal(self, text: str) -> str:
        return text.translate({ord(character): name for name, character in self._characters.items()})


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """The value with all its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _changed(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_changed(item, change) for item in value)
    return value
