"""Whether two checkpoints' configurations compute the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from oss_tools.models import Checkpoint
from oss_tools.verify.differences import Difference, in_words, is_list, same


def compare_configurations(a: Checkpoint, b: Checkpoint) -> list[Difference]:
    """Where the two compute different things. Numbers are compared as float32, which is what GGUF holds."""
    types = a.architecture.model_type, b.architecture.model_type
    if types[0] != types[1]:
        return [Difference("config", "model_type", *types)]
    return [Difference("config", *found) for found in _fields(a.architecture.computation(), b.architecture.computation())]


def _fields(a: Mapping[str, Any], b: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, str | None, str | None]]:
    """(name, a, b) of values that differ; those of mappings and of lists of one length one by one, by their own names."""
    for key in dict.fromkeys([*a, *b]):
        yield from _values(f"{under}{key}", a.get(key), b.get(key))


def _values(name: str, x: Any, y: Any) -> Iterator[tuple[str, str | None, str | None]]:
    if same(x, y):
        return
    if isinstance(x, Mapping) and isinstance(y, Mapping):
        yield from _fields(x, y, f"{name}.")
    elif is_list(x) and is_list(y) and len(x) == len(y):
        differing = [i for i in range(len(x)) if not same(x[i], y[i])]
        first = differing[0]
        if len(differing) == 1:
            yield from _values(f"{name}[{first}]", x[first], y[first])
        else:
            more = f" (first of {len(differing)} of {len(x)})"
            yield f"{name}[{first}]", in_words(x[first]) + more, in_words(y[first]) + more
    else:
        yield name, None if x is None else in_words(x), None if y is None else in_words(y)
