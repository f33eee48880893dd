"""What a plan gives a format: tensors, or several that a container keeps in one, with the formats that they can have there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oss_tools.checkpoints import writer_for
from oss_tools.errors import BadRequest
from oss_tools.formats import Format, get_format
from oss_tools.models import Checkpoint

PROBES = ("q4_0", "mxfp4", "int8_g32")  # the first of these that a tensor can have
PROBED = 4.5  # bits a weight, near which a probe is taken where it can have none


@dataclass(frozen=True)
class Unit:
    """Tensors that must have one format, because they lie in one of the target's: mostly a single one.

    Attributes:
        names: canonical.
        role, layer: of the first.
        formats: what the container can hold them in, by bytes; `keep` is not among them.
        kept_bytes: as they are.
    """

    names: tuple[str, ...]
    role: str
    layer: int | None
    formats: tuple[str, ...]
    nbytes: Mapping[str, int]
    kept_format: str
    kept_bytes: int

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def probe(self) -> str:
        """The format in which its rounding is measured."""
        return next((name for name in PROBES if name in self.formats), nearest(self.formats, PROBED))


def nearest(formats: Sequence[str], bits: float) -> str:
    """The format with about so many bits a weight."""
    return min(formats, key=lambda name: abs(get_format(name).bits_per_weight(1024) - bits))


def units_of(checkpoint: Checkpoint, container: str, formats: Sequence[str]) -> list[Unit]:
    """All matrices that may have one of these formats in a container. Raises BadRequest if there is none."""
    writer, architecture = writer_for(container), checkpoint.architecture
    groups: dict[str, list[str]] = {}
    for entry in checkpoint.entries.values():
        if not (entry.spec.is_vector or entry.spec.role == "positions"):
            stored = architecture.places(container, entry.spec, False)[0].stored
            groups.setdefault(stored, []).append(entry.name)
    found = []
    for names in groups.values():
        entries = [checkpoint.entries[name] for name in names]
        held = [
            name
            for name in formats
            if all(writer.holds(get_format(name), e.spec.role, architecture.model_type) for e in entries)
            and all(get_format(name).fits(e.spec.matrices[2]) for e in entries)
        ]
        if held:
            nbytes = {name: sum(_bytes(get_format(name), e.spec.matrices) for e in entries) for name in held}
            kept = sum(e.nbytes for e in entries)
            smaller = tuple(sorted((name for name in held if nbytes[name] < kept), key=lambda name: nbytes[name]))
            if smaller:
                first = entries[0]
                found.append(Unit(tuple(names), first.spec.role, first.spec.layer, smaller, nbytes, first.format.name, kept))
    if not found:
        raise BadRequest(f"{checkpoint.path}: none of {', '.join(formats)} would make a tensor smaller in {container}")
    return found


def _bytes(format: Format, matrices: tuple[int, int, int]) -> int:
    count, rows, columns = matrices
    return format.stored_bytes(rows, columns, count)
