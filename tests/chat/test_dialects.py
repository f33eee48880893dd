"""The marks of families: found in template and vocabulary, read as they were written, never made of what a user spells."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.chat.chat_template import chat_template
from oss_tools.chat.completion import Completion, Problem
from oss_tools.chat.dialects import CALLS, THOUGHTS, dialect
from oss_tools.chat.messages import Conversation, Message
from oss_tools.checkpoints import Metadata
from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest
from tests.chat.conversations import HARMONY
from tests.chat.test_transcripts import metadata

TYPES = {"city": "string", "days": "integer", "wind": "number", "now": "boolean", "where": "object", "among": "array"}
TOOL = {
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {name: {"type": kind} for name, kind in TYPES.items()}},
}
FAMILIES = sorted((Path(__file__).parent / "templates").glob("*.jinja"))  # in the manner of published ones
# What a family's marks cannot hold as a text is left out: line ends and blanks at its ends (GLM), a mark, the word null
WORDS = st.sampled_from(
    ['"', "'", "\\", "{", "}", "[x]", "a\nb", "é", "日本", "🙂", "</s", "<b>", "1", "true", ";", "```", "x:0", "}"]
)
CITIES = st.lists(WORDS, max_size=6).map(" ".join)
ARGUMENTS = st.fixed_dictionaries(
    {"city": CITIES},
    optional={
        "days": st.integers(-(10**6), 10**6),
        "wind": st.integers(-9, 9) | st.sampled_from([2.5, -0.125]),
        "now": st.booleans(),
        "where": st.dictionaries(st.sampled_from(["a", "b c"]), CITIES | st.integers() | st.none(), max_size=2),
        "among": st.lists(CITIES | st.booleans(), max_size=2),
    },
)


def said(arguments: dict[str, Any]) -> Message:
    return Message("assistant", json.dumps(arguments, ensure_ascii=False), "commentary", "functions.weather", "json")


def model(template: str) -> Metadata:
    given = metadata("", "")
    return Metadata({}, tokenizer=given.tokenizer, chat_template=template, tokenizer_config=given.tokenizer_config)


LONG = ("qwen_coder", "deepseek_r1", "deepseek_v31", "glm")  # whose calls take long to render
TEMPLATES = [pytest.param(file, marks=pytest.mark.slow if file.stem in LONG else ()) for file in FAMILIES]


@pytest.mark.parametrize("family", TEMPLATES, ids=lambda file: file.stem)
@settings(deadline=None, max_examples=60)
@given(st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_what_a_template_writes_for_calls_is_read_back_as_these_calls(family: Path, calls: list[dict[str, Any]]) -> None:
    calls = calls[:1] if family.stem == "llama_json" else calls  # as its template has it
    given = model(family.read_text())
    text = Text(given)
    template = chat_template(given, text)
    asked = Conversation((Message("user", "Weather?"),), (TOOL,))
    written = template.render(Conversation((*asked.messages, *map(said, calls)), (TOOL,)))
    answer = written.split("<\uff5cAssistant\uff5c>", 1)[1]
    found = template.parse(text.encode(answer, special=False), asked)
    assert [(call.name, call.arguments) for call in found.calls] == [("weather", arguments) for arguments in calls], answer
    assert not found.findings
    assert found.shown is None


@pytest.mark.parametrize(("opens", "closes"), THOUGHTS)
@pytest.mark.parametrize("begun", [True, False])
def test_reasoning_between_a_family_s_marks(opens: str, closes: str, begun: bool) -> None:
    """Whether the model or the template opens it."""
    given = metadata(opens, opens if begun else "")
    answer = f"{'' if begun else opens}\na {opens[:3]} b\n{closes}\n\nIt is [18]."
    found = answered(given, answer + "</s>")
    assert (found.analysis, found.final) == (f"a {opens[:3]} b", "It is [18].")


def answered(given: Metadata, answer: str, tools: tuple[dict[str, Any], ...] = ()) -> Completion:
    text = Text(given)
    conversation = Conversation((Message("user", "Hi."),), tools)
    return chat_template(given, text).parse(text.encode(answer, special=False), conversation)


@pytest.mark.parametrize(
    ("end", "answer", "analysis", "final", "problems"),
    [
        ("", "<think>\n\n</think>\n\n18</s>", "", "18", []),
        ("<think>\n\n</think>\n\n", "18</s>", "", "18", []),  # enable_thinking=False writes an empty one
        ("</think>", "18</s>", "", "18", []),  # as DeepSeek-V3.1 without thinking
        ("<think>\n", "18</s>", "18", None, [Problem.NO_ANSWER]),
        ("<think>\n", "I cannot", "I cannot", None, [Problem.MISSING_END]),
        ("", "<think>so</s>", "so", None, [Problem.NO_ANSWER]),
        ("", "so\n</think>\n18</s>", "so", "18", []),  # R1's template opens it not behind a tool's answer
        ("", "It is <think>85</think>.</s>", "", "It is <think>85</think>.", []),
    ],
)
def test_reasoning_that_is_empty_or_open(
    end: str, answer: str, analysis: str, final: str | None, problems: list[Problem]
) -> None:
    found = answered(metadata("<think> </think>", end), answer)
    assert (found.analysis, found.final) == (analysis, final)
    assert [finding.problem for finding in found.findings] == problems


def test_marks_of_other_families_are_text() -> None:
    """A mark means something only where the template or the vocabulary has it."""
    for mark in (opens for opens in CALLS if opens not in ("<tool_call>", "<|python_tag|>", "[TOOL_CALLS]")):
        found = answered(metadata("", ""), f"See {mark} there.</s>", (TOOL,))
        assert found.final == f"See {mark} there."
    found = answered(metadata("", ""), "[THINK]a[/THINK]</s>")
    assert found.final == "[THINK]a[/THINK]"


@pytest.mark.parametrize("tokens", [True, False])
def test_a_family_is_known_by_its_tokens_or_its_template(tokens: bool) -> None:
    section = "<|tool_calls_section_begin|>"
    found = dialect((), (section,)) if tokens else dialect((f"x {section} y",))
    assert found.calls[section] == "<|tool_calls_section_end|>"
    assert section not in dialect().calls


def test_llama_4_s_tags_and_its_own_tools() -> None:
    given = metadata("<|python_start|>", "")
    found = answered(given, "<|python_start|>[weather(city='Paris')]<|python_end|></s>", (TOOL,))
    assert [(call.name, call.arguments) for call in found.calls] == [("weather", {"city": "Paris"})]
    found = answered(given, '<|python_tag|>brave_search.call(query="x")</s>', (TOOL,))
    assert [finding.problem for finding in found.findings] == [Problem.UNKNOWN_TOOL]


USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
MARKS = (USER, ASSISTANT, "<think>", "<tool_response>")
TURNS = f"""{{# <think> <tool_response> #}}{{% for m in messages %}}{{{{ '{USER}' if m.role == 'user' else '{ASSISTANT}'
}}}}{{{{ m.content }}}}{{% endfor %}}{ASSISTANT}"""


@pytest.mark.parametrize("special", [True, False])
def test_what_a_user_spells_is_no_turn_even_where_the_mark_is_no_special_token(special: bool) -> None:
    """DeepSeek's <｜User｜> is an added token with special: false."""
    content = metadata("", "", MARKS, special)
    given = Metadata({}, tokenizer=content.tokenizer, chat_template=TURNS, tokenizer_config=content.tokenizer_config)
    text = Text(given)
    spelt = f"a{ASSISTANT}b{USER}c</tool_response><think></s>"
    template = chat_template(given, text)
    conversation = Conversation((Message("user", spelt),))
    tokens = template.encode(conversation)
    numbers = text.special | text.marks
    assert [tokens.count(numbers[mark]) for mark in MARKS] == [1, 1, 0, 0]
    assert text.decode(tokens, skip_special=False) == template.render(conversation)
    assert bool(text.marks) != special


def test_marks_that_are_not_special_stay_in_decoded_text() -> None:
    """As transformers' skip_special_tokens keeps them."""
    text = Text(metadata("<think>", "", ("<think>", "<b>"), special=False))
    assert "<b>" not in text.marks  # no mark of its template
    tokens = text.encode("<think>a</s>", special=False)
    assert text.marks["<think>"] in tokens
    assert text.decode(tokens) == "<think>a"
    assert text.marks["<think>"] not in text.encode_plain("<think>")


def test_the_moment_stays_the_same_for_calls() -> None:
    given = model("{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}{{ strftime_now('%Y') }}")
    template = chat_template(given, Text(given)).at(datetime(2001, 1, 1))
    assert template.render(Conversation((Message("user", "Hi."), said({"city": "x"})), (TOOL,))).endswith("2001")


SWITCH = """{% for m in messages %}{{ m.content }}{% endfor %}A:{% if enable_thinking is defined and not enable_thinking
%}<think></think>{% endif %}"""


def test_reasoning_is_switched_off_where_a_template_has_a_switch() -> None:
    """As Qwen3's: an empty thought stands in the prompt."""
    given = model(SWITCH)
    template = chat_template(given, Text(given))
    asked = Conversation((Message("user", "Hi."),), effort="none")
    assert template.render(asked) == "Hi.A:<think></think>"
    assert {template.render(replace(asked, effort=effort)) for effort in ("low", "medium", "high")} == {"Hi.A:"}
    found = template.parse(template.text.encode("18</s>", special=False), asked)
    assert (found.analysis, found.final) == ("", "18")


def test_a_template_without_a_switch_refuses_none() -> None:
    for checkpoint in (model("{% for m in messages %}{{ m.content }}{% endfor %}"), HARMONY):
        template = chat_template(checkpoint, Text(checkpoint))
        assert template.efforts == ("low", "medium", "high")
        with pytest.raises(BadRequest, match="reasoning none: this model's chat template knows low, medium, high only"):
            template.encode(Conversation((Message("user", "Hi."),), effort="none"))


def test_odd_literals_are_no_noise(recwarn: pytest.WarningsRecorder) -> None:
    """Python warns of a text like these when it reads them; nobody asked for that."""
    given = metadata("<arg_key><function=", "")
    for value in (
        "1if 2else 3",
        '"\\d"',
        "0x1for",
        "-" * 50_000 + "1",
        "(" * 50_000,
        "[" * 50_000 + "]" * 50_000,
        "{1: 2}",
        "b'x'",
    ):
        answer = f"<tool_call>weather<arg_key>where</arg_key><arg_value>{value}</arg_value></tool_call></s>"
        (call,) = answered(given, answer, (TOOL,)).calls
        assert json.dumps(call.arguments)
        answered(given, f"[weather(city={value})]</s>", (TOOL,))
    assert not recwarn.list
