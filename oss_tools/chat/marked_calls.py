"""Calls that stand between marks of their own, each with a name and arguments.

    <｜tool▁call▁begin｜>function<｜tool▁sep｜>f\\n```json\\n{…}\\n```<｜tool▁call▁end｜>     DeepSeek-V3, R1
    <｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜>                           DeepSeek-V3.1
    <|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{…}<|tool_call_end|>   Kimi-K2
    <function=f>\\n<parameter=x>\\n1\\n</parameter>\\n</function>                         Qwen3-Coder, Seed-OSS
    f\\n<arg_key>x</arg_key>\\n<arg_value>1</arg_value>                                  GLM-4.5 and later

What is read is what vLLM's parsers read (deepseek_v3, deepseek_v31, kimi_k2, qwen3_coder, seed_oss, glm45). They pass over what
they cannot read; here it is told.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oss_tools.chat.completion import Finding, Problem, excerpt, read_arguments, refuse_constant
from oss_tools.chat.dialects import ARG_KEY, FUNCTION, INSIDE, KIMI
from oss_tools.chat.written_calls import syntax_of

FENCE = "```"
FUNCTION_END, PARAMETER, PARAMETER_END = "</function>", "<parameter=", "</parameter>"
NUMBER = re.compile(r":\d+\Z")  # of a call, behind its name
LONGEST = 100_000  # characters of a value in Python's syntax

Schemas = Mapping[str, Mapping[str, Any]]  # a function's name -> its parameters, a JSON schema


@dataclass(frozen=True)
class Broken:
    """What should be a call, and is none."""

    finding: Finding
    text: str


@dataclass(frozen=True)
class Stray:
    """Text where only calls should be."""

    text: str


@dataclass(frozen=True)
class Open:
    """The call before has no closing mark."""

    mark: str


Call = tuple[str, Mapping[str, Any]]
Part = Call | Broken | Stray | Open


def section_calls(opened: str, text: str) -> list[Part]:
    """The calls of a section that DEEPSEEK or KIMI has opened."""
    begin, _, end = INSIDE[opened]
    before, *pieces = text.split(begin)
    found: list[Part] = [Stray(before.strip())] if before.strip() else []
    for piece in pieces:
        call, closed, after = piece.partition(end)
        found.append(_section_call(opened, call))
        if not closed:
            found.append(Open(end))
        elif after.strip():
            found.append(Stray(after.strip()))
    return found or [Broken(Finding(Problem.BROKEN_JSON, f"{opened} without a call"), text)]


def _section_call(opened: str, text: str) -> Part:
    head, middle, arguments = text.partition(INSIDE[opened][1])
    name = head.strip()
    if opened == KIMI:
        name = NUMBER.sub("", name.removeprefix("functions."))
    elif not arguments.lstrip().startswith("{"):
        name, _, arguments = arguments.partition("\n")
        arguments = _without_fence(arguments.strip())
    if not middle or not name.strip():
        return Broken(Finding(Problem.BROKEN_JSON, f"a call without a name or arguments: {excerpt(text)}"), text)
    read = read_arguments(arguments.strip())
    return Broken(read, text) if isinstance(read, Finding) else (name.strip(), read)


def _without_fence(text: str) -> str:
    return text.partition("\n")[2].removesuffix(FENCE) if text.startswith(FENCE) else text


def function_calls(text: str, schemas: Schemas) -> list[Part]:
    """Calls in <function=NAME>, with a <parameter=NAME> for each argument, or (Llama 3.1) a JSON object of them."""
    before, *pieces = text.split(FUNCTION)
    found: list[Part] = [Stray(before.strip())] if before.strip() else []
    for piece in pieces:
        name, _, rest = piece.partition(">")
        body, closed, after = rest.partition(FUNCTION_END)
        found.append(_function_call(name.strip(), body, bool(closed), schemas))
        if not closed:
            found.append(Open(FUNCTION_END))
        elif after.strip():
            found.append(Stray(after.strip()))
    return found


def _function_call(name: str, text: str, complete: bool, schemas: Schemas) -> Part:
    if not name or "\n" in name:
        return Broken(Finding(Problem.BROKEN_JSON, f"a call without a name: {excerpt(text)}"), text)
    if text.lstrip().startswith("{"):
        read = read_arguments(text)
        return Broken(read, text) if isinstance(read, Finding) else (name, read)
    properties = _properties(schemas.get(name))
    found = {}
    closed = True
    for piece in text.split(PARAMETER)[1:]:
        key, _, rest = piece.partition(">")
        value, end, _ = rest.partition(PARAMETER_END)
        closed = bool(end) or complete
        value = value.removeprefix("\n").removesuffix("\n")  # the line ends that templates write
        found[key.strip()] = typed(value, properties.get(key.strip()))
    return (name, found) if closed else Broken(Finding(Problem.CUT_JSON, excerpt(text)), text)


def keyed_call(text: str, schemas: Schemas) -> Part:
    """GLM's call: a name, then an <arg_key> and an <arg_value> for each argument."""
    head, *pieces = text.split(ARG_KEY)
    name = head.strip()
    if not name or "\n" in name or "<" in name:
        return Broken(Finding(Problem.BROKEN_JSON, f"a call without a name: {excerpt(text)}"), text)
    properties = _properties(schemas.get(name))
    found = {}
    for piece in pieces:
        key, _, rest = piece.partition("</arg_key>")
        value, end, _ = rest.partition("<arg_value>")[2].partition("</arg_value>")
        if not end:
            return Broken(Finding(Problem.CUT_JSON, excerpt(text)), text)
        value = value.strip()
        schema = properties.get(key.strip())
        is_text = isinstance(schema, Mapping) and schema.get("type") == "string"
        found[key.strip()] = value if is_text else _literal(value)
    return name, found


def typed(text: str, schema: Any) -> Any:
    """A parameter's text as a value of the type that its schema names; as it is if it has none, or is none of that type."""
    if text.lower() == "null":
        return None
    kind = schema.get("type", "string") if isinstance(schema, Mapping) else "string"
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            value = float(text)
            if not abs(value) < float("inf"):
                return text  # no JSON
            return int(value) if value == int(value) else value
    except (ValueError, OverflowError):
        return text
    if kind == "boolean":
        return text.lower() == "true"
    return text if kind == "string" else _literal(text)


def _literal(text: str) -> Any:
    """A value as JSON or Python writes it; any other text as it is."""
    for read in (_json, _python):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return text


def _json(text: str) -> Any:
    value = json.loads(text, parse_constant=refuse_constant)
    json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
    return value


def _python(text: str) -> Any:
    if len(text) > LONGEST:
        raise ValueError("too long")
    return _json(json.dumps(ast.literal_eval(syntax_of(text)), allow_nan=False))


def _properties(parameters: Any) -> Mapping[str, Any]:
    found = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return found if isinstance(found, Mapping) else {}
