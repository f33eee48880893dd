"""A conversation in the terminal: a question, the answer as it comes, calls of tools, and what stays of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from oss_tools.cli._chat import Figures, Screen, Speaker, figures_line
from oss_tools.cli._output import remark

if TYPE_CHECKING:
    from oss_tools.chat.chat_template import ChatTemplate
    from oss_tools.chat.completion import Delta
    from oss_tools.chat.loop import Transcript
    from oss_tools.chat.messages import Conversation, Message
    from oss_tools.chat.tools.base import Tool


class Talk:
    """A conversation with a model, turn by turn.

    Attributes:
        conversation: what has been said, tools, effort, instructions.
        speaker: the model and how it chooses tokens.
    """

    def __init__(
        self,
        speaker: Speaker,
        template: ChatTemplate,
        tools: dict[str, Tool],
        effort: Any,
        instructions: str | None,
        rounds: int,
        quiet: bool,
    ) -> None:
        from oss_tools.chat.messages import Conversation

        self.speaker, self._template, self._tools = speaker, template, tools
        self._rounds, self._quiet = rounds, quiet
        schemas = tuple(tool.schema for tool in tools.values())
        self.conversation = Conversation((), schemas, effort, instructions)

    def ask(self, question: str) -> None:
        """One turn. Of an answer that is stopped, what the user has seen stays; if that is nothing, the question goes."""
        from oss_tools.chat.loop import converse
        from oss_tools.chat.messages import Message

        before, screen, figures = self.conversation, Screen(show_analysis=True), Figures()
        self.conversation = replace(before, messages=(*before.messages, Message("user", question)))
        said: list[Message] = []
        seen: list[str] = []

        def complete(tokens: list[int]) -> Iterator[int]:
            return self.speaker.complete(tokens, figures)

        def hear(message: Message) -> None:
            said.append(message)
            self._show_call(screen, message)

        def show(delta: Delta) -> None:
            if delta.channel == "final" and not delta.recipient:
                seen.append(delta.text)
            screen.delta(delta)

        try:
            transcript = converse(self.conversation, complete, self._template, self._tools, self._rounds, hear, show)
        except KeyboardInterrupt:
            screen.end_line()
            self._stop(before, said, "".join(seen))
            return
        except BaseException:
            screen.end_line()
            self.conversation = before
            raise
        screen.end_line()
        self._keep(transcript, before)
        if not self._quiet:
            remark(figures_line(figures.record()))

    def _stop(self, before: Conversation, said: list[Message], seen: str) -> None:
        """After Ctrl-C."""
        from oss_tools.chat.messages import Message

        if seen:
            turn = (*self.conversation.messages, *said, Message("assistant", seen, "final"))
            self.conversation = replace(before, messages=turn)
        else:
            self.conversation = before
        remark("stopped" if seen else "stopped; the question is taken back")

    def _keep(self, transcript: Transcript, before: Conversation) -> None:
        """Adds a turn to the conversation; without an answer only what the user can see of it, or nothing."""
        from oss_tools.chat.completion import Problem

        self.conversation = transcript.conversation
        if transcript.answer is not None:
            return
        last = transcript.conversation.messages[-1]
        for finding in transcript.findings:
            cut = finding.problem == Problem.MISSING_END
            remark("the answer is cut off" if cut else finding.sentence)
        shown = last.role == "assistant" and last.channel == "final" and not last.recipient
        if not shown or any(finding.problem != Problem.MISSING_END for finding in transcript.findings):
            remark("there is no answer; the question is taken back")
            self.conversation = before

    def _show_call(self, screen: Screen, message: Message) -> None:
        if message.role == "tool":
            screen.aside(f"← {message.content}")
        elif message.recipient:
            screen.aside(f"→ {message.recipient.removeprefix('functions.')} {message.content}")
