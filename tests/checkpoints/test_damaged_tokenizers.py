"""Tokenizers that GGUF cannot hold, and damaged ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oss_tools.checkpoints.gguf_splitters import byte_level, splitter_named
from oss_tools.checkpoints.gguf_tokenizer import from_hf
from oss_tools.errors import BadCheckpoint, OssToolsError
from tests.checkpoints.small_tokenizers import (
    byte_level_json,
    metadata,
    sentencepiece_json,
    template,
)


def changed(path: str, value: Any, source: dict[str, Any] | None = None) -> dict[str, Any]:
    """A tokenizer.json with one value replaced; `path` as `model.type`."""
    found = copy.deepcopy(source or byte_level_json())
    *way, last = path.split(".")
    place: Any = found
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    return found


REFUSED = {
    "other model": (changed("model.type", "Unigram"), "'Unigram' cannot be written to GGUF"),
    "no model": (changed("model", None), "None cannot be written"),
    "prefix of continuing words": (changed("model.continuing_subword_prefix", "##"), "continuing_subword_prefix"),
    "normalizer": (changed("normalizer", {"type": "Lowercase"}), r"normalizer \(Lowercase\) has no counterpart"),
    "vocabulary too large": (changed("model.vocab", {"a": 99}), "token number 99, but config.json has a vocab_size of 10"),
    "number twice": (changed("model.vocab", {"a": 1, "b": 1}), "'a' and 'b' have the same number, 1"),
    "text of padding": (changed("model.vocab", {"a": 0, "[PAD8]": 1}), "the token .\\[PAD8\\]. has the same text"),
    "number no number": (changed("model.vocab", {"a": "0"}), "no whole number"),
    "negative number": (changed("model.vocab", {"a": -1}), "no whole number"),
    "vocabulary a list": (changed("model.vocab", ["a"]), "wrong kind"),
    "merges missing": (changed("model.merges", None), "model.merges is no list"),
    "merge of three": (changed("model.merges", [["a", "b", "c"]]), "is no pair"),
    "merge with space": (changed("model.merges", [["a b", "c"]]), "holds a space"),
    "added token without text": (changed("added_tokens", [{"id": 5}]), "is no token"),
    "template with more": (changed("post_processor", template("<mark>", "A")), "adds \\['<mark>'\\], not bos and eos"),
    "template without text": (changed("post_processor", template("<|start|>")), "does more than"),
    "sentencepiece normalizer": (
        changed("normalizer", {"type": "NFKC"}, sentencepiece_json()),
        "are not SentencePiece's",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda name: name.replace(" ", "-"))
def test_refused(case: str) -> None:
    """What GGUF cannot say is an error, not a silent loss."""
    tokenizer, message = REFUSED[case]
    size = 270 if "byte_fallback" in (tokenizer["model"] or {}) else 10
    with pytest.raises(BadCheckpoint, match=message):
        from_hf(metadata(tokenizer, size, bos_token="<|start|>"), "llama")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


def places(tree: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values of a JSON tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [way, *(place for key, value in inner for place in places(value, (*way, key)))]


RICH = byte_level_json(
    pre_tokenizer=splitter_named("llama-bpe").pre_tokenizer(),  # type: ignore[union-attr]
    post_processor={"type": "Sequence", "processors": [byte_level(True), template("<|start|>", "A", "<|end|>")]},
)
SMALL_SENTENCEPIECE = changed("model.vocab", {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "<s>": 4, "▁": 5}, sentencepiece_json())


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_json(data: st.DataObject) -> None:
    """Any value of tokenizer.json replaced by any other: converted, or refused by an error of ours."""
    tokenizer = copy.deepcopy(data.draw(st.sampled_from([RICH, SMALL_SENTENCEPIECE])))
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(places(tokenizer)[1:]))
        place: Any = tokenizer
        for step in way:
            place = place[step]
        place[last] = data.draw(JSON)
    message = ""
    try:
        keys = from_hf(metadata(tokenizer, bos_token="<|start|>", eos_token="<|end|>"), "llama")
        assert len(keys["tokenizer.ggml.tokens"]) == 10
    except OssToolsError as error:
        message = str(error)
    assert "\n" not in message
