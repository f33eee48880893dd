"""What an unfinished run has done, and what another run must share with it to go on there.

Two runs share their plan if their facts are equal: version, formats, configuration, tokenizer, companions, importance weights,
options. The source's tensors are not among the facts, since neither a file's time nor its size says what it holds: every
tensor that is complete has the hash of its source in the journal, and is read and hashed again before a run goes on.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from numba_kernels.parallel import cores
from oss_tools import __version__
from oss_tools.checkpoints import templates
from oss_tools.checkpoints.files import full_disk_is_no_room
from oss_tools.convert.manifest import TensorHash, TensorRecord
from oss_tools.convert.options import Options, Progress
from oss_tools.convert.plan import Plan
from oss_tools.convert.threads import Stop, in_threads
from oss_tools.errors import BadCheckpoint, BadRecipe
from oss_tools.models.entries import chunks

VERSION = "the version of oss-tools"  # a fact of unfinished runs only: what is finished may come from an older one


JOURNAL = "oss-tools-journal.jsonl"


def facts(plan: Plan, options: Options) -> dict[str, str]:
    """What decides an output beside the values of the source's tensors: in words, what it is -> its value, or its hash."""
    metadata = plan.metadata
    steps = [(s.name, list(s.source.spec.shape), _format(s.source.format, s.source.mixed)) for s in plan.steps]
    targets = [
        (s.name, s.target.format.name, s.quantization, *([s.update.identity] if s.update else [])) for s in plan.steps
    ]
    derived = {name: values.tolist() for name, values in plan.derived.items()}
    weights = {name: _sha256(np.ascontiguousarray(w).tobytes()) for name, w in (options.importance or {}).items()}
    companions = {name: _sha256(content) for name, content in metadata.files.items()}
    return {
        VERSION: __version__,
        "the container": plan.container,
        "the source's tensors, their shapes or formats": _hash(steps),
        "the recipe or format": _hash(targets),
        "the configuration": _hash([metadata.config, plan.container_config, derived, metadata.generation_config]),
        "the tokenizer": _hash([metadata.tokenizer, metadata.tokenizer_config]),
        "the chat templates": _hash(templates.by_name(metadata)),
        "the model's name or card, or a file beside it": _hash([metadata.general, companions]),
        "the importance weights": _hash(weights),
        "--shard-size": str(options.shard_size),
        "--on-nonfinite": options.on_nonfinite,
        **plan.added,
        **(options.rounding.facts if options.rounding else {}),
    }


def difference(ours: Mapping[str, str], theirs: Mapping[str, Any], *, of_version: bool = True) -> str:
    """In words, which facts differ; empty if none does. What only one has differs."""
    facts = dict.fromkeys([*ours, *theirs])
    return ", ".join(fact for fact in facts if ours.get(fact) != theirs.get(fact) and (of_version or fact != VERSION))


def check_sources(
    plan: Plan, records: Iterable[TensorRecord], jobs: int, what: str, progress: Progress = lambda *_: None
) -> None:
    """Reads the source of every tensor that is recorded as complete, and holds it against the record's hash.

    That takes as long as reading these tensors does: a changed source may have its old size and time (`cp -p`, `rsync -t`).
    Raises BadRecipe, beginning with `what`, that names the first tensor that changed.
    """
    steps = {step.name: step for step in plan.steps}

    def compare(record: TensorRecord, stop: Stop) -> None:
        entry = steps[record.name].source
        found = TensorHash.like(record.source_hash, entry.format, entry.spec.shape)
        for matrix, start, end in chunks([entry]):
            stop.check()
            rows = plan.source.read(record.name, matrix, start, end)
            found.update(rows)
            progress("write", record.name, (end - start) * entry.format.bytes_per_row(rows.columns))
        if found.result() != record.source_hash:
            raise BadRecipe(
                f"{what} {plan.source.path} has changed since: {record.name} holds other values; --overwrite starts anew"
            )

    known = [record for record in records if record.name in steps]
    in_threads(compare, sorted(known, key=lambda record: -steps[record.name].source.nbytes), jobs or cores())


def _format(format: Any, mixed: Sequence[Any]) -> str:
    return "+".join(f.name for f in mixed) or format.name


def _hash(content: Any) -> str:
    return _sha256(json.dumps(content, default=_plain).encode())


def _plain(value: Any) -> Any:
    """A value that JSON does not have, as one that it has."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, Sequence) else repr(value)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_journal(path: Path, plan: Mapping[str, str]) -> tuple[list[TensorRecord], int]:
    """What a killed run left, up to its last complete line: the records, and that line's end.

    Raises BadRecipe if it is a run of another plan, in words that say what differs; BadCheckpoint if the file is damaged.
    """
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    lines = content[:complete].splitlines()
    if not lines:
        return [], 0
    try:
        theirs = json.loads(lines[0])["plan"]
        if not isinstance(theirs, dict):
            raise BadRecipe(f"{path.parent}: left by another version of oss-tools; --overwrite starts anew")
        if differs := difference(plan, theirs):
            raise BadRecipe(f"{path.parent}: the interrupted run differs in {differs}; --overwrite starts anew")
        return [TensorRecord.from_json(json.loads(line)) for line in lines[1:]], complete
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: damaged ({error}); --overwrite starts anew") from None


class Journal:
    """The tensors that are complete, one JSON line each, behind a first line with the facts of the plan.

    Attributes:
        records: tensor name -> its record.
    """

    def __init__(self, path: Path, plan: Mapping[str, str], resume: bool) -> None:
        """Raises BadRecipe if `resume` finds a run of another plan, in words that say what differs."""
        self.records: dict[str, TensorRecord] = {}
        self._lock = threading.Lock()
        self._path = path
        complete = 0
        if path.exists() and resume:
            records, complete = check_journal(path, plan)
            self.records = {record.name: record for record in records}
        self._file = open(path, "r+b" if complete else "wb")  # noqa: SIM115 (closed by close)
        self._file.truncate(complete)
        self._file.seek(complete)
        if not complete:
            self._line({"plan": plan})

    def add(self, record: TensorRecord) -> None:
        with self._lock:
            self.records[record.name] = record
            self._line(record.to_json())

    def _line(self, content: dict) -> None:
        with full_disk_is_no_room(self._path):
            self._file.write(json.dumps(content).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        with suppress(OSError):  # of a full disk, which has been told of: the last tensors are then done again
            self._file.close()
