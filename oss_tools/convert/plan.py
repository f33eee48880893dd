"""The plan of a conversion: every tensor's source and target format, places and bytes, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.checkpoints import Metadata, StoredTensor, writer_for
from oss_tools.convert.recipe import Recipe
from oss_tools.convert.steps import Step, make_steps
from oss_tools.convert.updates import Update
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.formats import get_format
from oss_tools.models import Checkpoint
from oss_tools.models.base import READY
from oss_tools.models.entries import stored_tensors


@dataclass(frozen=True)
class Plan:
    """A conversion, ready to run.

    Attributes:
        source: the open checkpoint.
        container: the target container's name.
        recipe: what was asked for.
        steps: one per tensor, in the architecture's order.
        derived: float32 tensors that the target container wants besides, by stored name.
        added: what is merged into the source, in words: what it is -> its value, or its hash.
        read_besides: files that are read besides the source's.
    """

    source: Checkpoint
    container: str
    recipe: Recipe
    steps: tuple[Step, ...]
    derived: dict[str, np.ndarray]
    added: Mapping[str, str] = field(default_factory=dict)
    read_besides: tuple[Path, ...] = ()

    @cached_property
    def metadata(self) -> Metadata:
        """Configuration, tokenizer, templates and companions of the source, read once. Raises BadCheckpoint."""
        return self.source.metadata()

    @cached_property
    def container_config(self) -> dict[str, Any]:
        """The configuration in the target container's terms. Raises BadCheckpoint where it has no words for it."""
        return self.source.architecture.container_config(self.container)

    @property
    def stored(self) -> list[StoredTensor]:
        """Everything the target's files will hold, in order."""
        derived = [StoredTensor(name, get_format("f32"), values.shape) for name, values in self.derived.items()]
        return stored_tensors([step.target for step in self.steps]) + derived

    @property
    def source_bytes(self) -> int:
        return sum(step.source.nbytes for step in self.steps)

    @property
    def target_bytes(self) -> int:
        return writer_for(self.container).total_bytes(self.stored)

    @property
    def lossless(self) -> bool:
        return all(step.lossless for step in self.steps)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know about this model in the target's container, a sentence each."""
        return self.source.architecture.container_remarks(self.container)

    @property
    def rounded_before(self) -> list[str]:
        """The number formats in which the source holds tensors that this plan rounds: they were rounded once already."""
        rounded = [step.source for step in self.steps if step.rounds]
        formats = {f.name: None for entry in rounded for f in entry.mixed or (entry.format,) if not f.is_float}
        return list(formats)

    def by_role(self) -> list[PlanRow]:
        """The plan in short: one row for each combination of role, source format, target format and note."""
        rows: dict[tuple[str, str, str, str, str], PlanRow] = {}
        for step in self.steps:
            source = "+".join(f.name for f in step.source.mixed) or step.source.format.name
            key = (step.source.spec.role, source, step.target.format.name, step.action, step.note)
            row = rows.get(key, PlanRow(*key, tensors=0, source_bytes=0, target_bytes=0))
            rows[key] = replace(
                row,
                tensors=row.tensors + 1,
                source_bytes=row.source_bytes + step.source.nbytes,
                target_bytes=row.target_bytes + step.target.nbytes,
            )
        return list(rows.values())


@dataclass(frozen=True)
class PlanRow:
    """Tensors of one role that the plan treats alike."""

    role: str
    source_format: str
    target_format: str
    action: str
    note: str
    tensors: int
    source_bytes: int
    target_bytes: int


def make_plan(
    source: Checkpoint,
    container: str,
    recipe: Recipe,
    updates: Mapping[str, Update] | None = None,
) -> Plan:
    """Decides every tensor's format and place. Raises BadRecipe or BadTensor where the recipe cannot be followed.

    `updates`: what is added to tensors before they are rounded, by canonical name.
    """
    architecture = source.architecture
    if container not in (possible := (*architecture.containers, READY)):
        raise BadRecipe(
            f"container {container} has no layout for {architecture.model_type}; possible: {', '.join(possible)}"
        )
    try:
        architecture.container_config(container)
    except BadCheckpoint as error:
        raise BadRecipe(f"{source.path}: {error}") from None
    recipe = recipe.for_model(entry.spec for entry in source.entries.values())
    steps = make_steps(source, container, recipe, updates or {})
    plan = Plan(source, container, recipe, steps, architecture.derived_tensors(container))
    if recipe.no_fallback:
        refuse_fallbacks(plan)
    return plan


def refuse_fallbacks(plan: Plan) -> None:
    """Raises BadRecipe if a tensor does not get what the recipe says."""
    rows = [row for row in plan.by_role() if row.note]
    if rows:
        found = "; ".join(f"{row.tensors} × {row.role} would be in {row.target_format} ({row.note})" for row in rows[:3])
        more = f"; and {len(rows) - 3} more roles" if len(rows) > 3 else ""
        raise BadRecipe(f"no fallback is allowed, but {found}{more}; name these roles in a recipe's rules")
