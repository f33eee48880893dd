"""What happens to each tensor of a conversion: which format it gets, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from oss_tools.checkpoints import Writer, writer_for
from oss_tools.convert.recipe import KEEP, Recipe, Rule, writable_formats
from oss_tools.convert.updates import Update
from oss_tools.errors import BadRecipe
from oss_tools.formats import Format, get_format
from oss_tools.models import Checkpoint, Entry, TensorSpec
from oss_tools.models.entries import chunks

NARROW_BYTES = 64 << 20  # float32 tensors up to this size are read while planning, to see whether bf16 holds them


@dataclass(frozen=True)
class Step:
    """What happens to one tensor.

    Attributes:
        source, target: the tensor as it is and as it will be.
        quantization: the quantization rule, or None for the format's default or where nothing is rounded.
        note: why the tensor does not get what the recipe asked for; empty if it does.
        narrowed: whether a float32 tensor goes to bf16 because all its values were seen to be bf16's.
        update: what is added to its values before they are rounded, or None.
    """

    source: Entry
    target: Entry
    quantization: str | None = None
    note: str = ""
    narrowed: bool = False
    update: Update | None = None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def moves(self) -> bool:
        """Whether bytes are moved and no value is decoded."""
        return self.update is None and self.source.format == self.target.format and not self.source.mixed

    @property
    def lossless(self) -> bool:
        """Whether every value is certain to stay what it is, once it was updated."""
        source, target = self.source.format, self.target.format
        if self.moves or self.narrowed:
            return True
        if (source.name, target.name) == ("mxfp4", "int8_g32") and not self.update:
            return True
        exact = "f32" if self.update else source.name if source.is_float else source.exact_in
        return target.name == "f32" or target.name == exact

    @property
    def action(self) -> str:
        """`move`, `decode` (to floats without loss), `quantize` (rounds); with an update, `merge` or `merge, quantize`."""
        if self.update:
            return "merge" if self.lossless else "merge, quantize"
        return "move" if self.moves else "decode" if self.lossless else "quantize"

    @property
    def rounds(self) -> bool:
        return not self.lossless


def make_steps(source: Checkpoint, container: str, recipe: Recipe, updates: Mapping[str, Update]) -> tuple[Step, ...]:
    """A step for each tensor, in the source's order. Raises BadRecipe or BadTensor where the recipe cannot be followed."""
    steps = (_step(source, e, container, recipe, updates.get(e.name)) for e in source.entries.values())
    return _one_format_per_stored(steps)


def _step(source: Checkpoint, entry: Entry, container: str, recipe: Recipe, update: Update | None) -> Step:
    rule = recipe.rule_for(entry.spec)
    writer, model_type = writer_for(container), source.architecture.model_type
    if rule.format == KEEP:
        return _keeping(source, entry, container, update)
    format, notes = choose_format(rule, entry.spec, writer, model_type)
    if format:
        target, note = _target(source, entry, container, format), "; ".join(notes)
        rounds = format.name == rule.format and (format != entry.format or entry.mixed or update)
        return Step(entry, target, rule.quantization if rounds else None, note, update=update)
    step = _keeping(source, entry, container, update)
    return replace(step, note="; ".join(filter(None, [*notes, step.note])))


def choose_format(rule: Rule, spec: TensorSpec, writer: type[Writer], model_type: str) -> tuple[Format | None, list[str]]:
    """The first of a rule's formats that the container holds for such a tensor and that divides its rows, and why those
    before it do not serve. None if the container has no place for any.

    Raises BadTensor if the container could hold the rule's own format but the rows do not divide, BadRecipe if it holds that
    format for no tensor at all.
    """
    notes: list[str] = []
    asked, columns = get_format(rule.format), spec.matrices[2]
    formats = (asked, *map(get_format, rule.otherwise))
    for format in formats:
        held = writer.holds(format, spec.role, model_type)
        if held and format.fits(columns):
            return format, notes
        block = f"{format.name}: {columns} columns are no multiple of {format.block}"
        notes.append(block if held else f"{writer.container} has no {format.name} for {spec.role}")
    if not any(_held(format, writer, model_type) for format in formats):
        possible = [name for name in writable_formats(writer.container) if _held(get_format(name), writer, model_type)]
        what = f"{asked.name} of a {model_type}" if _held(asked, writer, "") else asked.name
        raise BadRecipe(
            f"container {writer.container} cannot hold {what}; it holds {', '.join(possible)}; "
            "choose another format or --container"
        )
    if writer.holds(asked, spec.role, model_type):
        asked.check(spec.shape, spec.name)
    return None, notes


def _held(format: Format, writer: type[Writer], model_type: str) -> bool:
    """Whether a container holds a format for the matrices of such a model."""
    return any(writer.holds(format, role, model_type) for role in ("experts.down", "mlp.down"))


def _keeping(source: Checkpoint, entry: Entry, container: str, update: Update | None) -> Step:
    writer = writer_for(container)
    bf16 = get_format("bf16")
    if update:
        return _keeping_format(source, entry, container, update)
    if writer.holds(bf16, entry.spec.role, source.architecture.model_type) and _bf16_holds(source, entry):
        return Step(entry, _target(source, entry, container, bf16), narrowed=True)
    format, note = _kept(source, entry, writer)
    return Step(entry, _target(source, entry, container, format), note=note)


def _keeping_format(source: Checkpoint, entry: Entry, container: str, update: Update) -> Step:
    """The step of an updated tensor that keeps its format, as far as the container has it and it can be written."""
    format, note = _kept(source, entry, writer_for(container))
    if not (format.is_float or format.rules):
        raise BadRecipe(
            f"{entry.name}: is updated, and {format.name}, which it has, can be read but not written; name a --recipe or --format"
        )
    return Step(entry, _target(source, entry, container, format), note=note, update=update)


def _kept(source: Checkpoint, entry: Entry, writer: type[Writer]) -> tuple[Format, str]:
    """The format that keeps a tensor's values in this container, and a note if it is not the tensor's own."""
    role, model_type = entry.spec.role, source.architecture.model_type
    if writer.holds(entry.format, role, model_type):
        return entry.format, "" if len(entry.mixed) < 2 else "its parts differ in format"
    exact = get_format("f32" if entry.format.is_float else entry.format.exact_in)
    for format in (exact, get_format("f32")):
        if writer.holds(format, role, model_type):
            what = entry.format.name if not entry.spec.is_vector else "bf16 or f16"
            return (
                format,
                "" if entry.format.is_float else f"{writer.container} has no {what} for {role}: decoded without loss",
            )
    raise BadRecipe(f"{entry.name}: container {writer.container} can hold neither {entry.format.name} nor f32 for {role}")


def _bf16_holds(source: Checkpoint, entry: Entry) -> bool:
    """Whether a small float32 tensor's values are all bf16's, as norms and biases are that came from a bf16 model."""
    if entry.format.name != "f32" or entry.mixed or entry.nbytes > NARROW_BYTES:
        return False
    if not (entry.spec.is_vector or entry.spec.role == "router"):
        return False
    return all(
        not (source.read(entry.name, *chunk).planes["values"].view(np.uint32) & 0xFFFF).any() for chunk in chunks([entry])
    )


def _target(source: Checkpoint, entry: Entry, container: str, format: Format) -> Entry:
    placements = source.architecture.places(container, entry.spec, format.is_float)
    return Entry(entry.spec, format, tuple(placements))


def _one_format_per_stored(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Where several canonical tensors share a stored one (qkv), they get one format: the widest that was chosen."""
    steps = list(steps)
    sharing: dict[str, list[int]] = {}
    for i, step in enumerate(steps):
        for placement in step.target.placements:
            sharing.setdefault(placement.stored, []).append(i)
    for indices in sharing.values():
        formats = {steps[i].target.format for i in indices}
        if len(formats) == 1:
            continue
        if all(f.ggml_type is not None and not f.is_float for f in formats):  # a fused q, k and v: all take the widest
            widest = max(formats, key=lambda f: f.bits_per_weight(256))
            for i in indices:
                if steps[i].target.format != widest:
                    note = f"stored with others, of which one is {widest.name}"
                    steps[i] = replace(
                        steps[i], target=replace(steps[i].target, format=widest), note=note, quantization=None
                    )
            continue
        if not all(f.is_float for f in formats):
            names = ", ".join(steps[i].name for i in indices)
            raise BadRecipe(f"{names} lie in one tensor of the target and need one format; the recipe gives them several")
        f32 = get_format("f32")
        for i in indices:
            steps[i] = replace(
                steps[i], target=replace(steps[i].target, format=f32), note="stored with others: one float format"
            )
    return tuple(steps)
