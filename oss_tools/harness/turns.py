"""Conversations of several turns, whose tool calls a task's environment answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from oss_tools.chat.messages import Conversation, Message
from oss_tools.harness.answers import Answer, Call, Details, Environment
from oss_tools.harness.jobs import Job, Reply, Rule, Usage
from oss_tools.harness.prompts import message_of


@dataclass
class Talk:
    """A conversation as it grows: the calls of every step of every turn, and what was spent."""

    job: Job
    conversation: Conversation
    world: Environment
    turns: list[list[tuple[Call, ...]]] = field(default_factory=lambda: [[]])
    details: list[Details] = field(default_factory=list)
    text: str = ""

    def open(self) -> Talk:
        """Begins as the world wants it."""
        opening = self.world.opening()
        if opening is not None:
            self.conversation = replace(
                self.conversation,
                messages=(*self.conversation.messages, *map(message_of, opening.messages)),
                tools=tuple(opening.tools),
                instructions=opening.instructions,
            )
        return self

    def take(self, answer: Answer, messages: tuple[Message, ...]) -> bool:
        """Takes an assistant's answer in and asks the world; whether the conversation goes on."""
        details = answer.details
        self.details.append(details)
        if "too_long" in details.problems:  # nothing was said
            return False
        self.text = str(answer)
        self.turns[-1].append(details.calls)
        if details.finish == "length" or "no_final" in details.problems or len(self.turns[-1]) > self.world.max_steps:
            return False
        following = self.world.respond(details.calls, self.text)
        if any(message["role"] == "user" for message in following):
            self.turns.append([])
        said = tuple(message_of(message) for message in following)
        tools = self.world.tools()
        self.conversation = replace(
            self.conversation,
            messages=(*self.conversation.messages, *messages, *said),
            tools=self.conversation.tools if tools is None else tuple(tools),
        )
        return bool(following)

    def answer(self) -> Answer:
        """The whole: the last text, the calls of every turn, everything else of all turns together."""
        last = self.details[-1]
        problems = self.job.problems + tuple(p for d in self.details for p in d.problems)
        if last.finish == "stop" and len(self.turns[-1]) > self.world.max_steps:
            problems += ("too_many_steps",)
        return Answer(
            self.text,
            Details(
                calls=last.calls,
                analysis="\n".join(d.analysis for d in self.details if d.analysis),
                problems=problems,
                turns=tuple(tuple(turn) for turn in self.turns),
                transcript="\n".join(d.transcript for d in self.details),
                prompt_tokens=sum(d.prompt_tokens for d in self.details),
                tokens=sum(d.tokens for d in self.details),
                finish=last.finish,
                outcome=self.world.outcome(),
            ),
        )


class Model(Protocol):
    """What answers conversations."""

    def replies(self, asked: list[tuple[Conversation, Rule]], usage: Usage) -> Iterator[Reply]: ...


def converse(model: Model, jobs: list[Job], usage: Usage) -> Iterator[tuple[Job, Answer]]:
    """Carries the conversations on in rounds, one message of the assistant in each of them a round. Yields them as they end."""
    talks = [Talk(job, _required(job), _made(job)) for job in jobs]
    if not talks:
        return
    each = talks[0].world.each  # the jobs are of one task
    live = list(each(Talk.open, talks))
    while live:
        current = live

        def take(reply: Reply, current: list[Talk] = current) -> tuple[Talk, bool]:
            talk = current[reply.number]
            return talk, talk.take(reply.answer, reply.said)

        live = []
        for talk, goes_on in each(take, model.replies([(talk.conversation, talk.job.rule) for talk in current], usage)):
            if goes_on:
                live.append(talk)
            else:
                yield talk.job, talk.answer()


def _required(job: Job) -> Conversation:
    assert job.conversation is not None
    return job.conversation


def _made(job: Job) -> Environment:
    assert job.environment is not None
    doc: Mapping[str, Any] = job.doc
    return job.environment(doc)
