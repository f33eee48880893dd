"""The embedded model in other people's programs: the same logits, the same tokens, the same chat template."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from oss_tools.chat import harmony
from oss_tools.convert.pipeline import Options, run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import load_recipe
from oss_tools.engine.engine import Engine
from oss_tools.models import open_checkpoint
from oss_tools.resources import resource
from oss_tools.tiny import data
from tests.interop.peers import llama_cpp_logits, log_softmax, mean_kld, transformers_logits

pytestmark = pytest.mark.peers
TINY = resource("tiny/checkpoint")


@pytest.fixture(scope="module")
def conversations() -> list[str]:
    """Held-out conversations of every suite, as text."""
    return [
        harmony.plain_text(harmony.render(item.conversation, complete=True))
        for item in itertools.islice(data.items(11, "test"), 12)
    ]


@pytest.fixture(scope="module")
def tokens(conversations: list[str]) -> list[int]:
    """The first of them in one, longer than the sliding window twice over."""
    with Engine.load(TINY, backend="torch", context=512) as engine:
        found = [token for text in conversations for token in engine.text.encode(text)]
    return found[:400]


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_logits_are_those_of_transformers(tokens: list[int], backend: str) -> None:
    with Engine.load(TINY, backend=backend, activations="f32", context=512) as engine:
        ours = log_softmax(engine.logits(tokens))
    expected = log_softmax(transformers_logits(TINY, tokens, attn_implementation="eager"))
    assert expected.max(-1).mean() > -1.5, "a trained model is mostly sure of what comes next"
    assert np.abs(ours - expected).max() < 1e-3


def test_llama_cpp_loads_the_gguf_splits_text_alike_and_agrees(
    tokens: list[int], conversations: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    with open_checkpoint(TINY) as source:
        run(make_plan(source, "gguf", load_recipe("bf16")), path, Options(verify=False))
    with Engine.load(path, activations="f32", context=512) as engine:
        ours = engine.logits(tokens)
        texts = [engine.text.encode(text) for text in conversations]
    assert mean_kld(llama_cpp_logits(path, tokens), ours) < 1e-3
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text, expected in zip(conversations, texts, strict=True):
        assert model.tokenize(text.encode(), add_bos=False, special=True) == expected


def test_the_chat_template_in_transformers_writes_what_harmony_writes() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    for item in itertools.islice(data.items(12, "test"), 200):
        if any(message.role == "tool" for message in item.conversation.messages):
            continue
        asked = [m for m in item.conversation.messages if m.role == "user"]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": m.content} for m in asked],
            tools=[{"type": "function", "function": dict(tool)} for tool in item.conversation.tools] or None,
            reasoning_effort=item.conversation.effort,
            add_generation_prompt=True,
            tokenize=False,
        )
        pieces = harmony.render(item.conversation, complete=True)
        assert harmony.plain_text(pieces).startswith(text)


def test_the_record_names_the_commit_and_the_figures() -> None:
    record = json.loads((Path(__file__).parents[2] / "results" / "tiny-training.json").read_text())
    runs = [record]
    while runs[-1].get("before"):
        runs.append(runs[-1]["before"])
    assert len(runs) == 3
    for part in runs:
        assert len(part["commit"]) == 40
        assert part["loss"][-1][0] == part["steps"]
    assert all(part["loss"][-1][1] < runs[-1]["loss"][0][1] / 10 for part in runs)
