"""JSON of a record from a file that is not to be trusted: its size, depth, numbers and text are checked before it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oss_tools.errors import BadRequest

MAX_BYTES = 256 << 20
MAX_DEPTH = 32  # of objects and lists in each other
LARGEST = 1e305  # of a number; the perplexity of a broken model is 1e304 at most
MAX_DIGITS = 18  # of an integer
MAX_SHOWN = 40  # characters of a field's name in a message


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
