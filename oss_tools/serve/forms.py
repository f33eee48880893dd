"""The form of an answer as OpenAI's clients ask for it: `response_format` of chat completions, `text.format` of responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oss_tools.chat.structured import Form
from oss_tools.errors import BadRequest

KINDS = "text, json_object, json_schema and (an addition) regex with a `pattern`"


def form_of(asked: Any, where: str) -> Form | None:
    """The form; None for text. A schema stands beside `type`, or in an object `json_schema`. Raises BadRequest."""
    kind = asked.get("type", "text") if isinstance(asked, Mapping) else "text" if asked is None else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Form.json_object()
    if kind == "regex":
        return Form.regex(asked.get("pattern"))
    if kind != "json_schema":
        raise BadRequest(f"{where}: there are {KINDS}")
    inner = asked.get("json_schema", asked)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if schema is None:
        raise BadRequest(f"{where}: a json_schema needs a `schema`")
    return Form.json_schema(schema)
