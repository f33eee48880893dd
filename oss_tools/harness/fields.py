"""The fields of a public set under the names that its copies give them.

A task's YAML says which names are known, ours first (`fields`), where a field's numbers may count from one (`from_one`), and what
makes sure that a document can be asked and scored (`check`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oss_tools.errors import BadSource
from oss_tools.harness.documents import Document, Located

MISSING = object()
Spelling = str | Sequence[str]  # a name, a path (`context.contexts`, `choices.0`), or several names whose values make a list


@dataclass(frozen=True)
class Fields:
    """What a task reads of its documents.

    Attributes:
        spellings: our name → the names that it may have.
        from_one: a field that numbers choices → how many there are. Where a set's numbers reach from 1 to that, one is taken off.
        check: raises an error for a document that cannot be asked or scored.
    """

    spellings: Mapping[str, Sequence[Spelling]] = field(default_factory=dict)
    from_one: Mapping[str, int] = field(default_factory=dict)
    check: Callable[[Document], Any] = bool

    @property
    def names(self) -> set[str]:
        """All names that a document may have at its top."""
        return {name for options in self.spellings.values() for option in options for name in _tops(option)}

    def read(self, located: Sequence[Located]) -> list[Document]:
        """The documents, every field under our name. Raises BadSource, which says where, what is found and what is wanted."""
        found = [self._named(document, where) for where, document in located]
        for name, count in self.from_one.items():
            numbers = [_number(document[name]) for document in found]
            if numbers and None not in numbers and 0 not in numbers and count in numbers:
                found = [{**document, name: number - 1} for document, number in zip(found, numbers, strict=True) if number]
        for (where, _), document in zip(located, found, strict=True):
            self._check(document, where)
        return found

    def _named(self, document: Document, where: str) -> Document:
        values = {name: _value(document, options) for name, options in self.spellings.items()}
        missing = [name for name, value in values.items() if value is MISSING]
        if missing:
            wanted = " and ".join(_told(self.spellings[name]) for name in missing)
            raise BadSource(f"{where}: the fields are {', '.join(map(str, document)) or 'none'}; wanted: {wanted}")
        return document | {name: value for name, value in values.items() if document.get(name) is None}

    def _check(self, document: Document, where: str) -> None:
        try:
            self.check(document)
        except BadSource as error:
            raise BadSource(f"{where}: {error}") from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            kinds = ", ".join(f"{name} is {type(document[name]).__name__}" for name in self.spellings)
            raise BadSource(f"{where}: its fields cannot be read ({kinds}): {type(error).__name__}: {error}") from None


def _value(document: Mapping[str, Any], options: Sequence[Spelling]) -> Any:
    """The value under the first name that the document has; MISSING if it has none."""
    for option in options:
        paths = [option] if isinstance(option, str) else list(option)
        values = [_at(document, path) for path in paths]
        if not any(value is MISSING or value is None for value in values):
            return values[0] if isinstance(option, str) else values
    return MISSING


def _at(document: Any, path: str) -> Any:
    if isinstance(document, Mapping) and path in document:
        return document[path]
    first, dot, rest = path.partition(".")
    if not dot:
        return MISSING
    inner: Any = document.get(first, MISSING) if isinstance(document, Mapping) else MISSING
    if isinstance(inner, Sequence) and not isinstance(inner, str) and rest.isdecimal():
        return inner[int(rest)] if int(rest) < len(inner) else MISSING
    return _at(inner, rest)


def _tops(option: Spelling) -> list[str]:
    return [path.partition(".")[0] for path in ([option] if isinstance(option, str) else option)]


def _told(options: Sequence[Spelling]) -> str:
    first, *more = [option if isinstance(option, str) else "+".join(option) for option in options]
    return f"{first} (or {', '.join(more)})" if more else first


def _number(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    return value if isinstance(value, int) else int(value) if isinstance(value, str) and value.isdecimal() else None
