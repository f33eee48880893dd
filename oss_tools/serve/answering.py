"""A conversation in, events out: what every protocol shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from oss_tools.chat.completion import Completion, Delta, Finding, Parser, Problem, ToolCall
from oss_tools.chat.loop import ROUNDS
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.structured import Form, constraint_for, is_held
from oss_tools.chat.tools.base import Tool
from oss_tools.engine.constraints import NewConstraint
from oss_tools.engine.requests import Request, Token
from oss_tools.engine.sampling import Sampling
from oss_tools.engine.scheduled_requests import Event as EngineEvent
from oss_tools.engine.scheduled_requests import Finished
from oss_tools.engine.scheduling import Scheduler
from oss_tools.engine.text import StopStrings, Text
from oss_tools.serve.own_tools import result
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
        form: what the answer must be; None for any text.
        own_tools: those of its tools, by name, that the server carries out itself.
        rounds: how often the model may be asked, where the server carries calls out.
    """

    conversation: Conversation
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    form: Form | None = None
    own_tools: Mapping[str, Tool] = field(default_factory=dict)
    rounds: int = ROUNDS


@dataclass(frozen=True)
class Piece:
    """Text that became certain, with the tokens that spell it (those of headers and marks belong to no text)."""

    delta: Delta
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Ran(Piece):
    """A call that the server carried out, and its result, which is the delta: on the channel of the call, to the assistant."""

    call: ToolCall = field(default_factory=lambda: ToolCall("", {}))


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
        stopped_by: the stop string at which it ended.
    """

    completion: Completion
    finish: str
    usage: Finished
    broken: tuple[Finding, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    stopped_by: str | None = None


Event = Piece | Ended
CUT = frozenset(
    {Problem.MISSING_END, Problem.CUT_JSON, Problem.NO_ANSWER, Problem.OPEN_TAG}
)  # what a lack of tokens explains


async def answer(served: Served, asked: Asked) -> AsyncGenerator[Event, None]:
    """The model's answer as it comes; the last event is Ended. Closing the iterator cancels the request.

    Calls of the server's own tools are carried out on the way to it: Ran tells of each. Where the client's are among a turn's
    calls, the answer ends with these.

    Raises BadRequest for what cannot be asked, Busy where too many wait, and whatever goes wrong in the engine.
    """
    usages: list[Finished] = []
    for _ in range(asked.rounds):
        async with aclosing(_turn(served, asked)) as events:
            async for event in events:
                if isinstance(event, Ended):
                    ended = event
                else:
                    yield event
        usages.append(ended.usage)
        theirs = tuple(call for call in ended.calls if call.name not in asked.own_tools)
        if theirs or not ended.calls or ended.broken:
            yield replace(ended, calls=theirs, usage=total(usages))
            return
        results = []
        for call in ended.calls:
            results.append(await result(asked.own_tools[call.name], call))
            yield Ran(Delta(results[-1].content, results[-1].channel, "assistant"), (), call)
        said = (*asked.conversation.messages, *ended.completion.messages, *results)
        asked = replace(asked, conversation=replace(asked.conversation, messages=said), tool_choice="auto")
    finding = Finding(Problem.TOO_MANY_ROUNDS, f"no answer after {asked.rounds} rounds of calls")
    yield replace(ended, calls=(), broken=(finding,), finish="stop", usage=total(usages))


def total(usages: list[Finished]) -> Finished:
    """The figures of several requests that make one answer."""
    first = usages[0]
    return Finished(
        usages[-1].finish,
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
        sum(usage.tokens for usage in usages),
        first.time_to_first_token,
        sum(usage.seconds for usage in usages),
    )


async def _turn(served: Served, asked: Asked) -> AsyncGenerator[Event, None]:
    """One turn of the model."""
    template = served.speaker
    served.scheduler.require_room()
    conversation = asked.conversation
    if asked.tool_choice == "none":
        conversation = replace(conversation, tools=())
    tokens = await asyncio.to_thread(template.encode, conversation)  # a Jinja template may take its time
    parser = await asyncio.to_thread(template.parser, conversation)
    constraint = await asyncio.to_thread(_constraint, served, asked, conversation)
    limit = asked.max_tokens or served.engine.context
    request = Request(tokens, limit, asked.sampling, logprobs=asked.logprobs, constraint=constraint)
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


def _constraint(served: Served, asked: Asked, conversation: Conversation) -> NewConstraint | None:
    """What the turn is held to. Raises BadRequest, MissingPackage."""
    if not is_held(conversation, asked.form, asked.tool_choice):
        return None
    grammars = served.engine.grammars
    parallel = asked.parallel_tool_calls
    return constraint_for(served.speaker, grammars, conversation, asked.form, asked.tool_choice, parallel)


def _ended(reading: _Reading, usage: Finished, asked: Asked) -> Ended:
    completion = reading.completion()
    broken = completion.findings
    calls = completion.to_carry_out
    if calls:
        broken = ()
    elif usage.finish == "length":
        broken = tuple(finding for finding in broken if finding.problem not in CUT)
    calls = calls if asked.parallel_tool_calls else calls[:1]
    return Ended(completion, "tool_calls" if calls else usage.finish, usage, broken, calls, reading.stopped_by)


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

    @property
    def stopped_by(self) -> str | None:
        return self._stop.stopped_by

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
