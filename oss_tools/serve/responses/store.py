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
    def own(self) -> tuple[Item, ...]:
        """What this turn added."""
        return (*self.given, *self.response["output"])

    @property
    def items(self) -> tuple[Item, ...]:
        """The whole conversation."""
        return (*self.before, *self.own)


class ResponseStore:
    """Responses by id."""

    def __init__(self, most: int = MOST, nbytes: int = BYTES) -> None:
        """`most`: how many are kept. `nbytes`: of their JSON together, beginnings that several have counted for each."""
        self._most, self._nbytes = most, nbytes
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self._size = 0
        self._items: dict[str, Item] = {}

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
        stored = Stored(response, given, previous.items if previous else (), size)
        self._kept[response["id"]] = stored
        self._items |= {item["id"]: item for item in stored.own}
        self._size += size
        while len(self._kept) > self._most or self._size > self._nbytes:
            self.delete(next(iter(self._kept)))

    def delete(self, number: str) -> bool:
        """Forgets a response; says whether there was one. Those that go on from it keep what they need of it."""
        found = self._kept.pop(number, None)
        if found is None:
            return False
        self._size -= found.size
        for item in found.own:
            if self._items.get(item["id"]) is item:
                del self._items[item["id"]]
        return True

    def item(self, number: str) -> Item | None:
        """The item of this id, as the newest of the responses that are kept has it."""
        return self._items.get(number)
