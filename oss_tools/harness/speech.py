"""How the loaded model is spoken to, and what its answer says: harmony where its vocabulary has it, else its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from oss_tools.chat.completion import Completion, read_arguments
from oss_tools.chat.harmony import CHANNEL, MESSAGE, Preamble, Special, plain_text
from oss_tools.chat.harmony import render as render_harmony
from oss_tools.chat.harmony_parser import HarmonyParser
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.template import render as render_template
from oss_tools.engine.engine import Engine
from oss_tools.engine.text import token_text
from oss_tools.errors import BadCheckpoint
from oss_tools.harness.answers import Answer, Call, Details

FINAL = [CHANNEL, "final", MESSAGE]


class Speech:
    """Conversations to tokens, tokens to answers.

    Attributes:
        channels: the model speaks harmony: its reasoning is apart from its answer.
        template: what conversations are rendered with, as a text that tells templates apart; "" if there is none.
        first_token: stands before a text that has nothing before it.
    """

    def __init__(self, engine: Engine) -> None:
        self._text, self._metadata = engine.text, engine.metadata
        self.channels = {CHANNEL, MESSAGE} <= set(self._text.special)
        self.preamble = Preamble()
        self.template = f"harmony {self.preamble}" if self.channels else self._metadata.chat_template or ""
        self.first_token = self._find_first_token()

    def _find_first_token(self) -> int:
        """The token that begins texts, or the one that ends them: lm-eval's rule."""
        config = self._metadata.tokenizer_config
        names = [token_text(config.get(name)) for name in ("bos_token", "eos_token")]
        known = [self._text.special[name] for name in names if name in self._text.special]
        return (known or sorted(self._text.stop_tokens) or [0])[0]

    # ---- conversations to tokens ------------------------------------------------------------------------------------

    def pieces(self, conversation: Conversation, beginning: str = "", scoring: bool = False) -> list[str]:
        """The prompt in pieces. `beginning`: of the answer; `scoring`: the answer's text itself comes next."""
        if self.channels:
            start = [*FINAL, beginning] if beginning or scoring else []
            return [*render_harmony(conversation, self.preamble), *start]
        messages = [_plain(message) for message in conversation.messages]
        if conversation.instructions:
            messages.insert(0, {"role": "system", "content": conversation.instructions})
        tools = [{"type": "function", "function": dict(tool)} for tool in conversation.tools] or None
        text = render_template(self._metadata, messages, tools, reasoning_effort=conversation.effort)
        return [Special(text), beginning]

    def render(self, conversation: Conversation, beginning: str = "") -> str:
        """The prompt as text, for people and logs."""
        if not self.template:
            raise BadCheckpoint("the checkpoint has no chat template; leave it out with --no-chat")
        return plain_text(self.pieces(conversation, beginning))

    def encode(self, conversation: Conversation, beginning: str = "", scoring: bool = False) -> list[int]:
        """The prompt's tokens. What users and tools say is never read as special tokens."""
        tokens: list[int] = []
        for piece in self.pieces(conversation, beginning, scoring):
            if self.channels and not isinstance(piece, Special):
                tokens += self._text.encode_plain(piece)
            elif piece in self._text.special:
                tokens.append(self._text.special[piece])
            else:
                tokens += self._text.encode(piece, special=False)
        return tokens

    # ---- tokens to answers ------------------------------------------------------------------------------------------

    def read(self, tokens: Sequence[int], conversation: Conversation) -> Completion:
        """What a completion of a model with channels says."""
        return HarmonyParser(self._text, [str(tool["name"]) for tool in conversation.tools]).read(tokens)

    def said(self, tokens: Sequence[int], text: str, conversation: Conversation) -> tuple[Message, ...]:
        """The assistant's messages, as the next turn's prompt has them."""
        return self.read(tokens, conversation).messages if self.channels else (Message("assistant", text, "final"),)

    def answer(
        self,
        tokens: Sequence[int],
        text: str,
        finish: str,
        until: Sequence[str] = (),
        conversation: Conversation | None = None,
        **details: Any,
    ) -> Answer:
        """The answer that generated tokens are; `text` is theirs, up to the first stop string. `details`: as `Details` has
        them; their problems go before those that are found here."""
        problems = tuple(details.pop("problems", ()))
        about = Details(
            transcript=self._text.decode(tokens, skip_special=False), tokens=len(tokens), finish=finish, **details
        )
        if conversation is None or not self.channels:
            return Answer(text, replace(about, problems=problems))
        completion = self.read(tokens, conversation)
        calls = tuple(call_of(message) for message in completion.messages if message.recipient not in (None, "all"))
        final = completion.shown
        missing = ("no_final",) if final is None and not calls else ()
        found = tuple(finding.problem.value for finding in completion.findings)
        shown = min((final.split(stop)[0] for stop in until if stop), key=len, default=final) if final else ""
        return Answer(
            shown or "", replace(about, calls=calls, analysis=completion.analysis, problems=problems + missing + found)
        )


def call_of(message: Message) -> Call:
    """The call that a message with a recipient is, whether or not it can be carried out."""
    arguments = read_arguments(message.content)
    name = (message.recipient or "").removeprefix("functions.")
    return Call(name, arguments if isinstance(arguments, dict) else None, message.content)


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates of other models know it."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.recipient and message.role == "assistant":
        call = call_of(message)
        fields["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments or call.text}}
        ]
        fields["content"] = ""
    if message.role == "tool" and message.name:
        fields["name"] = message.name.removeprefix("functions.")
    return fields
