"""Every family against transformers and llama.cpp: random small models, one usual and one odd of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oss_tools.checkpoints.tokenizers.byte_tokenizer import byte_tokenizer
from oss_tools.convert.options import Options
from oss_tools.convert.pipeline import run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import KEEP_ALL
from oss_tools.engine.engine import Engine
from oss_tools.errors import BadRecipe
from oss_tools.models import open_checkpoint
from oss_tools.verify import verify
from tests.interop.peers import llama_cpp_logits, log_softmax, mean_kld
from tests.models.small_families import CONFIGS, NOT_IN_GGUF, OTHERWISE_IN_LLAMA_CPP

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

KINDS = list(CONFIGS)
BACKENDS = ("torch", "numba")
LENGTH = 150  # beyond every window, and beyond the context that YaRN was made from
TOKENS = np.random.default_rng(0).integers(0, 331, LENGTH).tolist()


def random_model(config: dict[str, Any]) -> Any:
    """A model of transformers whose norms, biases and routers matter."""
    torch.manual_seed(0)
    kind = transformers.AutoConfig.for_model(**config)
    plain = {"experts_implementation": "eager"} if "num_experts_per_tok" in config else {}
    model = transformers.AutoModelForCausalLM.from_config(kind, attn_implementation="eager", **plain).eval()
    for name, parameter in model.named_parameters():
        is_norm = ("norm" in name or "ln_" in name) and not name.endswith("bias")
        parameter.data.normal_(1.0 if is_norm else 0.0, 0.4 if "bias" in name or is_norm else 0.12)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data.normal_(0.0, 0.3)
    return model


def log_probabilities(model: Any) -> np.ndarray:
    with torch.inference_mode():
        return log_softmax(model(torch.tensor([TOKENS])).logits[0].float().numpy())


def save(model: Any, folder: Path, **options: Any) -> Path:
    """A folder of transformers with a tokenizer, which GGUF files want."""
    model.save_pretrained(folder, **options)
    tokenizer = byte_tokenizer(model.config.model_type, 331)
    assert tokenizer is not None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer.content))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer.config))
    return folder


def converted(source: Path, target: Path, container: str) -> tuple[str, ...]:
    """Converts without rounding; returns the remarks."""
    with open_checkpoint(source) as checkpoint:
        plan = make_plan(checkpoint, container, KEEP_ALL)
        run(plan, target, Options())
        return plan.remarks


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("original", [True, False], ids=["published names", "names of transformers 5"])
def test_log_probabilities_of_transformers(kind: tuple[str, str], original: bool, tmp_path: Path) -> None:
    model = random_model(CONFIGS[kind])
    expected = log_probabilities(model)
    assert expected.std() > 0.3
    model.save_pretrained(tmp_path / "model", save_original_format=original)
    for backend in BACKENDS:
        with Engine.load(tmp_path / "model", backend=backend, activations="f32", context=200) as engine:
            found = log_softmax(engine.logits(TOKENS))
        assert np.abs(found - expected).max() < 1e-3, backend


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_decoding_equals_the_prompt(kind: tuple[str, str], backend: str, tmp_path: Path) -> None:
    """One token at a time through the cache, past every window."""
    random_model(CONFIGS[kind]).save_pretrained(tmp_path / "model")
    with Engine.load(tmp_path / "model", backend=backend, activations="f32", context=200) as engine:
        whole = engine.logits(TOKENS[:80])
        sequence = engine.open(TOKENS[:1], room=80)
        rows = [
            engine.prefill(sequence, TOKENS[:1]),
            *(engine.step([sequence], [token])[0].copy() for token in TOKENS[1:80]),
        ]
    assert np.abs(log_softmax(np.stack(rows)) - log_softmax(whole)).max() < 1e-4


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in NOT_IN_GGUF], ids="-".join)
def test_through_gguf_and_back(kind: tuple[str, str], tmp_path: Path) -> None:
    """HF → GGUF → HF is the same model to `verify`, to our engine and to transformers; llama.cpp computes it where it can."""
    model = random_model(CONFIGS[kind])
    expected = log_probabilities(model)
    folder = save(model, tmp_path / "a")
    remarks = converted(folder, tmp_path / "b.gguf", "gguf")
    assert converted(tmp_path / "b.gguf", tmp_path / "c", "hf") == ()
    for other in ("b.gguf", "c"):
        with open_checkpoint(folder) as a, open_checkpoint(tmp_path / other) as b:
            assert verify(a, b).equal
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "c", dtype=torch.float32, attn_implementation="eager"
    )
    assert np.abs(log_probabilities(again.eval()) - expected).max() < 1e-5
    with Engine.load(tmp_path / "b.gguf", backend="torch", activations="f32", context=200) as engine:
        assert np.abs(log_softmax(engine.logits(TOKENS)) - expected).max() < 1e-4
    divergence = mean_kld(expected, llama_cpp_logits(tmp_path / "b.gguf", TOKENS))
    if kind in OTHERWISE_IN_LLAMA_CPP:
        assert [OTHERWISE_IN_LLAMA_CPP[kind] in remark for remark in remarks] == [True]
        assert divergence > 1e-3
    else:
        assert remarks == ()
        assert divergence < 1e-3


@pytest.mark.parametrize("kind", sorted(NOT_IN_GGUF), ids="-".join)
def test_what_llama_cpp_has_no_place_for_is_refused(kind: tuple[str, str], tmp_path: Path) -> None:
    random_model(CONFIGS[kind]).save_pretrained(tmp_path / "a")
    with pytest.raises(BadRecipe, match=r"the container gguf cannot hold this model: (its layers|it has a bias of q_)"):
        converted(tmp_path / "a", tmp_path / "b.gguf", "gguf")


NORMS = {"qwen2_moe": True, "qwen3_moe": False}  # as llama.cpp does not


@pytest.mark.parametrize("model_type", NORMS)
def test_weights_of_experts_that_llama_cpp_norms_otherwise(model_type: str, tmp_path: Path) -> None:
    """The file says it under a key of our own, and a remark says so."""
    model = random_model(CONFIGS[model_type, "usual"] | {"norm_topk_prob": NORMS[model_type]})
    remarks = converted(save(model, tmp_path / "a"), tmp_path / "b.gguf", "gguf")
    assert ["norm_topk_prob" in remark for remark in remarks] == [True]
    expected = log_probabilities(model)
    with Engine.load(tmp_path / "b.gguf", backend="torch", activations="f32", context=200) as engine:
        assert np.abs(log_softmax(engine.logits(TOKENS)) - expected).max() < 1e-4
    assert mean_kld(expected, llama_cpp_logits(tmp_path / "b.gguf", TOKENS)) > 1e-4
