"""The training code: the same model as the engine's, the same loss from the same seed, also across an interruption."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from oss_tools.engine.engine import Engine
from oss_tools.engine.sampling import log_softmax
from oss_tools.errors import BadRequest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

from oss_tools.tiny import data, tokenizer, train  # noqa: E402 - they need torch
from oss_tools.tiny.model import CONFIG, TinyModel  # noqa: E402
from oss_tools.tiny.optimizer import orthogonal  # noqa: E402


@pytest.fixture(scope="module")
def content() -> dict:
    return tokenizer.train(data.texts(0, 3000), CONFIG.vocab_size)


def test_the_engine_computes_the_model_that_was_trained(content: dict, tmp_path: Path) -> None:
    """Random weights with biases and sinks; past the sliding window; the trained layout put into the checkpoint's."""
    torch.manual_seed(1)
    model = TinyModel(dataclasses.replace(CONFIG, num_hidden_layers=2))
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "sinks")):
            torch.nn.init.normal_(parameter, std=0.3)
        parameter.data = parameter.data.bfloat16().float()
    train.save(tmp_path / "m", model, content, train.Run(0, 1, 1, 0.0))
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 200)
    with torch.inference_mode():
        hidden, _ = model(torch.from_numpy(tokens)[None])
        expected = log_softmax(model.lm_head(hidden)[0].numpy())
    with Engine.load(tmp_path / "m", backend="torch", context=256) as engine:
        assert np.abs(log_softmax(engine.logits(tokens.tolist())) - expected).max() < 1e-4


def test_gradients_written_by_hand_are_those_of_autograd() -> None:
    from torch.autograd import gradcheck

    from oss_tools.tiny.experts import SwiGlu
    from oss_tools.tiny.model import AttentionWeights

    torch.manual_seed(0)
    inner = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: SwiGlu.apply(x * 2, 1.5), inner)
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    sinks = torch.randn(3, dtype=torch.float64, requires_grad=True)
    unseen = torch.zeros(4, 4, dtype=torch.float64).masked_fill_(torch.ones(4, 4).triu(1) > 0, -torch.inf)
    # its sums are in float32, so a coarse check
    assert gradcheck(lambda x, s: AttentionWeights.apply(x, s, unseen, 0.5), (logits, sinks), eps=1e-3, atol=1e-3)


def test_muon_makes_each_experts_update_orthogonal() -> None:
    update = orthogonal(torch.randn(3, 40, 64))
    values = torch.linalg.svdvals(update.float())
    assert values.shape == (3, 40)
    assert (values > 0.5).all()
    assert (values < 1.3).all()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TOKENIZER_TEXTS", 3000)
    monkeypatch.setattr(train.TinyModel, "__init__", _shallow)


def _shallow(self: TinyModel, config=dataclasses.replace(CONFIG, num_hidden_layers=2), original=TinyModel.__init__) -> None:  # noqa: B008
    original(self, config)


def run(steps: int = 24) -> train.Run:
    return train.Run(seed=3, steps=steps, tokens_per_step=512, learning_rate=0.004)


@pytest.mark.slow
def test_one_seed_gives_one_loss_also_across_an_interruption(quick: None, tmp_path: Path) -> None:
    whole = train.train(tmp_path / "a", run(), report=lambda line: None)
    assert whole.loss[-1][1] < whole.loss[0][1] < 9
    assert not (tmp_path / "a.state").exists()
    train.train(tmp_path / "b", run(40), stop_after=9, report=lambda line: None)
    train.train(tmp_path / "b", run(), resume=True, report=lambda line: None)
    first, second = (tmp_path / name / "model.safetensors" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    record = json.loads((tmp_path / "b" / "training.json").read_text())
    assert (record["questions"], record["tokens"]) == (whole.questions, whole.tokens)
    assert len(record["commit"]) >= 40


@pytest.mark.slow
def test_weights_are_trained_further(quick: None, tmp_path: Path) -> None:
    first = train.train(tmp_path / "a", run(), report=lambda line: None)
    begun, kept = TinyModel(), TinyModel()
    content, _ = train.load(tmp_path / "a", begun)
    train.save(tmp_path / "same", begun, content, first)
    train.load(tmp_path / "same", kept)
    assert all(torch.equal(a, b) for a, b in zip(begun.state_dict().values(), kept.state_dict().values(), strict=True))
    further = train.train(tmp_path / "b", run(), begin=tmp_path / "a", report=lambda line: None)
    assert further.loss[0][1] < first.loss[0][1] * 0.9
    assert (further.before or {})["loss"] == json.loads((tmp_path / "a" / "training.json").read_text())["loss"]
    assert (tmp_path / "a" / "tokenizer.json").read_text() == (tmp_path / "b" / "tokenizer.json").read_text()


def test_further_from_what_is_no_such_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"--begin wants a folder"):
        train.train(tmp_path / "b", run(), begin=tmp_path)


@pytest.mark.slow
def test_the_number_of_steps_cannot_change_once_the_rate_falls(quick: None, tmp_path: Path) -> None:
    train.train(tmp_path / "m", run(8), stop_after=6, report=lambda line: None)
    with pytest.raises(BadRequest, match="learning rate falls"):
        train.train(tmp_path / "m", run(20), resume=True)


def test_made_up_words_of_a_training_have_every_token(content: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer

    codec = Tokenizer.from_str(json.dumps(content))
    pieces = data.pieces(codec)
    assert {"the", "ing"} & set(pieces)
    assert all(codec.encode(piece).tokens == [piece] for piece in pieces)
    assert all(re.fullmatch("[a-z]{2,}", piece) for piece in pieces)
    monkeypatch.setattr(data, "pieces", lambda tokenizer: ["zzq"])
    batches = data.batches(codec, 1, 1024)
    assert any("zzq" in codec.decode(row.tolist()) for _ in range(20) for row in next(batches).tokens)


def test_batches_hold_whole_conversations_and_mark_what_is_said(content: dict) -> None:
    from tokenizers import Tokenizer

    codec = Tokenizer.from_str(json.dumps(content))
    batch = next(data.batches(codec, 1, 1024))
    assert batch.tokens.shape[1] % data.STRIDE == 1
    assert batch.tokens[:, 1:].size <= 1024
    for tokens, said in zip(batch.tokens, batch.said, strict=True):
        text = codec.decode(tokens[said].tolist(), skip_special_tokens=False)
        assert text.startswith("<|channel|>analysis<|message|>")
        assert text.endswith(("<|return|>", "<|call|>"))
        assert "<|start|>user" not in text
