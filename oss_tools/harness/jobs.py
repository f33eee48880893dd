"""What is asked of the model in a run, and what that took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from oss_tools.chat.messages import Conversation, Message
from oss_tools.engine.sampling import Sampling
from oss_tools.harness.answers import Answer, Environment

MAX_TOKENS = 256  # generated, where neither the task nor the user says: lm-eval's own number
# Room for reasoning, beside what the task allows for its answer.
ANALYSIS_TOKENS = {"low": 1024, "medium": 4096, "high": 16384}
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

Prompt = Any  # what a model is sent: an engine tokens, an endpoint messages or a text


@dataclass
class Usage:
    """What a task's requests took.

    Attributes:
        requests: distinct ones; `repeated` more had the same answer by definition.
        prompt_tokens, tokens: read and generated.
        positions: that a model without shared prefixes would have computed; `computed`: that ours did.
        problems: answers by what was wrong with them.
        answers, no_final: generated answers, and those that never reached the final channel or a call.
        seconds: of computing; what came out of the log took none.
    """

    requests: int = 0
    repeated: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    positions: int = 0
    computed: int = 0
    answers: int = 0
    no_final: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "problems": dict(self.problems)}


@dataclass(frozen=True)
class Rule:
    """How a request is to be answered: lm-eval's generation settings in our terms."""

    max_tokens: int
    until: tuple[str, ...]
    sampling: Sampling

    def settings(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens, "until": list(self.until), **asdict(self.sampling)}


@dataclass
class Job:
    """A request to generate: its prompt, and for chats the conversation behind it."""

    key: str
    task: str
    doc_id: int | None
    prompt: Prompt
    rule: Rule
    conversation: Conversation | None = None
    environment: type[Environment] | None = None
    doc: Any = None
    problems: tuple[str, ...] = ()


class Asked(NamedTuple):
    """One thing to generate: the prompt's tokens, the rule, and for chats the conversation."""

    tokens: list[int]
    rule: Rule
    conversation: Conversation | None


class Reply(NamedTuple):
    """The answer to one of several conversations, by number, and the assistant's messages as the next turn's prompt has them."""

    number: int
    answer: Answer
    said: tuple[Message, ...]


@dataclass(frozen=True)
class Share:
    """One of `count` parts of a task's requests, in their order."""

    number: int
    count: int

    def of(self, keys: Sequence[str]) -> Sequence[str]:
        """Those of these requests that are its own."""
        first, end = (len(keys) * n // self.count for n in (self.number, self.number + 1))
        return keys[first:end]


class ShareDone(Exception):
    """The share of a task's requests is answered; what is not asked for has no answers, so nothing can be scored."""
