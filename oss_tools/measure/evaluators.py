"""Two programs that run lm-eval's tasks, ours and lm-eval's `hf` model, each in a process of its own; and two tasks for them.

Both tasks show the same five worked examples before every question, as the usual prompts of GSM8K and ARC do: answers to
generate, and answers to choose by their likelihood.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from oss_tools.errors import BadRequest
from oss_tools.harness.tasks import require_lm_eval

SHOTS = 5
GENERATE, CHOOSE = "generate", "choose"
DRAWN = 20_000  # of the embedded model's health questions, among which those with choices are looked for
SEED = 11
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Karin", "Leo", "Mia", "Noah")
THINGS = (
    "apples",
    "books",
    "candles",
    "cards",
    "coins",
    "cups",
    "eggs",
    "keys",
    "lamps",
    "pens",
    "plates",
    "shirts",
    "stamps",
)


# ---- the tasks ------------------------------------------------------------------------------------------------------


def task(kind: str, count: int) -> dict[str, Any]:
    """One of the two tasks as lm-eval takes it, with so many questions. Raises BadRequest if there are fewer."""
    from oss_tools.harness.data import Documents

    docs = Documents(islice(problems() if kind == GENERATE else choices(), SHOTS + count))
    if len(docs) < SHOTS + count:
        raise BadRequest(f"{kind}: {count} questions are wanted, there are {len(docs) - SHOTS}")
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
    """Word problems of two steps, with worked answers."""
    rng = random.Random(SEED)
    while True:
        name, thing, a, b = rng.choice(NAMES), rng.choice(THINGS), rng.randint(3, 9), rng.randint(4, 20)
        whole = a * b
        c = rng.randint(2, whole - 1)
        left, both = whole - c, whole + c
        question, worked = rng.choice(
            (
                (
                    f"{name} buys {a} bags with {b} {thing} each and gives {c} of them to a friend. "
                    f"How many {thing} does {name} have left?",
                    f"In {a} bags with {b} {thing} each there are {a} * {b} = {whole} {thing}. "
                    f"Without the {c} that were given away, {whole} - {c} = {left} are left. The answer is {left}.",
                ),
                (
                    f"A shop has {c} {thing} in its window, and {b} more on each of its {a} shelves. "
                    f"How many {thing} does the shop have?",
                    f"On the {a} shelves there are {a} * {b} = {whole} {thing}. "
                    f"With the {c} in the window it has {whole} + {c} = {both}. The answer is {both}.",
                ),
                (
                    f"{name} sells {b} {thing} for {a} dollars each and spends {c} dollars of the money. "
                    f"How many dollars are left?",
                    f"{b} {thing} for {a} dollars each bring {b} * {a} = {whole} dollars. "
                    f"After {c} dollars are spent, {whole} - {c} = {left} are left. The answer is {left}.",
                ),
            )
        )
        yield {"question": question, "worked": worked}


def choices() -> Iterator[dict[str, Any]]:
    """Health questions, each once, with the texts of four answers."""
    from oss_tools.tiny.health import items

    seen = set()
    for item in islice(items(random.Random(SEED), "test"), DRAWN):
        question, *options = item.conversation.messages[0].content.split("\n")
        if len(options) == 5 and question not in seen:
            seen.add(question)
            texts = [option.partition(". ")[2] for option in options[:4]]
            yield {"question": question, "choices": texts, "gold": "ABCD".index(item.answer)}


# ---- the programs ---------------------------------------------------------------------------------------------------


class Evaluator:
    """A program with a model loaded. Asked by lines, see `oss_tools.measure.worker.Child`."""

    lm: Any

    def facts(self) -> dict[str, Any]:
        return {}

    def prepare(self, batch: int, **options: Any) -> None:
        """Makes ready for a run that knows nothing of earlier ones."""
        raise NotImplementedError

    def usage(self, kind: str) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Lets the model go."""

    def run(self, kind: str, count: int, batch: int, **options: Any) -> dict[str, Any]:
        """The first `count` questions of a task: seconds from lm-eval's requests to its scores, the score, the outcomes.

        Args:
            batch: requests that share a pass.
            options: of `prepare`.
        """
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager

        tasks = TaskManager(include_defaults=False).load([task(kind, count)])
        for made in tasks["tasks"].values():
            made.set_fewshot_seed(0)
        self.prepare(batch, **options)
        began = time.perf_counter()
        found: dict[str, Any] = evaluate(self.lm, tasks, bootstrap_iters=0)
        seconds = time.perf_counter() - began
        outcomes = [sample["filtered_resps"] for sample in found["samples"][kind]]
        score = found["results"][kind]["acc,none"]
        return {"seconds": seconds, "score": score, "outcomes": outcomes, "usage": self.usage(kind)}


class OssTools(Evaluator):
    """Ours. `prefixes`: whether beginnings are shared, those of earlier requests and those of the requests of one batch."""

    def __init__(self, model: str, threads: int, activations: str = "int8") -> None:
        require_lm_eval()
        import oss_tools.engine.sequences as module
        from oss_tools.engine.engine import Engine

        self.engine = Engine.load(model, threads=threads, activations=activations)
        self._budget, self._shared = self.engine.prefixes.budget, module.SHARED

    def facts(self) -> dict[str, Any]:
        return self.engine.backend.facts()

    def prepare(self, batch: int, prefixes: bool = True, **options: Any) -> None:
        import oss_tools.engine.sequences as module
        from oss_tools.engine.prefix import PrefixCache
        from oss_tools.harness.lm import EngineLM

        module.SHARED = self._shared if prefixes else sys.maxsize
        self.engine.prefixes = PrefixCache(self._budget if prefixes else 0)
        self.lm = EngineLM(self.engine, batch=batch)

    def usage(self, kind: str) -> dict[str, Any]:
        return dict(self.lm.usage[kind].to_json())

    def close(self) -> None:
        self.engine.close()


class Hf(Evaluator):
    """lm-eval's `hf` model on the CPU."""

    def __init__(self, model: str, threads: int, dtype: str) -> None:
        require_lm_eval()
        import torch
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(threads)
        path = Path(model)
        where = {"pretrained": str(path.parent), "gguf_file": path.name} if path.is_file() else {"pretrained": model}
        self.lm = HFLM(**where, dtype=dtype, device="cpu", batch_size=1)

    def prepare(self, batch: int, **options: Any) -> None:
        self.lm.batch_size_per_gpu = batch
