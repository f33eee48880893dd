"""Times evaluation beside lm-eval's own `hf` model: `python -m oss_tools.measure.evaluation MODEL`.

Two tasks, both with five worked examples that are the same for every question, as MMLU's and GSM8K's usual prompts have them:
answers to generate, and choices to score. Every contender runs in a process of its own, alone; loading is not timed.
Ours runs as it is, without shared prefixes, and without batching; `hf` in the data type and with the batch size that a trial on
part of the questions finds fastest. MODEL is a Hugging Face folder, which both read.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from oss_tools.measure.machine import machine, versions

SHOTS = 5
TRIALS = [(dtype, batch) for dtype in ("float32", "bfloat16") for batch in (1, 8, 32)]
GENERATE, CHOOSE = "generate", "choose"


@dataclass(frozen=True)
class Setup:
    """A way to run the tasks.

    Attributes:
        program: "oss-tools" or "hf".
        prefixes, batch: ours: whether beginnings are shared; requests that share a pass. Of hf only the batch size counts.
        dtype: of hf.
    """

    program: str
    batch: int
    prefixes: bool = True
    dtype: str = ""

    @property
    def label(self) -> str:
        if self.program == "hf":
            return f"lm-eval hf, {self.dtype}, batch {self.batch}"
        less = [] if self.prefixes else ["no shared prefixes"]
        return ", ".join(["oss-tools", *less, *([] if self.batch > 1 else ["no batching"])])


OURS = {
    GENERATE: [Setup("oss-tools", batch, prefixes) for batch in (16, 1) for prefixes in (True, False)],
    # one request alone has nothing to share
    CHOOSE: [Setup("oss-tools", 16), Setup("oss-tools", 16, prefixes=False), Setup("oss-tools", 1, prefixes=False)],
}


# ---- the tasks ------------------------------------------------------------------------------------------------------


def task(kind: str) -> dict[str, Any]:
    """One of the two tasks as lm-eval takes it."""
    from oss_tools.harness.data import Documents

    docs = Documents(islice(problems() if kind == GENERATE else choices(), 1000))
    common = {
        "task": kind,
        "custom_dataset": lambda **_: {"test": docs[SHOTS:], "train": docs[:SHOTS]},
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": SHOTS,
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "metadata": {"version": 1},
    }
    if kind == GENERATE:
        return common | {
            "output_type": "generate_until",
            "doc_to_target": "worked",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 96, "do_sample": False},
            "process_results": right_number,
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    return common | {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }


def right_number(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    from oss_tools.harness.smoke import last_number

    return {"acc": float(last_number(results[0]) == last_number(doc["worked"]))}


def problems() -> Iterator[dict[str, str]]:
    """Word problems and sums with worked answers."""
    from oss_tools.tiny.math import items

    for item in items(random.Random(11), "test"):
        question, analysis, _ = (message.content for message in item.conversation.messages)
        worked = " ".join(analysis.split())
        yield {"question": question, "worked": f"{worked} The answer is {item.answer}."}


def choices() -> Iterator[dict[str, Any]]:
    """Health questions with the texts of four answers."""
    from oss_tools.tiny.health import items

    for item in items(random.Random(11), "test"):
        question, *options = item.conversation.messages[0].content.split("\n")
        if len(options) == 5:
            texts = [option.partition(". ")[2] for option in options[:4]]
            listed = "\n".join(options[:4])
            yield {"question": f"{question}\n{listed}", "choices": texts, "gold": "ABCD".index(item.answer)}


# ---- one contender, in its own process ------------------------------------------------------------------------------


def timed(model: str, setup: Setup, kind: str, limit: int, threads: int) -> dict[str, Any]:
    """Seconds for `limit` questions, and what came of them. A few others are asked before, so that everything is compiled."""
    from oss_tools.harness.tasks import require_lm_eval

    require_lm_eval()
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    lm = loaded(model, setup, threads)
    found: dict[str, Any] = {}
    for count in (2, limit):
        tasks = TaskManager(include_defaults=False).load([task(kind)])
        for made in tasks["tasks"].values():
            made.set_fewshot_seed(0)
        if setup.program == "oss-tools":
            lm = fresh(lm, setup)
        began = time.perf_counter()
        found = evaluate(lm, tasks, limit=count, bootstrap_iters=0)
        seconds = time.perf_counter() - began
    outcomes = [sample["filtered_resps"] for sample in found["samples"][kind]]
    usage = lm.usage[kind].to_json() if setup.program == "oss-tools" else {}
    score = found["results"][kind]["acc,none"]
    return {"seconds": seconds, "questions": limit, "score": score, "outcomes": outcomes, "usage": usage}


def loaded(model: str, setup: Setup, threads: int) -> Any:
    if setup.program == "hf":
        import torch
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(threads)
        return HFLM(pretrained=model, dtype=setup.dtype, device="cpu", batch_size=setup.batch)
    import oss_tools.engine.engine as module
    from oss_tools.engine.engine import Engine
    from oss_tools.harness.lm import EngineLM

    if not setup.prefixes:  # neither what is remembered nor what the requests of one batch have in common
        module.SHARED = sys.maxsize
    engine = Engine.load(model, threads=threads, prefix_budget=None if setup.prefixes else 0)
    return EngineLM(engine, batch=setup.batch)


def fresh(lm: Any, setup: Setup) -> Any:
    """The model without what it remembers of earlier questions."""
    from oss_tools.engine.prefix import PrefixCache
    from oss_tools.harness.lm import EngineLM

    lm.engine.prefixes = PrefixCache(lm.engine.prefixes.budget)
    return EngineLM(lm.engine, batch=setup.batch)


def in_process(model: str, setup: Setup, kind: str, limit: int, threads: int) -> dict[str, Any]:
    """`timed`, in a process of its own."""
    work = json.dumps({"model": model, "setup": asdict(setup), "kind": kind, "limit": limit, "threads": threads})
    command = [sys.executable, "-m", "oss_tools.measure.evaluation", "--work", work]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# ---- the contest ----------------------------------------------------------------------------------------------------


def contest(model: str, limits: dict[str, int], threads: int, rounds: int) -> dict[str, Any]:
    """The record: for each task every contender's seconds, round by round, and their ratios to ours."""
    record: dict[str, Any] = {
        "schema": 1,
        "kind": "evaluation speed",
        "model": Path(model).name,
        "machine": machine(),
        "versions": versions("lm-eval", "torch", "transformers", "numpy", "numba"),
        "threads": threads,
        "tasks": {},
    }
    for kind, limit in limits.items():
        trials = {}
        for setup in (Setup("hf", batch, dtype=dtype) for dtype, batch in TRIALS):
            trials[setup] = in_process(model, setup, kind, max(limit // 8, 4), threads)
            print(f"{kind}: trial of {setup.label}: {trials[setup]['seconds']:.1f} s", file=sys.stderr)
        best = min(trials, key=lambda setup: trials[setup]["seconds"])
        print(f"{kind}: of lm-eval's hf the fastest is {best.label}", file=sys.stderr)
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(rounds):
            for setup in (*OURS[kind], best):
                runs.setdefault(setup.label, []).append(in_process(model, setup, kind, limit, threads))
                print(f"{kind}: {setup.label}: {runs[setup.label][-1]['seconds']:.1f} s", file=sys.stderr)
        record["tasks"][kind] = _compared(runs, best.label) | {"trials": {s.label: t["seconds"] for s, t in trials.items()}}
    return record


def _compared(runs: dict[str, list[dict[str, Any]]], peer: str) -> dict[str, Any]:
    ours = next(iter(runs.values()))
    shortest = min(run["seconds"] for run in ours)
    rows = {
        label: {
            "seconds": [run["seconds"] for run in found],
            "times_ours": min(run["seconds"] for run in found) / shortest,
            "score": found[0]["score"],
            "usage": found[0]["usage"],
        }
        for label, found in runs.items()
    }
    pairs = list(zip(ours[0]["outcomes"], runs[peer][0]["outcomes"], strict=True))
    return {"questions": ours[0]["questions"], "peer": peer, "contenders": rows, "agreement": agreement(pairs)}


def agreement(pairs: list[tuple[Any, Any]]) -> float:
    """The share of questions with the same text, or the same choice as the likeliest."""

    def answer(outcome: Any) -> Any:
        scored = [part[0] for part in outcome if isinstance(part, list | tuple)]
        return scored.index(max(scored)) if scored else outcome

    return sum(answer(one) == answer(other) for one, other in pairs) / len(pairs)


def print_report(record: dict[str, Any]) -> None:
    from tabulate import tabulate

    for kind, found in record["tasks"].items():
        rows = []
        for label, entry in found["contenders"].items():
            usage = entry["usage"]
            shared = f"{100 * (1 - usage['computed'] / usage['positions']):.0f} %" if usage else ""
            rows.append(
                (label, f"{min(entry['seconds']):.1f}", f"{entry['times_ours']:.2f}", f"{entry['score']:.3f}", shared)
            )
        print(f"\n{kind}: {found['questions']} questions, {SHOTS} examples before each")
        print(tabulate(rows, headers=("", "seconds", "× ours", "score", "not computed again"), disable_numparse=True))
        print(f"same answers as {found['peer']}: {100 * found['agreement']:.1f} %")
    print(f"\n{record['model']}, {record['threads']} threads, {record['machine']['cpu']}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m oss_tools.measure.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a Hugging Face folder")
    parser.add_argument("--generate", type=int, default=100, metavar="N", help="questions to answer [100]")
    parser.add_argument("--choose", type=int, default=200, metavar="N", help="questions with four choices [200]")
    parser.add_argument("--threads", type=int, default=0, help="0 for every core")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything is timed [1]")
    parser.add_argument("--json", metavar="FILE", help="write the record there")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work = json.loads(given.work)
        print(json.dumps(timed(**work | {"setup": Setup(**work["setup"])})))
        return
    if not given.model:
        parser.error("MODEL is needed")
    from numba_kernels.parallel import cores

    record = contest(given.model, {GENERATE: given.generate, CHOOSE: given.choose}, given.threads or cores(), given.rounds)
    if given.json:
        Path(given.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print_report(record)


if __name__ == "__main__":
    main()
