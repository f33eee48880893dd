"""Runs a plan: streams every tensor into files under a temporary folder, proves them, and gives them their names.

Memory stays flat: a worker holds one chunk of one tensor. A run that is killed leaves `DST.partial` with a journal of the
tensors that are complete; the next run with the same plan reads their sources again, holds them against the journal's hashes,
goes on behind them and ends with the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from numba_kernels.parallel import cores
from oss_tools.checkpoints import Writer, open_container, writer_for
from oss_tools.convert.journal import JOURNAL, Journal, check_sources, facts
from oss_tools.convert.manifest import Manifest, TensorHash, TensorRecord
from oss_tools.convert.options import Options as Options
from oss_tools.convert.options import Progress as Progress
from oss_tools.convert.output import claimed, clear, existing, give_names, manifest_in, partial_of, said_of
from oss_tools.convert.plan import Plan, Step
from oss_tools.convert.preflight import check, finished, interrupted, is_complete, left_behind, output_name
from oss_tools.convert.rounding import ErrorSums, round_rows, updated
from oss_tools.convert.threads import Stop, in_threads
from oss_tools.convert.updates import KeptSums
from oss_tools.errors import BadCheckpoint, BadRecipe, NoRoom, OssToolsError, VerificationFailed
from oss_tools.formats import QTensor, get_format
from oss_tools.models import Checkpoint
from oss_tools.models.checkpoint import chunks, write_rows


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
            with said_of(destination, partial):
                manifest = _write(plan, destination, partial, options, progress)
        except OssToolsError as error:
            if isinstance(error, VerificationFailed) or ((made or not options.resume) and _is_final(error)):
                shutil.rmtree(partial)
            raise
        _finish(plan, destination, partial, manifest)
    return manifest


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
        files = _write_files(plan, destination, partial, journal, options, progress)
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
            _verify(plan, manifest, files, options, progress)
    except NoRoom as error:
        raise NoRoom(f"{error}, then go on with --resume") from None
    finally:
        journal.close()
    return manifest


def _write_files(
    plan: Plan, destination: Path, partial: Path, journal: Journal, options: Options, progress: Progress
) -> list[Path]:
    """Writes what the journal does not have; returns the files."""
    kind = writer_for(plan.container)
    before = _states(plan)
    writer = kind(
        partial,
        output_name(destination, kind),
        plan.stored,
        plan.metadata,
        plan.container_config,
        shard_size=options.shard_size,
    )
    try:
        _write_derived(plan, writer)
        _write_tensors(plan, writer, journal, options, progress)
        if changed := [file for file, state in _states(plan).items() if before.get(file, state) != state]:
            raise BadCheckpoint(f"{changed[0][0]}: was changed while it was read; start anew with --overwrite")
        return writer.finish()
    finally:
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


def _write_tensors(plan: Plan, writer: Writer, journal: Journal, options: Options, progress: Progress) -> None:
    """Largest tensors first, so that no worker is left alone with a large one at the end."""
    steps = sorted(plan.steps, key=lambda step: -step.source.nbytes)
    pending = [step for step in steps if step.name not in journal.records]
    workers = options.jobs or cores()
    in_threads(lambda step, stop: journal.add(_write_tensor(plan, step, writer, options, progress, stop)), pending, workers)


def _write_tensor(plan: Plan, step: Step, writer: Writer, options: Options, progress: Progress, stop: Stop) -> TensorRecord:
    spec = step.source.spec
    before, after = TensorHash(step.source.format, spec.shape), TensorHash(step.target.format, spec.shape)
    sums, kept = ErrorSums(), KeptSums()
    if step.update:
        step.update.prepare(lambda: _base(plan, step))
    amax = _largest(plan, step) if step.target.format.needs_amax and not step.moves else None
    for matrix, start, end in chunks([step.source, step.target]):
        stop.check()
        rows = plan.source.read(spec.name, matrix, start, end)
        before.update(rows)
        if not step.moves:
            base = rows
            rows = updated(step, base, matrix, start)
            merged = rows
            rows = round_rows(step, rows, _importance(options, step, matrix), amax, options.on_nonfinite, sums)
            after.update(rows)
            if step.update:
                kept.add(base.dequantize(), merged.dequantize(), rows.dequantize())
        write_rows(writer, step.target, matrix, start, rows)
        progress("write", spec.name, (end - start) * step.source.format.bytes_per_row(spec.matrices[2]))
    source_sha256 = before.hexdigest()
    return TensorRecord(
        name=spec.name,
        role=spec.role,
        shape=list(spec.shape),
        source_format="+".join(f.name for f in step.source.mixed) or step.source.format.name,
        source_sha256=source_sha256,
        format=step.target.format.name,
        sha256=source_sha256 if step.moves else after.hexdigest(),
        action=step.action,
        note=step.note,
        error=sums.error() if step.rounds else None,
        kept=kept.kept() if step.update else None,
    )


def _largest(plan: Plan, step: Step) -> float:
    """The tensor's largest magnitude: a first pass for formats with one scale for the whole tensor."""
    pieces = ((piece, plan.source.read(step.name, *piece)) for piece in chunks([step.source]))
    rows = (updated(step, base, matrix, start) for (matrix, start, _), base in pieces)
    return max(float(np.abs(values.dequantize()).max(initial=0)) for values in rows)


def _base(plan: Plan, step: Step) -> Iterator[tuple[int, int, np.ndarray]]:
    """The source's values, piece by piece: (matrix, first row, float32 [n, K])."""
    for matrix, start, stop in chunks([step.source]):
        yield matrix, start, plan.source.read(step.name, matrix, start, stop).dequantize()


def _importance(options: Options, step: Step, matrix: int) -> np.ndarray | None:
    weights = (options.importance or {}).get(step.name)
    return weights[matrix] if weights is not None and weights.ndim == 2 else weights


# ---- proving --------------------------------------------------------------------------------------------------------


def _verify(plan: Plan, manifest: Manifest, files: list[Path], options: Options, progress: Progress) -> None:
    """Reads the finished files back, through the same readers that any user of them has, and compares hashes."""
    opened = files[0] if writer_for(plan.container).extension else files[0].parent
    wanted = {record.name: record.sha256 for record in manifest.tensors}
    with Checkpoint(open_container(opened)) as written:

        def check(step: Step, stop: Stop) -> None:
            entry = written.entries[step.name]
            found = TensorHash(entry.format, entry.spec.shape)
            for chunk in chunks([entry]):
                stop.check()
                rows = written.read(step.name, *chunk)
                found.update(rows)
                progress("verify", step.name, (chunk[2] - chunk[1]) * entry.format.bytes_per_row(rows.columns))
            if found.hexdigest() != wanted[step.name]:
                raise VerificationFailed(
                    f"{step.name}: the bytes on disk are not those that were written; is the disk sound?"
                )

        in_threads(check, sorted(plan.steps, key=lambda step: -step.target.nbytes), options.jobs or cores())


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
