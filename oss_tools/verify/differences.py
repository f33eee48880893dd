"""What a comparison of two checkpoints finds beside their tensors, and when two values are the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PARTS = ("config", "tokenizer", "template")
LONGEST = 200  # characters of a value in words


@dataclass(frozen=True)
class Difference:
    """One thing that two models say differently.

    Attributes:
        part: one of PARTS.
        what: the field, token or template.
        a, b: what each says, in words; None where it says nothing.
    """

    part: str
    what: str
    a: str | None
    b: str | None

    @property
    def name(self) -> str:
        """For rules and lists: "config.sliding_window", "tokenizer.token 17", "template.default"."""
        return f"{self.part}.{self.what}"


@dataclass(frozen=True)
class Said:
    """What came of it: the differences, and sentences on what one of the containers cannot say and was passed over."""

    differences: tuple[Difference, ...] = ()
    remarks: tuple[str, ...] = ()


def same(x: Any, y: Any) -> bool:
    """Whether two values of a configuration mean the same: numbers as float32, lists and mappings by what they hold."""
    if isinstance(x, Mapping) and isinstance(y, Mapping):
        return set(x) == set(y) and all(same(x[key], y[key]) for key in x)
    if is_list(x) and is_list(y):
        return len(x) == len(y) and all(map(same, x, y))
    if _is_number(x) and _is_number(y):
        return x == y or bool(np.float32(x) == np.float32(y) and not (isinstance(x, int) and isinstance(y, int)))
    return type(x) is type(y) and bool(x == y)


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def in_words(value: Any) -> str:
    """A value on one line, and not all of a long one."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{key} {in_words(part)}" for key, part in value.items())
    elif is_list(value):
        text = f"[{', '.join(map(in_words, value[:16]))}{', …' if len(value) > 16 else ''}]"
    elif isinstance(value, float | np.floating):
        text = f"{float(value):.9g}"
    else:
        text = str(value) if _is_number(value) or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
