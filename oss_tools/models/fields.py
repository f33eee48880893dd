"""Fields of a configuration, checked: types, ranges, and real numbers as every container can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from oss_tools.errors import BadCheckpoint

# type, least, most
Limits = Mapping[str, tuple[type, float, float]]


def field(raw: Mapping[str, Any], key: str, kind: type, where: str, low: float, high: float) -> Any:
    """A required number of a configuration, checked: its type and low <= value <= high; a float is rounded as by `single`.
    Raises BadCheckpoint."""
    value: Any = raw.get(key)
    expected = (int, float) if kind is float else (kind,)
    if key not in raw:
        raise BadCheckpoint(f"{where}: {key} is missing")
    if isinstance(value, bool) or not isinstance(value, expected):
        wanted = "a number" if kind is float else "an integer"
        raise BadCheckpoint(f"{where}: {key} is {shown(value)}, expected {wanted}")
    found: Any = value
    if not low <= found <= high:
        raise BadCheckpoint(f"{where}: {key} is {shown(value)}, outside {low}..{high}")
    return single(found) if kind is float else found


def number(raw: Mapping[str, Any], key: str, where: str, low: float, high: float) -> float:
    """A required real number, checked. Raises BadCheckpoint."""
    result: float = field(raw, key, float, where, low, high)
    return result


def flag(raw: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    """A truth value; null and absence are the default. Raises BadCheckpoint."""
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadCheckpoint(f"{where}: {key} is {shown(value)}, expected true or false")
    return value


def single(value: float) -> float:
    """The shortest decimal number with the same float32: what GGUF keeps of it, and what all computation begins with."""
    return float(str(np.float32(value)))


def shown(value: Any, longest: int = 80) -> str:
    """A value from a strange file as a message may show it: on one line, and not all of a long one."""
    return repr(value)[:longest]
