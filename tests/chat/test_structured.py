"""Answers and calls that are held to a form: what a model that chooses at random among the allowed tokens says is of the form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from oss_tools.chat.chat_template import ChatTemplate, chat_template
from oss_tools.chat.completion import Completion
from oss_tools.chat.messages import Conversation, Message
from oss_tools.chat.structured import Form, constraint_for, plain_constraint
from oss_tools.engine.constraints import Constraint, Grammars
from oss_tools.engine.text import Text
from oss_tools.errors import BadRequest
from tests.chat.conversations import harmony_template
from tests.chat.test_dialects import FAMILIES, model

HARMONY = harmony_template()
WEATHER = {
    "name": "weather",
    "description": "Looks up the weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
CLOCK = {"name": "clock", "description": "Tells the time", "parameters": {"type": "object", "properties": {}}}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "ages": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name", "ages"],
    "additionalProperties": False,
}
WITHOUT_JSON_CALLS = {"glm", "qwen_coder"}


def walk(template: ChatTemplate, conversation: Conversation, seed: int, limit: int = 1500, **asked: Any) -> Completion:
    """What a model says that takes every allowed token to be as likely, but ends what it can end a little sooner."""
    grammars = Grammars(template.text, len(template.text.numbers()) + 5)
    new = constraint_for(template, grammars, conversation, **asked)
    assert new
    constraint, random = new(), np.random.default_rng(seed)
    ends = [*template.text.special.values(), *template.text.marks.values()]
    tokens: list[int] = []
    while len(tokens) < limit:
        logits = random.gumbel(size=len(template.text.numbers()) + 5).astype(np.float32)
        logits[ends] += 4
        for quote in '"}]< ':
            logits[template.text.encode_plain(quote)] += 4
        constraint.mask(logits)
        tokens.append(int(logits.argmax()))
        constraint.accept(tokens[-1])
        if tokens[-1] in template.text.stop_tokens:
            return template.parse(tokens, conversation)
    pytest.fail(f"no end: {template.text.decode(tokens, skip_special=False)[:300]!r}")


def family(path: Path) -> ChatTemplate:
    metadata = model(path.read_text())
    return chat_template(metadata, Text(metadata))


TEMPLATES = [pytest.param(HARMONY, id="harmony"), *(pytest.param(family(path), id=path.stem) for path in FAMILIES)]
CALLING = [each for each in TEMPLATES if each.id not in WITHOUT_JSON_CALLS]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("seed", range(3))
def test_an_answer_is_json_that_its_schema_allows(template: ChatTemplate, seed: int) -> None:
    said = walk(template, Conversation((Message("user", "Who?"),)), seed, form=Form.json_schema(PERSON))
    assert said.final is not None, said.findings
    jsonschema.validate(json.loads(said.final), PERSON)


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_matches_its_expression(template: ChatTemplate) -> None:
    said = walk(template, Conversation((Message("user", "When?"),)), 1, form=Form.regex(r"\d\d/(May|June)"))
    assert re.fullmatch(r"\d\d/(May|June)", said.final or "")


@pytest.mark.parametrize("template", CALLING)
@pytest.mark.parametrize("choice", ["required", "weather"])
def test_a_call_that_is_asked_for_comes_with_arguments_of_its_schema(template: ChatTemplate, choice: str) -> None:
    names = set()
    for seed in range(4):
        said = walk(template, Conversation((Message("user", "Weather?"),), (WEATHER, CLOCK)), seed, tool_choice=choice)
        (call,) = said.to_carry_out
        names.add(call.name)
        jsonschema.validate(call.arguments, {"weather": WEATHER, "clock": CLOCK}[call.name]["parameters"])
    assert names <= ({"weather"} if choice == "weather" else {"weather", "clock"})


@pytest.mark.parametrize("template", CALLING)
def test_a_strict_tool_is_called_by_its_schema_and_others_as_they_are(template: ChatTemplate) -> None:
    tools = ({**WEATHER, "strict": True}, CLOCK)
    for seed in range(6):
        said = walk(template, Conversation((Message("user", "Weather?"),), tools), seed)
        for call in said.calls:
            if call.name == "weather":
                jsonschema.validate(call.arguments, WEATHER["parameters"])
        assert said.calls or said.shown is not None or said.findings


@pytest.mark.parametrize("template", CALLING)
def test_no_call_comes_where_none_may(template: ChatTemplate) -> None:
    for seed in range(4):
        said = walk(template, Conversation((Message("user", "Weather?"),), (WEATHER, CLOCK)), seed, tool_choice="none")
        assert not said.calls


def test_a_model_whose_calls_are_no_json_cannot_be_held_to_a_schema() -> None:
    for path in FAMILIES:
        if path.stem in WITHOUT_JSON_CALLS:
            conversation = Conversation((Message("user", "Weather?"),), (WEATHER,))
            with pytest.raises(BadRequest, match="does not write a call's arguments as JSON"):
                walk(family(path), conversation, 0, tool_choice="required")


def test_nothing_is_held_where_nothing_is_asked() -> None:
    grammars = Grammars(HARMONY.text, len(HARMONY.text.numbers()))
    conversation = Conversation((Message("user", "Hi"),), (WEATHER,))
    assert constraint_for(HARMONY, grammars, conversation) is None
    with pytest.raises(BadRequest, match="no such tool"):
        constraint_for(HARMONY, grammars, conversation, tool_choice="wether")
    with pytest.raises(BadRequest, match="no tools were given"):
        constraint_for(HARMONY, grammars, Conversation(conversation.messages), tool_choice="required")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE = {
    "deep": nested(5000),
    "many values": {"enum": [f"value {i}" for i in range(100_000)]},
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(30_000)}},
    "itself": {"$ref": "#"},
    "a ring": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "a ring with siblings": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}}, "$ref": "#/$defs/a"},
    "another file": {"$ref": "file:///etc/passwd"},
    "another host": {"properties": {"a": {"$ref": "https://example.com/schema.json"}}},
    "another host by its id": {"$id": "https://example.com/a", "$ref": "b"},
    "all of any": {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"p{i}{j}": {"type": "string"}}} for j in range(6)]}
            for i in range(10)
        ]
    },
    "repetitions": {"type": "string", "pattern": "^((a{1000}){1000}){1000}$"},
    "many patterns": {"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}"} for i in range(12)]},
    "look-around": {"type": "string", "pattern": "(?=a)b"},
    "parentheses": {"type": "string", "pattern": "(" * 4000 + ")" * 4000},
    "remainders": {"type": "integer", "multipleOf": 999_983},
    "small remainders": {"type": "number", "multipleOf": 1e-9},
    "huge": {"type": "number", "minimum": -1e300, "maximum": 1e300, "multipleOf": 3},
    "nothing": {"type": "integer", "minimum": 5, "maximum": 3},
    "no type": {"type": "strange"},
    "no schema": [1],
    "half a character": {"const": "\ud800"},
    "unknown rules": {"type": "array", "uniqueItems": True},
    "options": {"type": "string", "pattern": "(", "x-guidance": {"lenient": True}},
}


def assert_refused(begin: Callable[[], Constraint]) -> None:
    """Before the first token is chosen."""
    with pytest.raises(BadRequest) as refused:
        begin().mask(np.zeros(len(HARMONY.text.numbers()), np.float32))
    assert "\n" not in str(refused.value)
    assert "NoExtension" not in str(refused.value)  # the library's own word
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_refused_in_one_line(name: str) -> None:
    grammars = Grammars(HARMONY.text, len(HARMONY.text.numbers()))
    assert_refused(lambda: plain_constraint(grammars, Form.json_schema(HOSTILE[name]))())


@pytest.mark.parametrize("pattern", ["", "(", "a" * 20_000, "(?=a)", r"(a)\1", "((a{1000}){1000}){1000}", "[^\\s\\S]", 7])
def test_a_hostile_expression_is_refused_in_one_line(pattern: Any) -> None:
    grammars = Grammars(HARMONY.text, len(HARMONY.text.numbers()))
    assert_refused(lambda: plain_constraint(grammars, Form.regex(pattern))())


def test_a_schema_s_own_options_for_the_library_are_left_out() -> None:
    """They could allow any blanks, or pass over rules."""
    grammars = Grammars(HARMONY.text, len(HARMONY.text.numbers()))
    odd = {"type": "array", "minItems": 1, "x-guidance": {"whitespace_pattern": "z+"}}
    logits = np.zeros(len(HARMONY.text.numbers()), np.float32)
    constraint = plain_constraint(grammars, Form.json_schema(odd))()
    (bracket,) = HARMONY.text.encode_plain("[")
    constraint.accept(bracket)
    constraint.mask(logits)
    (z,) = HARMONY.text.encode_plain("z")
    assert np.isneginf(logits[z])


def test_expressions_may_hold_slashes_quotes_and_lines() -> None:
    grammars = Grammars(HARMONY.text, len(HARMONY.text.numbers()))
    text = 'a/b"c\n/d'
    constraint = plain_constraint(grammars, Form.regex(re.escape(text)))()
    for token in HARMONY.text.encode_plain(text):
        constraint.accept(token)
    assert constraint.ended
