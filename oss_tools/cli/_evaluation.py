"""How `eval` carries tasks out: on an engine, an endpoint or a cluster; and the divergence of one model from another."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oss_tools.cli._options import EMBEDDED
from oss_tools.cli._output import counted, remark, remark_unless
from oss_tools.cli._ray import cluster_at
from oss_tools.cli._scores import DIVERGENCE

if TYPE_CHECKING:
    from oss_tools.engine.engine import Engine
    from oss_tools.harness.grader import Grader
    from oss_tools.harness.run import Settings
    from oss_tools.harness.subjects import Subject
    from oss_tools.harness.suites import SuiteTask


@dataclass(frozen=True)
class Evaluation:
    """Tasks that a model is to be asked.

    Attributes:
        listed: those that suites list.
        tasks: all, as `load_tasks` gives them.
        output: the folder where answers are kept, and where `resume` finds them.
        grader: what grades answers, if a task needs it.
    """

    listed: list[SuiteTask]
    tasks: dict[str, Any]
    settings: Settings
    output: Path | None
    resume: bool
    quiet: bool
    grader: Grader | None = None

    def of(self, subject: Subject, model: dict[str, Any]) -> dict[str, Any]:
        """Runs the tasks with progress; the record, in which `model` stands as it is."""
        from oss_tools.harness.run import evaluate

        with counted(quiet=self.quiet) as report:
            if self.grader is not None:
                self.grader.report = lambda done, total: report("grades", done, total)
            return evaluate(
                subject,
                self.tasks,
                self.settings,
                model=model,
                listed=self.listed,
                output=self.output,
                resume=self.resume,
                report=report,
                say=remark,
            )

    def spread(self, address: str, model: Path, engine: dict[str, Any], data: Path | None) -> dict[str, Any]:
        """Has the tasks answered on a cluster, and scores the answers here; the record. `engine`: as `loaded` takes it."""
        from oss_tools.engine.backend import backend_for
        from oss_tools.harness.shares import answer_elsewhere, source_of

        say = remark_unless(self.quiet)
        engine["backend"] = backend_for(engine.pop("device"), engine["backend"], say)
        about, threads = described(model), engine.pop("threads")
        with tempfile.TemporaryDirectory() as scratch, cluster_at(address) as cluster, counted(quiet=self.quiet) as report:
            assert cluster is not None
            folder = self.output or Path(scratch)
            source = source_of(cluster, model, about["sha256"], engine, threads)
            asked = source, self.tasks["tasks"], self.settings, folder, data, self.resume
            subject = answer_elsewhere(cluster, model, *asked, report=report)
            return replace(self, output=folder, resume=True).of(subject, about)


def check_models(model: Path | None, base: Path | None) -> None:
    """Raises what loading would raise for files that are no checkpoint, before anything is done."""
    from oss_tools.models import open_checkpoint

    for path in (model, base):
        if path is not None:
            with open_checkpoint(path) as checkpoint:
                checkpoint.metadata()


def described(model: Path) -> dict[str, Any]:
    """What the record says of a model's files."""
    from oss_tools.download.layout import name_of
    from oss_tools.harness.run import fingerprint
    from oss_tools.models import open_checkpoint
    from oss_tools.resources import resource

    name = EMBEDDED if model == resource("tiny/checkpoint") else name_of(model)
    with open_checkpoint(model) as checkpoint:
        return {"name": name, "nbytes": checkpoint.nbytes, **fingerprint(checkpoint.reader.files())}


def divergence(base: Engine, engine: Engine, texts: list[Path], limit: int | None, quiet: bool) -> dict[str, Any]:
    """The statistics of the divergence from `base` on the user's files, or on the text that travels with the program."""
    from oss_tools.harness.data import read_jsonl
    from oss_tools.harness.texts import LARGEST
    from oss_tools.measure.fidelity import common_rows, compare_engines, summarize
    from oss_tools.resources import resource
    from oss_tools.texts import read_words

    own = [doc["text"] for doc in read_jsonl(resource("evals/text/smoke.jsonl"))]
    tokens = engine.text.encode("\n\n".join([read_words(file, LARGEST) for file in texts] or own))
    both, rows = common_rows(base, engine), max(base.backend.vocabulary, engine.backend.vocabulary)
    if both < rows and not quiet:
        remark(f"one of the models has {rows - both:,} more rows, for padding; the {both:,} rows of both are compared")
    with counted(quiet=quiet) as report:
        chunks = compare_engines(base, engine, tokens, limit=limit, progress=lambda done, n: report(DIVERGENCE, done, n))
    return summarize(chunks)
