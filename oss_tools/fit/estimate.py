"""What a model takes in every format and recipe, how fast that would be, and which of them to choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from oss_tools.checkpoints import writer_for
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import Recipe, load_recipe, recipe_names, recipe_of_format, writable_formats
from oss_tools.convert.synth import Shape, plan_synthesis
from oss_tools.errors import BadRecipe, BadTensor
from oss_tools.fit.machine import Machine
from oss_tools.fit.memory import Memory, Tokenizer, Use, bytes_per_token, memory, tokenizer_bytes, tokenizer_bytes_of
from oss_tools.fit.streaming import Experts, Streaming, dense_bytes, experts_of, plan
from oss_tools.models import Architecture, Checkpoint, Entry
from oss_tools.sizes import format_size

STORED = "as stored"
SLOWEST, FASTEST = 0.5, 1.0  # share of the memory's read speed that token generation reaches
CONTAINERS = ("hf", "gguf")
RECOMMENDED = (
    "best-6",
    "best-5",
    "best-4",
)  # below eight bits, where nothing is published: found by measurement (docs/plan.md)
EIGHT_BITS, FEW_BITS = 8.0, 9.0  # per weight: what is stored in fewer is not made smaller without need


@dataclass(frozen=True)
class Row:
    """A model in one choice of formats.

    Attributes:
        name: of the recipe or format, or "as stored".
        published: whether it is the checkpoint, or the shape as its makers publish it.
        container: that would hold it.
        parameters: values.
        file_bytes: of tensor data in its files.
        memory: of the engine.
        token_bytes: that a token's pass reads, with an empty and with a full cache.
        experts: what could stream from the disk, or None.
        dense_bytes: of weights that stay in memory then.
        noted: tensors that do not get the format of that name, because they or the container do not allow it.
    """

    name: str
    published: bool
    container: str
    parameters: int
    file_bytes: int
    memory: Memory
    token_bytes: tuple[float, float]
    experts: Experts | None = None
    dense_bytes: int = 0
    noted: int = 0

    def streaming(self, memory: int) -> Streaming | None:
        """How it would run in so many bytes; None for a model without experts."""
        return plan(self.experts, self.dense_bytes, self.memory.cache, memory) if self.experts else None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.file_bytes / self.parameters

    def speed(self, bandwidth: float) -> tuple[float, float]:
        """Tokens per second of one sequence: from half the memory's speed with a full cache to all of it with none."""
        return SLOWEST * bandwidth / self.token_bytes[1], FASTEST * bandwidth / self.token_bytes[0]


@dataclass(frozen=True)
class Estimate:
    """A model's rows, largest first, and (name, why) of what it cannot be made into."""

    model: str
    architecture: Architecture
    use: Use
    rows: tuple[Row, ...]
    impossible: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Choice:
    """What to use.

    Attributes:
        row: the choice, or None if nothing fits.
        reason: why, in a sentence.
        limits: what stands in the way of the others, a sentence each.
    """

    row: Row | None
    reason: str
    limits: tuple[str, ...]


# ---- rows -----------------------------------------------------------------------------------------------------------


def of_checkpoint(checkpoint: Checkpoint, model: str, use: Use) -> Estimate:
    """Of a checkpoint as it is stored, and of all that it could be made into. Reads headers, and small float tensors."""
    tokenizer = tokenizer_bytes(checkpoint)

    def planned(recipe: Recipe, container: str) -> tuple[list[Entry], int, int]:
        plan = make_plan(checkpoint, container, recipe)
        return [step.target for step in plan.steps], plan.target_bytes, sum(bool(step.note) for step in plan.steps)

    rows, impossible = _all_rows(checkpoint.architecture, planned, tokenizer, use, "")
    return Estimate(model, checkpoint.architecture, use, _distinct([stored_row(checkpoint, use), *rows]), impossible)


def stored_row(checkpoint: Checkpoint, use: Use) -> Row:
    """Of a checkpoint as it is stored."""
    entries, architecture = list(checkpoint.entries.values()), checkpoint.architecture
    return _row(
        STORED, checkpoint.container, architecture, entries, checkpoint.nbytes, tokenizer_bytes(checkpoint), use, True
    )


def of_shape(shape: Shape, use: Use) -> Estimate:
    """Of a model of which only the configuration is known."""
    tokenizer = tokenizer_bytes_of(int(shape.config.get("vocab_size", 0)))

    def planned(recipe: Recipe, container: str) -> tuple[list[Entry], int, int]:
        synthesis = plan_synthesis(shape, container, recipe)
        nbytes = writer_for(container).total_bytes(synthesis.stored)
        return list(synthesis.entries), nbytes, len(synthesis.notes)

    architecture = plan_synthesis(shape, "hf").architecture
    rows, impossible = _all_rows(architecture, planned, tokenizer, use, shape.recipe)
    return Estimate(shape.name, architecture, use, _distinct(rows), impossible)


Planned = Callable[[Recipe, str], tuple[list[Entry], int, int]]  # entries, bytes in files, tensors with a note


def _all_rows(
    architecture: Architecture, planned: Planned, tokenizer: Tokenizer, use: Use, published: str
) -> tuple[list[Row], tuple[tuple[str, str], ...]]:
    rows, impossible = [], []
    for name, recipe in _recipes():
        options, why = [], ""
        for container in CONTAINERS:
            try:
                entries, nbytes, noted = planned(recipe, container)
            except (BadRecipe, BadTensor) as error:
                why = why or str(error)
                continue
            row = _row(name, container, architecture, entries, nbytes, tokenizer, use, name == published, noted)
            options.append(row)
        if options:
            rows.append(min(options, key=lambda row: row.noted))
        else:
            impossible.append((name, why))
    return rows, tuple(impossible)


def _recipes() -> Iterator[tuple[str, Recipe]]:
    """All recipes, then all formats that have no recipe of their name."""
    names = recipe_names()
    for name in names:
        yield name, load_recipe(name)
    for name in writable_formats():
        if name not in names:
            yield name, recipe_of_format(name)


def _row(
    name: str,
    container: str,
    architecture: Architecture,
    entries: Sequence[Entry],
    nbytes: int,
    tokenizer: Tokenizer,
    use: Use,
    published: bool,
    noted: int = 0,
) -> Row:
    empty, full = (bytes_per_token(architecture, entries, use, filled) for filled in (0.0, 1.0))
    parameters = sum(entry.spec.size for entry in entries)
    taken, experts = memory(architecture, entries, tokenizer, use), experts_of(architecture, entries)
    dense = dense_bytes(architecture, entries)
    return Row(name, published, container, parameters, nbytes, taken, (empty, full), experts, dense, noted)


def _distinct(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Largest first; of rows that are the same in all but name, the first."""
    found: dict[tuple[int, int], Row] = {}
    for row in rows:
        found.setdefault((row.file_bytes, row.memory.weights), row)
    return tuple(sorted(found.values(), key=lambda row: -row.memory.total))


# ---- the choice -----------------------------------------------------------------------------------------------------


def choose(estimate: Estimate, machine: Machine) -> Choice:
    """The published weights if they fit and are small already; else the most bits per weight, up to about eight, that fit; below
    eight, the largest of the mixtures that were found by measurement. What fits a graphics card only is chosen where nothing fits
    the memory."""
    limits = _limits(estimate, machine)
    rows = [r for r in estimate.rows if machine.disk_holds(r.file_bytes)]
    fitting = [r for r in rows if r.memory.total <= machine.ram]
    where = f"it fits into {format_size(machine.ram)} of memory"
    if not fitting:
        fitting = [r for r in rows if machine.device_verdict(r.memory.on_device) in ("fits", "tight")]
        where = f"it fits the card of {format_size(machine.vram or 0)}, though not the memory"
    if not fitting:
        return Choice(None, _nothing(estimate, machine), limits)
    published = next((r for r in fitting if r.published), None)
    if published and published.bits_per_weight <= FEW_BITS:
        return Choice(published, f"it is what was published, no value changes, and {where}", limits)
    small = [r for r in fitting if r.bits_per_weight <= FEW_BITS]
    if not small:
        return Choice(min(fitting, key=lambda r: r.memory.total), f"the smallest, and {where}", limits)
    row = max(small, key=lambda r: (r.bits_per_weight, -r.noted))
    mixtures = [r for r in small if r.name in RECOMMENDED]
    if row.bits_per_weight < EIGHT_BITS and mixtures:
        row = max(mixtures, key=lambda r: r.bits_per_weight)
        return Choice(
            row, f"a mixture whose formats were chosen by what each loses (`plan` finds your model's), and {where}", limits
        )
    if published:
        factor = published.token_bytes[0] / row.token_bytes[0]
        return Choice(
            row, f"about eight bits lose little, a token reads {factor:.1f} times fewer bytes, and {where}", limits
        )
    return Choice(row, f"the most bits per weight, up to about eight, of what there is room for: {where}", limits)


def _nothing(estimate: Estimate, machine: Machine) -> str:
    least = min(estimate.rows, key=lambda r: r.memory.total)
    needed, there, what = least.memory.total, machine.ram, "memory"
    if needed <= there:
        least = min(estimate.rows, key=lambda r: r.file_bytes)
        needed, there, what = least.file_bytes, machine.disk or 0, "disk"
    return f"nothing fits: even {least.name} needs {format_size(needed)} of {what}, {format_size(there)} are there"


def streamed_row(estimate: Estimate) -> Row | None:
    """What is worth streaming: the checkpoint as it is, or as published; else the smallest. None where there are no experts."""
    rows = [row for row in estimate.rows if row.experts]
    return next((row for row in rows if row.published), rows[-1] if rows else None)


def _limits(estimate: Estimate, machine: Machine) -> tuple[str, ...]:
    """For memory, card and disk: what of eight bits or more does not fit (or the least that does not), and what does."""
    kinds: list[tuple[int | None, Callable[[Row], int], str]] = [
        (machine.ram, lambda r: r.memory.total, "{} of memory do not hold it"),
        (machine.vram, lambda r: r.memory.on_device, "no {} card holds it"),
        (machine.disk, lambda r: r.file_bytes, "{} of free disk do not hold it"),
    ]
    found = []
    for there, size, phrase in kinds:
        if there is None:
            continue
        over = sorted((r for r in estimate.rows if size(r) > there), key=size)
        under = sorted((r for r in estimate.rows if size(r) <= there), key=lambda r: (r.published, size(r)))
        if over:
            row = next((r for r in over if r.bits_per_weight >= EIGHT_BITS), over[0])
            line = f"{estimate.model} in {row.name} needs {format_size(size(row))}: {phrase.format(format_size(there))}"
            found.append(line + (f"; {under[-1].name} needs {format_size(size(under[-1]))}" if under else ""))
    return tuple(found)


# ---- as JSON --------------------------------------------------------------------------------------------------------


def to_record(estimate: Estimate, machine: Machine, choice: Choice) -> dict[str, Any]:
    """All of it, in bytes, bytes per second and tokens per second."""
    return {
        "model": estimate.model,
        "model_type": estimate.architecture.model_type,
        "context": estimate.use.context,
        "batch": estimate.use.batch,
        "kv_cache": estimate.use.cache,
        "machine": {
            "ram_bytes": machine.ram,
            "vram_bytes": machine.vram,
            "disk_bytes": machine.disk,
            "bandwidth_bytes_per_second": machine.bandwidth,
            "threads": machine.threads,
            "detected": sorted(machine.detected),
        },
        "rows": [_row_record(row, machine) for row in estimate.rows],
        "impossible": [{"name": name, "reason": reason} for name, reason in estimate.impossible],
        "choice": {"name": choice.row and choice.row.name, "reason": choice.reason, "limits": list(choice.limits)},
    }


def _row_record(row: Row, machine: Machine) -> dict[str, Any]:
    return {
        "name": row.name,
        "published": row.published,
        "container": row.container,
        "file_bytes": row.file_bytes,
        "bits_per_weight": row.bits_per_weight,
        "memory": {**vars(row.memory), "total": row.memory.total, "on_device": row.memory.on_device},
        "fits_ram": machine.memory_verdict(row.memory.total),
        "fits_vram": machine.device_verdict(row.memory.on_device) or None,
        "fits_disk": machine.disk_holds(row.file_bytes),
        "bytes_per_token": list(row.token_bytes),
        "tokens_per_second": list(row.speed(machine.bandwidth)) if machine.bandwidth else None,
        "tensors_in_another_format": row.noted,
    }
