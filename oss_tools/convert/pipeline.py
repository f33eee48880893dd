"""Runs a plan: streams every tensor into files under a temporary folder, proves them, and gives them their names.

Memory stays flat: a worker holds one chunk of one tensor. A run that is killed leaves `DST.partial` with a journal of the
tensors that are complete; the next run with the same plan goes on behind it and ends with the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numba_kernels.parallel import cores

from oss_tools import __version__
from oss_tools.checkpoints import Writer, open_container, writer_for
from oss_tools.convert.manifest import Manifest, TensorError, TensorHash, TensorRecord
from oss_tools.convert.output import check_name, check_room, existing, give_names, manifest_in
from oss_tools.convert.plan import Plan, Step
from oss_tools.convert.threads import Stop, in_threads
from oss_tools.errors import BadCheckpoint, BadRecipe, BadTensor, NoRoom, VerificationFailed
from oss_tools.formats import QTensor, get_format
from oss_tools.models import Checkpoint
from oss_tools.models.checkpoint import chunks, write_rows

JOURNAL = "oss-tools-journal.jsonl"
LOCK = "oss-tools-lock"

Progress = Callable[[str, str, int], None]  # (stage: "write" or "verify", tensor, bytes of that stage's total just done)


@dataclass(frozen=True)
class Options:
    """How to run a plan.

    Attributes:
        jobs: worker threads; each holds one chunk in memory.
        shard_size: bytes per output file at most; None for the container's default.
        resume: go on behind an interrupted run.
        overwrite: replace an existing output, and start anew where an interrupted run lies.
        verify: read the finished files back and compare every tensor's hash with what was meant.
        on_nonfinite: `refuse` or `clamp` NaN and infinity where values are rounded.
        importance: canonical tensor name -> float32 weights [K] or [matrices, K] of the squared error.
    """

    jobs: int = 0
    shard_size: int | None = None
    resume: bool = False
    overwrite: bool = False
    verify: bool = True
    on_nonfinite: str = "refuse"
    importance: dict[str, np.ndarray] | None = None


def run(plan: Plan, destination: Path, options: Options, progress: Progress = lambda *_: None) -> Manifest:
    """Carries a plan out and returns the manifest that then lies beside the output.

    Raises OssToolsError; whatever happens, nothing incomplete has the destination's name, and the source is untouched.
    """
    partial = destination.with_name(destination.name + ".partial")
    _check_destination(plan, destination, partial, options)
    if partial.exists() and options.overwrite and not options.resume:
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        manifest = _write(plan, destination, partial, options, progress)
        _finish(plan, destination, partial, manifest)
    return manifest


def _check_destination(plan: Plan, destination: Path, partial: Path, options: Options) -> None:
    kind = writer_for(plan.container)
    check_name(destination, kind)
    source = plan.source.path.resolve()
    if destination.resolve() in (source, *source.parents) or source in destination.resolve().parents:
        raise BadRecipe(f"{destination}: the output cannot lie in, around or over the source {plan.source.path}")
    taken = existing(destination, kind)
    if taken and not options.overwrite:
        raise BadRecipe(f"{taken} exists; choose another name, or --overwrite")
    if taken and taken.is_dir() and not _is_ours(taken):
        raise BadRecipe(f"{taken} is a folder that holds no checkpoint; it will not be overwritten")
    if partial.exists() and not (options.resume or options.overwrite):
        raise BadRecipe(f"{partial} holds an interrupted run; --resume finishes it, --overwrite starts anew")
    done = sum(f.stat().st_blocks * 512 for f in partial.rglob("*") if f.is_file()) if partial.exists() else 0
    check_room(destination, plan.target_bytes - done)


def _is_ours(folder: Path) -> bool:
    """Whether a folder is empty or a checkpoint, so that replacing it is what was meant."""
    return not any(folder.iterdir()) or (folder / "config.json").exists()


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    with open(partial / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadRecipe(f"{partial}: another process is writing there") from None
        yield


# ---- writing --------------------------------------------------------------------------------------------------------


def _write(plan: Plan, destination: Path, partial: Path, options: Options, progress: Progress) -> Manifest:
    journal = Journal(partial / JOURNAL, fingerprint(plan, options), options.resume)
    architecture = plan.source.architecture
    try:
        writer = writer_for(plan.container)(
            partial,
            destination.stem if destination.suffix else destination.name,
            plan.stored,
            plan.source.metadata(),
            architecture.container_config(plan.container),
            shard_size=options.shard_size,
        )
        try:
            _write_derived(plan, writer)
            _write_tensors(plan, writer, journal, options, progress)
            files = writer.finish()
        finally:
            writer.close()
        manifest = Manifest(
            source=plan.source.path.name,
            source_container=plan.source.container,
            container=plan.container,
            model_type=architecture.model_type,
            recipe=_recipe_record(plan),
            tensors=[journal.records[step.name] for step in plan.steps],
        )
        if options.verify:
            _verify(plan, manifest, files, options, progress)
    except NoRoom as error:
        raise NoRoom(f"{error}, then go on with --resume") from None
    finally:
        journal.close()
    return manifest


def _write_derived(plan: Plan, writer: Writer) -> None:
    f32 = get_format("f32")
    for name, values in plan.derived.items():
        column = np.ascontiguousarray(values, np.float32).reshape(-1, 1)
        writer.write(name, 0, QTensor(f32, column.shape, {"values": column}))


def _write_tensors(plan: Plan, writer: Writer, journal: Journal, options: Options, progress: Progress) -> None:
    """Largest tensors first, so that no worker is left alone with a large one at the end."""
    steps = sorted(plan.steps, key=lambda step: -step.source.nbytes)
    for step in steps:
        if step.name in journal.records:
            progress("write", step.name, step.source.nbytes)
    pending = [step for step in steps if step.name not in journal.records]
    workers = options.jobs or cores()
    in_threads(lambda step, stop: journal.add(_write_tensor(plan, step, writer, options, progress, stop)), pending, workers)


def _write_tensor(plan: Plan, step: Step, writer: Writer, options: Options, progress: Progress, stop: Stop) -> TensorRecord:
    spec = step.source.spec
    before, after = TensorHash(step.source.format, spec.shape), TensorHash(step.target.format, spec.shape)
    sums = ErrorSums()
    amax = _largest(plan, step) if step.target.format.needs_amax and not step.moves else None
    for matrix, start, end in chunks([step.source, step.target]):
        stop.check()
        rows = plan.source.read(spec.name, matrix, start, end)
        before.update(rows)
        if not step.moves:
            rows = _round(step, rows, matrix, amax, options, sums)
            after.update(rows)
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
        error=sums.error() if step.action == "quantize" else None,
    )


def _largest(plan: Plan, step: Step) -> float:
    """The tensor's largest magnitude: a first pass for formats with one scale for the whole tensor."""
    pieces = chunks([step.source])
    return max(float(np.abs(plan.source.read(step.name, *piece).dequantize()).max(initial=0)) for piece in pieces)


def _round(step: Step, rows: QTensor, matrix: int, amax: float | None, options: Options, sums: ErrorSums) -> QTensor:
    values = rows.dequantize()
    if step.action == "quantize":
        values = _finite(values, step.name, options.on_nonfinite)
    format = step.target.format
    importance = _importance(options, step, matrix)
    result = format.quantize(values, rule=step.quantization, importance=importance, amax=amax)
    if step.action == "quantize":
        sums.add(values, result, step.name)
    return result


def _finite(values: np.ndarray, name: str, on_nonfinite: str) -> np.ndarray:
    """The values if all are finite; else, where asked for, with NaN as 0 and infinity as the largest finite magnitude."""
    from numba_kernels.codec import finite

    if not finite.nonfinite_count(values):
        return values
    if on_nonfinite == "refuse":
        raise BadTensor(f"{name}: holds NaN or infinity; mend the source, or --on-nonfinite clamp")
    return finite.clamp_nonfinite(values, np.abs(values[np.isfinite(values)]).max(initial=0))


def _importance(options: Options, step: Step, matrix: int) -> np.ndarray | None:
    weights = (options.importance or {}).get(step.name)
    return weights[matrix] if weights is not None and weights.ndim == 2 else weights


class ErrorSums:
    """Sums of a tensor's rounding error over its chunks."""

    def __init__(self) -> None:
        self.squared_error = self.squared_norm = self.max_error = 0.0
        self.clipped = self.values = 0

    def add(self, values: np.ndarray, rounded: QTensor, name: str) -> None:
        """Adds a chunk: original float32 values and what they became. Raises BadTensor if the format overflowed."""
        from numba_kernels.codec import error

        bounds = rounded.format.representable_range(rounded)
        squared_error, squared_norm, largest, clipped = error.error_sums(
            values, rounded.dequantize(), *(bounds or (None, None))
        )
        if not np.isfinite(squared_error):
            raise BadTensor(
                f"{name}: values up to {np.abs(values).max():.3g} overflow {rounded.format.name}; choose another format"
            )
        self.squared_error += squared_error
        self.squared_norm += squared_norm
        self.max_error = max(self.max_error, largest)
        self.clipped += clipped
        self.values += values.size

    def error(self) -> TensorError:
        return TensorError.of(self.squared_error, self.squared_norm, self.max_error, self.clipped, self.values)


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


# ---- the journal of an unfinished run -------------------------------------------------------------------------------


def fingerprint(plan: Plan, options: Options) -> str:
    """What two runs must share for one to go on where the other stopped: source files, plan, layout, program version."""
    sources = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in plan.source.reader.files()]
    steps = [(s.name, s.source.format.name, s.target.format.name, s.quantization) for s in plan.steps]
    importance = hashlib.sha256()
    for name, weights in sorted((options.importance or {}).items()):
        importance.update(name.encode() + np.ascontiguousarray(weights).tobytes())
    facts = [__version__, sources, plan.container, steps, options.shard_size, options.on_nonfinite, importance.hexdigest()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class Journal:
    """The tensors that are complete, one JSON line each, behind a first line that names the plan.

    Attributes:
        records: tensor name -> its record.
    """

    def __init__(self, path: Path, plan: str, resume: bool) -> None:
        self.records: dict[str, TensorRecord] = {}
        self._lock = threading.Lock()
        complete = 0
        if path.exists() and resume:
            complete = self._read(path, plan)
        self._file = open(path, "r+b" if complete else "wb")  # noqa: SIM115 (closed by close)
        self._file.truncate(complete)
        self._file.seek(complete)
        if not complete:
            self._line({"plan": plan})

    def _read(self, path: Path, plan: str) -> int:
        """Takes in what a killed run left, up to its last complete line; returns that line's end."""
        content = path.read_bytes()
        complete = content.rfind(b"\n") + 1
        lines = content[:complete].splitlines()
        if not lines:
            return 0
        try:
            if json.loads(lines[0]) != {"plan": plan}:
                raise BadRecipe(f"{path.parent}: left by another source, recipe or version; --overwrite starts anew")
            for line in lines[1:]:
                record = TensorRecord.from_json(json.loads(line))
                self.records[record.name] = record
        except (ValueError, TypeError, AttributeError) as error:
            raise BadCheckpoint(f"{path}: damaged ({error}); --overwrite starts anew") from None
        return complete

    def add(self, record: TensorRecord) -> None:
        with self._lock:
            self.records[record.name] = record
            self._line(asdict(record))

    def _line(self, content: dict) -> None:
        self._file.write(json.dumps(content).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


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
    (partial / JOURNAL).unlink()
    (partial / LOCK).unlink()
    give_names(partial, destination, kind)
