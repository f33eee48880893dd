"""What inspect says of a tokenizer.json that is made to be searched without end, or to fill the memory."""

from pathlib import Path

import pytest

from oss_tools.errors import BadCheckpoint
from oss_tools.models.summary import TokenizerFacts, tokenizer_facts

FILE = Path("tokenizer.json")


def test_a_kind_that_is_missing_is_sought_once() -> None:
    """It was sought from each `"model":{` on, to the text's end."""
    assert tokenizer_facts('"model":{ ' * 200_000, FILE) == TokenizerFacts("unknown", 0, 0)
    assert tokenizer_facts('{"model": {"dropout": null, "type": "BPE", "vocab": {"a": 0}}}', FILE) == TokenizerFacts(
        "BPE", 1, 0
    )


def test_a_vocabulary_of_millions_of_lists_is_not_parsed() -> None:
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json: some \d+ values of JSON, more than"):
        tokenizer_facts('{"model": {"vocab": [' + "[]," * 5_000_000 + "[]]}}", FILE)
