"""JSON from strangers: no key twice, values and depth counted before they are examined. JSON as Hugging Face writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.files import decoded, read_small
from oss_tools.errors import BadCheckpoint
from oss_tools.escapes import json_text

MAX_JSON = 128 << 20  # bytes; the largest tokenizer.json in use has some 35 MB
MAX_VALUES = 1 << 23  # of JSON; the same has some 2 million. A value of two bytes takes up to 80 in memory
MAX_DEPTH = 64  # of JSON: what is written later, indented, goes less deep than what can be read


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A file that holds one JSON object. Raises BadCheckpoint."""
    return parse_json(read_small(path, limit), str(path))


def parse_json(data: bytes, where: str, most: int = MAX_VALUES) -> dict[str, Any]:
    """A JSON object without duplicate keys, from UTF-8. Raises BadCheckpoint, its message beginning with `where`.

    `most`: how many values it may hold. They are counted, roughly, before memory is taken for them.
    """
    content = parse_value(data, where, most)
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{where}: not a JSON object")
    return content


def parse_value(data: bytes, where: str, most: int = MAX_VALUES) -> Any:
    """The same of any JSON value."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise BadCheckpoint(f"{where}: the key {twice[:80]!r} occurs twice")
        return found

    text = decoded(data, where)
    check_values(text, where, most)
    try:
        content = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise BadCheckpoint(f"{where}: JSON nested too deeply") from None
    except ValueError as error:
        raise BadCheckpoint(f"{where}: not JSON: {error}") from None
    if is_deeper(content, MAX_DEPTH):
        raise BadCheckpoint(f"{where}: JSON nested too deeply")
    return content


def check_values(text: str, where: str, most: int = MAX_VALUES) -> None:
    """Raises BadCheckpoint if a JSON text may hold more values than that, counted by what comes before each."""
    values = sum(map(text.count, ",[{"))
    if values > most:
        raise BadCheckpoint(f"{where}: some {values} values of JSON, more than the {most} that such a file may hold")


def is_deeper(content: Any, most: int) -> bool:
    """Whether more than so many lists and objects lie within each other."""
    level = [content]
    for _ in range(most):
        level = [value for value in level if isinstance(value, dict | list)]
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return False
    return any(isinstance(value, dict | list) for value in level)


def json_bytes(content: Any) -> bytes:
    """JSON as Hugging Face writes it: indented by two, UTF-8, a newline at the end; what a terminal would obey as escapes."""
    return json_text(content, indent=2).encode() + b"\n"
