"""All that can be refused before the first byte is written: names, places, room, what the container has no words for.

A dry run makes the same checks. None of them writes.
"""

from __future__ import annotations

import os
from pathlib import Path

from oss_tools.checkpoints import Contents, Writer, open_container, writer_for
from oss_tools.convert.journal import JOURNAL, check_journal, check_sources, difference, facts
from oss_tools.convert.manifest import Manifest, manifest_path
from oss_tools.convert.options import Options, Progress
from oss_tools.convert.output import (
    LOCK,
    check_name,
    check_room,
    check_shard_size,
    existing,
    in_use,
    manifest_in,
    partial_of,
    parts,
    replaced,
    stem_of,
    taken_by_another,
)
from oss_tools.convert.plan import Plan
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.models import Checkpoint


def check(plan: Plan, destination: Path, options: Options) -> None:
    """Raises BadRecipe, BadCheckpoint or NoRoom where the run would, but for what only the tensors' values can say."""
    kind = writer_for(plan.container)
    check_name(destination, kind)
    _check_source(plan, destination, kind)
    check_shard_size(options.shard_size)
    kind.check(contents_of(plan, destination, options))
    partial = partial_of(destination)
    if in_use(partial):
        raise taken_by_another(destination)
    _check_interrupted(plan, destination, partial, kind, options)
    _check_taken(plan, destination, partial, kind, options)
    done = sum(f.stat().st_blocks * 512 for f in partial.rglob("*") if f.is_file()) if options.resume else 0
    scratch = options.rounding.scratch_bytes(plan) if options.rounding else 0
    check_room(destination, plan.target_bytes + scratch - done)


def contents_of(plan: Plan, destination: Path, options: Options) -> Contents:
    """What is laid out for a plan."""
    name = stem_of(destination, writer_for(plan.container))
    return Contents(name, plan.stored, plan.metadata, plan.container_config, options.shard_size)


def _check_source(plan: Plan, destination: Path, kind: type[Writer]) -> None:
    source = plan.source.path.resolve()
    around = destination.resolve() in (source, *source.parents) or source in destination.resolve().parents
    files = {file.resolve() for file in plan.source.reader.files()}
    if around or files & {part.resolve() for part in parts(destination, kind)}:
        raise BadRecipe(f"{destination}: the output cannot lie in, around or over the source {plan.source.path}")


def left_behind(partial: Path) -> set[str]:
    """The names of what a run left in its temporary folder; empty if nothing is lost with it."""
    return {path.name for path in partial.iterdir()} - {LOCK} if partial.is_dir() else set()


def is_complete(partial: Path, destination: Path, kind: type[Writer]) -> bool:
    """Whether a run was killed when all was written and proven, while the files got their names."""
    return manifest_in(partial, destination, kind).exists() and not (partial / JOURNAL).exists()


def _check_interrupted(plan: Plan, destination: Path, partial: Path, kind: type[Writer], options: Options) -> None:
    left = left_behind(partial)
    if os.path.lexists(partial) and not partial.is_dir():
        raise BadRecipe(f"{partial} is in the way; move it, or choose another name")
    if not left:
        return
    complete = is_complete(partial, destination, kind)
    if JOURNAL not in left and not complete:
        raise BadRecipe(f"{partial} is in the way and holds no interrupted run; move it, or choose another name")
    if not (options.resume or options.overwrite):
        raise interrupted(partial)
    if options.resume and complete:
        _check_same(plan, options, Manifest.read(manifest_in(partial, destination, kind)), f"{partial}: the finished run")
    elif options.resume:
        check_journal(partial / JOURNAL, facts(plan, options))


def interrupted(partial: Path) -> BadRecipe:
    return BadRecipe(f"{partial} holds an interrupted run; --resume finishes it, --overwrite starts anew")


def _check_taken(plan: Plan, destination: Path, partial: Path, kind: type[Writer], options: Options) -> None:
    taken = existing(destination, kind)
    if not taken or (options.resume and kind.extension and is_complete(partial, destination, kind)):
        return
    if options.resume and not left_behind(partial) and not options.overwrite:
        path = manifest_path(destination)
        if not path.exists():
            raise BadRecipe(
                f"{taken} exists and has no manifest that says of what it was made; choose another name, or --overwrite"
            )
        _check_same(plan, options, Manifest.read(path), f"{taken} is finished, but")
    elif not options.overwrite:
        raise BadRecipe(f"{taken} exists; choose another name, or --overwrite")
    elif taken.is_dir() and not _is_ours(taken):
        raise BadRecipe(f"{taken} is a folder that holds no checkpoint; it will not be overwritten")
    elif taken.is_dir() != (kind.extension == ""):
        raise BadRecipe(f"{taken} is a {'folder' if taken.is_dir() else 'file'}; it will not be overwritten")
    elif not kind.extension and os.path.lexists(replaced(destination)):
        raise BadRecipe(f"{replaced(destination)} is in the way: an old output, left by a killed run; move or remove it")


def _is_ours(folder: Path) -> bool:
    """Whether a folder is empty or a checkpoint, so that replacing it is what was meant."""
    return not any(folder.iterdir()) or (folder / "config.json").exists()


def _check_same(plan: Plan, options: Options, manifest: Manifest, what: str) -> None:
    if not manifest.plan:
        raise BadRecipe(f"{what} its manifest, of an older version, does not say by which plan; --overwrite starts anew")
    if differs := difference(facts(plan, options), manifest.plan, of_version=False):
        raise BadRecipe(f"{what} differs in {differs}; choose another name, or --overwrite")


def finished(plan: Plan, destination: Path, options: Options, progress: Progress = lambda *_: None) -> Manifest | None:
    """The manifest of a run that is to be resumed and is finished already; None if there is something left to do.

    The source is read and hashed, and the output's headers are held against the manifest. To be called behind `check`. Raises
    BadRecipe if the source has changed since, BadCheckpoint if the output has.
    """
    taken = existing(destination, writer_for(plan.container))
    if not taken or not options.resume or options.overwrite or left_behind(partial_of(destination)):
        return None
    manifest = Manifest.read(manifest_path(destination))
    with Checkpoint(open_container(taken)) as made:
        wanted = {record.name: record.format for record in manifest.tensors}
        if {name: entry.format.name for name, entry in made.entries.items()} != wanted:
            raise BadCheckpoint(f"{taken}: its tensors are not those of its manifest; --overwrite makes it anew")
    check_sources(plan, manifest.tensors, options.jobs, f"{taken} is finished, but", progress)
    return manifest
