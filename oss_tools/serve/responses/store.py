"""Responses that can be read again and gone on from: the state of the Responses API. In memory, within limits; the oldest go."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from oss_tools.escapes import json_text
from oss_tools.serve.responses.items import Item

MOST = 1000  # responses
BYTES = 256 << 20  # of their JSON, each with all that came before it


@dataclass(frozen=True)
class Stored:
    """A response, and all that it answered.

    Attributes:
        response: as it was sent.
        given: the items of its own request.
        before: the items of the responses that it goes on from, their output included.
        size: bytes of all this as JSON.
    """

    response: Item
    given: tuple[Item, ...]
    before: tuple[Item, ...] = ()
    size: int = field(default=0, compare=False)

    @property
    def items(self) -> tuple[Item, ...]:
        """The whole conversation."""
        return (*self.before, *self.given, *self.response["output"])


class ResponseStore:
    """Responses by id."""

    def __init__(self, most: int = MOST, nbytes: int = BYTES) -> None:
        """`most`: how many are kept. `nbytes`: of their JSON together, beginnings that several have counted for each."""
        self._most, self._nbytes = most, nbytes
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, number: str) -> Stored | None:
        """The response of this id; None if there is none, or no more."""
        found = self._kept.get(number)
        if found is not None:
            self._kept.move_to_end(number)
        return found

    def put(self, response: Item, given: tuple[Item, ...], previous: Stored | None) -> None:
        """Keeps a response; the longest unused go where there is no room. One that is larger than all the room is not kept."""
        size = sum(len(json_text(item)) for item in (response, *given)) + (previous.size if previous else 0)
        if size > self._nbytes:
            return
        self._kept[response["id"]] = Stored(response, given, previous.items if previous else (), size)
        self._size += size
        while len(self._kept) > self._most or self._size > self._nbytes:
            self._size -= self._kept.popitem(last=False)[1].size

    def delete(self, number: str) -> bool:
        """Forgets a response; says whether there was one. Those that go on from it keep what they need of it."""
        found = self._kept.pop(number, None)
        self._size -= found.size if found else 0
        return found is not None

    def item(self, number: str) -> Item | None:
        """The item of this id in any response that is kept, the newest first."""
        for stored in reversed(self._kept.values()):
            for item in (*stored.response["output"], *stored.given):
                if item["id"] == number:
                    return item
        return None
