"""Checkpoints of random weights in a named shape: any size, any format, made at the speed of the disk.

A value depends on the seed, its tensor's name and its place alone, so the bytes do not depend on threads or chunks. Weights
are scaled by 1 / sqrt(inputs), those that write to the residual stream by 1 / sqrt(2 · layers) more; so activations
stay near 1.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from oss_tools.checkpoints import Contents, Metadata, StoredTensor, Writer, writer_for
from oss_tools.checkpoints.files import read_text
from oss_tools.checkpoints.tokenizers.byte_tokenizer import byte_tokenizer
from oss_tools.checkpoints.yaml_files import read_yaml
from oss_tools.convert.drawing import draw, is_router
from oss_tools.convert.output import (
    check_name,
    check_room,
    check_shard_size,
    claimed,
    clear,
    existing,
    give_names,
    said_of,
    stem_of,
)
from oss_tools.convert.recipe import KEEP, Recipe, load_recipe
from oss_tools.convert.routers import ROUTERS
from oss_tools.convert.steps import choose_format
from oss_tools.convert.threads import Stop, in_threads
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.formats import Format, QTensor, get_format
from oss_tools.guesses import none_named
from oss_tools.models import Architecture, TensorSpec, architecture_of
from oss_tools.models.base import READY
from oss_tools.models.entries import Entry, chunks, stored_tensors
from oss_tools.models.rows import write_rows
from oss_tools.resources import resource

MAX_BYTES = 1 << 20  # of a shape's file


@dataclass(frozen=True)
class Shape:
    """A model without weights: a name, Hugging Face's config.json, and the recipe that says its formats."""

    name: str
    config: dict[str, Any]
    recipe: str
    description: str = ""

    def with_layers(self, layers: int) -> Shape:
        """The same shape with another number of layers."""
        config = self.config | {"n_layer" if "n_layer" in self.config else "num_hidden_layers": layers}
        kinds = config.get("layer_types")
        if kinds:
            config["layer_types"] = [kinds[layer % len(kinds)] for layer in range(layers)]
        return replace(self, config=config)


@dataclass(frozen=True)
class Synthesis:
    """What `synthesize` will write, decided before the first byte.

    Attributes:
        architecture: the model.
        container: the container's name.
        entries: tensors with their formats and places in the container.
        notes: (tensor, why it does not get the format that the recipe asked for).
        shape: what it is a model of.
        seed: of all random numbers.
        router: of `ROUTERS`: whether all experts are chosen equally often.
    """

    architecture: Architecture
    container: str
    entries: tuple[Entry, ...]
    notes: tuple[tuple[str, str], ...]
    shape: Shape
    seed: int
    router: str = "even"

    @cached_property
    def metadata(self) -> Metadata:
        """Configuration, tokenizer and companions."""
        return _metadata(self.shape, self.architecture)

    @property
    def derived(self) -> dict[str, np.ndarray]:
        return self.architecture.derived_tensors(self.container)

    @property
    def stored(self) -> list[StoredTensor]:
        """Everything the files will hold, in order."""
        derived = [StoredTensor(name, get_format("f32"), values.shape) for name, values in self.derived.items()]
        return stored_tensors(list(self.entries)) + derived

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return sum(tensor.nbytes for tensor in self.stored)


def shape_names() -> list[str]:
    """The shapes that travel with the program."""
    return sorted(path.stem for path in resource("configs/models").glob("*.yaml"))


def load_shape(name: str | Path) -> Shape:
    """A shape by its name in configs/models, by a .yaml file of that kind, or by a config.json. Raises BadCheckpoint."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".json"):
        path = resource("configs/models") / f"{name}.yaml"
        if not path.exists():
            raise BadCheckpoint(f"{none_named('shape', str(name), shape_names())}; or give a config.json")
    if path.suffix == ".json":
        try:
            config = json.loads(read_text(path, MAX_BYTES))
        except (ValueError, RecursionError) as error:
            raise BadCheckpoint(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
        content = {"name": path.absolute().parent.name, "config": config}
    else:
        content = read_yaml(path, limit=MAX_BYTES)
    config = content.get("config") if isinstance(content, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BadCheckpoint(f"{path}: holds no model configuration with a model_type")
    config = {k: v for k, v in config.items() if k != "quantization_config"}
    usual = "mxfp4" if config["model_type"] == "gpt_oss" else "bf16"
    return Shape(
        str(content.get("name", path.stem)), config, str(content.get("recipe", usual)), str(content.get("description", ""))
    )


def plan_synthesis(
    shape: Shape, container: str, recipe: Recipe | None = None, seed: int = 0, router: str = "even"
) -> Synthesis:
    """Decides every tensor's format and place. What the recipe keeps is bf16, or f32 where the container wants it.

    Raises BadCheckpoint for an impossible shape, BadRecipe or BadTensor where the recipe cannot be followed.
    """
    if router not in ROUTERS:
        raise BadRecipe(none_named("router", router, ROUTERS))
    architecture = architecture_of(shape.config["model_type"]).from_config("hf", shape.config)
    if router != "even":
        check_experts(shape.name, architecture)
    if container not in (*architecture.containers, READY):
        raise BadRecipe(f"container {container} has no layout for {architecture.model_type}")
    recipe = recipe or load_recipe(shape.recipe)
    entries, notes = [], []
    specs = [spec for spec in architecture.tensors() if not (spec.optional and spec.role == "output")]  # else tied
    recipe = recipe.for_model(specs)
    writer = writer_for(container)
    for spec in specs:
        format, note = _format(spec, recipe, writer, architecture.model_type)
        placements = architecture.places(container, spec, format.is_float)
        entries.append(Entry(spec, format, tuple(placements)))
        if note:
            notes.append((spec.name, note))
    return Synthesis(architecture, container, tuple(entries), tuple(notes), shape, seed, router)


def check_experts(name: str, architecture: Architecture) -> None:
    """Raises BadRecipe if no router of this model can prefer some experts: there are none, or a token goes to half of them."""
    experts = next((spec.matrices[1] for spec in architecture.tensors() if is_router(spec)), 0)
    if not experts:
        raise BadRecipe(f"{name} has no experts, so no router that could prefer some")
    if 2 * (chosen := int(architecture.computation()["num_experts_per_tok"])) >= experts:
        raise BadRecipe(
            f"{name}: each token goes to {chosen} of {experts} experts; a router prefers some of them only below half"
        )


def _format(spec: TensorSpec, recipe: Recipe, writer: type[Writer], model_type: str) -> tuple[Format, str]:
    """A tensor's format, and a note if it is not the recipe's."""
    rule = recipe.rule_for(spec)
    format, notes = (None, []) if rule.format == KEEP else choose_format(rule, spec, writer, model_type)
    floats = [get_format(name) for name in ("bf16", "f32") if writer.holds(get_format(name), spec.role, model_type)]
    if not floats:
        raise BadRecipe(f"{spec.name}: container {writer.container} has no plain float format for {spec.role}")
    return format or floats[0], "" if spec.is_vector else "; ".join(notes)


def _metadata(shape: Shape, architecture: Architecture) -> Metadata:
    config = architecture.hf_config()
    tokenizer = byte_tokenizer(architecture.model_type, int(config["vocab_size"]))
    if tokenizer is None:
        return Metadata(config, general={"name": shape.name})
    return Metadata(
        config | tokenizer.ids,
        tokenizer=tokenizer.content,
        tokenizer_config=tokenizer.config,
        generation_config=tokenizer.generation,
        general={"name": shape.name},
    )


def synthesize(
    synthesis: Synthesis,
    destination: Path,
    *,
    threads: int = 1,
    shard_size: int | None = None,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> Path:
    """Writes the checkpoint under a temporary name beside the destination, then renames it. Returns its path.

    Args:
        synthesis: what to write.
        destination: a folder, or a .gguf file, that does not exist yet.
        threads: how many draw and write at a time; each holds one chunk in memory.
        shard_size: bytes per file at most, or None for the container's default.
        advance: called, also from threads, with the bytes just written.

    Raises:
        BadRecipe: the destination exists, or has the wrong extension.
        NoRoom: the disk is too small.
    """
    kind = writer_for(synthesis.container)
    check_name(destination, kind)
    check_shard_size(shard_size)
    if taken := existing(destination, kind):
        raise BadRecipe(f"{taken} exists; choose another name, or remove it first")
    check_room(destination, kind.total_bytes(synthesis.stored))
    config = synthesis.architecture.container_config(synthesis.container)
    contents = Contents(stem_of(destination, kind), synthesis.stored, synthesis.metadata, config, shard_size)
    kind.check(contents)
    partial = destination.with_name(f".{destination.name}.synth.partial")
    with claimed(partial, destination):
        clear(partial)  # of what a killed run left
        if taken := existing(destination, kind):  # made since by another process
            shutil.rmtree(partial)
            raise BadRecipe(f"{taken} exists; choose another name, or remove it first")
        try:
            with said_of(destination, partial):
                writer = kind(partial, contents)
                try:
                    _write_all(synthesis, writer, threads, advance)
                    writer.finish()
                finally:
                    writer.close()
            return give_names(partial, destination, kind)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_all(synthesis: Synthesis, writer: Writer, threads: int, advance: Callable[[int], None]) -> None:
    for name, values in synthesis.derived.items():
        column = np.ascontiguousarray(values, np.float32).reshape(-1, 1)
        writer.write(name, 0, QTensor(get_format("f32"), column.shape, {"values": column}))

    def write(entry: Entry, stop: Stop) -> None:
        for matrix, start, end in chunks([entry]):
            stop.check()
            rows = draw(entry, synthesis.architecture, synthesis.seed, matrix, start, end, synthesis.router)
            write_rows(writer, entry, matrix, start, rows)
            advance(rows.nbytes)

    in_threads(write, sorted(synthesis.entries, key=lambda entry: -entry.nbytes), threads)
