"""The experts of a layer as they lie in a slot of memory, and how one gets there from the disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from numba_kernels.cpu.packed import Packed
from numba_kernels.cpu.packing import pack
from numba_kernels.simd.values import LANES
from oss_tools.engine.numba_weights import CHUNK_BYTES, Stack, kernel_format
from oss_tools.engine.weights import common_format, converted
from oss_tools.formats import Format
from oss_tools.machine.direct import PAGE
from oss_tools.models import Checkpoint, Entry
from oss_tools.models.entries import chunks
from oss_tools.models.stacks import ExpertLayer, expert_layers

PIECE_BYTES = 4 << 20  # of a record that is read at a time: large enough for the disk's full speed


@dataclass(frozen=True)
class StackPlace:
    """A stack's matrix of one expert, and where it lies in a slot.

    Attributes:
        entries: its tensors; interleave: whether their rows take turns.
        form: in which it is kept.
        at, bias_at: bytes from the slot's beginning to its panels and to its float32 biases (0: none).
    """

    entries: tuple[Entry, ...]
    interleave: bool
    form: Format
    at: int
    bias_at: int

    @property
    def rows(self) -> int:
        return sum(entry.spec.matrices[1] for entry in self.entries)

    @property
    def columns(self) -> int:
        return self.entries[0].spec.matrices[2]

    def packed(self, slab: np.ndarray, slots: int, slot_bytes: int) -> Packed:
        """Its panels in all slots of a slab."""
        one = _geometry(self.form, self.rows, self.columns)
        shape, strides = (slots, one.panels, one.panel_bytes), (slot_bytes, one.panel_bytes, 1)
        data = np.lib.stride_tricks.as_strided(slab[self.at :], shape, strides)
        return Packed(self.form.name, slots, self.rows, self.columns, data)


@dataclass(frozen=True)
class Experts:
    """The experts of a layer.

    Attributes:
        name: their module; layer: its number in the model.
        count, chosen: how many there are, and how many a token has.
        stacks: before and after the gate.
        record_bytes: of the panels of both, whole pages; slot_bytes: with biases, whole pages too.
    """

    name: str
    layer: int
    count: int
    chosen: int
    stacks: tuple[StackPlace, StackPlace]
    record_bytes: int
    slot_bytes: int

    @property
    def nbytes(self) -> int:
        """Of all experts' panels."""
        return self.count * self.record_bytes

    @cached_property
    def tensors(self) -> frozenset[str]:
        """Names of the tensors that stream."""
        return frozenset(entry.name for stack in self.stacks for entry in stack.entries)


def streamable(checkpoint: Checkpoint) -> list[Experts]:
    """The layers whose experts can be streamed, in the order in which a token meets them; none of a dense model."""
    return [_experts(checkpoint, layer) for layer in expert_layers(checkpoint.architecture)]


def _experts(checkpoint: Checkpoint, layer: ExpertLayer) -> Experts:
    places: list[StackPlace] = []
    found = [tuple(checkpoint.entries[name] for name in names) for names, _ in layer.stacks]
    at = 0
    for entries, (_, interleave) in zip(found, layer.stacks, strict=True):
        form = _form(entries)
        places.append(StackPlace(entries, interleave, form, at, 0))
        one = _geometry(form, places[-1].rows, places[-1].columns)
        at += one.panels * one.panel_bytes
    record = end = -(-at // PAGE) * PAGE
    for i, (place, (names, _)) in enumerate(zip(places, layer.stacks, strict=True)):
        if any(has_bias(checkpoint, name) for name in names):
            places[i] = StackPlace(place.entries, place.interleave, place.form, place.at, end)
            end += -(-place.rows // 32) * 128
    first, second = places
    count, router = first.entries[0].spec.matrices[0], layer.router
    number = first.entries[0].spec.layer
    assert number is not None
    return Experts(layer.name, number, count, router.chosen, (first, second), record, -(-end // PAGE) * PAGE)


def _form(entries: tuple[Entry, ...]) -> Format:
    forms = [kernel_format(entry) for entry in entries]
    return forms[0] if len(set(forms)) == 1 else common_format(forms, entries[0].spec.matrices[2])


def _geometry(form: Format, rows: int, columns: int) -> Packed:
    """The shape of one matrix; its memory is not touched."""
    return Packed(form.name, 0, rows, columns)


def has_bias(checkpoint: Checkpoint, name: str) -> bool:
    module = name.removesuffix(".weight")
    return any(bias in checkpoint.entries for bias in (f"{module}.bias", f"{module}_bias"))


class Source:
    """Reads experts of one layer into slots: from a run-ready file past the cache, else from any container, packed
    on the way."""

    def __init__(
        self, checkpoint: Checkpoint, experts: Experts, stacks: tuple[Stack, Stack], biases: list[np.ndarray | None]
    ) -> None:
        """stacks: the layer's panels and biases in all slots; biases: those of all its experts, float32 [count, padded rows]."""
        self.experts, self.stacks = experts, stacks
        self._checkpoint, self._biases = checkpoint, biases
        layer = [([e.name for e in s.entries], s.interleave) for s in experts.stacks]
        same = all(e.format == s.form and not e.mixed for s in experts.stacks for e in s.entries)
        records = checkpoint.records(layer) if same else None
        fits = records and records.nbytes == experts.record_bytes and records.places == tuple(s.at for s in experts.stacks)
        self.records = records if fits else None

    @property
    def pieces(self) -> int:
        """In how many pieces an expert is read."""
        return max(round(self.records.nbytes / PIECE_BYTES), 1) if self.records else len(self.stacks)

    def read(self, expert: int, piece: int, slot: int, memory: np.ndarray) -> int:
        """Fills a piece of slot number `slot`, uint8 [slot_bytes]. Returns the bytes read. Raises BadCheckpoint."""
        if piece == 0:
            for stack, values in zip(self.stacks, self._biases, strict=True):
                if values is not None and stack.bias is not None:
                    stack.bias[slot] = values[expert]
        if self.records:
            each = -(-self.records.nbytes // (self.pieces * PAGE)) * PAGE
            part = memory[piece * each : min((piece + 1) * each, self.records.nbytes)]
            self.records.read(expert, piece * each, part)
            return part.nbytes
        return self._pack(self.experts.stacks[piece], self.stacks[piece].packed, expert, slot)

    def _pack(self, place: StackPlace, packed: Packed, expert: int, slot: int) -> int:
        found = self._checkpoint.panels([entry.name for entry in place.entries], place.interleave)
        if found and not any(entry.mixed or entry.format != place.form for entry in place.entries):
            found.read(expert, packed.data[slot])
            return packed.data[slot].nbytes
        if packed.rows % LANES or packed.columns % 32:
            packed.data[slot] = 0  # what no row or column fills
        first, step, total = 0, len(place.entries) if place.interleave else 1, 0
        for entry in place.entries:
            for matrix, start, stop in chunks([entry], CHUNK_BYTES):
                if matrix == expert:
                    rows = converted(self._checkpoint.read(entry.name, matrix, start, stop), place.form)
                    pack(packed, rows.planes, matrix=slot, first=first + start * step, step=step)
            _, height, columns = entry.spec.matrices
            total += entry.format.stored_bytes(height, columns, 1)
            first += 1 if place.interleave else height
        return total
