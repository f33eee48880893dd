"""Model → call → result → model, with a model that says what it is told to."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from oss_tools.chat.completion import Delta, Problem
from oss_tools.chat.loop import Transcript, converse
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.tools.base import Tool
from oss_tools.chat.tools.calculator import Calculator
from oss_tools.chat.tools.python import PythonTool
from tests.chat.conversations import harmony_template

TEMPLATE = harmony_template()
THOUGHT = "<|channel|>analysis<|message|>I need a tool.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.calculator <|constrain|>json<|message|>{"expression": "47 + 38"}<|call|>'
ANSWER = "<|channel|>final<|message|>It is 85.<|return|>"
ASKED = Conversation((Message("user", "What is 47 + 38?"),), (Calculator.schema,))


def talk(*completions: str, tools: bool = True, rounds: int = 8) -> tuple[Transcript, list[str]]:
    """The transcript and the prompts that the model saw; the last completion is repeated."""
    left, prompts = list(completions), []

    def complete(tokens: list[int]) -> list[int]:
        prompts.append(TEMPLATE.text.decode(tokens, skip_special=False))
        return TEMPLATE.text.encode(left.pop(0) if len(left) > 1 else left[0], special=False)

    calculators = {"calculator": Calculator()} if tools else {}
    return converse(ASKED, complete, TEMPLATE, calculators, rounds), prompts


def test_a_call_is_carried_out_and_its_result_is_used() -> None:
    transcript, prompts = talk(THOUGHT + CALL, ANSWER)
    assert (transcript.answer, transcript.rounds, transcript.findings) == ("It is 85.", 2, ())
    roles = [(m.role, m.channel) for m in transcript.conversation.messages]
    assert roles == [
        ("user", None), ("assistant", "analysis"), ("assistant", "commentary"), ("tool", "commentary"), ("assistant", "final"),
    ]  # fmt: skip
    assert prompts[1].endswith(
        "<|call|><|start|>functions.calculator to=assistant<|channel|>commentary<|message|>85<|end|><|start|>assistant"
    )
    assert prompts[1].startswith(prompts[0])  # so that the engine computes only what is new


def test_an_error_of_a_tool_is_told_to_the_model() -> None:
    transcript, prompts = talk(CALL.replace("47 + 38", "47 / 0"), ANSWER)
    assert "<|message|>error: division by zero<|end|>" in prompts[1]
    assert transcript.answer
    transcript, prompts = talk(CALL.replace("expression", "formula"), ANSWER)
    assert "error: argument 'expression' is missing" in prompts[1]


def test_rounds_are_limited() -> None:
    transcript, prompts = talk(CALL, rounds=3)
    assert (len(prompts), transcript.answer) == (3, None)
    assert [finding.problem for finding in transcript.findings] == [Problem.TOO_MANY_ROUNDS]


def test_a_malformed_completion_ends_the_loop() -> None:
    transcript, prompts = talk(CALL.replace("calculator", "abacus"), ANSWER)
    assert (len(prompts), transcript.answer) == (1, None)
    assert [finding.problem for finding in transcript.findings] == [Problem.UNKNOWN_TOOL]


def test_calls_that_nobody_carries_out_are_left_pending() -> None:
    transcript, _ = talk(CALL, tools=False)
    assert [(call.name, call.arguments) for call in transcript.pending] == [("calculator", {"expression": "47 + 38"})]
    assert (transcript.answer, transcript.findings) == (None, ())


def test_a_slip_is_counted_and_the_call_is_carried_out() -> None:
    transcript, prompts = talk(CALL.replace("functions.", "").replace("commentary", "comment"), ANSWER)
    assert (transcript.answer, len(prompts)) == ("It is 85.", 2)
    assert [finding.problem for finding in transcript.findings] == [Problem.UNKNOWN_CHANNEL, Problem.MISSING_NAMESPACE]
    assert "<|start|>functions.calculator to=assistant<|channel|>commentary<|message|>85<|end|>" in prompts[1]


class Echo(Tool):
    """`python`, as far as the conversation goes."""

    schema: ClassVar = {**PythonTool.schema}

    def run(self, arguments: Mapping[str, Any]) -> str:
        return f"ran {arguments['code']}"


def test_python_answers_where_it_was_called() -> None:
    """Its answer comes from `python`, on the call's channel, as in OpenAI's own program (gpt-oss, `tools/python_docker`)."""
    left, prompts = ["<|channel|>analysis to=python code<|message|>1 + 1<|call|>", ANSWER], []

    def complete(tokens: list[int]) -> list[int]:
        prompts.append(TEMPLATE.text.decode(tokens, skip_special=False))
        return TEMPLATE.text.encode(left.pop(0), special=False)

    asked = Conversation((Message("user", "What is 1 + 1?"),), (Echo.schema,))
    transcript = converse(asked, complete, TEMPLATE, {"python": Echo()})
    assert (transcript.answer, transcript.findings) == ("It is 85.", ())
    assert "<|start|>python to=assistant<|channel|>analysis<|message|>ran 1 + 1<|end|>" in prompts[1]


def test_text_is_shown_while_it_comes() -> None:
    order: list[str] = []

    def complete(tokens: list[int]) -> Iterator[int]:
        for token in TEMPLATE.text.encode(ANSWER, special=False):
            order.append("token")
            yield token

    def show(delta: Delta) -> None:
        order.append(delta.text)

    converse(ASKED, complete, TEMPLATE, {}, shown=show, said=lambda message: order.append(message.role))
    assert "".join(part for part in order if part not in ("token", "assistant")) == "It is 85."
    assert order.index("I") < len(order) - 3
    assert order[-1] == "assistant"
