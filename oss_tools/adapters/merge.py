"""Adapters and their base as one plan of a conversion."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from oss_tools.adapters.bases import is_named, is_repository, repository_of
from oss_tools.adapters.changes import AdapterUpdate, Change, Replacement, TokenRows
from oss_tools.adapters.gguf import GgufLora
from oss_tools.adapters.peft import PeftAdapter
from oss_tools.adapters.places import Place, Places
from oss_tools.adapters.tensors import AdapterFile
from oss_tools.convert.plan import Plan, make_plan
from oss_tools.convert.recipe import Recipe
from oss_tools.errors import BadCheckpoint, BadRecipe, BadRequest
from oss_tools.models import Checkpoint
from oss_tools.models.entries import Entry

LARGEST_STRENGTH = 1000.0
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


class Adapter(Protocol):
    """An open adapter: a PEFT folder, or a GGUF file."""

    path: Path
    base: str
    sha256: str
    file: AdapterFile
    remarks: list[str]

    def changes(self, places: Places, strength: float) -> Iterable[Change]: ...

    def close(self) -> None: ...


def open_adapter(path: Path) -> Adapter:
    """Opens an adapter, reads and checks all of it but its fit to a model. Raises BadCheckpoint."""
    if path.suffix == ".gguf" or (path.is_dir() and not (path / "adapter_config.json").exists() and _one_gguf(path)):
        return GgufLora(path if path.is_file() or not path.exists() else _one_gguf(path) or path)
    return PeftAdapter(path)


def _one_gguf(folder: Path) -> Path | None:
    """The only GGUF file of a folder."""
    files = sorted(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


@dataclass
class Merge:
    """A base with the changes that adapters make of it.

    Attributes:
        source: the base; with an output of its own where the adapters part it from the embedding.
        updates: canonical name -> what is done to the tensor.
        added, files: the adapters in words, and their files, for the plan.
        remarks: what a user should know, a sentence each.
    """

    source: Checkpoint
    updates: dict[str, AdapterUpdate]
    added: dict[str, str]
    files: tuple[Path, ...]
    remarks: list[str] = field(default_factory=list)

    def plan(self, container: str, recipe: Recipe) -> Plan:
        """The conversion that merges. Raises BadRecipe, BadTensor."""
        plan = make_plan(self.source, container, recipe, self.updates)
        return replace(plan, added=self.added, read_besides=self.files)


def check_apart(destination: Path, adapters: Iterable[Path]) -> None:
    """Raises BadRecipe if the output would lie in, around or over an adapter."""
    target = destination.resolve()
    for path in adapters:
        folder = path.resolve() if path.is_dir() else path.resolve().parent
        if target in (path.resolve(), folder, *folder.parents) or (path.is_dir() and folder in target.parents):
            raise BadRecipe(f"{destination}: the output cannot lie in, around or over the adapter {path}")


def prepare(base: Checkpoint, adapters: Sequence[Adapter], strengths: Sequence[float], *, any_base: bool = False) -> Merge:
    """What merging adapters into a base means, each with its strength (1 is as it was trained).

    `any_base`: merge although the adapters say that they were made for a model of another name. Raises BadCheckpoint, BadRequest.
    """
    for strength in strengths:
        if not math.isfinite(strength) or abs(strength) > LARGEST_STRENGTH:
            raise BadRequest(
                f"--scale {strength}: expected a number from -{LARGEST_STRENGTH:g} to {LARGEST_STRENGTH:g}; 1 is as trained"
            )
    remarks = [] if any_base else _check_bases(base, adapters)
    gathered: dict[str, list[tuple[str, Change]]] = {}
    places: dict[str, Places] = {}
    tied = OUTPUT not in base.entries and EMBEDDING in base.entries
    for adapter, strength in zip(adapters, strengths, strict=True):
        container = "gguf" if isinstance(adapter, GgufLora) else "hf"
        if container not in places:
            places[container] = Places(base.architecture, container)
        own: dict[str, list[Change]] = {}
        for change in adapter.changes(places[container], strength):
            own.setdefault(change.place.spec.name, []).append(change)
        if not own:
            raise BadCheckpoint(f"{adapter.path}: changes nothing: it holds no weights")
        if tied:
            _tie(adapter, own)
        for name, changes in own.items():
            if name in gathered:
                changes = [change for change in changes if not (isinstance(change, Replacement) and change.of_base)]
            if name in gathered and any(isinstance(change, Replacement) for change in changes):
                raise BadCheckpoint(
                    f"{adapter.path}: brings its own {name}, which an adapter before it changes; name it first"
                )
            gathered.setdefault(name, []).extend((adapter.sha256, change) for change in changes)
    source = _untied(base, gathered, remarks) if tied else base
    missing = next((name for name in gathered if name not in source.entries), None)
    if missing:
        raise BadCheckpoint(f"{adapters[0].path}: changes {missing}, which {base.path} does not hold")
    updates = {name: AdapterUpdate(changes) for name, changes in gathered.items()}
    facts = "; ".join(f"{a.sha256} × {s!r}" for a, s in zip(adapters, strengths, strict=True))
    files = tuple(adapter.file.path for adapter in adapters)
    return Merge(source, updates, {"the adapters or their scales": facts}, files, remarks)


def _check_bases(base: Checkpoint, adapters: Iterable[Adapter]) -> list[str]:
    """Remarks on adapters that may be another model's by its name. Raises BadRequest where that is certain."""
    remarks = []
    for adapter in adapters:
        wanted = adapter.base[:200]
        if not wanted or is_named(base, wanted):
            continue
        if (repository := repository_of(base.path)) and is_repository(wanted):
            raise BadRequest(
                f"{adapter.path}: was made for {wanted}, the base is {repository}; --any-base merges it nevertheless"
            )
        remarks.append(f"{adapter.path}: was made for {wanted}; nothing says that {base.path} is that model")
    return remarks


# ---- tied embeddings ------------------------------------------------------------------------------------------------


def _tie(adapter: Adapter, own: dict[str, list[Change]]) -> None:
    """Makes one of what an adapter says of both ends of a tie, where it means both."""
    both = isinstance(adapter, PeftAdapter) and adapter.config.tied
    tokens = all(isinstance(change, TokenRows) for change in own.get(EMBEDDING, []))  # PEFT trains tokens of both ends
    if EMBEDDING in own and (both or tokens):
        output = own.pop(OUTPUT, [])
        if output and not both:
            raise BadCheckpoint(
                f"{adapter.path}: trains tokens and the output, which is the same table in the base; not supported"
            )
        own[OUTPUT] = [_moved(change) for change in own[EMBEDDING]]


def _moved(change: Change) -> Change:
    """A change of the embedding as one of the output, whose rows are the same."""
    moved = copy.copy(change)
    spec = replace(change.place.spec, name=OUTPUT, role="output")
    moved.place = Place(spec, replace(change.place.placement, stored=OUTPUT))
    return moved


def _untied(base: Checkpoint, gathered: dict[str, list[tuple[str, Change]]], remarks: list[str]) -> Checkpoint:
    """The base, tied or not any more, as what is changed of the embedding and of the output demands."""
    ends = [[(adapter, change.identity) for adapter, change in gathered.get(name, [])] for name in (EMBEDDING, OUTPUT)]
    if ends[0] == ends[1]:
        gathered.pop(OUTPUT, None)
        return base
    remarks.append(
        "the adapter changes the embedding and the output unlike, which were one table: they are two in what is made"
    )
    parted = copy.copy(base)
    config = base.architecture.hf_config() | {"tie_word_embeddings": False}
    parted.architecture = type(base.architecture).from_config("hf", config)
    parted.architecture.remarks = base.architecture.remarks
    spec = next(spec for spec in parted.architecture.tensors() if spec.name == OUTPUT)
    embedding = base.entries[EMBEDDING]
    parted.entries = base.entries | {OUTPUT: Entry(spec, embedding.format, embedding.placements, embedding.mixed)}
    return parted
