"""A calibration: a text through a model, and the importance matrix of what its matrices met."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oss_tools import __version__
from oss_tools.calibration.boundaries import Steps, boundaries
from oss_tools.calibration.breadth_first import BreadthFirst
from oss_tools.calibration.kept import Kept, Position
from oss_tools.calibration.squares import Squares
from oss_tools.calibration.texts import Sample
from oss_tools.calibration.weights import OUTPUT_ROWS
from oss_tools.checkpoints.files import check_place, replace_file
from oss_tools.convert import imatrix
from oss_tools.convert.importance import stored_names
from oss_tools.convert.output import claimed, partial_of
from oss_tools.errors import BadRequest, NoRoom
from oss_tools.machine.memory import available_memory
from oss_tools.models import Checkpoint
from oss_tools.models.operations import Heads
from oss_tools.models.stacks import expert_layers
from oss_tools.sizes import format_size

PROCESS = 128 << 20  # bytes of memory that the program itself takes
PAUSE = 60.0  # seconds between two times that the state is written
Report = Callable[[int, int], None]  # multiplications done, and of how many


@dataclass(frozen=True)
class Cost:
    """What a calibration takes.

    Attributes:
        multiplications: of weights with inputs.
        memory: bytes, at most.
        disk: bytes of what is kept to go on after an interruption.
    """

    multiplications: int
    memory: int
    disk: int


def cost_of(checkpoint: Checkpoint, tokens: int) -> Cost:
    """Of so many tokens."""
    chosen = {
        name: layer.router.chosen
        for layer in expert_layers(checkpoint.architecture)
        for names, _ in layer.stacks
        for name in names
    }
    work, widest, largest, hidden = 0, 0, 0, 0
    for name, entry in checkpoint.entries.items():
        spec = entry.spec
        count, rows, columns = spec.matrices
        if spec.role == "embedding":
            hidden = columns
        if spec.is_vector or spec.role in ("embedding", "output", "positions"):
            continue
        work += chosen.get(name, count) * rows * columns
        largest = max(largest, rows * columns)
        if count == 1:
            widest = max(widest, rows)
    widths = [
        h.queries * h.size + h.keys * h.size if isinstance(h, Heads) else h.queries * (h.nope + h.rope + h.value)
        for h in checkpoint.architecture.attention_layers()
    ]
    values = tokens * (3 * hidden + max(widest, 2 * max(widths)))
    return Cost(work * tokens, PROCESS + 4 * (values + 3 * largest + OUTPUT_ROWS * hidden), 4 * tokens * hidden)


@dataclass(frozen=True)
class Outcome:
    """A finished calibration.

    Attributes:
        entries: of the file.
        matrices: that inputs met, and `unreached`: those that none did, by canonical tensor name.
        seconds: of this run.
        resumed: how much of the work an earlier run had done, from 0 to 1.
    """

    entries: int
    matrices: int
    unreached: dict[str, list[int]]
    seconds: float
    resumed: float


def calibrate(
    checkpoint: Checkpoint,
    sample: Sample,
    destination: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: Report = lambda done, total: None,
    pause: float = PAUSE,
) -> Outcome:
    """Runs the sample through the model and writes the importance matrix, a GGUF file as llama-imatrix makes it.

    An interrupted run leaves `DESTINATION.partial`, on which `resume` goes on; both ways end with the same bytes. Raises
    BadRequest if the file is there or such a run lies there and neither `resume` nor `overwrite` is given, NoRoom.
    """
    check(checkpoint, sample, destination, resume=resume, overwrite=overwrite)
    start = time.perf_counter()
    partial = partial_of(destination)
    with claimed(partial, destination):
        kept = Kept(partial, facts_of(checkpoint, sample))
        position = kept.read() if resume and kept.exists else None
        visitor = Squares(checkpoint)
        _pass(checkpoint, sample, visitor, kept, position, report, pause)
        content = imatrix.gguf_bytes(_entries(checkpoint, visitor), sample.names, sample.length, len(sample.sequences))
        replace_file(destination, content)
        shutil.rmtree(partial)
    total = cost_of(checkpoint, sample.tokens).multiplications
    return Outcome(
        entries=len(_entries(checkpoint, visitor)),
        matrices=sum(int((counts > 0).sum()) for counts in visitor.counts.values()),
        unreached=visitor.unreached(),
        seconds=time.perf_counter() - start,
        resumed=position.done / total if position else 0.0,
    )


def check(checkpoint: Checkpoint, sample: Sample, destination: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises BadRequest or NoRoom for what cannot be done."""
    check_place(destination)
    partial = partial_of(destination)
    if destination.exists() and not overwrite:
        raise BadRequest(f"{destination} exists; choose another name, or --overwrite")
    if (partial / "state.json").exists() and not resume and not overwrite:
        raise BadRequest(f"{partial} is an interrupted run's; go on with --resume, or start anew with --overwrite")
    cost, free = cost_of(checkpoint, sample.tokens), available_memory()
    if cost.memory > free:
        raise NoRoom(
            f"{sample.tokens:,} tokens take {format_size(cost.memory)} of memory, {format_size(free)} are free; "
            "give fewer --tokens"
        )
    disk = shutil.disk_usage(destination.resolve().parent).free
    if 2 * cost.disk > disk:
        raise NoRoom(f"{partial}: {format_size(2 * cost.disk)} are needed on the disk, {format_size(disk)} are free")


def facts_of(checkpoint: Checkpoint, sample: Sample) -> dict[str, str]:
    """What two runs share that may go on behind each other."""
    files = [(file.name, (s := file.stat()).st_size, s.st_mtime_ns) for file in checkpoint.reader.files()]
    shapes = [(name, list(entry.spec.shape), entry.format.name) for name, entry in checkpoint.entries.items()]
    model = json.dumps([files, shapes, checkpoint.architecture.computation()], default=repr)
    return {
        "the version of oss-tools": __version__,
        "the model's files": hashlib.sha256(model.encode()).hexdigest(),
        "the text, --tokens or --sequence": sample.digest,
    }


def _pass(
    checkpoint: Checkpoint,
    sample: Sample,
    visitor: Squares,
    kept: Kept,
    position: Position | None,
    report: Report,
    pause: float,
) -> None:
    """The whole pass, or what follows a position."""
    total = cost_of(checkpoint, sample.tokens).multiplications
    done, written, last = 0, 0, time.monotonic()

    def advance(work: int) -> None:
        nonlocal done
        done += work
        report(min(done, total), total)

    def reached(number: int, hidden: np.ndarray) -> None:
        nonlocal written, last
        if done > written and time.monotonic() - last >= pause:
            kept.write(Position(number, hidden, visitor.arrays(), done))
            written, last = done, time.monotonic()

    if position:
        visitor.take(position.arrays)
        advance(position.done)
        written = done
    start = (position.number, position.hidden) if position else None
    with BreadthFirst(checkpoint, sample.sequences, visitor, advance) as operations:
        steps = Steps(operations, boundaries(checkpoint.architecture), reached, start)
        operations.visit_output(steps.forward(checkpoint.architecture))


def _entries(checkpoint: Checkpoint, visitor: Squares) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sums and counts by the names that tensors have in GGUF files."""
    found = {}
    for name, sums in visitor.sums.items():
        for stored in stored_names(checkpoint.architecture, checkpoint.entries[name].spec):
            found[stored] = (sums, visitor.counts[name])
    return found
