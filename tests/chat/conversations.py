"""Conversations, tools and completions for property tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from oss_tools.chat.chat_template import HarmonyTemplate
from oss_tools.chat.harmony import Preamble
from oss_tools.chat.harmony_parser import MARKERS
from oss_tools.chat.messages import Conversation, Message
from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.tokenizers.byte_tokenizer import byte_tokenizer
from oss_tools.engine.text import Text

WORDS = st.sampled_from(
    ["weather", "city", "Paris", "unit", "né", "日本", "🙂", "a\nb", "<|end|>", "x/y", "// no", '"q"', "47 + 38", ""]
)
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)
NAMES = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
# Floats of few digits: serde_json, which openai-harmony reads them with, may be off in the last place of others
FLOATS = st.builds(lambda digits, exponent: float(f"{digits}e{exponent}"), st.integers(-999, 999), st.integers(-20, 20))
NUMBERS = st.integers(-(10**9), 10**9) | FLOATS
DEFAULTS = (
    TEXTS
    | NUMBERS
    | st.booleans()
    | st.none()
    | st.lists(NUMBERS | TEXTS, max_size=2)
    | st.dictionaries(NAMES, TEXTS, max_size=2)
)


def _sometimes(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def _with(base: dict[str, Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    about = {
        "description": TEXTS,
        "default": DEFAULTS,
        "nullable": st.booleans(),
        "title": TEXTS,
        "examples": st.lists(TEXTS | NUMBERS, max_size=2),
    }
    return _sometimes(**about, **fields).map(lambda found: {**base, **found})


SIMPLE = (
    _with({"type": "string"}, enum=st.lists(TEXTS | NUMBERS, max_size=3))
    | st.sampled_from(["number", "integer", "boolean", "null", "odd"]).flatmap(lambda kind: _with({"type": kind}))
    | st.lists(st.sampled_from(["string", "integer", "number", "null"]), max_size=3).flatmap(
        lambda kinds: _with({"type": kinds})
    )
    | _with({})
)


def _objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(NAMES, values, max_size=4)
    return properties.flatmap(
        lambda found: _with(
            {"type": "object", "properties": found},
            required=st.lists(st.sampled_from([*found, "other"]), max_size=4, unique=True),
        )
    )


SCHEMAS = st.recursive(
    SIMPLE,
    lambda inner: (
        _with({"type": "array"}, items=inner)
        | st.lists(inner, max_size=3).flatmap(lambda kinds: _with({"oneOf": kinds}))
        | _objects(inner)
    ),
    max_leaves=8,
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES, "description": TEXTS}, optional={"parameters": _objects(SCHEMAS) | SCHEMAS.filter(bool)}
    ),
    max_size=3,
    unique_by=lambda tool: tool["name"],
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Turns of a user and an assistant who thinks, calls tools and answers; the last turn may be complete."""
    tools = draw(TOOLS)
    messages: list[Message] = []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(TEXTS)))
        for _ in range(draw(st.integers(0, 2)) if tools else 0):
            name = "functions." + draw(st.sampled_from([tool["name"] for tool in tools]))
            messages += [Message("assistant", draw(TEXTS), "analysis")] * draw(st.booleans())
            messages.append(Message("assistant", '{"a": 1}', "commentary", name, draw(st.sampled_from(["json", None]))))
            messages.append(Message("tool", draw(TEXTS), "commentary", "assistant", name=name))
        messages += [Message("assistant", draw(TEXTS), "analysis")] * draw(st.booleans())
        messages.append(Message("assistant", draw(TEXTS), "final"))
    if draw(st.booleans()):
        messages.append(Message("user", draw(TEXTS)))
    effort, instructions = draw(st.sampled_from(["low", "medium", "high"])), draw(st.none() | TEXTS)
    return Conversation(tuple(messages), tuple(tools), effort, instructions)


def _metadata() -> Metadata:
    tokenizer = byte_tokenizer("gpt_oss", 400)
    assert tokenizer
    return Metadata({}, tokenizer=tokenizer.content, generation_config=tokenizer.generation)


HARMONY = _metadata()  # a small tokenizer with harmony's special tokens


def byte_text() -> Text:
    return Text(HARMONY)


def harmony_template() -> HarmonyTemplate:
    return HarmonyTemplate(byte_text(), Preamble())


def tokens_of(text: Text, completion: str) -> list[int]:
    """A completion written with the names of special tokens."""
    assert set(MARKERS) <= set(text.special)
    return text.encode(completion, special=False)
