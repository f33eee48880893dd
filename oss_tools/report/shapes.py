"""What the records of `eval` and `bench` hold, field by field, and the check against it.

A shape is the name of a kind of value ("text", "number", "flag", "scalar", "any"; with `?` behind it the value may be null), a
list of one shape, or a dictionary from fields to shapes. A field with `?` behind its name may be missing; `*` stands for all
fields that are not named. A field that no shape names may hold anything: newer records say more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from oss_tools.errors import BadRequest
from oss_tools.report.loading import place, shown

Shape = str | list[Any] | dict[str, Any]
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "text": ((str,), "text"),
    "number": ((int, float), "a finite number"),
    "flag": ((bool,), "true or false"),
    "scalar": ((str, int, float, bool, type(None)), "text, a number, true, false or null"),
}

SURROUNDINGS: dict[str, Shape] = {
    "machine?": {"cpu?": "text?", "*": "scalar"},
    "versions?": {"*": "text?"},
    "settings?": {"*": "any"},
}
SCORE: dict[str, Shape] = {
    "score": "number",
    "n?": "number",
    "stderr?": "number?",
    "low?": "number?",
    "high?": "number?",
    "higher_is_better?": "flag",
}
TASK: dict[str, Shape] = {
    "metric": "text",
    "version?": "scalar",
    "num_fewshot?": "number?",
    "repeats?": "number?",
    "prompts?": "text?",
    "n?": "number",
    "data_sha256": "text",
    "scores": {"*": SCORE},
    "by_kind?": {"*": {"*": {"score": "number", "n": "number"}}},
    "items": {"doc?": ["number"], "sha256": ["text"], "*": ["any"]},
    "usage?": {"problems?": {"*": "number"}, "*": "any"},
}
MEAN: dict[str, Shape] = {"mean": "number", "stderr?": "number?"}
EVAL: dict[str, Shape] = {
    **SURROUNDINGS,
    "model": {"name": "text", "nbytes?": "number?", "sha256?": "text?", "*": "any"},
    "tasks": {"*": TASK},
    "divergence?": {
        "kld": {**MEAN, **{f"{name}?": "number?" for name in ("median", "p90", "p95", "p99", "p99.9", "max")}},
        "same_top": MEAN,
        "base?": {"name": "text"},
    },
    "grader?": {"model?": "text?", "*": "any"},
    "seconds?": "number",
}
RATIO: dict[str, Shape] = {"median": "number", "range?": ["number"]}
RESULT: dict[str, Shape] = {
    "case": "text",
    "kind": "text",
    "tokens?": "number",
    "depth?": "number",
    "batch?": "number",
    "tokens_per_second": "number",
    "tokens_per_second_range?": ["number"],
    "rounds?": ["number"],
    "ratio?": RATIO,
    "ratios?": {"*": RATIO},
}
BENCH: dict[str, Shape] = {
    **SURROUNDINGS,
    "began?": "text",
    "load_before?": "number",
    "load_after?": "number",
    "models": [
        {
            "model": "text",
            "bytes": "number",
            "sha256?": "text?",
            "contenders": {
                "*": {"load_seconds": "number", "peak_bytes": "number", "facts?": {"*": "any"}, "results": [RESULT]}
            },
        }
    ],
}


@dataclass(frozen=True)
class Node:
    """A value of a JSON record and where it stands, for checks that name the place. Every method raises BadRequest."""

    raw: Any
    where: str

    def __getitem__(self, name: str) -> Node:
        if not isinstance(self.raw, dict):
            raise self.wrong("an object")
        if name not in self.raw:
            raise BadRequest(f"{self.where}: the field {name!r} is missing")
        return Node(self.raw[name], place(self.where, name))

    def get(self, name: str) -> Node | None:
        """A field that may be missing or null."""
        return self[name] if isinstance(self.raw, dict) and self.raw.get(name) is not None else None

    def items(self) -> Iterator[tuple[str, Node]]:
        if not isinstance(self.raw, dict):
            raise self.wrong("an object")
        for name in self.raw:
            yield name, self[name]

    def each(self) -> Iterator[Node]:
        if not isinstance(self.raw, list):
            raise self.wrong("a list")
        for number, value in enumerate(self.raw):
            yield Node(value, place(self.where, number))

    def number(self) -> float:
        check(self, "number")
        return float(self.raw)

    def positive(self) -> float:
        if self.number() <= 0:
            raise self.wrong("a number above 0")
        return self.number()

    def text(self) -> str:
        check(self, "text")
        return str(self.raw)

    def wrong(self, wanted: str) -> BadRequest:
        return BadRequest(f"{self.where}: {wanted} is wanted, not {shown(self.raw)}")


def check(node: Node, shape: Shape) -> None:
    """Raises BadRequest, naming the first place at which the value has not the shape."""
    if isinstance(shape, list):
        for item in node.each():
            check(item, shape[0])
    elif isinstance(shape, dict):
        named = {name.removesuffix("?"): (name, inner) for name, inner in shape.items()}
        for name, (written, _) in named.items():
            if name != "*" and written == name:
                _ = node[name]
        for name, value in node.items():
            check(value, named[name][1] if name in named and name != "*" else shape.get("*", "any"))
    elif shape != "any" and not (shape.endswith("?") and node.raw is None):
        types, wanted = KINDS[shape.removesuffix("?")]
        if not isinstance(node.raw, types) or (isinstance(node.raw, bool) and bool not in types):
            raise node.wrong(wanted)
