"""The tools that a request of the Responses API offers, and which of them the model is to call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oss_tools.errors import BadRequest
from oss_tools.serve.responses.items import INPUT

NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
MODES = ("auto", "none", "required")


@dataclass(frozen=True)
class Offer:
    """What is offered.

    Attributes:
        schemas: name, description, parameters (JSON schema), strict; as the model is told of them.
        custom: names of those that take a text as it is, in no JSON.
        choice: auto, none, required, or a name.
        echo, echoed_choice: tools and tool_choice as the response gives them back.
    """

    schemas: tuple[Mapping[str, Any], ...] = ()
    custom: frozenset[str] = frozenset()
    choice: str = "auto"
    echo: tuple[Mapping[str, Any], ...] = ()
    echoed_choice: Any = "auto"


def read_tools(tools: Sequence[Any], choice: Any) -> Offer:
    """The offer of a request. Raises BadRequest, which names the place."""
    schemas: dict[str, Mapping[str, Any]] = {}
    custom: set[str] = set()
    echo: list[Mapping[str, Any]] = []
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        if kind not in ("function", "custom"):
            raise BadRequest(
                f"{where}: tools of the type {kind!r} are not carried out here; leave it out (function and custom are taken)"
            )
        schema = _schema(tool, where)
        if schema["name"] in schemas:
            raise BadRequest(f"{where}: a second tool of the name {schema['name']!r}")
        schemas[schema["name"]] = schema
        if kind == "custom":
            custom.add(schema["name"])
            echo.append(tool)
        else:
            given = {"description": None, "parameters": None, "strict": False, **tool}
            echo.append(given)
    allowed, chosen = _choice(choice, list(schemas))
    return Offer(tuple(schemas[name] for name in allowed), frozenset(custom), chosen, tuple(echo), choice or "auto")


def _schema(tool: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    name, about = tool.get("name"), tool.get("description") or ""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise BadRequest(f"{where}.name is {name!r}; 1 to 128 letters, digits, dots, _ and - are wanted")
    if not isinstance(about, str):
        raise BadRequest(f"{where}.description: a text is wanted")
    if tool["type"] == "custom":
        return {"name": name, "description": _with_grammar(about, tool.get("format"), where), "parameters": _TEXT}
    parameters = tool.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise BadRequest(f"{where}.parameters: a JSON schema is wanted")
    strict = {"strict": True} if tool.get("strict") else {}
    return {"name": name, "description": about, "parameters": parameters, **strict}


_TEXT = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}


def _with_grammar(about: str, form: Any, where: str) -> str:
    """A custom tool's description with the grammar that its text is to follow, which the model is told and not held to."""
    if not isinstance(form, Mapping) or form.get("type") != "grammar":
        return about
    if not isinstance(form.get("definition"), str):
        raise BadRequest(f"{where}.format.definition: a text is wanted")
    return f"{about}\n\n{INPUT} follows this grammar ({form.get('syntax')}):\n{form['definition']}".strip()


def _choice(choice: Any, names: list[str]) -> tuple[list[str], str]:
    """The names of the tools that may be called, and the choice among them."""
    if choice is None:
        return names, "auto"
    if isinstance(choice, str) and choice in MODES:
        if choice == "required" and not names:
            raise BadRequest("tool_choice is required, and there are no tools")
        return names, choice
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind in ("function", "custom"):
        return names, _known(choice, names, "tool_choice")
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list) and choice.get("mode") in ("auto", "required"):
        allowed = [_known(tool, names, f"tool_choice.tools[{number}]") for number, tool in enumerate(choice["tools"])]
        return [name for name in names if name in allowed], choice["mode"]
    raise BadRequest(
        "tool_choice: auto, none, required, {type: function, name} or {type: allowed_tools, mode, tools} is wanted"
    )


def _known(choice: Any, names: list[str], where: str) -> str:
    name = choice.get("name") if isinstance(choice, Mapping) else None
    if name not in names:
        raise BadRequest(f"{where} names {name!r}, which is not among the tools")
    return str(name)
