"""The checkpoints of a comparison: what identifies them, and making them of one model."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oss_tools.checkpoints import templates
from oss_tools.convert import pipeline as conversion
from oss_tools.convert.plan import Plan, make_plan
from oss_tools.convert.recipe import Recipe, load_recipe, recipe_names, recipe_of_format
from oss_tools.errors import BadRecipe
from oss_tools.harness.run import fingerprint
from oss_tools.models import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Member:
    """A checkpoint that takes part.

    Attributes:
        name: unique in the comparison.
        recipe: what made it; "" for one that was there.
        identity: hash of its tensors' files, configuration, tokenizer and chat template: all that results depend on.
        sha256, size: of the files that hold its tensors; bytes.
        formats: values by number format.
    """

    name: str
    path: Path
    recipe: str
    identity: str
    sha256: str
    size: int
    container: str
    formats: dict[str, int]
    parameters: int
    tensor_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.tensor_bytes / self.parameters


def member(name: str, path: Path, recipe: str = "") -> Member:
    """What a checkpoint is. Reads all its bytes once. Raises BadCheckpoint."""
    with open_checkpoint(path) as checkpoint:
        files = checkpoint.reader.files()
        sha256 = str(fingerprint(files)["sha256"])
        formats: Counter[str] = Counter()
        for entry in checkpoint.entries.values():
            formats[entry.format.name] += entry.spec.size
        return Member(
            name,
            path,
            recipe,
            hashlib.sha256(f"{sha256} {_speech(checkpoint)}".encode()).hexdigest(),
            sha256,
            sum(file.stat().st_size for file in files),
            checkpoint.container,
            dict(formats.most_common()),
            checkpoint.parameters,
            checkpoint.nbytes,
        )


def _speech(checkpoint: Checkpoint) -> str:
    """All beside tensors on which answers depend."""
    data = checkpoint.metadata()
    parts = (data.config, data.tokenizer, data.tokenizer_config, data.generation_config, templates.by_name(data))
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def recipe_called(name: str) -> Recipe:
    """A recipe's name, its YAML file, or a number format. Raises BadRecipe."""
    if name.endswith((".yaml", ".yml")) or name in recipe_names():
        return load_recipe(name)
    return recipe_of_format(name)


def make(
    source: Path, recipe: Recipe, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """A checkpoint made of `source` by a recipe, under its name in a folder: in Hugging Face's layout, or, where that cannot
    hold a format, as GGUF. A broken-off conversion is taken up. Raises OssToolsError."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(source) as checkpoint:
        plan, target = plan_of(checkpoint, recipe, folder)
        total = plan.source_bytes + sum(step.target.nbytes for step in plan.steps)
        done = 0

        def advance(stage: str, tensor: str, nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(done, total)

        broken_off = target.with_name(target.name + ".partial").exists()
        try:
            conversion.run(plan, target, conversion.Options(resume=broken_off, overwrite=True), advance)
        except BadRecipe:
            if not broken_off:
                raise
            conversion.run(plan, target, conversion.Options(overwrite=True), advance)  # what was begun was another plan
    return target


def plan_of(checkpoint: Checkpoint, recipe: Recipe, folder: Path) -> tuple[Plan, Path]:
    """How it is made, and where it will lie. Raises BadRecipe, BadTensor."""
    try:
        plan = make_plan(checkpoint, "hf", recipe)
    except BadRecipe:
        plan = make_plan(checkpoint, "gguf", recipe)
    return plan, folder / (f"{recipe.name}.gguf" if plan.container == "gguf" else recipe.name)
