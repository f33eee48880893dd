"""Runs a plan: streams every tensor into files under a temporary folder, proves them, and gives them their names.

Memory stays flat: a worker holds one chunk of one tensor. A run that is killed leaves `DST.partial` with a journal of the
tensors that are complete; the next run with the same plan reads their sources again, holds them against the journal's hashes,
goes on behind them and ends with the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from numba_kernels.parallel import cores
from oss_tools.checkpoints import Writer, open_container, writer_for
from oss_tools.convert.journal import JOURNAL, Journal, check_sources, facts
from oss_tools.convert.manifest import Manifest, TensorHash
from oss_tools.convert.options import Options as Options
from oss_tools.convert.options import Progress as Progress
from oss_tools.convert.output import claimed, clear, existing, give_names, manifest_in, partial_of, said_of
from oss_tools.convert.plan import Plan
from oss_tools.convert.preflight import check, contents_of, finished, interrupted, is_complete, left_behind
from oss_tools.convert.readback import ReadBack
from oss_tools.convert.steps import Step
from oss_tools.convert.threads import Stop, in_threads
from oss_tools.convert.writing import write_tensors
from oss_tools.errors import BadCheckpoint, BadRecipe, NoRoom, OssToolsError, VerificationFailed
from oss_tools.formats import QTensor, get_format
from oss_tools.models import Checkpoint
from oss_tools.models.entries import chunks

ROUNDED = "rounded"  # what was rounded before the plan was carried out, in the temporary folder


def run(plan: Plan, destination: Path, options: Options, progress: Progress = lambda *_: None) -> Manifest:
    """Checks all that can be checked, carries a plan out and returns the manifest that then lies beside the output.

    Raises OssToolsError; whatever happens, nothing incomplete has the destination's name, and the source is untouched.
    """
    check(plan, destination, options)
    return finished(plan, destination, options, progress) or write(plan, destination, options, progress)


def write(plan: Plan, destination: Path, options: Options, progress: Progress = lambda *_: None) -> Manifest:
    """Carries a plan out that has been checked.

    An interrupt, a full disk or a source that cannot be read leaves `DST.partial`, on which `resume` goes on. A run that would
    be refused again leaves nothing.
    """
    partial, kind = partial_of(destination), writer_for(plan.container)
    with claimed(partial, destination) as made:
        taken = existing(destination, kind)
        if taken and not options.overwrite and not is_complete(partial, destination, kind):  # made since by another process
            if made:
                shutil.rmtree(partial)
            raise BadRecipe(f"{taken} exists; choose another name, or --overwrite")
        if not made and not options.resume:
            if left_behind(partial) and not options.overwrite:
                raise interrupted(partial)
            clear(partial)
        try:
            with said_of(destination, partial), _to_be_resumed():
                manifest = _write(plan, destination, partial, options, progress)
        except OssToolsError as error:
            if isinstance(error, VerificationFailed) or ((made or not options.resume) and _is_final(error)):
                shutil.rmtree(partial)
            raise
        with said_of(destination, partial), _to_be_resumed():
            _finish(plan, destination, partial, manifest)
    return manifest


@contextmanager
def _to_be_resumed() -> Iterator[None]:
    """Says of a full disk how to go on once it has room again."""
    try:
        yield
    except NoRoom as error:
        raise NoRoom(f"{error}, then go on with --resume") from None


def _is_final(error: OssToolsError) -> bool:
    """Whether the same command would be refused again: the input is at fault, not a disk or a network."""
    return error.exit_status == 2 and not isinstance((error.__cause__ or error).__context__, OSError)


# ---- writing --------------------------------------------------------------------------------------------------------


def _write(plan: Plan, destination: Path, partial: Path, options: Options, progress: Progress) -> Manifest:
    kind = writer_for(plan.container)
    if options.resume and is_complete(partial, destination, kind):
        manifest = Manifest.read(manifest_in(partial, destination, kind))
        check_sources(plan, manifest.tensors, options.jobs, f"{destination}:", progress)
        return manifest
    shared = facts(plan, options)
    journal = Journal(partial / JOURNAL, shared, options.resume)
    try:
        check_sources(plan, journal.records.values(), options.jobs, f"{destination}:", progress)
        if options.rounding:
            options.rounding.prepare(plan, partial / ROUNDED, journal.records.keys(), options, progress)
        files, proven = _write_files(plan, destination, partial, journal, options, progress)
        manifest = Manifest(
            source=plan.source.path.name.encode("utf-8", "replace").decode(),
            source_container=plan.source.container,
            container=plan.container,
            model_type=plan.source.architecture.model_type,
            recipe=_recipe_record(plan),
            tensors=[journal.records[step.name] for step in plan.steps],
            plan=shared,
        )
        if options.verify:
            _verify(plan, manifest, files, proven, options, progress)
        if options.rounding:
            shutil.rmtree(partial / ROUNDED, ignore_errors=True)
    finally:
        journal.close()
    return manifest


def _write_files(
    plan: Plan, destination: Path, partial: Path, journal: Journal, options: Options, progress: Progress
) -> tuple[list[Path], set[str]]:
    """Writes what the journal does not have; returns the files, and the names of the tensors that were read back meanwhile and
    are as they were meant."""
    kind, back = writer_for(plan.container), None
    before = _states(plan)
    writer = kind(partial, contents_of(plan, destination, options))
    try:
        _write_derived(plan, writer)
        back = ReadBack.of(plan, writer.readable(), progress) if options.verify else None
        write_tensors(plan, writer, journal, options, progress, back)
        if changed := [file for file, state in _states(plan).items() if before.get(file, state) != state]:
            raise BadCheckpoint(f"{changed[0][0]}: was changed while it was read; start anew with --overwrite")
        return writer.finish(), back.close() if back else set()
    finally:
        if back:
            back.close()
        writer.close()


def _states(plan: Plan) -> dict[tuple[Path, int], tuple[int, int]]:
    """Of the files that are read and still there under their names: (path, inode) -> (size, time of the last change)."""
    states = {file: file.stat() for file in (*plan.source.reader.files(), *plan.read_besides) if file.exists()}
    return {(file, state.st_ino): (state.st_size, state.st_mtime_ns) for file, state in states.items()}


def _write_derived(plan: Plan, writer: Writer) -> None:
    f32 = get_format("f32")
    for name, values in plan.derived.items():
        column = np.ascontiguousarray(values, np.float32).reshape(-1, 1)
        writer.write(name, 0, QTensor(f32, column.shape, {"values": column}))


# ---- proving --------------------------------------------------------------------------------------------------------


def _verify(
    plan: Plan, manifest: Manifest, files: list[Path], proven: set[str], options: Options, progress: Progress
) -> None:
    """Reads the finished files back, but for the tensors that were `proven` already, through the same readers that any user of
    them has, and compares hashes."""
    opened = files[0] if writer_for(plan.container).extension else files[0].parent
    wanted = {record.name: record.hash for record in manifest.tensors}
    with Checkpoint(open_container(opened)) as written:

        def check(step: Step, stop: Stop) -> None:
            entry = written.entries[step.name]
            found = TensorHash.like(wanted[step.name], entry.format, entry.spec.shape)
            for chunk in chunks([entry]):
                stop.check()
                rows = written.read(step.name, *chunk)
                found.update(rows)
                progress("verify", step.name, (chunk[2] - chunk[1]) * entry.format.bytes_per_row(rows.columns))
            if found.result() != wanted[step.name]:
                raise VerificationFailed(
                    f"{step.name}: the bytes on disk are not those that were written; is the disk sound?"
                )

        rest = [step for step in plan.steps if step.name not in proven]
        in_threads(check, sorted(rest, key=lambda step: -step.target.nbytes), options.jobs or cores())


# ---- the end --------------------------------------------------------------------------------------------------------


def _recipe_record(plan: Plan) -> dict:
    recipe = plan.recipe
    return {
        "name": recipe.name,
        "rules": [{k: v for k, v in asdict(rule).items() if v} for rule in recipe.rules],
        "modules_to_not_convert": list(recipe.modules_to_not_convert),
    }


def _finish(plan: Plan, destination: Path, partial: Path, manifest: Manifest) -> None:
    """Puts the manifest beside the finished files and gives all of them their names."""
    kind = writer_for(plan.container)
    manifest.write(manifest_in(partial, destination, kind))
    (partial / JOURNAL).unlink(missing_ok=True)
    give_names(partial, destination, kind)
