"""Whether two checkpoints' chat templates are the same."""

from __future__ import annotations

from oss_tools.checkpoints import Metadata
from oss_tools.checkpoints.templates import by_name
from oss_tools.models import Checkpoint
from oss_tools.verify.differences import Difference, Said


def compare_templates(a: Checkpoint, one: Metadata, b: Checkpoint, two: Metadata) -> Said:
    """The templates, by name, that one has alone or that differ in more than line ends."""
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
