"""What two checkpoints say beside their tensors, held against each other: configuration, tokenizer, chat templates.

Only what decides about tokens and logits counts. Names, licences, number formats and the like are never compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.templates import by_name
from oss_tools.models import Checkpoint

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


def compare_said(a: Checkpoint, b: Checkpoint, parts: Collection[str] = PARTS) -> Said:
    """The differences of two checkpoints in these parts. Raises BadCheckpoint for a tokenizer that cannot be read,
    MissingPackage where the vocabulary of gpt-oss is wanted and not installed."""
    from oss_tools.verify.tokenizer import compare_tokenizers

    found: list[Difference] = []
    remarks: list[str] = []
    if "config" in parts:
        found += compare_configurations(a, b)
    if "tokenizer" in parts or "template" in parts:
        one, two = a.metadata(), b.metadata()
        if "tokenizer" in parts:
            said = compare_tokenizers(a, one, b, two)
            found += said.differences
            remarks += said.remarks
        if "template" in parts:
            said = _compare_templates(a, one, b, two)
            found += said.differences
            remarks += said.remarks
    return Said(tuple(found), tuple(remarks))


# ---- configuration --------------------------------------------------------------------------------------------------


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
    elif _is_list(x) and _is_list(y) and len(x) == len(y):
        differing = [i for i in range(len(x)) if not same(x[i], y[i])]
        first = differing[0]
        if len(differing) == 1:
            yield from _values(f"{name}[{first}]", x[first], y[first])
        else:
            more = f" (first of {len(differing)} of {len(x)})"
            yield f"{name}[{first}]", in_words(x[first]) + more, in_words(y[first]) + more
    else:
        yield name, None if x is None else in_words(x), None if y is None else in_words(y)


def same(x: Any, y: Any) -> bool:
    """Whether two values of a configuration mean the same: numbers as float32, lists and mappings by what they hold."""
    if isinstance(x, Mapping) and isinstance(y, Mapping):
        return set(x) == set(y) and all(same(x[key], y[key]) for key in x)
    if _is_list(x) and _is_list(y):
        return len(x) == len(y) and all(map(same, x, y))
    if _is_number(x) and _is_number(y):
        return x == y or bool(np.float32(x) == np.float32(y) and not (isinstance(x, int) and isinstance(y, int)))
    return type(x) is type(y) and bool(x == y)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def in_words(value: Any) -> str:
    """A value on one line, and not all of a long one."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{key} {in_words(part)}" for key, part in value.items())
    elif _is_list(value):
        text = f"[{', '.join(map(in_words, value[:16]))}{', …' if len(value) > 16 else ''}]"
    elif isinstance(value, float | np.floating):
        text = f"{float(value):.9g}"
    else:
        text = str(value) if _is_number(value) or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


# ---- chat templates -------------------------------------------------------------------------------------------------


def _compare_templates(a: Checkpoint, one: Metadata, b: Checkpoint, two: Metadata) -> Said:
    ours, theirs = ({name: _plain(text) for name, text in by_name(m).items()} for m in (one, two))
    for checkpoint, has, other in ((a, ours, theirs), (b, theirs, ours)):
        if checkpoint.container == "original" and not has and other:
            return Said((), (f"{checkpoint.path} has no chat template, since OpenAI's layout comes without; not compared",))
    found = []
    for name in dict.fromkeys([*ours, *theirs]):
        x, y = ours.get(name), theirs.get(name)
        if x != y:
            found.append(Difference("template", name, *_where_they_part(x, y)))
    return Said(tuple(found))


def _plain(template: str) -> str:
    """A template as Jinja reads it: one kind of line end, without the line end that closes a file."""
    text = template.replace("\r\n", "\n").replace("\r", "\n")
    return text.removesuffix("\n")


def _where_they_part(x: str | None, y: str | None) -> tuple[str | None, str | None]:
    """Both texts in words, from shortly before the first character that differs."""
    if x is None or y is None:
        return tuple(None if text is None else f"{len(text):,} characters" for text in (x, y))  # type: ignore[return-value]
    at = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
    line = x.count("\n", 0, at) + 1
    begin = max(x.rfind("\n", 0, at) + 1, at - 20)
    return f"{x[begin : at + 40]!r} (line {line})", f"{y[begin : at + 40]!r} (line {line})"
