"""What a model answered, as a task gets to see it: a string that knows what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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
    """

    calls: tuple[Call, ...] = ()
    analysis: str = ""
    problems: tuple[str, ...] = ()
    turns: tuple[tuple[tuple[Call, ...], ...], ...] = ()
    transcript: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    finish: str = "stop"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Details:
        turns = tuple(tuple(_calls(step) for step in turn) for turn in fields["turns"])
        plain = {name: fields[name] for name in ("analysis", "transcript", "prompt_tokens", "tokens", "finish")}
        return cls(calls=_calls(fields["calls"]), problems=tuple(fields["problems"]), turns=turns, **plain)


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


class Environment:
    """The world that answers a model in a conversation of several turns. Subclass it and name it in the task's YAML:
    `generation_kwargs: {environment: !function utils.Name}`. One is made for each document, with the document.
    """

    def __init__(self, doc: Mapping[str, Any]) -> None:
        self.doc = doc

    def respond(self, calls: Sequence[Call], text: str) -> list[dict[str, str]]:
        """What follows an assistant's message: messages {"role", "content", "name"}; none ends the conversation.

        After calls these are the tools' results in order (role "tool", name = the function's), after a final text the user's
        next turn (role "user").
        """
        raise NotImplementedError

    def tools(self) -> Sequence[Mapping[str, Any]] | None:
        """The tools that are offered from now on, all of them; asked after every `respond`. None: the document's, as before."""
        return None
