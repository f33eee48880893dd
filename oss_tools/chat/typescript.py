"""Function schemas as the TypeScript that the harmony format shows to a model.

Every rule here, odd ones included, is openai-harmony's, since that is the text that gpt-oss has learnt to read
(https://github.com/openai/harmony, `json_schema_to_typescript`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

SIMPLE_TYPES = {"number": "number", "integer": "number", "boolean": "boolean"}

Schema = Mapping[str, Any]


def namespace(name: str, tools: Iterable[Schema], about: str = "") -> str:
    """The section `## name` with one type per function schema (name, description, parameters), below what it is about."""
    lines = [f"## {name}\n", *(f"// {line}" for line in _lines(about)), f"namespace {name} {{\n"]
    for tool in tools:
        lines += [f"// {line}" for line in _lines(tool.get("description") or "")]
        parameters = tool.get("parameters")
        arguments = "" if parameters is None else f"_: {type_of(parameters)}"
        lines.append(f"type {tool['name']} = ({arguments}) => any;\n")
    return "\n".join([*lines, f"}} // namespace {name}"])


def type_of(schema: Any, indent: str = "") -> str:
    """The TypeScript type of a JSON schema. What is no schema, or of a kind that has no rule, is `any`."""
    schema = _schema(schema)
    if isinstance(variants := schema.get("oneOf"), list):
        return "".join("\n" + _variant(variant, indent, quoted=True) for variant in variants)
    kind = schema.get("type")
    if isinstance(kind, list):
        names = ["number" if name == "integer" else name for name in kind if isinstance(name, str)]
        return " | ".join(names) or "any"
    if kind == "object":
        return _object(schema, indent)
    if kind == "string":
        return " | ".join(f'"{value}"' for value in _list(schema, "enum") if isinstance(value, str)) or "string"
    if kind == "array":
        return type_of(schema["items"], indent) + "[]" if "items" in schema else "Array<any>"
    return SIMPLE_TYPES.get(kind, "any") if isinstance(kind, str) else "any"


def _object(schema: Schema, indent: str) -> str:
    properties = schema.get("properties")
    required = {name for name in _list(schema, "required") if isinstance(name, str)}
    out = [*_comment(schema, "description", indent), "{\n"]
    for key, value in properties.items() if isinstance(properties, Mapping) else ():
        out += _property(key + ("" if key in required else "?"), _schema(value), indent)
    return "".join([*out, f"{indent}}}"])


def _property(key: str, schema: Schema, indent: str) -> list[str]:
    out = [line + f"{indent}//\n" for line in _comment(schema, "title", indent)]
    if "oneOf" not in schema:
        out += _comment(schema, "description", indent)
    if examples := _list(schema, "examples"):
        out.append(f"{indent}// Examples:\n")
        out += [f'{indent}// - "{example}"\n' for example in examples if isinstance(example, str)]
    if isinstance(variants := schema.get("oneOf"), list):
        return out + _choice(key, schema, variants, indent)
    default = "" if "oneOf" in schema else "".join(f" // {text}" for text in _default(schema))
    return [*out, f"{indent}{key}: {_nullable(schema, indent + '    ')},{default}\n"]


def _choice(key: str, schema: Schema, variants: list[Any], indent: str) -> list[str]:
    """A property that is one of several types: one line for each, below the property's name."""
    description = schema.get("description")
    first = _schema(variants[0]).get("description") if variants else None
    above = [] if isinstance(first, str) and description == first else _comment(schema, "description", indent)
    out = [*above, *(f"{indent}// {text}\n" for text in _default(schema)), f"{indent}{key}:\n"]
    for i, variant in enumerate(variants):
        said = (i == 0 and bool(above)) or _schema(variant).get("description") == description
        out.append(_variant(variant, indent, described=not said) + "\n")
    return [*out, f"{indent},\n"]


def _variant(variant: Any, indent: str, described: bool = True, quoted: bool = False) -> str:
    schema = _schema(variant)
    remarks = [schema["description"]] if described and isinstance(schema.get("description"), str) else []
    remarks += _default(schema, quoted)
    return f"{indent} | {_nullable(schema, indent + '   ')}" + (f" // {' '.join(remarks)}" if remarks else "")


def _nullable(schema: Schema, indent: str) -> str:
    text = type_of(schema, indent)
    return f"{text} | null" if schema.get("nullable") is True and "null" not in text else text


def _default(schema: Schema, quoted: bool = False) -> list[str]:
    """`default: …`, or nothing. A string stands in quotes unless it is one of an enum's values (and not `quoted`)."""
    if "default" not in schema:
        return []
    value = schema["default"]
    if not isinstance(value, str):
        return [f"default: {_json(value)}"]
    if not _list(schema, "enum"):
        return [f'default: "{value}"']
    return [f"default: {_json(value) if quoted else value}"]


def _json(value: Any) -> str:
    """JSON without spaces, with numbers as Rust's serde_json writes them."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_json(key)}:{_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_json, value)) + "]"
    if isinstance(value, float) and math.isfinite(value) and value and 1e-5 <= abs(value) < 1e-4:
        digits, exponent = repr(value).split("e")  # Rust writes 0.00001 where Python writes 1e-05
        sign, digits = ("-", digits[1:]) if digits[0] == "-" else ("", digits)
        return f"{sign}0.{'0' * (-int(exponent) - 1)}{digits.replace('.', '')}"
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("e+", "e").replace("e-0", "e-") if isinstance(value, float) else text


def _comment(schema: Schema, field: str, indent: str) -> list[str]:
    text = schema.get(field)
    return [f"{indent}// {text}\n"] if isinstance(text, str) else []


def _lines(text: str) -> list[str]:
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if not lines[-1] else lines


def _list(schema: Schema, field: str) -> list[Any]:
    value = schema.get(field)
    return value if isinstance(value, list) else []


def _schema(value: Any) -> Schema:
    return value if isinstance(value, Mapping) else {}
