"""A comparison with a pack: what a base said is kept, and candidates are held against it where the base does not fit."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from oss_tools.compare.models import Member
from oss_tools.compare.packs import Pack, against, pack_passage, shortened, vocabulary_hash
from oss_tools.compare.predictions import fidelity_of, passages
from oss_tools.compare.record import add_scores, candidate_of
from oss_tools.compare.work import Work
from oss_tools.errors import BadRequest
from oss_tools.report.comparison import Candidate, Comparison
from oss_tools.report.fidelity import Fidelity
from oss_tools.report.loading import build

AGAINST_A_PACK = "held against a pack: weights, configuration, tokenizer and template are not compared"


class PackWork(Work):
    """Makes a pack, or compares checkpoints with one."""

    def pack(self, model: str, m: Member) -> Pack:
        """What a model says on the texts and to the questions, to be kept."""
        self.schedule.expect("weights", 0)
        self.schedule.expect("predict", 1)
        self.schedule.expect("margins", 0)
        self.schedule.expect("time", 0)
        packed, fidelity = [], []
        with self._load(m) as engine:
            texts = passages(engine, [task for _, task in self.tasks], self.settings.chunks, self.settings.seed)
            with self.schedule.step("predict", f"predictions of {m.name}") as advance:
                for text in texts:
                    passage, own = pack_passage(engine, text, advance)
                    packed.append(passage)
                    fidelity.append(asdict(fidelity_of(text, own, own=True)))
            vocabulary, tokens = engine.backend.vocabulary, vocabulary_hash(engine.text.numbers())
        candidate = asdict(candidate_of(m)) | {"fidelity": fidelity}
        about = {"model": model, "candidate": candidate, "vocabulary": vocabulary, "tokens": tokens}
        answered = {name: shortened(found) for name, found in self._answers(m).items()}
        return Pack(about | {"settings": self.depends.asking()}, tuple(packed), answered)

    def require_same_questions(self, pack: Pack, file: Path) -> None:
        """Raises BadRequest unless the pack's base was asked what will be asked."""
        missing = [task.task for _, task in self.tasks if task.task not in pack.answers]
        if missing:
            raise BadRequest(f"{file}: has no answers to {', '.join(missing)}; choose other --suites, or make it with them")
        own, theirs = self.depends.asking(), pack.about["settings"]
        names = sorted(name for name in own if own[name] != theirs.get(name))
        if self.tasks and names:
            raise BadRequest(f"{file}: was made with another {', '.join(names)}; use the same options, or --suites ''")

    def compare_with(self, pack: Pack, members: list[Member]) -> Comparison:
        """The record of these checkpoints, held against what a pack keeps of the base. Times are held against the first's."""
        self._expect_missing(members, ())
        for kind in ("weights", "margins"):
            self.schedule.expect(kind, 0)
        self.schedule.expect("predict", sum(not self.parts.has("predict", self.depends.packed(pack, m)) for m in members))
        found = {pack.name: build(Candidate, pack.about["candidate"], "the pack's base")}
        found |= {m.name: replace(candidate_of(m), remarks=[AGAINST_A_PACK]) for m in members}
        for m in members:
            rows = self.parts.get("predict", self.depends.packed(pack, m), partial(self._predict_from, pack, m))
            found[m.name] = replace(found[m.name], fidelity=[build(Fidelity, row, "fidelity") for row in rows])
        said = {pack.name: pack.answers} | {m.name: self._answers(m) for m in members}
        add_scores(found, self.tasks, pack.name, said, self.settings.seed)
        return self._record(pack.about["model"], pack.name, found, members)

    def _predict_from(self, pack: Pack, m: Member) -> list[dict[str, Any]]:
        found = []
        with self.schedule.step("predict", f"predictions of {m.name}") as advance, self._load(m) as engine:
            if engine.backend.vocabulary != pack.about["vocabulary"]:
                sizes = f"{engine.backend.vocabulary:,} rows, the pack {pack.about['vocabulary']:,}"
                raise BadRequest(f"{m.path}: its vocabulary has {sizes}; it was made of another model")
            for packed in pack.passages:
                positions, bound = against(packed, engine, advance)
                found.append(asdict(fidelity_of(packed.passage, positions, own=False, kld_bound=bound)))
        return found
