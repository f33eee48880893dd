"""What a model answered, as a task gets to see it: a string that knows what stands beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
UNTOLD = "untold_tools"  # the model's chat template leaves tools out, which is no fault of its answer


@dataclass(frozen=True)
class Call:
    """A tool call. `arguments` is None where the text was no JSON object; `text` is what the model wrote."""

    name: str
    arguments: Mapping[str, Any] | None
    text: str


@dataclass(frozen=True)
class Details:
    """What stands beside an answer's text.

    Attributes:
        calls: tool calls of the last turn, in order.
        analysis: the reasoning, which is never scored.
        problems: kinds of things wrong with the format ("no_final", "bad_header", …); none if all is well.
        turns: of a conversation with executed tools, the calls of every turn: [turn][step][call].
        transcript: all that the model wrote, special tokens by name.
        prompt_tokens, tokens: how many were read and generated.
        finish: "stop" or "length".
        outcome: what an environment says at the end of a conversation, as JSON has it.
    """

    calls: tuple[Call, ...] = ()
    analysis: str = ""
    problems: tuple[str, ...] = ()
    turns: tuple[tuple[tuple[Call, ...], ...], ...] = ()
    transcript: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    finish: str = "stop"
    outcome: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Details:
        turns = tuple(tuple(_calls(step) for step in turn) for turn in fields["turns"])
        plain = {name: fields[name] for name in ("analysis", "transcript", "prompt_tokens", "tokens", "finish")}
        return cls(
            calls=_calls(fields["calls"]),
            problems=tuple(fields["problems"]),
            turns=turns,
            outcome=fields.get("outcome"),
            **plain,
        )


def _calls(rows: Sequence[Mapping[str, Any]]) -> tuple[Call, ...]:
    return tuple(Call(**row) for row in rows)


class Answer(str):
    """The text of the final channel, or the whole text of models without channels; "" if the model never reached it.

    This is what `process_results(doc, results)` finds in `results[0]` as long as no filter has made another string of it.
    `details_of` works with the answers of any lm-eval model.
    """

    details: Details

    def __new__(cls, text: str, details: Details | None = None) -> Answer:
        answer = super().__new__(cls, text)
        answer.details = details or Details()
        return answer


def details_of(result: str) -> Details:
    """The details of an answer; of a plain string (from another lm-eval model) empty ones."""
    return result.details if isinstance(result, Answer) else Details(transcript=str(result))


@dataclass(frozen=True)
class Opening:
    """What comes before the model's first message: messages, the tools on offer, and what the developer says."""

    messages: Sequence[Mapping[str, str]]
    tools: Sequence[Mapping[str, Any]]
    instructions: str


class Environment:
    """The world that answers a model in a conversation of several turns. Subclass it and name it in the task's YAML:
    `generation_kwargs: {environment: !function utils.Name}`. One is made for each document, with the document.
    """

    max_steps = 20  # messages of the assistant in one turn; a model that calls on and on is stopped

    def __init__(self, doc: Mapping[str, Any]) -> None:
        self.doc = doc

    @classmethod
    def identity(cls) -> str:
        """What answers depend on beside the document."""
        return cls.__name__

    @classmethod
    def each(cls, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """What `work` returns for each item, in any order; where worlds wait for others, many at once."""
        return map(work, items)

    def opening(self) -> Opening | None:
        """How the conversation goes on from the document's, before the model is asked; None: it stays as it is."""
        return None

    def respond(self, calls: Sequence[Call], text: str) -> list[dict[str, str]]:
        """What follows an assistant's message: messages {"role", "content", "name"}; none ends the conversation.

        After calls these are the tools' results in order (role "tool", name = the function's), after a final text the user's
        next turn (role "user").
        """
        raise NotImplementedError

    def tools(self) -> Sequence[Mapping[str, Any]] | None:
        """The tools that are offered from now on, all of them; asked after every `respond`. None: those as before."""
        return None

    def outcome(self) -> dict[str, Any] | None:
        """What is to be kept of the world at the end, which also comes where the conversation was broken off."""
        return None
