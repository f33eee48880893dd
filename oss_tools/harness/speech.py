"""How the loaded model is spoken to in an evaluation, and what its answers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from oss_tools.chat.calls import name_of, read_call
from oss_tools.chat.chat_template import ChatTemplate, HarmonyTemplate, chat_template, has_chat_template
from oss_tools.chat.completion import Finding
from oss_tools.chat.harmony import CHANNEL, MESSAGE
from oss_tools.chat.messages import Conversation, Message
from oss_tools.engine.engine import Engine
from oss_tools.engine.text import token_text
from oss_tools.errors import BadCheckpoint
from oss_tools.harness.answers import UNTOLD, Answer, Call, Details

TODAY = datetime(2025, 8, 5)  # in prompts that tell the date, so that the same run is the same on any day: gpt-oss's release


class Speech:
    """Conversations to tokens, tokens to answers.

    Attributes:
        template: None if the checkpoint has none.
        harmony: whether it is spoken to in harmony.
        channels: whether reasoning and answer come apart.
        first_token: stands before a text that has nothing before it.
    """

    def __init__(self, engine: Engine) -> None:
        self._text, self._metadata = engine.text, engine.metadata
        self.template: ChatTemplate | None = None
        if has_chat_template(self._metadata, self._text):
            self.template = chat_template(self._metadata, self._text).at(TODAY)
        self.harmony = isinstance(self.template, HarmonyTemplate)
        self.channels = self.template is not None and self.template.has_channels
        self.first_token = self._find_first_token()

    def _find_first_token(self) -> int:
        """The token that begins texts, or the one that ends them: lm-eval's rule."""
        config = self._metadata.tokenizer_config
        names = [token_text(config.get(name)) for name in ("bos_token", "eos_token")]
        known = [self._text.special[name] for name in names if name in self._text.special]
        return (known or sorted(self._text.stop_tokens) or [0])[0]

    @property
    def description(self) -> str:
        """What tells templates apart."""
        return self.template.description if self.template else ""

    def _required(self) -> ChatTemplate:
        if self.template is None:
            raise BadCheckpoint(
                "the checkpoint has no chat template; tasks that need one cannot be run (--no-chat for the others)"
            )
        return self.template

    # ---- conversations to tokens ------------------------------------------------------------------------------------

    def render(self, conversation: Conversation, beginning: str = "") -> str:
        """The prompt as text, for people and logs. `beginning`: of the answer."""
        opening = f"{CHANNEL}final{MESSAGE}" if self.harmony and beginning else ""
        return self._required().render(conversation) + opening + beginning

    def encode(self, conversation: Conversation, beginning: str = "", scoring: bool = False) -> list[int]:
        """The prompt's tokens. `scoring`: the answer's text itself comes next, which in harmony is on the final channel."""
        tokens = self._required().encode(conversation)
        if self.harmony and (beginning or scoring):
            special = self._text.special
            tokens += [special[CHANNEL], *self._text.encode_plain("final"), special[MESSAGE]]
        return tokens + (self._text.encode_plain(beginning) if beginning else [])

    # ---- tokens to answers ------------------------------------------------------------------------------------------

    def said(self, tokens: Sequence[int], text: str, conversation: Conversation) -> tuple[Message, ...]:
        """The assistant's messages, as the next turn's prompt has them."""
        if not self._structured(conversation):
            return (Message("assistant", text, "final"),)
        return self._required().parse(tokens, conversation).messages

    def _structured(self, conversation: Conversation | None) -> bool:
        """Whether there is more to an answer than its text."""
        return conversation is not None and (self.channels or bool(conversation.tools))

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
        if conversation is not None and conversation.tools and not self._required().takes_tools:
            problems += (UNTOLD,)
        if conversation is None or not self._structured(conversation):
            return Answer(text, replace(about, problems=problems))
        completion = self._required().parse(tokens, conversation)
        calls = tuple(call_of(message) for message in completion.messages if message.recipient not in (None, "all"))
        final = completion.shown
        if final is None and not calls:
            problems += ("no_final",)
        problems += tuple(finding.problem.value for finding in completion.findings)
        shown = min((final.split(stop)[0] for stop in until if stop), key=len, default=final) if final else ""
        return Answer(shown or "", replace(about, calls=calls, analysis=completion.analysis, problems=problems))


def call_of(message: Message) -> Call:
    """The call that a message with a recipient is, whether or not it can be carried out."""
    arguments = read_call(message)
    return Call(name_of(message), None if isinstance(arguments, Finding) else arguments, message.content)
