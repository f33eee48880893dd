"""Perplexity of texts: documents out of files, and what a text's log-probability is divided by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oss_tools.harness.data import Documents
from oss_tools.texts import read_words

PASSAGE = 4000  # characters of one document of a user's file, to the end of its paragraph
LARGEST = 64 << 20  # bytes of a file


class Rolling(float):
    """The log-probability of a text, and how many tokens it has."""

    tokens: int

    def __new__(cls, value: float, tokens: int = 0) -> Rolling:
        rolling = super().__new__(cls, value)
        rolling.tokens = tokens
        return rolling


def score_text(doc: Mapping[str, Any], results: Sequence[float]) -> dict[str, tuple[float, int]]:
    """(log-probability, units) per word, byte and token, as lm-eval's aggregations take them."""
    return _scores(doc["text"], results[0])


def score_page(doc: Mapping[str, Any], results: Sequence[float]) -> dict[str, tuple[float, int]]:
    return _scores(doc["page"], results[0])


def _scores(text: str, logprob: float) -> dict[str, tuple[float, int]]:
    words, size = len(re.split(r"\s+", text)), len(text.encode())
    scores = {
        "word_perplexity": (float(logprob), words),
        "byte_perplexity": (float(logprob), size),
        "bits_per_byte": (float(logprob), size),
    }
    if isinstance(logprob, Rolling):  # other models of lm-eval do not say how many tokens there were
        scores["token_perplexity"] = (float(logprob), logprob.tokens)
    return scores


def passages(text: str) -> Documents:
    """A text in documents of whole paragraphs, some `PASSAGE` characters each."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        if found and len(found[-1]) < PASSAGE:
            found[-1] += f"\n\n{paragraph}"
        elif paragraph.strip():
            found.append(paragraph)
    return Documents({"text": passage.strip()} for passage in found)


def file_documents(*, file: str, **_: Any) -> dict[str, Documents]:
    return {"test": passages(read_words(Path(file), LARGEST))}


def file_task(file: Path) -> dict[str, Any]:
    """A task for a user's file, in all but its documents like `text_smoke`. Raises BadRequest if it cannot be read."""
    read_words(file, LARGEST)
    rules = [*((f"{unit}_perplexity", "weighted_perplexity") for unit in ("word", "byte", "token")), ("bits_per_byte",) * 2]
    return {
        "task": f"text:{file}",
        "custom_dataset": file_documents,
        "dataset_kwargs": {"file": str(file)},
        "test_split": "test",
        "num_fewshot": 0,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "process_results": score_text,
        "metric_list": [{"metric": m, "aggregation": a, "higher_is_better": False} for m, a in rules],
        "metadata": {"version": 1},
    }
