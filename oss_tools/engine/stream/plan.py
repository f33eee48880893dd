"""What of a model stays in memory and what streams, for a given size: arithmetic on headers alone."""

from __future__ import annotations

from dataclasses import dataclass

from oss_tools.engine import memory
from oss_tools.engine.numba_weights import kept_bytes
from oss_tools.engine.stream.experts import Experts, streamable
from oss_tools.errors import NoRoom
from oss_tools.models import Checkpoint
from oss_tools.sizes import format_size

PREFIX_SHARE = 16  # the prefix cache may take one part in so many of what weights and one context leave


@dataclass(frozen=True)
class Plan:
    """How a size is divided. All in bytes but `slots`.

    Attributes:
        layers: whose experts stream.
        memory: what the process may take in all.
        resident_bytes: of weights that are read once: all but the experts, and their biases.
        streamed_bytes: of all experts.
        context_bytes: of keys and values of one sequence of the whole context.
        prefix_bytes: for the prefix cache.
        slots: experts that are in memory at a time; slot_bytes: of each; cache_bytes: of all slots.
        least: the smallest `memory` that works: one token's experts of a layer.
    """

    layers: tuple[Experts, ...]
    memory: int
    resident_bytes: int
    streamed_bytes: int
    context_bytes: int
    prefix_bytes: int
    slots: int
    slot_bytes: int
    least: int

    @property
    def cache_bytes(self) -> int:
        return self.slots * self.slot_bytes

    @property
    def takes(self) -> int:
        """Bytes of all that is planned; a small model does not need all that it may take."""
        return memory.WORK_BYTES + self.resident_bytes + self.context_bytes + self.prefix_bytes + self.cache_bytes

    @property
    def experts(self) -> int:
        """Of all layers."""
        return sum(layer.count for layer in self.layers)

    @property
    def least_slots(self) -> int:
        return max(layer.chosen for layer in self.layers)

    @property
    def bytes_per_token(self) -> int:
        """Of the experts that one token has in all layers: what is read for it if none is in memory."""
        return sum(layer.chosen * layer.record_bytes for layer in self.layers)

    @property
    def is_whole(self) -> bool:
        """Whether there is room for all experts, so that none has to go."""
        return self.slots >= self.experts


def plan_streaming(checkpoint: Checkpoint, memory_bytes: int, context_bytes: int, prefix_bytes: int | None = None) -> Plan:
    """Divides a size among what a model needs on the CPU.

    Args:
        checkpoint: headers are enough.
        memory_bytes: what the process may take in all.
        context_bytes: of keys and values that have room for the context (`Backend.position_bytes` · context).
        prefix_bytes: for the prefix cache; None takes a share of what is left.

    Raises NoRoom with the least that works; where there are no experts, with what the model takes.
    """
    layers = tuple(streamable(checkpoint))
    streams = frozenset[str]().union(*(layer.tensors for layer in layers))
    resident = sum(kept_bytes(entry) for entry in checkpoint.entries.values() if entry.name not in streams)
    fixed = memory.WORK_BYTES + resident + context_bytes
    if not layers:
        if fixed > memory_bytes:
            raise NoRoom(
                f"{format_size(memory_bytes)} are too little: the model has no experts that could stream, and takes "
                f"{format_size(fixed)} (weights {format_size(resident)}, KV cache {format_size(context_bytes)}, the rest "
                f"{format_size(memory.WORK_BYTES)})"
            )
        return Plan((), memory_bytes, resident, 0, context_bytes, prefix_bytes or 0, 0, 0, fixed)
    slot_bytes, chosen = max(layer.slot_bytes for layer in layers), max(layer.chosen for layer in layers)
    least = fixed + (prefix_bytes or 0) + chosen * slot_bytes
    if memory_bytes < least:
        raise NoRoom(
            f"{format_size(memory_bytes)} of memory are too little for this model: at least {exact_size(least)} are needed "
            f"(weights that are always used {format_size(resident)}, a layer's experts for one token "
            f"{format_size(chosen * slot_bytes)}, KV cache {format_size(context_bytes)}, the rest "
            f"{format_size(memory.WORK_BYTES)}); a smaller --context needs less"
        )
    left = memory_bytes - fixed
    prefix = min(left // PREFIX_SHARE, memory_bytes - least) if prefix_bytes is None else prefix_bytes
    slots = min((left - prefix) // slot_bytes, sum(layer.count for layer in layers))
    streamed = sum(layer.nbytes for layer in layers)
    return Plan(layers, memory_bytes, resident, streamed, context_bytes, prefix, slots, slot_bytes, least)


def exact_size(nbytes: int) -> str:
    """A size that is enough when it is typed in again: whole megabytes, rounded up."""
    return f"{-(-nbytes // 10**6)} MB"
