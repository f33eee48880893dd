"""The experts of a model that streams: their places in slots, their sources on the disk, and what has come of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from oss_tools.engine.numba_weights import NumbaWeights, Stack
from oss_tools.engine.stream.cache import ExpertCache
from oss_tools.engine.stream.experts import Experts, Source, StackPlace
from oss_tools.engine.stream.plan import Plan
from oss_tools.errors import BadCheckpoint, NoRoom
from oss_tools.machine.memory import WORK_BYTES
from oss_tools.models import Checkpoint
from oss_tools.sizes import format_size

EACH = 1 << 16  # keys of a layer
IN_HAND = WORK_BYTES // 4  # of the work memory, which small models and short prompts do not need


class StreamedExperts:
    """All experts of a model, of which some are in memory.

    Attributes:
        cache: the slots.
        bases: by module, the key of a layer's first expert.
    """

    def __init__(self, plan: Plan, checkpoint: Checkpoint, weights: NumbaWeights) -> None:
        """weights: loads the biases. The checkpoint is kept open until `close`."""
        self.plan = plan
        self.cache = ExpertCache(plan.slots, plan.slot_bytes, self._pieces, self._read)
        self.bases = {layer.name: number * EACH for number, layer in enumerate(plan.layers)}
        self._sources = [self._source(layer, checkpoint, weights) for layer in plan.layers]
        self._by_name = {source.experts.name: source for source in self._sources}
        self._checkpoint = checkpoint.held()
        self._state = checkpoint.reader.state()

    def _source(self, layer: Experts, checkpoint: Checkpoint, weights: NumbaWeights) -> Source:
        biases = [weights.stacked_biases(place.entries, place.interleave) for place in layer.stacks]
        first, second = (self._stack(place) for place in layer.stacks)
        return Source(checkpoint, layer, (first, second), biases)

    def _stack(self, place: StackPlace) -> Stack:
        slab, slots, each = self.cache.slab, self.plan.slots, self.plan.slot_bytes
        bias = None
        if place.bias_at:
            padded = -(-place.rows // 32) * 32
            floats = slab[place.bias_at : place.bias_at + 4 * padded].view(np.float32)
            bias = np.lib.stride_tricks.as_strided(floats, (slots, padded), (each, 4))
        return Stack(place.packed(slab, slots, each), bias)

    def stacks(self, name: str) -> tuple[Stack, Stack]:
        """A layer's matrices before and after the gate, by slot."""
        return self._by_name[name].stacks

    @property
    def formats(self) -> dict[str, int]:
        """Bytes of all experts by the format in which they are kept."""
        found: dict[str, int] = {}
        for source in self._sources:
            for place, stack in zip(source.experts.stacks, source.stacks, strict=True):
                nbytes = stack.packed.panels * stack.packed.panel_bytes * source.experts.count
                found[place.form.name] = found.get(place.form.name, 0) + nbytes
        return found

    def _pieces(self, key: int) -> int:
        return self._sources[key // EACH].pieces

    def _read(self, key: int, piece: int, slot: int, memory: np.ndarray) -> int:
        return self._sources[key // EACH].read(key % EACH, piece, slot, memory)

    def check(self) -> None:
        """Raises BadCheckpoint if a file was written to, or cut short, since it was opened."""
        if self._checkpoint.reader.state() != self._state:
            raise BadCheckpoint(
                f"{self._checkpoint.path}: was changed while it was in use; what follows would be wrong. Start again"
            )

    def make_room(self, context_bytes: int) -> None:
        """Keeps to the size that was given where keys and values take more than the plan has for them (several sequences at
        once): fewer experts are kept then, and if there would be too few, part of what is in hand for other things is taken.
        Raises NoRoom where that is not enough."""
        plan = self.plan
        more = max(context_bytes - plan.context_bytes, 0)
        if more > IN_HAND + (plan.slots - plan.least_slots) * plan.slot_bytes:
            raise NoRoom(
                f"keys and values of the sequences take {format_size(context_bytes)}, which leaves no room for a layer's experts "
                f"in {format_size(plan.memory)}; take fewer sequences at once, a smaller --context or more --memory"
            )
        slots = max(plan.slots - -(-more // plan.slot_bytes), plan.least_slots)
        if slots != self.cache.slots:
            self.cache.resize(slots)

    def facts(self) -> dict[str, Any]:
        """What is resident, what streams, and what has been read so far."""
        return {
            "resident_bytes": self.plan.resident_bytes,
            "streamed_bytes": self.plan.streamed_bytes,
            "cache_bytes": self.cache.slots * self.plan.slot_bytes,
            "slots": self.cache.slots,
            "expert_bytes": self.plan.streamed_bytes // self.plan.experts,
            **self.cache.figures(),
        }

    def close(self) -> None:
        self.cache.close()
        self._checkpoint.close()
