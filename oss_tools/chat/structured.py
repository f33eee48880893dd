"""Answers in a form that was asked for, and calls that keep to their tool's schema.

The form holds for the answer, or for a call's arguments; reasoning before it stays free. `turns` says what a whole turn may be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from oss_tools.chat.chat_template import ChatTemplate
from oss_tools.chat.messages import Conversation
from oss_tools.chat.turns import ANSWER, Calls, can_hold_calls, turn
from oss_tools.checkpoints.json_files import MAX_DEPTH, is_deeper
from oss_tools.engine.constraints import Grammars, NewConstraint, Part, expression
from oss_tools.errors import BadRequest

MOST_VALUES = 20_000  # of a schema
MOST_PATTERN = 10_000  # characters of a regular expression
MOST_STEPS = 10_000  # of multipleOf, without its decimal point: an automaton has a state for each remainder
WHITESPACE = (
    r"\x20|\n\x20{0,40}|\n\t{0,10}"  # between the parts of JSON: a space, or a line's end and what it is indented by
)
OPTIONS = "x-guidance"  # where llguidance looks for its own options in a schema
DATA = frozenset({"const", "enum", "default", "examples", "example"})  # whose values are no schemas

CHOICES = ("auto", "none", "required")


@dataclass(frozen=True)
class Form:
    """What an answer must be.

    Attributes:
        kind: a JSON object, JSON that a schema allows, or a text that a regular expression matches in whole.
        schema: of "json_schema".
        pattern: of "regex", in the syntax of Rust's regex, without look-around and references; `\\d` and `\\w` are ASCII, as in
            JSON Schema's patterns.
    """

    kind: Literal["json_object", "json_schema", "regex"]
    schema: Any = None
    pattern: str = ""

    @classmethod
    def json_object(cls) -> Form:
        return cls("json_object")

    @classmethod
    def json_schema(cls, schema: Any) -> Form:
        """Raises BadRequest for what is no schema, or goes beyond the limits."""
        check_schema(schema, "the JSON schema")
        return cls("json_schema", schema)

    @classmethod
    def regex(cls, pattern: Any) -> Form:
        """Raises BadRequest."""
        if not isinstance(pattern, str) or not 0 < len(pattern) <= MOST_PATTERN:
            raise BadRequest(f"the regular expression: must be a text of 1 to {MOST_PATTERN} characters")
        return cls("regex", None, pattern)

    @property
    def name(self) -> str:
        return {"json_object": "a JSON object", "json_schema": "the JSON schema", "regex": "the regular expression"}[
            self.kind
        ]

    def part(self) -> Part:
        """The answer as a part of a grammar."""
        if self.kind == "regex":
            return Part(ANSWER, lark=f"start: {expression(self.pattern)}")
        return Part(ANSWER, schema=with_options(self.schema if self.kind == "json_schema" else {"type": "object"}))


def plain_constraint(grammars: Grammars, form: Form) -> NewConstraint:
    """A text that is nothing but of this form. Raises BadRequest, MissingPackage."""
    return grammars.compile((Part("text", lark=f"start: @{ANSWER}"), form.part()), form.name)


def is_held(conversation: Conversation, form: Form | None, tool_choice: str) -> bool:
    """Whether a turn is held to anything: an answer of a form, a call that must come or must not, a call by a strict schema."""
    strict = any(tool.get("strict") is True for tool in conversation.tools)
    return form is not None or (tool_choice != "auto" and (tool_choice != "none" or bool(conversation.tools))) or strict


def constraint_for(
    template: ChatTemplate,
    grammars: Grammars,
    conversation: Conversation,
    form: Form | None = None,
    tool_choice: str = "auto",
    parallel: bool = True,
) -> NewConstraint | None:
    """What the assistant's next turn is held to; None if it may be anything.

    Args:
        conversation: tools whose schema has a true `strict` are called with arguments that it allows, or not at all; where the
            model does not write arguments as JSON they are called as they are.
        form: of the answer.
        tool_choice: "auto"; "none": no call; "required": a call; or the name of the tool that is to be called.
        parallel: whether a turn may have more than one call.

    Raises BadRequest for a form, a schema or a choice that cannot be kept, MissingPackage.
    """
    tools = {str(tool["name"]): tool for tool in conversation.tools}
    if tool_choice not in (*CHOICES, *tools):
        raise BadRequest(f"tool_choice {tool_choice!r}: there is no such tool; known are {', '.join([*CHOICES, *tools])}")
    strict = {name for name, tool in tools.items() if tool.get("strict") is True}
    if tool_choice == "required" and not tools:
        raise BadRequest("tool_choice 'required': no tools were given")
    if not is_held(conversation, form, tool_choice):
        return None
    forced = tool_choice not in ("auto", "none")
    if strict and not forced and not can_hold_calls(template):
        strict = set()
        if form is None and tool_choice == "auto":
            return None
    chosen = {"auto": list(tools), "none": [], "required": list(tools)}.get(tool_choice, [tool_choice])
    for name in chosen:
        if name in strict or forced:
            check_schema(tools[name].get("parameters") or {}, f"tool {name}: parameters")
    held = {
        name: with_options(_of_object(tools[name].get("parameters"))) if name in strict or forced else None
        for name in chosen
    }
    calls = Calls(held, required=forced, parallel=parallel and not forced)
    what = form.name if form else f"the parameters of {', '.join(strict or chosen)}"[:120]
    return grammars.compile(turn(template, grammars, conversation, form.part() if form else None, calls), what)


def _of_object(parameters: Any) -> Any:
    """A tool's parameters as the schema of an object, which arguments are."""
    found = dict(parameters) if isinstance(parameters, Mapping) else {}
    return {**found, "type": "object"} if not {"$ref", "anyOf", "allOf", "oneOf"} & set(found) else found


def with_options(schema: Any) -> Any:
    """The schema with our options for llguidance; its own are left out."""
    content = {} if schema is True else {"not": {}} if schema is False else dict(schema)
    return {**content, OPTIONS: {"whitespace_pattern": WHITESPACE}}


def check_schema(schema: Any, where: str) -> None:
    """Raises BadRequest, beginning with `where`, for what is no JSON schema of bounded size that refers to itself only."""
    if not isinstance(schema, Mapping | bool):
        raise BadRequest(f"{where}: must be an object")
    if is_deeper(schema, MAX_DEPTH):
        raise BadRequest(f"{where}: is nested more than {MAX_DEPTH} deep")
    try:
        json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise BadRequest(f"{where}: must be JSON, with texts of whole characters") from None
    waiting: list[Any] = [schema]
    count = 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise BadRequest(f"{where}: has more than {MOST_VALUES} values")
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, Mapping):
            _check_keys(value, where)
            waiting += [part for key, part in value.items() if key not in DATA]
            count += sum(len(part) for key, part in value.items() if key in DATA and isinstance(part, list | Mapping))


def _check_keys(schema: Mapping[str, Any], where: str) -> None:
    for key in ("$ref", "$dynamicRef", "$recursiveRef"):
        target = schema.get(key)
        if isinstance(target, str) and not target.startswith("#"):
            raise BadRequest(
                f"{where}: {key} {target[:60]!r} is refused: a schema may refer to its own parts only (#/$defs/…)"
            )
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and len(pattern) > MOST_PATTERN:
        raise BadRequest(f"{where}: a pattern has more than {MOST_PATTERN} characters")
    steps = schema.get("multipleOf")
    if isinstance(steps, int | float) and not isinstance(steps, bool):
        digits = Decimal(str(steps)).normalize().as_tuple()
        exponent = digits.exponent if isinstance(digits.exponent, int) else 0
        size = int("".join(map(str, digits.digits)) or "0") * 10 ** max(min(exponent, 6), 0)
        if size > MOST_STEPS or exponent > 6 or exponent < -6:
            raise BadRequest(f"{where}: multipleOf {steps} is refused: more than {MOST_STEPS} steps, or six decimal places")
