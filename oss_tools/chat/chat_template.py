"""One interface to every way of speaking: conversations to tokens, tokens to messages.

A vocabulary with harmony's special tokens is spoken to in harmony, any other through the checkpoint's Jinja template.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from oss_tools.chat import harmony, template
from oss_tools.chat.completion import Completion, Finding, Parser, read_arguments
from oss_tools.chat.harmony import Preamble, Special
from oss_tools.chat.harmony_parser import MARKERS, NAMESPACE, HarmonyParser
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.tags import THINK, TagParser
from oss_tools.checkpoints import Metadata
from oss_tools.engine import o200k
from oss_tools.engine.text import Text
from oss_tools.errors import BadCheckpoint

PRIVATE_USE = range(0xF0000, 0xFFFFE)  # Unicode's characters without a meaning


class ChatTemplate(ABC):
    """How a model is spoken to.

    Attributes:
        text: its tokenizer.
        has_channels: whether reasoning and answer come apart.
        takes_tools: whether the model is told of tools.
    """

    text: Text
    has_channels: bool
    takes_tools: bool

    @abstractmethod
    def encode(self, conversation: Conversation) -> list[int]:
        """The tokens that ask for the assistant's next message. What messages say never becomes special tokens."""

    @abstractmethod
    def render(self, conversation: Conversation) -> str:
        """The same as text, special tokens by their names: for people and logs."""

    @abstractmethod
    def parser(self, conversation: Conversation) -> Parser:
        """Reads an answer to this conversation token by token."""

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
    return bool(metadata.chat_template) or speaks_harmony(metadata, text)


def takes_tools(metadata: Metadata, text: Text | None = None) -> bool:
    """Whether the model can be told of tools."""
    return speaks_harmony(metadata, text) or "tools" in (metadata.chat_template or "")


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
        tokens: list[int] = []
        for piece in harmony.render(conversation, self.preamble):
            tokens += [self.text.special[piece]] if isinstance(piece, Special) else self.text.encode_plain(piece)
        return tokens

    def render(self, conversation: Conversation) -> str:
        return harmony.plain_text(harmony.render(conversation, self.preamble))

    def parser(self, conversation: Conversation) -> Parser:
        return HarmonyParser(self.text, tool_names(conversation))


class JinjaTemplate(ChatTemplate):
    """A checkpoint's own template."""

    def __init__(self, text: Text, metadata: Metadata) -> None:
        """Raises BadCheckpoint if there is none."""
        if not metadata.chat_template:
            raise BadCheckpoint("the checkpoint has no chat template")
        self.text, self._metadata = text, metadata
        self.has_channels = THINK in metadata.chat_template
        self.takes_tools = takes_tools(metadata, text)

    def render(self, conversation: Conversation) -> str:
        return self._render(conversation.effort, _plain_messages(conversation), _plain_tools(conversation))

    def _render(self, effort: str, messages: Any, tools: Any) -> str:
        return template.render(self._metadata, messages, tools, reasoning_effort=effort)

    def encode(self, conversation: Conversation) -> list[int]:
        given = _plain_messages(conversation), _plain_tools(conversation)
        rendered = self._render(conversation.effort, *given)
        disguise = _Disguise(self.text.special, rendered)
        hidden = _changed(given, disguise.hide)
        if hidden == given:
            return self.text.encode(rendered, special=False)
        tokens: list[int] = []
        for piece in disguise.pattern.split(self._render(conversation.effort, *hidden)):
            special = self.text.special.get(piece)
            tokens += self.text.encode_plain(disguise.reveal(piece)) if special is None else [special]
        return tokens

    def parser(self, conversation: Conversation) -> Parser:
        thinking = self.render(conversation).rstrip().endswith(THINK)
        return TagParser(self.text, tool_names(conversation), thinking)


class _Disguise:
    """Special tokens that strangers' texts spell travel through a template as characters of private use."""

    def __init__(self, special: Iterable[str], avoid: str) -> None:
        names = sorted(special, key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        self._free = (chr(number) for number in PRIVATE_USE if chr(number) not in avoid)
        self._characters: dict[str, str] = {}

    def hide(self, text: str) -> str:
        return self.pattern.sub(self._character, text)

    def _character(self, found: re.Match[str]) -> str:
        if found[0] not in self._characters:
            self._characters[found[0]] = next(self._free)
        return self._characters[found[0]]

    def reveal(self, text: str) -> str:
        return text.translate({ord(character): name for name, character in self._characters.items()})


def _plain_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Messages as templates know them (https://huggingface.co/docs/transformers/chat_templating)."""
    plain: list[dict[str, Any]] = []
    if conversation.instructions is not None:
        plain.append({"role": "system", "content": conversation.instructions})
    thoughts: list[str] = []
    for message in conversation.messages:
        if message.role == "assistant" and message.channel == "analysis" and not message.recipient:
            thoughts.append(message.content)
            continue
        fields = _fields(message)
        if message.role == "assistant" and thoughts:
            fields |= dict.fromkeys(("reasoning_content", "thinking"), "\n".join(thoughts))  # Qwen's name and gpt-oss's
        thoughts = []
        plain.append(fields)
    return plain


def _fields(message: Message) -> dict[str, Any]:
    if message.role == "assistant" and message.recipient:
        arguments = read_arguments(message.content)
        call = {
            "name": message.recipient.removeprefix(NAMESPACE),
            "arguments": message.content if isinstance(arguments, Finding) else dict(arguments),
        }
        return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    name = {"name": message.name.removeprefix(NAMESPACE)} if message.name else {}
    return {"role": message.role, "content": message.content, **name}


def _plain_tools(conversation: Conversation) -> list[dict[str, Any]] | None:
    return [{"type": "function", "function": dict(tool)} for tool in conversation.tools] or None


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """The value with all its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _changed(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_changed(item, change) for item in value)
    return value
