"""The simulated user: a model at an endpoint, which speaks for a customer and may use tools of its own."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oss_tools.chat.completion import Finding, read_arguments
from oss_tools.endpoints.client import Client, Malformed
from oss_tools.endpoints.endpoint import Endpoint
from oss_tools.endpoints.replies import ChatReply, read_chat
from oss_tools.errors import BadRecipe
from oss_tools.harness.tau2.child import Child

MAX_TOKENS = 2048  # of one message of the user's
DISPENSABLE = ("temperature",)


@dataclass
class Tally:
    """What the user's side took: requests and tokens as the server counts them, and answers that were cut off."""

    requests: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    truncated: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)


class Simulation:
    """Who plays the user, and the Python with tau2. Close it, or use it in a `with`.

    Attributes:
        name: of the model that plays the user.
        tally: what it took so far.
    """

    def __init__(
        self, endpoint: Endpoint, python: str, checkout: Path, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """
        Args:
            endpoint: of the model that plays the user.
            python: a program, the Python that has tau2 installed.
            checkout: of tau2's repository.

        Raises BadRecipe.
        """
        self.name, self._model, self._python, self._checkout = endpoint.name, endpoint.model, python, checkout
        self.tally = Tally()
        self.client = Client(endpoint, dispensable=DISPENSABLE, say=say)
        self._lock = threading.Lock()
        self._children: dict[str, Child] = {}
        self._number = 0

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        for child in self._children.values():
            child.close()

    def domain(self, name: str) -> tuple[Child, int]:
        """The process of a domain, and a number for one more of its environments. Raises MissingPackage."""
        with self._lock:
            self._number += 1
            if name not in self._children:
                self._children[name] = Child(self._python, name, self._checkout)
            return self._children[name], self._number

    def reply(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> ChatReply:
        """What the user says or calls next. Raises what `Client.post` raises."""
        body = {"model": self._model, "messages": list(messages), "temperature": 0.0, "max_tokens": MAX_TOKENS}
        if tools:
            body["tools"] = list(tools)
        try:
            reply = self.client.post(body, read_chat)
        except Malformed:
            reply = ChatReply("", "", (), "malformed", 0, 0)
        with self._lock:
            self.tally.requests += 1
            self.tally.prompt_tokens += reply.prompt_tokens
            self.tally.tokens += reply.tokens
            self.tally.truncated += reply.finish == "length"
        return reply


class User:
    """One conversation from the user's side: the roles are the other way round."""

    def __init__(self, simulation: Simulation, prompt: str, tools: Sequence[Mapping[str, Any]]) -> None:
        self._simulation, self._tools = simulation, tools
        self._messages: list[dict[str, Any]] = [{"role": "system", "content": prompt}]

    def hear(self, text: str) -> None:
        """What the model says."""
        self._messages.append({"role": "user", "content": text})

    def see(self, number: str, result: str) -> None:
        """What one of the user's own calls gave."""
        self._messages.append({"role": "tool", "tool_call_id": number, "content": result})

    def answer(self, first: int) -> tuple[str, list[dict[str, Any]]]:
        """The user's text, and calls {"id", "name", "arguments"}, numbered from `first` on; arguments that are none are empty."""
        reply = self._simulation.reply(self._messages, self._tools)
        calls, plain = [], []
        for number, (name, text) in enumerate(reply.calls if self._tools else (), first):
            arguments = read_arguments(text or "{}")
            given = {} if isinstance(arguments, Finding) else arguments
            calls.append({"id": f"user_{number}", "name": name, "arguments": dict(given)})
            function = {"name": name, "arguments": json.dumps(given)}
            plain.append({"id": f"user_{number}", "type": "function", "function": function})
        self._messages.append({"role": "assistant", "content": reply.text} | ({"tool_calls": plain} if plain else {}))
        return reply.text, calls


_CURRENT: ContextVar[Simulation | None] = ContextVar("simulation", default=None)


@contextlib.contextmanager
def simulating_with(simulation: Simulation) -> Iterator[Simulation]:
    """Within it, tasks that need a simulated user find this one."""
    token = _CURRENT.set(simulation)
    try:
        yield simulation
    finally:
        _CURRENT.reset(token)


def current_simulation() -> Simulation:
    """Raises BadRecipe if there is none."""
    found = _CURRENT.get()
    if found is None:
        raise BadRecipe("tau2's tasks are played with a simulated user: name a model with --user-url and --user-model")
    return found
