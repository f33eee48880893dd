"""What a tool is, and how programs that tools start are kept within limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_OUTPUT = 4000  # characters of a tool's answer
READ_BYTES = 65536

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
    "null": (type(None),),
}


class ToolError(Exception):
    """A call that cannot be carried out; the model is told why and may try again."""


class Tool(ABC):
    """Something that a model may call.

    Attributes:
        schema: name, description, parameters (JSON schema), as models are shown it.
    """

    schema: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.schema["name"])

    @abstractmethod
    def run(self, arguments: Mapping[str, Any]) -> str:
        """Carries out a call whose arguments suit the schema. Raises ToolError."""

    def fresh(self, made: dict[int, Any]) -> Tool:
        """The tool for another conversation; one that keeps nothing between calls is the same. `made`: what tools of one kind
        share in that conversation."""
        return self

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Carries out a call; what went wrong is told in the answer."""
        try:
            check_arguments(self.schema.get("parameters") or {}, arguments)
            return self.run(arguments)
        except ToolError as error:
            return f"error: {error}"


def check_arguments(parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raises ToolError if an argument is missing, unknown, of the wrong type, or none of an enum's values."""
    properties = parameters.get("properties") or {}
    missing = [name for name in parameters.get("required") or [] if name not in arguments]
    unknown = [name for name in arguments if name not in properties]
    if missing or unknown:
        what = f"argument {missing[0]!r} is missing" if missing else f"there is no argument {unknown[0]!r}"
        raise ToolError(f"{what}; known are {', '.join(properties) or 'none'}")
    for name, value in arguments.items():
        _check_value(name, value, properties[name] if isinstance(properties[name], Mapping) else {})


def _check_value(name: str, value: Any, schema: Mapping[str, Any]) -> None:
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if value is None and schema.get("nullable"):
        return
    wanted = [kind for kind in kinds if kind in TYPES]
    if wanted and not any(_is_a(value, kind) for kind in wanted):
        raise ToolError(f"argument {name!r} must be of type {' or '.join(wanted)}")
    values = schema.get("enum")
    if isinstance(values, list) and values and value not in values:
        raise ToolError(f"argument {name!r} must be one of {', '.join(map(str, values))}")


def _is_a(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def shortened(text: str, limit: int = MAX_OUTPUT) -> str:
    """The text, cut after `limit` characters with a remark."""
    return text if len(text) <= limit else f"{text[:limit]}\n… cut after {limit} characters"


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit status (negative: the signal that killed it), its output, whether its time was up."""

    status: int
    output: str
    timed_out: bool
