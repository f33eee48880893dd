"""Reading harmony: sound answers, and every way in which one can be broken."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.chat.chat_template import tool_names
from oss_tools.chat.completion import Completion, Delta, Finding, Problem
from oss_tools.chat.harmony import Special, render
from oss_tools.chat.harmony_parser import HarmonyParser
from oss_tools.chat.messages import Conversation, Message
from tests.chat.conversations import byte_text, conversations

TEXT = byte_text()
FINAL = "<|channel|>final<|message|>85<|return|>"
THOUGHT = "<|channel|>analysis<|message|>47 + 38<|end|><|start|>assistant"
ARGUMENTS = '{"city": "Paris"}'


def read(completion: str, tools: tuple[str, ...] = ("weather",)) -> Completion:
    return HarmonyParser(TEXT, tools).read(TEXT.encode(completion, special=False))


def test_a_sound_answer() -> None:
    found = read(THOUGHT + FINAL)
    assert (found.final, found.analysis, found.findings) == ("85", "47 + 38", ())


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.weather <|constrain|>json",
        "<|channel|>commentary to=functions.weather<|constrain|>json",
        "<|channel|>commentary to=functions.weather json",
        "<|channel|>commentary to=functions.weather",
        " to=functions.weather<|channel|>commentary <|constrain|>json",
        " to=functions.weather<|channel|>commentary",
        "assistant to=functions.weather<|channel|>analysis json",
        " to=functions.weather <|constrain|>json<|channel|>commentary",
        "<|channel|>commentary functions.weather",
    ],
)
def test_a_call_is_read_however_its_header_is_put(header: str) -> None:
    found = read(f"{header}<|message|>{ARGUMENTS}<|call|>")
    assert [(call.name, call.arguments) for call in found.calls] == [("weather", {"city": "Paris"})]
    assert not found.findings
    assert found.final is None


CALLS = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
BROKEN = {
    "": [Problem.NO_ANSWER],
    THOUGHT.removesuffix("<|start|>assistant"): [Problem.NO_ANSWER],
    "The answer is 85.": [Problem.NO_HEADER],
    "<|message|>85<|return|>": [Problem.MISSING_CHANNEL],
    "<|channel|>answer<|message|>85<|return|>": [Problem.UNKNOWN_CHANNEL],
    "<|channel|><|message|>85<|return|>": [Problem.BROKEN_HEADER],
    "<|channel|>final and so on and on<|message|>85<|return|>": [Problem.BROKEN_HEADER],
    "<|channel|>final<|channel|>final<|message|>85<|return|>": [Problem.REPEATED_HEADER],
    "<|channel|>final<|channel|>analysis<|message|>85<|return|>": [Problem.BROKEN_HEADER],
    "<|channel|>final<|return|>": [Problem.BROKEN_HEADER],
    "<|channel|>final<|start|>assistant" + FINAL: [Problem.BROKEN_HEADER],
    "<|channel|>commentary to=<|message|>{}<|call|>": [Problem.BROKEN_HEADER],
    "<|channel|>final<|message|>8": [Problem.MISSING_END],
    THOUGHT: [Problem.MISSING_END],
    "<|channel|>final": [Problem.MISSING_END],
    "<|channel|>final<|message|>85<|endoftext|>": [Problem.MISSING_END],
    "<|channel|>analysis<|message|>hm<|start|>assistant" + FINAL: [Problem.MISSING_END],
    THOUGHT.replace("<|start|>assistant", "<|start|>user<|message|>q<|end|><|start|>assistant") + FINAL: [
        Problem.WRONG_ROLE
    ],
    THOUGHT.removesuffix("<|start|>assistant") + "assistant" + FINAL: [Problem.SPELT_MARKER],
    "analysisThe sum is 85.assistantfinal85": [Problem.SPELT_MARKER],
    "<|channel|>analysis<|message|>It is 85.assistantfinal85<|return|>": [Problem.SPELT_MARKER],
    THOUGHT.removesuffix("<|start|>assistant") + "so 85" + "<|start|>assistant" + FINAL: [Problem.STRAY_TEXT],
    "<|channel|>final<|message|>8<|channel|>5<|return|>": [Problem.STRAY_TEXT],
    CALLS + '{"city": "Par': [Problem.MISSING_END, Problem.CUT_JSON],
    CALLS + '{"city": <|call|>': [Problem.CUT_JSON],
    CALLS + "{'city': 1}<|call|>": [Problem.BROKEN_JSON],
    CALLS + '["Paris"]<|call|>': [Problem.BROKEN_JSON],
    CALLS + '{"city": NaN}<|call|>': [Problem.BROKEN_JSON],
    CALLS + '{"city": "\\ud800"}<|call|>': [Problem.BROKEN_JSON],
    CALLS + "[" * 100_000 + "<|call|>": [Problem.BROKEN_JSON],
    CALLS.replace("weather", "whether") + ARGUMENTS + "<|call|>": [Problem.UNKNOWN_TOOL],
    CALLS.replace("functions.weather", "python") + "print(1)<|call|>": [Problem.UNKNOWN_TOOL, Problem.BROKEN_JSON],
}


@pytest.mark.parametrize(("completion", "problems"), BROKEN.items(), ids=lambda value: str(value)[:60])
def test_what_is_broken_is_named_and_no_answer(completion: str, problems: list[Problem]) -> None:
    found = read(completion)
    named = [finding.problem for finding in found.findings]
    assert named == problems
    assert found.final is None
    assert found.problems.total() == len(named)


CODE = "print(6 * 7)"


@pytest.mark.parametrize(
    ("completion", "problems"),
    [
        (f"<|channel|>analysis to=python code<|message|>{CODE}<|call|>", []),
        (f" to=python<|channel|>analysis code<|message|>{CODE}<|call|>", []),
        (f"<|channel|>commentary to=python <|constrain|>code<|message|>{CODE}<|call|>", []),
        (f"<|channel|>analysis to=python<|message|>{CODE}<|end|>", []),
        (f'<|channel|>commentary to=python <|constrain|>json<|message|>{{"code": "{CODE}"}}<|call|>', []),
        (f'<|channel|>commentary to=functions.python <|constrain|>json<|message|>{{"code": "{CODE}"}}<|call|>', []),
        (f"<|channel|>commentary to=functions.python code<|message|>{CODE}<|call|>", [Problem.RAW_ARGUMENTS]),
        (f"<|channel|>comment to=python code<|message|>{CODE}<|call|>", [Problem.UNKNOWN_CHANNEL]),
        (f" to=python<|message|>{CODE}<|call|>", [Problem.MISSING_CHANNEL]),
    ],
)
def test_python_is_called_with_code_as_it_is(completion: str, problems: list[Problem]) -> None:
    """As gpt-oss was trained to; the offences beside it are counted and change nothing about the call."""
    found = read(completion, ("python",))
    assert [(call.name, call.arguments) for call in found.calls] == [("python", {"code": CODE})]
    assert [finding.problem for finding in found.findings] == problems
    assert found.to_carry_out == found.calls
    assert found.final is None


def test_code_that_breaks_off_is_not_carried_out() -> None:
    found = read(f"<|channel|>analysis to=python code<|message|>{CODE}", ("python",))
    assert ([finding.problem for finding in found.findings], found.calls) == ([Problem.MISSING_END], ())


def test_code_that_is_json_is_code() -> None:
    (call,) = read('<|channel|>analysis to=python code<|message|>{"a": 1}["a"]<|call|>', ("python",)).calls
    assert call.arguments == {"code": '{"a": 1}["a"]'}


@pytest.mark.parametrize(
    ("header", "problems"),
    [
        ("<|channel|>commentary to=weather <|constrain|>json", [Problem.MISSING_NAMESPACE]),
        (" to=weather<|channel|>commentary", [Problem.MISSING_NAMESPACE]),
        ("<|channel|>comment to=functions.weather <|constrain|>json", [Problem.UNKNOWN_CHANNEL]),
        ("<|channel|>analysis to=functions.weather json", []),
        (" to=functions.weather", [Problem.MISSING_CHANNEL]),
        ("<|channel|>comment to=weather", [Problem.UNKNOWN_CHANNEL, Problem.MISSING_NAMESPACE]),
        ("<|channel|>commentary<|channel|>commentary to=functions.weather <|constrain|>json", [Problem.REPEATED_HEADER]),
        ("<|channel|>commentary to=functions.weather<|channel|>commentary json", [Problem.REPEATED_HEADER]),
        ("<|channel|>commentary to=functions.weather json<|constrain|>json", [Problem.REPEATED_HEADER]),
    ],
)
def test_a_clear_call_counts_whatever_else_its_header_gets_wrong(header: str, problems: list[Problem]) -> None:
    found = read(f"{header}<|message|>{ARGUMENTS}<|call|>")
    assert [(call.name, call.arguments) for call in found.calls] == [("weather", {"city": "Paris"})]
    assert [finding.problem for finding in found.findings] == problems
    assert found.to_carry_out == found.calls


@pytest.mark.parametrize("completion", [CALLS.replace("weather", "whether") + ARGUMENTS + "<|call|>", CALLS + ARGUMENTS])
def test_a_call_in_doubt_is_not_carried_out(completion: str) -> None:
    assert read(completion).to_carry_out == ()


def test_letters_that_spell_a_marker_are_reported() -> None:
    tokens = TEXT.encode("<|channel|>final<|message|>", special=False) + TEXT.encode_plain("It is <|channel|> here")
    found = HarmonyParser(TEXT).read([*tokens, TEXT.special["<|return|>"]])
    assert [finding.problem for finding in found.findings] == [Problem.SPELT_MARKER]
    assert found.final is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<|channel|>final <|constrain|>json", "<|message|>85<|return|>"),
        ("<|channel|>final", "<|message|>85<|return|>"),
        ("", "<|channel|>final<|message|>85<|return|>"),
        ("<|channel|>commentary to=functions.weather <|constrain|>json", f"<|message|>{ARGUMENTS}<|call|>"),
        ("<|channel|>commentary to=functions.weather", f"<|constrain|>json<|message|>{ARGUMENTS}<|call|>"),
    ],
)
def test_a_header_that_is_no_utf8_announces_nothing(before: str, after: str) -> None:
    """openai-harmony refuses such a header."""
    broken = TEXT.encode_plain("é")[0]  # the first byte of two
    assert TEXT.decode([broken]) == "\ufffd"
    tokens = [*TEXT.encode(before, special=False), broken, *TEXT.encode(after, special=False)]
    found = HarmonyParser(TEXT, ("weather",)).read(tokens)
    assert [finding.problem for finding in found.findings] == [Problem.BROKEN_HEADER]
    assert (found.final, found.calls) == (None, ())


def encoded(piece: str) -> list[int]:
    return [TEXT.special[piece]] if isinstance(piece, Special) else TEXT.encode_plain(piece)


def streamed(tokens: list[int], tools: tuple[str, ...] = ()) -> tuple[list[Delta], Completion]:
    parser, deltas = HarmonyParser(TEXT, tools), []
    for token in tokens:
        deltas += parser.add(token)
    rest, completion = parser.finish()
    return deltas + rest, completion


@settings(deadline=None, max_examples=200)
@given(conversations())
def test_rendered_answers_are_read_back_and_stream_in_full(conversation: Conversation) -> None:
    """Every stretch of the assistant's messages, as a completion."""
    turns: list[list[Message]] = [[]]
    for message in conversation.messages:
        if message.role == "assistant":
            turns[-1].append(message)
        elif turns[-1]:
            turns.append([])
    for turn in filter(None, turns):
        whole = render(Conversation((Message("user", "q"), *turn), conversation.tools), complete=True)
        start = len(render(Conversation((Message("user", "q"),), conversation.tools)))
        tokens = [token for piece in whole[start:] for token in encoded(piece)]
        names = tuple(tool_names(conversation))
        deltas, found = streamed(tokens, names)
        spelt = any("<|end|>" in message.content for message in turn)
        assert found.messages == tuple(turn) or spelt
        if not spelt:
            assert not set(found.problems) - {Problem.NO_ANSWER.value}
            assert found.final == (turn[-1].content if turn[-1].channel == "final" and not found.findings else None)
            assert "".join(d.text for d in deltas) == "".join(m.content for m in turn)


SPECIAL = sorted(TEXT.special.values())
TOKENS = st.one_of(st.sampled_from(SPECIAL), st.integers(0, 420))


@settings(deadline=None, max_examples=500)
@given(st.lists(TOKENS, max_size=60))
def test_random_tokens_never_crash(tokens: list[int]) -> None:
    deltas, found = streamed(tokens, ("weather",))
    assert found.final is None or not found.findings
    assert all(isinstance(delta.text, str) for delta in deltas)
    assert HarmonyParser(TEXT, ("weather",)).read(tokens) == found
    if TEXT.special["<|message|>"] not in tokens:
        assert found.findings


@settings(deadline=None, max_examples=500)
@given(
    st.sampled_from([THOUGHT + FINAL, THOUGHT + CALLS + ARGUMENTS + "<|call|>"]), st.integers(0, 2**32), st.integers(1, 6)
)
def test_mutated_answers_never_crash_and_wrong_ones_are_no_answers(completion: str, seed: int, changes: int) -> None:
    rng, tokens = random.Random(seed), TEXT.encode(completion, special=False)
    for _ in range(changes):
        at = rng.randrange(len(tokens))
        change = rng.randrange(4)
        if change == 0:
            del tokens[at:]
            break
        replacement = rng.choice([*SPECIAL, rng.randrange(300)])
        tokens[at : at + (change > 1)] = [replacement] if change < 3 else []
        if not tokens:
            break
    found = streamed(tokens, ("weather",))[1]
    assert not (found.findings and found.final is not None)
    assert found.final is not None or found.calls or found.findings


@pytest.mark.parametrize("problem", Problem)
def test_a_person_is_told_first_what_happened(problem: Problem) -> None:
    """No word of the format, nor of the program, stands before the colon or the parenthesis."""
    said = Finding(problem, "'<|channel|>x'").sentence
    first = re.split("[:(]", said)[0].strip()
    assert first.startswith(("the model", "the model's answer broke off", "the model's answer is malformed"))
    assert not re.search(r"[_<|]|harmony", first)
    assert said.endswith(" ('<|channel|>x')")
