"""A conversation in, events out: what every protocol shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from oss_tools.chat.completion import Completion, Delta, Finding, Parser, Problem, ToolCall
from oss_tools.chat.messages import Conversation, Message
from oss_tools.engine.engine import Request, Token
from oss_tools.engine.sampling import Sampling
from oss_tools.engine.scheduling import Event as EngineEvent
from oss_tools.engine.scheduling import Finished, Scheduler
from oss_tools.engine.text import StopStrings, Text
from oss_tools.serve.served import Served


@dataclass(frozen=True)
class Asked:
    """What a client asks for.

    Attributes:
        conversation: with the schemas of the tools that the model is told of.
        sampling: how tokens are chosen.
        max_tokens: the most tokens; None for what the context has room for.
        stop: texts at which the answer ends; they are cut off. Reasoning and calls do not end at them.
        logprobs: None for none; n for the chosen tokens' and the n likeliest ones'.
        tool_choice: auto, none, required, or a function's name.
        parallel_tool_calls: whether an answer may have more than one call.
    """

    conversation: Conversation
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True


@dataclass(frozen=True)
class Piece:
    """Text that became certain, with the tokens that spell it (those of headers and marks belong to no text)."""

    delta: Delta
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The end of an answer.

    Attributes:
        completion: all of it, as far as it can be read.
        finish: "stop", "length" or "tool_calls".
        usage: tokens and times.
        broken: what is wrong with it that makes it no answer; a protocol reports it, and sends the answer on as none. An answer
            that ran out of tokens is not broken.
        calls: those that the client is to carry out.
    """

    completion: Completion
    finish: str
    usage: Finished
    broken: tuple[Finding, ...] = ()
    calls: tuple[ToolCall, ...] = ()


Event = Piece | Ended
CUT = frozenset(
    {Problem.MISSING_END, Problem.CUT_JSON, Problem.NO_ANSWER, Problem.OPEN_TAG}
)  # what a lack of tokens explains


async def answer(served: Served, asked: Asked) -> AsyncGenerator[Event, None]:
    """The model's answer as it comes; the last event is Ended. Closing the iterator cancels the request.

    Raises BadRequest for what cannot be asked, Busy where too many wait, and whatever goes wrong in the engine.
    """
    template = served.speaker
    served.scheduler.require_room()
    conversation = asked.conversation
    if asked.tool_choice == "none":
        conversation = replace(conversation, tools=())
    tokens = await asyncio.to_thread(template.encode, conversation)  # a Jinja template may take its time
    parser = await asyncio.to_thread(template.parser, conversation)
    request = Request(tokens, asked.max_tokens or served.engine.context, asked.sampling, logprobs=asked.logprobs)
    reading = _Reading(parser, template.text, asked.stop)
    async with aclosing(Stream(served.scheduler, request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                for piece in reading.end():
                    yield piece
                yield _ended(reading, event, asked)
                return
            for piece in reading.add(event):
                yield piece
            if reading.stopped:
                yield _ended(reading, events.so_far("stop"), asked)
                return


def _ended(reading: _Reading, usage: Finished, asked: Asked) -> Ended:
    completion = reading.completion()
    broken = completion.findings
    calls = completion.to_carry_out
    if calls:
        broken = ()
    elif usage.finish == "length":
        broken = tuple(finding for finding in broken if finding.problem not in CUT)
    calls = calls if asked.parallel_tool_calls else calls[:1]
    return Ended(completion, "tool_calls" if calls else usage.finish, usage, broken, calls)


class Stream:
    """A request's tokens as they come, and Finished. Closing it cancels the request."""

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        """Raises BadRequest for what cannot be asked, Busy where too many wait."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[EngineEvent] = asyncio.Queue()  # at most max_tokens long
        self._ended = False
        self._ticket = scheduler.submit(request, self._hear)

    def _hear(self, event: EngineEvent) -> None:
        """In the engine's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Token | Finished:
        if self._ended:
            raise StopAsyncIteration
        event = await self._events.get()
        self._ended = not isinstance(event, Token)
        if isinstance(event, BaseException):
            raise event
        return event

    def so_far(self, finish: str) -> Finished:
        """The figures of a request that is ended here."""
        return self._ticket.so_far(finish)

    async def aclose(self) -> None:
        self._ended = True
        self._ticket.cancel()


class _Reading:
    """Tokens to pieces, up to a stop string in the answer."""

    def __init__(self, parser: Parser, text: Text, stop: tuple[str, ...]) -> None:
        self._parser = parser
        self._marks = frozenset(text.special.values()) | frozenset(text.marks.values())
        self._stop = StopStrings(stop)
        self._pending: list[Token] = []
        self._answer: list[str] = []
        self._whole: Completion | None = None

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    def add(self, token: Token) -> list[Piece]:
        deltas = self._parser.add(token.id)
        if token.id in self._marks:
            self._pending = []
        else:
            self._pending.append(token)
        return self._pieces(deltas)

    def end(self) -> list[Piece]:
        deltas, self._whole = self._parser.finish()
        pieces = self._pieces(deltas)
        if not self.stopped and (held := self._stop.flush()):
            pieces.append(self._piece(Delta(held, "final")))
        return pieces

    def _pieces(self, deltas: list[Delta]) -> list[Piece]:
        pieces = []
        for delta in deltas:
            if is_answer(delta):
                if self.stopped or not (text := self._stop.add(delta.text)):
                    continue
                delta = Delta(text, delta.channel)
            pieces.append(self._piece(delta))
        return pieces

    def _piece(self, delta: Delta) -> Piece:
        if is_answer(delta):
            self._answer.append(delta.text)
        tokens, self._pending = tuple(self._pending), []
        return Piece(delta, tokens)

    def completion(self) -> Completion:
        """All that was read; an answer that ended at a stop string is a whole one."""
        if self._whole is None:
            self._whole = self._parser.finish()[1]
        if not self.stopped:
            return self._whole
        whole = self._whole
        before = [m for m in whole.messages if not (m.channel == "final" and m.role == "assistant" and not m.recipient)]
        findings = tuple(f for f in whole.findings if f.problem not in CUT)
        return Completion((*before, Message("assistant", "".join(self._answer), "final")), (), findings)


def is_answer(delta: Delta) -> bool:
    """Whether a text belongs to the answer itself, not to reasoning or a call."""
    return delta.channel == "final" and delta.recipient is None
