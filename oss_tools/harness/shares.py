"""A task's questions in shares that nodes of a cluster answer: what is ordered, what a node does, what is kept."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oss_tools.checkpoints.files import replace_file
from oss_tools.cluster.nodes import Cluster, Done, Need, Part
from oss_tools.engine.engine import DEFAULT_CONTEXT, Engine
from oss_tools.escapes import json_text
from oss_tools.fit.estimate import stored_row
from oss_tools.fit.memory import Use
from oss_tools.harness.answered import AnsweredSubject
from oss_tools.harness.jobs import Share
from oss_tools.harness.log import AnswerLog
from oss_tools.harness.run import ANSWERS, Settings, answer_share
from oss_tools.harness.subjects import EngineSubject
from oss_tools.harness.wanted import Wanted, wanted
from oss_tools.models import open_checkpoint

QUESTIONS = 50  # of a share: each loads the weights once
FUNCTION = "oss_tools.harness.shares:answered_on_a_node"


def shares(questions: int, size: int = QUESTIONS) -> list[Share]:
    """The shares of a task with so many questions."""
    count = max(-(-questions // size), 1)
    return [Share(number, count) for number in range(count)]


@dataclass(frozen=True)
class Source:
    """The model that answers.

    Attributes:
        model: the hash that stands for it in the log.
        engine: how it is loaded: backend, activations, cache, context, load, memory.
        need: what that takes.
    """

    checkpoint: Wanted
    model: str
    engine: Mapping[str, Any]
    need: Need


def source_of(cluster: Cluster, path: Path, sha256: str, engine: Mapping[str, Any], threads: int = 0) -> Source:
    """A checkpoint of this machine, with what it takes to run it.

    Args:
        sha256: `fingerprint` of its files.
        engine: backend, activations, cache, context, load, memory.
        threads: of a share; 0 for the cores of the smallest node.
    """
    cpus = cluster.cores(threads)
    with open_checkpoint(path) as checkpoint:
        context = min(engine["context"] or DEFAULT_CONTEXT, checkpoint.architecture.context)
        memory = engine["memory"] or stored_row(checkpoint, Use(context, threads=cpus)).memory.total
    return Source(wanted(path, sha256), sha256, engine, Need(cpus, memory, int(engine["backend"] == "cuda")))


def ordered(
    what: str, source: Source, task: str, share: Share, settings: Settings, data: Path | None, known: Sequence[str] = ()
) -> Part:
    """A share as a part of a cluster's work. `known`: keys of answers that are there and not asked for."""
    order = {
        "checkpoint": source.checkpoint.to_json(),
        "model": source.model,
        "engine": dict(source.engine),
        "task": task,
        "share": asdict(share),
        "settings": asdict(settings),
        "data": None if data is None else str(data.absolute()),
        "known": list(known),
    }
    what = f"{what}, share {share.number + 1} of {share.count}" if share.count > 1 else what
    return Part(what, FUNCTION, order, source.need)


def answered_on_a_node(order: Mapping[str, Any], cores: int) -> dict[str, Any]:
    """On a node: the log of a share, {"header", "rows"}, and what the subject says of itself, {"settings", "facts"}."""
    path = Wanted(**order["checkpoint"]).here()
    data = order["data"] and Path(order["data"])
    with tempfile.TemporaryDirectory() as folder, Engine.load(path, threads=cores, **order["engine"]) as engine:
        subject = EngineSubject(engine)
        answer_share(
            subject,
            order["task"],
            Settings(**order["settings"]),
            Share(**order["share"]),
            Path(folder),
            model={"sha256": order["model"]},
            data=data,
            known=order["known"],
        )
        header, *rows = map(json.loads, (Path(folder) / ANSWERS).read_text(encoding="utf-8").splitlines())
        return {"header": header, "rows": rows, "settings": subject.settings(), "facts": subject.facts()}


def keep(done: Done, folder: Path) -> None:
    """Adds a share's answers to the log in a folder. Raises BadRecipe if the log is of something else."""
    log = AnswerLog(folder / ANSWERS, done.result["header"], resume=True)
    try:
        for row in done.result["rows"]:
            if row["key"] not in log:
                log.add(row["key"], {name: value for name, value in row.items() if name != "key"})
    finally:
        log.close()


def answer_elsewhere(
    cluster: Cluster,
    path: Path,
    source: Source,
    tasks: Mapping[str, Any],
    settings: Settings,
    output: Path,
    data: Path | None = None,
    resume: bool = False,
    report: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> AnsweredSubject:
    """Has tasks answered on a cluster; the answers lie in `output`, where `evaluate` takes them up.

    Args:
        path: of the checkpoint on this machine.
        tasks: lm-eval's, by name.
        resume: take up the answers in `output`.
        report: called as shares come back.

    Returns what `evaluate` takes in the engine's place. Raises what `Cluster.run` raises.
    """
    log, noted = output / ANSWERS, Noted(output / "shares.json", resume)
    known: dict[str, list[str]] = {}
    if resume and log.exists():
        for row in map(json.loads, log.read_text(encoding="utf-8").splitlines()[1:]):
            known.setdefault(row["task"], []).append(row["key"])
    elif log.exists():
        log.unlink()
    orders = [
        ordered(name, source, name, share, settings, data, known.get(name, ()))
        for name, task in tasks.items()
        for share in shares(min(len(task.eval_docs), settings.limit or len(task.eval_docs)))
    ]
    missing = [part for part in orders if part.what not in noted]
    count = len(orders) - len(missing)
    for done in cluster.run(missing):
        keep(done, output)
        noted.add(done.part.what, {name: done.result[name] for name in ("settings", "facts")})
        count += 1
        report("shares", count, len(orders))
    return AnsweredSubject(path, noted.said["settings"], noted.said["facts"])


class Noted:
    """Which shares are in, in a file beside the answers; and what the subject said of itself that gave them."""

    def __init__(self, file: Path, resume: bool) -> None:
        self._file = file
        self._shares: list[str] = []
        self.said: dict[str, Any] = {"settings": {}, "facts": {}}
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # then all are asked again
            if resume:
                found = json.loads(file.read_text(encoding="utf-8"))
                self._shares, self.said = list(found["shares"]), {name: found[name] for name in self.said}

    def __contains__(self, what: str) -> bool:
        return what in self._shares

    def add(self, what: str, said: dict[str, Any]) -> None:
        self._shares.append(what)
        self.said = said
        replace_file(self._file, json_text({"shares": self._shares, **said}) + "\n", private=True)
