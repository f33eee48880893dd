"""Where a forward pass can be taken up again: after operations whose result is all that the rest of the pass needs.

An architecture does not say where its layers end. It is found out: the pass is carried out on nothing, and each operation takes
note of which results it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from oss_tools.models import Architecture
from oss_tools.models.operations import Operations


@dataclass(frozen=True)
class _Result:
    """Of the operation of this number."""

    number: int


def _results(name: str, arguments: tuple[Any, ...]) -> int | None:
    """How many values an operation returns as a tuple; None for a single value."""
    return len(arguments[1]) if name in ("linears", "split") else None


class _Uses:
    """Operations that take note of the last operation that is given each result."""

    def __init__(self) -> None:
        self.last: list[int] = [0]  # by the result's number
        self.single: list[bool] = [False]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            number = len(self.last)
            for given in (*arguments, *named.values()):
                if isinstance(given, _Result):
                    self.last[given.number] = number
            count = _results(name, arguments)
            self.last.append(number)
            self.single.append(count is None)
            return _Result(number) if count is None else (_Result(number),) * count

        return operation


def boundaries(architecture: Architecture) -> list[int]:
    """The numbers, from 1 on, of the operations of a pass after which no other result than theirs is used."""
    uses = _Uses()
    architecture.forward(cast(Operations[Any], uses))
    found, reach = [], 0  # how far the results before an operation are used
    for number in range(1, len(uses.last)):
        if reach <= number and uses.single[number]:
            found.append(number)
        reach = max(reach, uses.last[number])
    return found


class Steps:
    """Operations that are counted: those up to `start` are skipped, the others are carried out.

    Attributes:
        number: of the operation at hand, from 1 on.
    """

    def __init__(
        self,
        operations: Operations[Any],
        bounds: list[int],
        reached: Callable[[int, Any], None],
        start: tuple[int, Any] | None = None,
    ) -> None:
        """reached: is called with the number and the result of each operation in `bounds`. start: a number in `bounds`, and what
        that operation resulted in."""
        self._operations, self._reached, self._bounds = operations, reached, frozenset(bounds)
        self._start, self._value = start or (0, None)
        self.number = 0

    def forward(self, architecture: Architecture) -> Any:
        """What the pass ends with."""
        return architecture.forward(cast(Operations[Any], self))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            self.number += 1
            if self.number == self._start:
                value, self._value = self._value, None
                return value
            if self.number < self._start:
                count = _results(name, arguments)
                return None if count is None else (None,) * count
            result = getattr(self._operations, name)(*arguments, **named)
            if self.number in self._bounds:
                self._reached(self.number, result)
            return result

        return operation
