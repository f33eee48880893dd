"""Real weights in the words of other families: SmolLM2, a Llama, as a Mistral, a Qwen 2 and a Mixtral, without loss."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oss_tools.convert.recipe import recipe_of_format
from oss_tools.engine.engine import Engine
from tests.convert.helpers import convert
from tests.interop.peers import smollm2

pytestmark = [pytest.mark.peers, pytest.mark.slow]

TEXT = Path(__file__).parents[2].joinpath("LICENSE").read_text(encoding="utf-8")[1500:5500]
EXPERTS = 3

Tensors = dict[str, np.ndarray]
Words = dict[str, object]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's weights as float32, in which every value of the GGUF file is exact."""
    folder = tmp_path_factory.mktemp("llama") / "smollm2"
    convert(smollm2(), folder, "hf", recipe_of_format("f32"))
    return folder


def as_mistral(tensors: Tensors, words: Words) -> tuple[Tensors, Words]:
    return tensors, words | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}


def as_qwen2(tensors: Tensors, words: Words) -> tuple[Tensors, Words]:
    """A Qwen 2 always has biases of queries, keys and values: zeros."""
    biases = {
        name.replace(".weight", ".bias"): np.zeros(len(weight), np.float32)
        for name, weight in tensors.items()
        if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
    }
    words = {key: value for key, value in words.items() if key not in ("attention_bias", "mlp_bias", "head_dim")}
    more = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
    return tensors | biases, words | more


def as_mixtral(tensors: Tensors, words: Words) -> tuple[Tensors, Words]:
    """Whichever experts a router chooses are the same MLP, and their weights sum to one."""
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    random, found = np.random.default_rng(0), {}
    for name, weight in tensors.items():
        layer, _, part = name.partition(".mlp.")
        if not part:
            found[name] = weight
            continue
        module = f"{layer}.block_sparse_moe"
        theirs = names[part.removesuffix(".weight")]
        found |= {f"{module}.experts.{e}.{theirs}.weight": weight for e in range(EXPERTS)}
        found[f"{module}.gate.weight"] = random.standard_normal((EXPERTS, int(words["hidden_size"])), np.float32)  # type: ignore[call-overload]
    more = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": None}
    return found, words | more | {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}


def perplexity(path: Path) -> float:
    with Engine.load(path, activations="f32", context=2048) as engine:
        tokens = engine.text.encode(TEXT)[:600]
        (scores,) = engine.score([(tokens, 1)])
        return math.exp(-float(np.mean(scores.logprobs)))


@pytest.mark.parametrize("form", [as_mistral, as_qwen2, as_mixtral])
def test_the_perplexity_is_the_llamas(
    llama: Path, tmp_path: Path, form: Callable[[Tensors, Words], tuple[Tensors, Words]]
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "other"
    shutil.copytree(llama, folder, ignore=shutil.ignore_patterns("*.safetensors", "*manifest*"))
    tensors, words = form(load_file(llama / "model.safetensors"), json.loads((llama / "config.json").read_text()))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(words))
    expected = perplexity(llama)
    assert 5 < expected < 40
    assert perplexity(folder) == pytest.approx(expected, rel=1e-5)
    gguf = tmp_path / "other.gguf"
    convert(folder, gguf, "gguf", recipe_of_format("f32"))
    assert perplexity(gguf) == pytest.approx(expected, rel=1e-5)
