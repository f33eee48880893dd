"""No question of the smoke suites was trained on: the training's own stream of questions is gone through once more."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from oss_tools.resources import resource
from oss_tools.tiny import data, smoke
from oss_tools.tiny.items import Item

RECORD = Path(__file__).parents[2] / "results" / "tiny-training.json"


def asked(item: Item) -> str:
    """What decides the answer: the user's words and the tools."""
    return _key(smoke.document(item))


def _key(document: dict) -> str:
    return json.dumps([document["question"], document.get("conversation")], sort_keys=True)


@pytest.mark.slow
def test_no_prompt_of_the_smoke_suites_was_trained_on() -> None:
    record = json.loads(RECORD.read_text())
    held_out = set()
    for suite in smoke.SUITES:
        lines = (resource(f"evals/{suite}/smoke.jsonl")).read_text("utf-8").splitlines()
        held_out |= {_key(json.loads(line)) for line in lines}
    assert len(held_out) > 500
    drawn = record["questions"] + 2000  # more than were used: some waited for their batch to fill
    codec = Tokenizer.from_file(str(resource("oss_tools/tiny/checkpoint/tokenizer.json")))
    trained = {asked(item) for item in itertools.islice(data.items(record["seed"], "train", data.pieces(codec)), drawn)}
    assert len(trained) > record["questions"] / 2
    assert not held_out & trained
