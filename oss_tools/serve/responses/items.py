"""Items, of which input and output of the Responses API are made: their checks, ids, and what they say in a conversation."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from oss_tools.errors import BadRequest
from oss_tools.escapes import json_text
from oss_tools.serve.history import History
from oss_tools.serve.sealed import unseal

Item = dict[str, Any]
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}
PREFIXES |= {"custom_tool_call": "ctc", "custom_tool_call_output": "ctco"}
REFERENCE = "item_reference"
INPUT = "input"  # the argument that stands for the text of a custom tool's call
TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def new_id(prefix: str) -> str:
    """An id that nobody can guess: `prefix_` and 48 hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(24)}"


def read_input(given: str | list[Any], find: Callable[[str], Item | None]) -> list[Item]:
    """The items of a request's input, each with an id and a type.

    `find` gives the item that a reference names, of a stored response. Raises BadRequest, which names the place.
    """
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": given}]
    return [_read(item, f"input[{number}]", find) for number, item in enumerate(given)]


def _read(item: Any, where: str, find: Callable[[str], Item | None]) -> Item:
    if not isinstance(item, Mapping):
        raise BadRequest(f"{where}: an item is an object with a type")
    kind = item.get("type") or ("message" if "role" in item else REFERENCE if set(item) == {"id"} else None)
    if kind == REFERENCE:
        found = find(_text(item, "id", where))
        if found is None:
            raise BadRequest(f"{where}: no stored response has the item {item['id']!r}; send the item itself")
        return found
    if kind not in PREFIXES:
        known = ", ".join((*PREFIXES, REFERENCE))
        raise BadRequest(f"{where}: items of the type {kind!r} are not taken here; those that are: {known}")
    found = {**item, "type": kind, "id": item.get("id") or new_id(PREFIXES[kind])}
    if not isinstance(found["id"], str):
        raise BadRequest(f"{where}.id: a text is wanted")
    _CHECKS[kind](found, where)
    return found


def tell(items: Iterable[Item], history: History) -> None:
    """Adds what items say to a conversation. Raises BadRequest where results and calls do not belong together."""
    items = list(items)
    for item, following in zip(items, [*items[1:], None], strict=True):
        kind = item["type"]
        if kind == "message":
            _tell_message(item, history, following)
        elif kind == "reasoning":
            if thought := reasoning_of(item):
                history.think(thought)
        elif kind == "function_call":
            history.call(item["name"], item["arguments"], item["call_id"])
        elif kind == "custom_tool_call":
            history.call(item["name"], json_text({INPUT: item["input"]}), item["call_id"])
        else:
            history.result(item["call_id"], _texts(item["output"], item["id"]))


def _tell_message(item: Item, history: History, following: Item | None) -> None:
    content, role = item["content"], item["role"]
    if role == "assistant":
        text = _texts(content, item["id"])
        calls = following is not None and following["type"] in ("function_call", "custom_tool_call")
        history.say(text, final=item["phase"] == "final_answer" if item.get("phase") else not calls)
    elif role == "user":
        history.ask(_texts(content, item["id"]))
    else:
        history.tell(_texts(content, item["id"]))


def reasoning_of(item: Item) -> str:
    """What a reasoning item says: its content, or what is sealed in it, or else its summary."""
    return (
        _texts(item.get("content") or [], item["id"])
        or unseal(item.get("encrypted_content") or "")
        or _texts(item.get("summary") or [], item["id"])
    )


# ---- checks ---------------------------------------------------------------------------------------------------------


def _check_message(item: Item, where: str) -> None:
    if item.get("role") not in ("user", "assistant", "system", "developer"):
        raise BadRequest(f"{where}.role is {item.get('role')!r}; it is user, assistant, system or developer")
    if item.get("phase") not in (None, "commentary", "final_answer"):
        raise BadRequest(f"{where}.phase is {item['phase']!r}; it is commentary or final_answer")
    if "content" not in item:
        raise BadRequest(f"{where}.content is missing: a text, or a list of parts")
    _texts(item["content"], f"{where}.content")
    if isinstance(item["content"], str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        extra = {"annotations": []} if item["role"] == "assistant" else {}
        item["content"] = [{"type": kind, "text": item["content"], **extra}]
    item["status"] = "completed"


def _check_reasoning(item: Item, where: str) -> None:
    for field in ("content", "summary"):
        _texts(item.get(field) or [], f"{where}.{field}")
    item["summary"] = item.get("summary") or []
    foreign = item.get("encrypted_content")
    if foreign is not None and not isinstance(foreign, str):
        raise BadRequest(f"{where}.encrypted_content: a text is wanted")
    if foreign and unseal(foreign) is None and not reasoning_of(item):
        raise BadRequest(f"{where}.encrypted_content is not of this server, which cannot read it; leave the item out")


def _check_call(item: Item, where: str) -> None:
    for field in ("name", "arguments", "call_id"):
        _text(item, field, where)
    item["status"] = "completed"


def _check_custom_call(item: Item, where: str) -> None:
    for field in ("name", "input", "call_id"):
        _text(item, field, where)


def _check_result(item: Item, where: str) -> None:
    _text(item, "call_id", where)
    if "output" not in item:
        raise BadRequest(f"{where}.output is missing: a text, or a list of parts")
    _texts(item["output"], f"{where}.output")
    item["status"] = "completed"


_CHECKS: dict[str, Callable[[Item, str], None]] = {
    "message": _check_message,
    "reasoning": _check_reasoning,
    "function_call": _check_call,
    "function_call_output": _check_result,
    "custom_tool_call": _check_custom_call,
    "custom_tool_call_output": _check_result,
}


def _text(item: Mapping[str, Any], field: str, where: str) -> str:
    found = item.get(field)
    if not isinstance(found, str) or (not found and field in ("call_id", "name", "id")):
        raise BadRequest(f"{where}.{field} is missing" if found in (None, "") else f"{where}.{field}: a text is wanted")
    return found


def _texts(content: Any, where: str, between: str = "") -> str:
    """The text of a text or of a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{where}: a text or a list of parts is wanted")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
        if kind not in (*TEXTS, "refusal") or not isinstance(text, str):
            what = f"a part of the type {kind!r}" if kind not in TEXTS else "a part without its text"
            raise BadRequest(f"{where}[{number}]: {what}; this model reads texts only")
        texts.append(text)
    return between.join(texts)
