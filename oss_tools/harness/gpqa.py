"""GPQA: questions for experts with four options, of which its files name the right one and three wrong ones in columns.

The options are put into an order of each question's own, drawn with a seed and the question's text: the same for every model, run
and repeat, so that answers are paired. Its authors' evaluation, and gpt-oss's, draw one anew for each repeat.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from oss_tools.errors import BadSource
from oss_tools.harness.data import Documents
from oss_tools.harness.questions import MultipleChoice

SEED = 0
OPTIONS = 4

shown = MultipleChoice(lambda doc: doc["options"], lambda doc: doc["key"])
letter, score = shown.letter, shown.score


def shuffled_all(docs: Sequence[Mapping[str, Any]]) -> Documents:
    """The questions as they are asked: `question`, `options`, `key` (the number of the right one), `kind` (its domain)."""
    return Documents(shuffled(doc) for doc in docs)


def shuffled(doc: Mapping[str, Any], seed: int = SEED) -> dict[str, Any]:
    question = str(doc["question"]).strip()
    options = [str(text).strip() for text in (doc["correct"], *doc["incorrect"])]
    order = list(range(len(options)))
    random.Random(f"{seed} {question}").shuffle(order)
    asked = {"question": question, "options": [options[i] for i in order], "key": order.index(0)}
    domain = doc.get("High-level domain") or doc.get("domain")
    return asked | ({"kind": domain} if isinstance(domain, str) else {})


def check(doc: Mapping[str, Any]) -> None:
    """Raises BadSource for a document that cannot be asked."""
    asked = shuffled(doc)
    options, right = asked["options"], asked["options"][asked["key"]]
    if not asked["question"] or len(options) != OPTIONS or not all(options):
        raise BadSource(f"a question and {OPTIONS} options are wanted, none of them empty")
    if options.count(right) > 1:
        raise BadSource(f"the right option stands among the wrong ones as well: {right[:60]!r}")


def text(doc: Mapping[str, Any]) -> str:
    """The question as https://github.com/openai/gpt-oss (gpt_oss/evals/gpqa_eval.py) asks it."""
    options = "\n".join(f"({name}) {option}" for name, option in shown.lettered(doc).items())
    return f"{doc['question']}\n\n{options}\n\nExpress your final answer as the corresponding option 'A', 'B', 'C', or 'D'."
