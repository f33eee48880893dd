"""Where the weights that an adapter names lie in a model's canonical tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from oss_tools.models import Architecture, TensorSpec
from oss_tools.models.tensors import Placement

WRAPPERS = (  # what may stand before a model's names, or, but for the first and the last, anywhere in them
    "base_model.model.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "module.",
    "pretrained_model.",
    "model.language_model.",
    "language_model.",
)
INNER = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True)
class Place:
    """Rows of a canonical tensor, and which rows of a stored one they are.

    A stored tensor is seen as matrices [out, in] here, whichever way its file has it.
    """

    spec: TensorSpec
    placement: Placement

    @property
    def out(self) -> int:
        """Rows of the stored tensor's matrices."""
        return self.placement.stored_rows

    @property
    def columns(self) -> int:
        return self.spec.matrices[2]

    @property
    def stacked(self) -> int:
        """How many matrices the stored tensor holds."""
        return 1 if self.placement.matrix is not None else self.spec.matrices[0]

    def covers(self, matrix: int) -> bool:
        return self.placement.matrix in (None, matrix)

    def rows(self, start: int, stop: int) -> tuple[slice, slice | np.ndarray] | None:
        """Of canonical rows [start, stop) of a matrix: which of them, counted from `start`, lie here, and which rows of the
        stored matrix they are. None if none does."""
        p = self.placement
        first = max(-(-(start - p.first) // p.step), 0)
        last = min(-(-(stop - p.first) // p.step), p.count)
        if first >= last:
            return None
        begin = p.first + first * p.step - start
        taken = slice(begin, begin + (last - first - 1) * p.step + 1, p.step)
        if not p.rotary:
            return taken, slice(p.offset + first, p.offset + last)
        order = np.argsort(p.head_order())  # stored row of each canonical row of a head
        index = np.arange(first, last)
        return taken, p.offset + index // p.rotary * p.rotary + order[index % p.rotary]


class Places:
    """Every stored name of a model in a container, usual or not, and where in the canonical tensors it belongs."""

    def __init__(self, architecture: Architecture, container: str) -> None:
        self.architecture = architecture
        self.container = container
        self._places: dict[str, list[Place]] = {}
        specs = architecture.tensors()
        for spec in specs:
            self._take(spec, architecture.placements(container, spec, True))
        usual = frozenset(self._places)
        for spec in specs:
            for way in architecture.other_placements(container, spec, True):
                self._take(spec, [p for p in way if p.stored not in usual])

    def _take(self, spec: TensorSpec, placements: list[Placement]) -> None:
        for placement in placements:
            if placement.stored_matrix is None:  # heads apart (DeepSeek in GGUF): no adapter has them
                self._places.setdefault(placement.stored, []).append(Place(spec, placement))

    def of(self, stored: str) -> list[Place]:
        """The places that a stored tensor's rows have; [] if there is no such tensor."""
        return self._places.get(stored, [])

    def named(self, name: str) -> Iterator[str]:
        """The name as it is, and without what wraps it, as a model of this kind might have it; the likeliest first."""
        for inner in INNER:
            name = name.replace(f".{inner}", ".").removeprefix(inner)
        seen = [name]
        for found in seen:  # grows
            seen += [rest for wrapper in WRAPPERS if (rest := found.removeprefix(wrapper)) not in seen]
        yield from seen
        yield from (f"model.{found}" for found in seen if not found.startswith("model."))
