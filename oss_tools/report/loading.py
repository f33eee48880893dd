"""JSON of a record from a file that is not to be trusted: its size, depth, numbers and text are checked before it is used."""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from oss_tools.errors import BadRequest

MAX_BYTES = 256 << 20
MAX_DEPTH = 32  # of objects and lists in each other
LARGEST = 1e305  # of a number; the perplexity of a broken model is 1e304 at most
MAX_DIGITS = 18  # of an integer
MAX_SHOWN = 40  # characters of a field's name in a message

T = TypeVar("T")


def load(file: Path) -> Any:
    """The JSON in a file. Raises BadRequest, in a line that names the file, and OSError."""
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadRequest(f"{file}: too large for a record; at most {MAX_BYTES:,} bytes")
    try:
        raw = json.loads(data.decode("utf-8-sig"), parse_int=_integer, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{file}: no readable JSON: {error}") from None
    try:
        check_values(raw, "record", MAX_DEPTH)
    except BadRequest as error:
        raise BadRequest(f"{file}: {error}") from None
    return raw


def check_values(raw: Any, where: str, depth: int) -> None:
    """Raises BadRequest, naming the place, for numbers beyond `LARGEST`, text that is not Unicode, and more than `depth`
    objects or lists in each other."""
    if isinstance(raw, str):
        if not raw.isascii() and any("\ud800" <= c <= "\udfff" for c in raw):
            raise BadRequest(f"{where}: half a surrogate pair, which is no text: {shown(raw)}")
    elif isinstance(raw, float):
        if not abs(raw) <= LARGEST:
            raise BadRequest(f"{where}: a number that is too large")
    elif isinstance(raw, dict | list):
        if not depth:
            raise BadRequest(f"{where}: more than {MAX_DEPTH} objects or lists in each other")
        for name, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
            if isinstance(name, str):
                check_values(name, where, depth - 1)
            if not isinstance(value, int) and value is not None:
                check_values(value, place(where, name), depth - 1)


def build(kind: type[T], raw: Any, where: str) -> T:
    """A value of a dataclass from JSON values, checked field by field. Raises BadRequest that names the field."""
    if not isinstance(raw, dict):
        raise BadRequest(f"{where}: an object is wanted, not {shown(raw)}")
    hints = _hints(kind)  # type: ignore[arg-type]
    if unknown := sorted(set(raw) - set(hints)):
        raise BadRequest(f"{where}: unknown field {shown(unknown[0])}")
    given = {}
    for entry in fields(kind):  # type: ignore[arg-type]
        if entry.name in raw:
            given[entry.name] = _checked(hints[entry.name], raw[entry.name], place(where, entry.name))
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise BadRequest(f"{where}: the field {entry.name!r} is missing")
    return kind(**given)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """A dataclass's types by field; they are evaluated once, a record has thousands of objects."""
    return typing.get_type_hints(kind)


def _checked(hint: Any, raw: Any, where: str) -> Any:
    """`raw`, if it is what the type hint says; objects and lists within it are built anew."""
    if hint is Any:
        return raw
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if raw is None else _checked(next(a for a in arguments if a is not type(None)), raw, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return build(hint, raw, where)
    if origin is list and isinstance(raw, list):
        return [_checked(arguments[0], value, f"{where}[{i}]") for i, value in enumerate(raw)]
    if origin is dict and isinstance(raw, dict):
        return {str(key): _checked(arguments[1], value, place(where, key)) for key, value in raw.items()}
    if hint is float and isinstance(raw, int | float) and not isinstance(raw, bool) and math.isfinite(raw):
        return float(raw)
    if hint in (int, str, bool) and type(raw) is hint:
        return raw
    raise BadRequest(f"{where}: {getattr(hint, '__name__', hint)} is wanted, not {shown(raw)}")


def place(where: str, name: str | int) -> str:
    """The place of a field or an item, for messages."""
    if isinstance(name, int):
        return f"{where}[{name}]"
    return f"{where}.{name if len(name) <= MAX_SHOWN else name[: MAX_SHOWN - 1] + '…'}"


def shown(value: Any) -> str:
    """A value in a message."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "…"


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no figure")
