"""Models behind addresses in a comparison: they answer questions. Weights, predictions and memory cannot be seen there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oss_tools.endpoints.endpoint import Endpoint
from oss_tools.endpoints.wire import Price
from oss_tools.report.comparison import OverTheWire
from oss_tools.statistics.repeats import timing

CONTAINER = "endpoint"


@dataclass(frozen=True)
class Remote:
    """A model that answers over HTTP.

    Attributes:
        name: unique in the comparison.
        price: for the record, where the user named it.
    """

    name: str
    endpoint: Endpoint
    price: Price | None = None

    @property
    def identity(self) -> str:
        """A hash of its address and name: what runs there is not known."""
        return hashlib.sha256(self.endpoint.name.encode()).hexdigest()

    def about(self) -> dict[str, Any]:
        """A candidate's fields that are known beforehand."""
        unknown: dict[str, Any] = {"formats": {}, "size": 0, "parameters": 0, "bits_per_weight": 0.0}
        remark = "behind an address: its weights, predictions and memory cannot be seen, and its times are the network's"
        return {
            "name": self.name,
            "recipe": "",
            "container": CONTAINER,
            "path": self.endpoint.name,
            "sha256": self.identity,
            "remarks": [remark],
            **unknown,
        }


def remotes(endpoints: Sequence[Endpoint], price: Price | None, taken: Sequence[str] = ()) -> list[Remote]:
    """Models by their names there, by the whole addresses where two share one."""
    names = [*taken, *(endpoint.model for endpoint in endpoints)]
    return [Remote(e.model if names.count(e.model) == 1 else e.name, e, price) for e in endpoints]


def over_the_wire(found: Mapping[str, Mapping[str, Any]]) -> OverTheWire | None:
    """What was measured while these tasks (results of `answers.answer`) were answered; None if nothing was asked."""
    wires = [task["wire"] for task in found.values() if task.get("wire")]
    seconds = [value for wire in wires for value in wire["seconds"]]
    rates = [value for wire in wires for value in wire["rates"]]
    if not seconds:
        return None
    prompt, tokens, truncated = (sum(wire[name] for wire in wires) for name in ("prompt_tokens", "tokens", "truncated"))
    costs = [wire["dollars"] for wire in wires if wire["dollars"] is not None]
    return OverTheWire(
        timing(seconds), timing(rates) if rates else None, prompt, tokens, truncated, sum(costs) if costs else None
    )
