"""Times evaluation beside lm-eval's own `hf` model: `python -m oss_tools.measure.evaluation MODEL`.

Answers are generated to one set of questions and chosen for another (see `evaluators`). Loading is not timed. `hf` runs in the
data type and with the batch size that trials find fastest; ours runs before it and after it, so that a machine that changes its
pace shows. Then ours runs on a part of the questions as it is, without shared prefixes, and without batching. MODEL is what both
can read: a Hugging Face folder, or a GGUF file, whose weights transformers unpacks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numba_kernels.parallel import cores
from oss_tools.checkpoints import open_container
from oss_tools.checkpoints.files import replace_file
from oss_tools.errors import MissingPackage, OssToolsError, how_to_install
from oss_tools.machine.description import machine, versions
from oss_tools.measure.evaluators import CHOOSE, GENERATE, SHOTS
from oss_tools.measure.identity import model_sha256
from oss_tools.measure.worker import Child

SCHEMA = 2
BATCH = 16  # of ours, as `oss-tools eval` has it
PART = 4  # what is left out of ours is measured on one question in so many
DTYPES = ("float32", "bfloat16")  # of hf, that are tried
USUAL, OTHERS = 8, (1, 16, 32)  # batch sizes of hf that are tried
FEWEST = 4  # questions of a trial
PACKAGES = ("lm_eval", "torch", "transformers")


@dataclass(frozen=True)
class Setup:
    """A way to run the tasks: requests that share a pass, hf's data type (ours has none), whether ours shares beginnings."""

    batch: int
    dtype: str = ""
    prefixes: bool = True

    @property
    def label(self) -> str:
        if self.dtype:
            return f"lm-eval hf, {self.dtype}, batch {self.batch}"
        missing = [] if self.prefixes else ["no shared prefixes"]
        return ", ".join(["oss-tools", *missing, *([] if self.batch > 1 else ["no batching"])])


OURS = Setup(BATCH)
WITHOUT = {
    GENERATE: [Setup(BATCH, prefixes=False), Setup(1), Setup(1, prefixes=False)],
    CHOOSE: [Setup(BATCH, prefixes=False), Setup(1, prefixes=False)],  # one request alone has nothing to share
}
Ask = Callable[[Setup, str, int], dict[str, Any]]  # how, which task, how many questions → what `Evaluator.run` returns


# ---- the contest ----------------------------------------------------------------------------------------------------


class Programs:
    """The processes, started when they are first asked, each with its model loaded and warm for both tasks."""

    def __init__(self, model: str, threads: int, start: Callable[..., Any] = Child, activations: str = "int8") -> None:
        self._model, self._threads, self._start, self._activations = model, threads, start, activations
        self._running: dict[str, Any] = {}
        self._stack = ExitStack()
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def __call__(self, setup: Setup, kind: str, count: int) -> dict[str, Any]:
        """Runs a task as `setup` says, see `Evaluator.run`. Raises ContenderFailed."""
        name = f"lm-eval hf, {setup.dtype}" if setup.dtype else "oss-tools"
        if name not in self._running:
            say(f"loading {name}")
            own = {"kind": "oss-tools eval", "activations": self._activations}
            if setup.dtype:
                own = {"kind": "lm-eval hf", "dtype": setup.dtype}
            program = self._stack.enter_context(self._start(**own, model=self._model, threads=self._threads))
            self._running[name], self.facts[name] = program, program.ready["facts"]
            for task in (GENERATE, CHOOSE):
                program.ask("run", kind=task, count=2, batch=2)
        options = {} if setup.dtype else {"prefixes": setup.prefixes}
        found: dict[str, Any] = self._running[name].ask("run", kind=kind, count=count, batch=setup.batch, **options)
        say(f"{kind}: {setup.label}: {count} questions in {found['seconds']:.1f} s")
        return found


def compared(kind: str, count: int, ask: Ask, rounds: int) -> dict[str, Any]:
    """The record of one task."""
    peer, trials = fastest_peer(kind, count, ask)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(ask(OURS, kind, count))
        theirs.append(ask(peer, kind, count))
        ours.append(ask(OURS, kind, count))
    part = max(count // PART, 1)
    parts = {setup.label: ask(setup, kind, part)["seconds"] for setup in (OURS, *WITHOUT[kind])}
    runs = {OURS.label: ours, peer.label: theirs}
    seconds = {label: statistics.median(run["seconds"] for run in found) for label, found in runs.items()}
    return {
        "questions": count,
        "shots": SHOTS,
        "peer": peer.label,
        "times_as_fast": seconds[peer.label] / seconds[OURS.label],
        "programs": {
            label: {"seconds": [run["seconds"] for run in found], "score": found[0]["score"], "usage": found[0]["usage"]}
            for label, found in runs.items()
        },
        "agreement": agreement(ours[0]["outcomes"], theirs[0]["outcomes"]),
        "part": {"questions": part, "seconds": parts},
        "trials": trials,
    }


def fastest_peer(kind: str, count: int, ask: Ask) -> tuple[Setup, dict[str, float]]:
    """The data type that is fastest with the usual batch size, with the batch size that is fastest in that type; and all trials'
    seconds a question. A trial has as many questions as fill a batch, if there are as many."""
    requests = 1 if kind == GENERATE else 4  # of a question
    tried: dict[Setup, float] = {}

    def fastest() -> Setup:
        return min(tried, key=lambda setup: tried[setup])

    def trial(batch: int, dtype: str) -> None:
        questions = min(max(batch // requests, FEWEST), count)
        tried[Setup(batch, dtype)] = ask(Setup(batch, dtype), kind, questions)["seconds"] / questions

    for dtype in DTYPES:
        trial(USUAL, dtype)
    dtype = fastest().dtype
    for batch in OTHERS:
        trial(batch, dtype)
    return fastest(), {setup.label: seconds for setup, seconds in tried.items()}


def agreement(ours: list[Any], theirs: list[Any]) -> float:
    """The share of questions with the same text, or with the same choice as the likeliest."""

    def answer(outcome: Any) -> Any:
        scored = [part[0] for part in outcome if isinstance(part, list | tuple)]
        return scored.index(max(scored)) if scored else outcome

    pairs = list(zip(ours, theirs, strict=True))
    return sum(answer(one) == answer(other) for one, other in pairs) / len(pairs)


def contest(
    model: Path,
    counts: dict[str, int],
    threads: int,
    rounds: int,
    start: Callable[..., Any] = Child,
    activations: str = "int8",
) -> dict[str, Any]:
    """The record of both tasks, with such activations of ours. Raises BadCheckpoint, MissingPackage, ContenderFailed."""
    require_packages()
    with open_container(model) as container:
        files = container.files()
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "evaluation speed",
        "model": {"name": model.name, "sha256": model_sha256(files)},
        "machine": machine(),
        "load": os.getloadavg()[0],
        "versions": versions("lm-eval", "torch", "transformers", "numpy", "numba"),
        "threads": threads,
    }
    with Programs(str(model), threads, start, activations) as programs:
        record["tasks"] = {kind: compared(kind, count, programs, rounds) for kind, count in counts.items()}
        record["facts"] = programs.facts
    return record


def require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackage(f"this needs {', '.join(missing)}: {how_to_install('eval,peers')}")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---- the report -----------------------------------------------------------------------------------------------------


def report(record: dict[str, Any]) -> str:
    """The record as text."""
    from tabulate import tabulate

    lines = []
    for kind, found in record["tasks"].items():
        rows = []
        for label, entry in found["programs"].items():
            seconds, usage = statistics.median(entry["seconds"]), entry["usage"]
            shared = f"{100 * (1 - usage['computed'] / usage['positions']):.0f} %" if usage else ""
            rows.append((label, f"{seconds:.1f}", f"{found['questions'] / seconds:.1f}", f"{entry['score']:.3f}", shared))
        lines += ["", f"{kind}: {found['questions']} questions, {found['shots']} worked examples before each"]
        lines.append(tabulate(rows, ("", "seconds", "questions / s", "score", "not computed again"), disable_numparse=True))
        lines.append(f"{found['times_as_fast']:.1f} times as fast; same answers: {100 * found['agreement']:.1f} %")
        part = found["part"]
        least = part["seconds"][OURS.label]
        ratios = [(label, f"{seconds:.1f}", f"{seconds / least:.1f}") for label, seconds in part["seconds"].items()]
        lines += ["", f"{kind}: what it is made of, on {part['questions']} questions"]
        lines.append(tabulate(ratios, ("", "seconds", "times as long"), disable_numparse=True))
    cpu = record["machine"]["cpu"]
    return "\n".join(
        [*lines, "", f"{record['model']['name']}, {record['threads']} threads, {cpu}, load {record['load']:.1f}"]
    )


def main(arguments: list[str] | None = None) -> None:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m oss_tools.measure.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a Hugging Face folder or a GGUF file")
    parser.add_argument("--generate", type=int, default=100, metavar="N", help="how many questions to answer [100]")
    parser.add_argument("--choose", type=int, default=200, metavar="N", help="how many questions with four choices [200]")
    parser.add_argument("--threads", type=int, default=cores(), help="threads to use [every core]")
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often hf runs, each time between two runs of this program [1]"
    )
    parser.add_argument(
        "--activations", default="int8", help="how this program rounds the inputs of layers: int8, bf16 or f32 [int8]"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the record to this file")
    given = parser.parse_args(arguments)
    try:
        counts = {GENERATE: given.generate, CHOOSE: given.choose}
        record = contest(given.model, counts, given.threads, given.rounds, activations=given.activations)
    except OssToolsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    if given.output:
        replace_file(given.output, json.dumps(record, indent=1) + "\n")
    print(report(record))


if __name__ == "__main__":
    main()
