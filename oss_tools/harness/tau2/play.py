"""A conversation of tau2: the model serves a simulated user under a policy, and is graded by the state that it leaves behind.

The order is that of tau2's orchestrator: the model greets, the user speaks, the model answers or calls tools, until the user
ends it. What ends otherwise (too many steps or errors, an empty message) earns nothing. Of a task's reward, assertions in words
are left out, which a model would have to judge; `score` and the record say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from oss_tools.harness.answers import Call, Environment, Opening, details_of
from oss_tools.harness.documents import Document
from oss_tools.harness.tau2.simulation import User, current_simulation

GREETING = "Hi! How can I help you today?"
ENDS = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")  # in what the user says
MAX_STEPS, MAX_ERRORS = 200, 10  # tau2's own
JUDGED = "NL_ASSERTION"
BASIS = {"DB": "state", "ENV_ASSERTION": "state", "COMMUNICATE": "told", "ACTION": "acted"}

T = TypeVar("T")
R = TypeVar("R")


class Service(Environment):
    """One conversation; see `Environment`."""

    max_steps = MAX_STEPS

    def __init__(self, doc: Mapping[str, Any]) -> None:
        """Raises BadRecipe without a simulated user."""
        super().__init__(doc)
        self._simulation = current_simulation()
        self._said: list[dict[str, Any]] = [{"role": "assistant", "content": GREETING}]
        self._steps = self._errors = 0
        self._ended = ""

    @classmethod
    def identity(cls) -> str:
        return f"{cls.__name__} with {current_simulation().name}"

    @classmethod
    def each(cls, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Many users speak at once."""
        return current_simulation().client.each(work, items)

    def opening(self) -> Opening:
        """Prompts and tools of the domain, the first line of the user. Raises BadSource, MissingPackage, Unreachable."""
        self._child, self._number = self._simulation.domain(self.doc["domain"])
        world = self._child.ask("open", number=self._number, task=self.doc["task"])
        self._user = User(self._simulation, world["user"], world["user_tools"])
        tools = [tool["function"] for tool in world["tools"]]
        return Opening(self._heard(GREETING), tools, world["agent"])

    def respond(self, calls: Sequence[Call], text: str) -> list[dict[str, str]]:
        self._steps += 1
        if not calls and not text.strip():
            return self._end("agent_error")
        first = len(self._said)
        made = [_call(f"call_{first + n}", call.name, call.arguments, "assistant") for n, call in enumerate(calls)]
        self._said.append({"role": "assistant", "content": text or None, "tool_calls": made or None})
        if not calls:
            return self._heard(text)
        results = [self._called(call) for call in made]
        if self._over():
            return []
        return [
            {"role": "tool", "name": f"functions.{call['name']}", "content": result["content"] or ""}
            for call, result in zip(made, results, strict=True)
        ]

    def _heard(self, text: str) -> list[dict[str, str]]:
        """The user's next line to what the model said, after calls of the user's own; none if it was the last."""
        self._user.hear(text)
        while True:
            self._steps += 1
            answer, calls = self._user.answer(len(self._said))
            made = [_call(call["id"], call["name"], call["arguments"], "user") for call in calls]
            self._said.append({"role": "user", "content": answer or None, "tool_calls": made or None})
            if not made:
                if not answer.strip():
                    return self._end("user_error")
                if any(end in answer for end in ENDS):
                    return self._end("user_stop")
                return [] if self._over() else [{"role": "user", "content": answer}]
            for call in made:
                self._user.see(call["id"], self._called(call)["content"] or "")
            if self._over():
                return []

    def _called(self, call: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = self._child.ask("call", number=self._number, call=call)
        self._errors += bool(result.get("error"))
        self._said.append(result)
        return result

    def _over(self) -> bool:
        if self._steps >= MAX_STEPS or self._errors >= MAX_ERRORS:
            self._end("max_steps" if self._steps >= MAX_STEPS else "too_many_errors")
        return bool(self._ended)

    def _end(self, reason: str) -> list[dict[str, str]]:
        self._ended = reason
        return []

    def outcome(self) -> dict[str, Any]:
        """How it ended, the rewards (None where it did not end as it should), and all that was said."""
        ended, rewards = self._ended or "agent_error", None
        if ended == "user_stop":
            rewards = self._child.ask("grade", number=self._number, messages=self._said)
        self._child.ask("close", number=self._number)
        return {"ended": ended, "rewards": rewards, "steps": self._steps, "said": self._said}


def _call(number: str, name: str, arguments: Any, requestor: str) -> dict[str, Any]:
    """As tau2 has it. What is no object of JSON becomes no arguments, which the tool will refuse."""
    return {"id": number, "name": name, "arguments": dict(arguments or {}), "requestor": requestor}


def score(doc: Document, results: Sequence[str]) -> dict[str, float]:
    """`correct`: every part of the task's reward that needs no judge; `state` and `told` beside it; `ended`: by the user;
    `unjudged`: the task has assertions in words, which count for tau2 and not here."""
    outcome: Mapping[str, Any] = details_of(results[0]).outcome or {}
    rewards = outcome.get("rewards")
    criteria = doc["task"].get("evaluation_criteria") or {}
    unjudged = float(JUDGED in criteria.get("reward_basis", ()) and bool(criteria.get("nl_assertions")))
    if not rewards:
        return {"correct": 0.0, "state": 0.0, "told": 0.0, "ended": 0.0, "unjudged": unjudged}
    counted = {BASIS[kind] for kind in rewards["basis"] if kind in BASIS}
    correct = float(all(rewards[name] == 1.0 for name in counted))
    return {"correct": correct, "state": rewards["state"], "told": rewards["told"], "ended": 1.0, "unjudged": unjudged}


def first_line(doc: Document) -> str:
    """For models that see no conversations, which cannot play."""
    return GREETING
