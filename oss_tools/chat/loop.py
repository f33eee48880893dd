"""Model → call → result → model, until there is an answer or the rounds are used up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from oss_tools.chat.chat_template import ChatTemplate
from oss_tools.chat.completion import Completion, Delta, Finding, Parser, Problem, ToolCall
from oss_tools.chat.harmony import NAMESPACE
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.tools.base import Tool

ROUNDS = 8

Complete = Callable[[list[int]], Iterable[int]]


def _ignore(_: object) -> None:
    pass


@dataclass(frozen=True)
class Transcript:
    """What came of a question.

    Attributes:
        conversation: the one given, with all that was said and returned since.
        answer: the final text; None if there is none, or a completion was malformed.
        findings: what was wrong with completions.
        pending: calls that end the loop because nobody carries them out.
        rounds: how often the model was asked.
    """

    conversation: Conversation
    answer: str | None
    findings: tuple[Finding, ...]
    pending: tuple[ToolCall, ...]
    rounds: int


def converse(
    conversation: Conversation,
    complete: Complete,
    template: ChatTemplate,
    tools: Mapping[str, Tool] | None = None,
    rounds: int = ROUNDS,
    said: Callable[[Message], None] = _ignore,
    shown: Callable[[Delta], None] = _ignore,
) -> Transcript:
    """Asks for an answer, carrying out the calls on the way to it.

    Args:
        conversation: with the schemas of all tools that the model is to know.
        complete: the model: a prompt's tokens to the tokens that follow, the one that ends them included; at once or one by one.
        tools: those that are carried out, by name; a call of another one ends the loop and is left pending.
        rounds: how often the model may be asked.
        said: is told of every message as it is complete, the model's and the tools'.
        shown: is told of the model's text as it comes.

    A malformed completion ends the loop: its messages are in the transcript, the answer is None. Offences that leave a call clear
    (`completion.SLIPS`) do not: it is carried out, and they are among the findings.
    """
    tools = tools or {}
    findings: tuple[Finding, ...] = ()
    for count in range(1, rounds + 1):
        completion = listen(complete(template.encode(conversation)), template.parser(conversation), shown)
        conversation = _extended(conversation, completion.messages, said)
        findings += completion.findings
        calls = completion.to_carry_out
        if not calls or any(call.name not in tools for call in calls):
            return Transcript(conversation, _answer(completion), findings, calls, count)
        conversation = _extended(conversation, [_result(tools[call.name], call) for call in calls], said)
    findings += (Finding(Problem.TOO_MANY_ROUNDS, f"no answer after {rounds} rounds of calls"),)
    return Transcript(conversation, None, findings, (), rounds)


def listen(tokens: Iterable[int], parser: Parser, shown: Callable[[Delta], None]) -> Completion:
    """Reads tokens as they come, telling `shown` of the text that is certain."""
    for token in tokens:
        for delta in parser.add(token):
            shown(delta)
    deltas, completion = parser.finish()
    for delta in deltas:
        shown(delta)
    return completion


def _answer(completion: Completion) -> str | None:
    return None if completion.calls else completion.final


def _extended(conversation: Conversation, messages: Iterable[Message], said: Callable[[Message], None]) -> Conversation:
    messages = tuple(messages)
    for message in messages:
        said(message)
    return replace(conversation, messages=conversation.messages + messages)


def _result(tool: Tool, call: ToolCall) -> Message:
    name = call.recipient or NAMESPACE + tool.name
    return Message("tool", tool.call(call.arguments), call.channel or "commentary", "assistant", name=name)
