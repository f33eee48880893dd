"""A comparison whose parts nodes of a cluster do. They land where those of a local run land, so that the record is the same.

Weights, predictions and answers are independent of each other and done together; margins wait for the base's answers. Times are
taken where the command was given, when the nodes have done everything else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from oss_tools.cluster.nodes import Cluster, Done, Need, Part
from oss_tools.compare import latency, margins
from oss_tools.compare.advice import memory_of
from oss_tools.compare.dependencies import pair_of
from oss_tools.compare.measuring import Measuring
from oss_tools.compare.models import Member, member
from oss_tools.compare.pairing import Pairing
from oss_tools.compare.predictions import BaseLogits, passages
from oss_tools.compare.record import plain
from oss_tools.compare.remote import Remote
from oss_tools.compare.settings import Settings
from oss_tools.compare.work import Work
from oss_tools.engine.engine import DEFAULT_CONTEXT
from oss_tools.errors import BadRequest
from oss_tools.harness.answered import AnsweredSubject
from oss_tools.harness.jobs import Share
from oss_tools.harness.shares import Source, keep, ordered, shares
from oss_tools.harness.subjects import Subject
from oss_tools.harness.suites import SuiteTask
from oss_tools.harness.wanted import Wanted, wanted
from oss_tools.report.comparison import Comparison

FUNCTION = "oss_tools.compare.spread:made_on_a_node"
STREAMING = 2 << 30  # bytes that comparing weights takes, whatever the size of the model
WORDS = {"weights": "weights of", "predict": "predictions of", "margins": "margins of"}


class SpreadWork(Work):
    """A comparison at work on a cluster."""

    def __init__(self, cluster: Cluster, *how: Any) -> None:
        super().__init__(*how)
        self.cluster = cluster

    def compare(
        self, model: str, members: list[Member], pairings: Sequence[Pairing], remotes: Sequence[Remote] = (), base: str = ""
    ) -> Comparison:
        first, others = members[0], members[1:]
        self._expect_missing(members, remotes)
        made = [("weights", pair_of(first, m), [first, m]) for m in others]
        made += [("predict", self.depends.predictions(first, m), [first, m]) for m in members]
        self._elsewhere([self._part(*order) for order in made if not self.parts.has(*order[:2])] + self._shares(members))
        return super().compare(model, members, pairings, remotes, base)

    def _before_margins(self, members: list[Member], decided: list[margins.Decision]) -> None:
        first = members[0]
        missing = [m for m in members if not self.parts.has("margins", self.depends.margins(first, m))]
        self._elsewhere([self._part("margins", self.depends.margins(first, m), [first, m], decided) for m in missing])

    # ---- what is ordered --------------------------------------------------------------------------------------------

    def _part(
        self, kind: str, about: Mapping[str, Any], members: list[Member], decided: Sequence[margins.Decision] = ()
    ) -> Part:
        m = members[-1]
        order = {
            "kind": kind,
            "key": self.parts.key(kind, about),
            "about": about,
            "settings": plain(asdict(self.settings)),
            "members": [{"name": m.name, "recipe": m.recipe, **_wanted(m).to_json()} for m in members],
            "own": m is members[0],
            "decided": [asdict(decision) for decision in decided],
        }
        loaded = [] if kind == "weights" else [m] if kind == "margins" or m is members[0] else members
        return Part(f"{WORDS[kind]} {m.name}", FUNCTION, order, self._need(loaded))

    def _shares(self, members: list[Member]) -> list[Part]:
        found = []
        for m in members:
            for _, task in self.tasks:
                if self.parts.has("answer", self.depends.answers(m, task)):
                    continue
                number = min(self.questions[task.task], self.settings.limit or self.questions[task.task])
                found += [
                    self._share(m, task, share)
                    for share in shares(number)
                    if not self.parts.has("share", self._shared(m, task, share))
                ]
        return found

    def _shared(self, m: Member, task: SuiteTask, share: Share) -> dict[str, Any]:
        return {**self.depends.answers(m, task), "share": asdict(share)}

    def _share(self, m: Member, task: SuiteTask, share: Share) -> Part:
        timing = self.settings.timing
        engine = {name: getattr(timing, name) for name in ("backend", "activations", "cache", "load", "memory")}
        where = Source(_wanted(m), m.identity, engine, self._need([m]))
        part = ordered(f"{task.task} by {m.name}", where, task.task, share, self._eval_settings(), self.settings.data)
        folder = str(self._folder(m, task))
        return replace(part, order={**part.order, "kind": "share", "about": self._shared(m, task, share), "folder": folder})

    def _need(self, members: Sequence[Member]) -> Need:
        timing = self.settings.timing
        cpus = self.cluster.cores(timing.threads)
        memory = sum(memory_of(m.path, DEFAULT_CONTEXT, cpus) for m in members) or STREAMING
        return Need(cpus, timing.memory or memory, int(timing.backend == "cuda"))

    # ---- what comes back --------------------------------------------------------------------------------------------

    def _elsewhere(self, parts: Sequence[Part]) -> None:
        """Has these parts made, and keeps each as it comes. Raises what `Cluster.run` raises."""
        if not parts:
            return
        nodes = 1

        def begun(count: int) -> None:
            nonlocal nodes
            nodes = count

        with self.schedule.elsewhere([part.order["kind"] for part in parts]) as finished:
            for done in self.cluster.run(parts, begun):
                self._keep(done)
                finished(done.part.order["kind"], f"{done.part.what}, on {done.node}; {nodes} nodes")

    def _keep(self, done: Done) -> None:
        kind, about = done.part.order["kind"], done.part.order["about"]
        if kind == "share":
            keep(done, Path(done.part.order["folder"]))
            self.parts.put(kind, about, {"answers": len(done.result["rows"])}, done.seconds)
            return
        if done.result["key"] != done.part.order["key"]:
            raise BadRequest(
                f"{done.part.what}: on {done.node}: questions or texts are others than here; is --data the same?"
            )
        self.parts.put(kind, about, done.result["result"], done.seconds)

    # ---- what is put together here ----------------------------------------------------------------------------------

    @contextmanager
    def _subject(self, m: Member | Remote) -> Iterator[Subject]:
        if isinstance(m, Member):
            yield AnsweredSubject(m.path, self._answerer_of(m), {})
            return
        with super()._subject(m) as subject:
            yield subject

    def _answerer_of(self, m: Member) -> dict[str, Any]:
        """What the logs' first lines say of the subject that answered."""
        logs = (self._folder(m, task) / "answers.jsonl" for _, task in self.tasks)
        header: dict[str, Any] = next(
            (json.loads(log.open(encoding="utf-8").readline()) for log in logs if log.exists()), {}
        )
        return {name: header[name] for name in ("backend", "activations", "kv_cache", "context") if name in header}


def _wanted(m: Member) -> Wanted:
    return wanted(m.path, m.sha256)


# ---- on a node ------------------------------------------------------------------------------------------------------


def made_on_a_node(order: Mapping[str, Any], cores: int) -> dict[str, Any]:
    """A part of a comparison: its "key" as this node reckons it, and its "result"."""
    raw = order["settings"]
    timing = latency.Settings(**{**raw["timing"], "threads": cores})
    data = raw["data"] and Path(raw["data"])
    settings = Settings(**{**raw, "suites": tuple(raw["suites"]), "data": data, "timing": timing})
    members = [_member(fields) for fields in order["members"]]
    with tempfile.TemporaryDirectory() as folder:
        work = _Piece(settings, [], Path(folder), False, lambda now: None, lambda line: None)
        base = members[0]
        m = base if order["own"] else members[-1]
        return getattr(work, order["kind"])(base, m, order)


def _member(fields: Mapping[str, Any]) -> Member:
    where = Wanted(**{name: value for name, value in fields.items() if name not in ("name", "recipe")})
    return member(fields["name"], where.here(), fields["recipe"])


class _Piece(Measuring):
    """Makes one part."""

    def weights(self, base: Member, m: Member, order: Mapping[str, Any]) -> dict[str, Any]:
        about = pair_of(base, m)
        self._weights(base, m)
        return {"key": self.parts.key("weights", about), "result": self.parts.get("weights", about, dict)}

    def predict(self, base: Member, m: Member, order: Mapping[str, Any]) -> dict[str, Any]:
        with self._load(base, beside=1) as engine:
            texts = passages(engine, [task for _, task in self.tasks], self.settings.chunks, self.settings.seed)
            rows = self._predict(BaseLogits(engine, room=0), texts, m, own=m is base)
        return {"key": self.parts.key("predict", self.depends.predictions(base, m)), "result": rows}

    def margins(self, base: Member, m: Member, order: Mapping[str, Any]) -> dict[str, Any]:
        decided = [
            margins.Decision(
                d["kind"], tuple(d["prefix"]), _continuations(d["taken"]), tuple(map(_continuations, d["rivals"]))
            )
            for d in order["decided"]
        ]
        return {"key": self.parts.key("margins", self.depends.margins(base, m)), "result": self._margins_of(m, decided)}


def _continuations(lists: Sequence[Sequence[int]]) -> margins.Continuations:
    return tuple(map(tuple, lists))
