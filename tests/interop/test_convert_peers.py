"""Whole conversions as a user makes them, judged by transformers and llama.cpp: same logits, same weights, it loads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from oss_tools.convert.recipe import load_recipe, recipe_of_format
from oss_tools.models import open_checkpoint
from oss_tools.verify import verify
from tests.convert.helpers import convert
from tests.interop.peers import llama_cpp_logits, mean_kld, smollm2, transformers_logits, transformers_model

pytestmark = pytest.mark.peers

PROSE = (
    "The heart pumps blood through two circuits: one to the lungs, where it takes up oxygen, and one to the rest of the "
    "body. In an adult at rest it beats between 60 and 100 times a minute, and moves about five litres in that time."
)


@pytest.fixture(scope="module")
def smollm2_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 from its GGUF as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("smollm2") / "hf"
    convert(smollm2(), folder, "hf")
    return folder


@pytest.fixture(scope="module")
def smollm2_tokens(smollm2_hf: Path) -> list[int]:
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(smollm2_hf / "tokenizer.json")).encode(PROSE).ids


@pytest.fixture(scope="module")
def smollm2_logits(smollm2_hf: Path, smollm2_tokens: list[int]) -> np.ndarray:
    return transformers_logits(smollm2_hf, smollm2_tokens)


@pytest.mark.slow
def test_smollm2_from_gguf_has_the_logits_that_transformers_gets_from_the_gguf(
    smollm2_tokens: list[int], smollm2_logits: np.ndarray
) -> None:
    theirs = transformers_logits(smollm2(), smollm2_tokens)
    np.testing.assert_allclose(smollm2_logits, theirs, atol=1e-4)


RECIPES = [
    ("q8_0", 5e-3),
    *(pytest.param(*r, marks=pytest.mark.slow) for r in (("mxfp4", 2.0), ("mxfp4-q8", 1.0), ("int8", 5e-3))),
]


@pytest.mark.parametrize(("recipe", "limit"), RECIPES)
def test_smollm2_requantized_runs_in_llama_cpp(
    smollm2_hf: Path, smollm2_tokens: list[int], smollm2_logits: np.ndarray, tmp_path: Path, recipe: str, limit: float
) -> None:
    target = tmp_path / "out.gguf"
    chosen = recipe_of_format(recipe) if recipe == "mxfp4" else load_recipe(recipe)  # GGUF has no int8: it gets q8_0, noted
    manifest = convert(smollm2_hf, target, "gguf", chosen)
    assert {t.format for t in manifest.tensors if t.role == "mlp.up"} == {"mxfp4" if recipe.startswith("mxfp4") else "q8_0"}
    assert all(t.note == "gguf has no int8 for mlp.up" for t in manifest.tensors if recipe == "int8" and t.role == "mlp.up")
    found = llama_cpp_logits(target, smollm2_tokens)
    assert mean_kld(smollm2_logits, found) < limit  # what the format costs in this model
    convert(target, tmp_path / "decoded", "hf", recipe_of_format("f32"))
    exact = transformers_logits(tmp_path / "decoded", smollm2_tokens)
    assert mean_kld(exact, found) < 1e-2  # the same values in a program whose activations are 8-bit


def test_smollm2_in_int8_loads_in_transformers(
    smollm2_hf: Path, smollm2_tokens: list[int], smollm2_logits: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason="needs the extra `peers`")
    convert(smollm2_hf, tmp_path / "int8", "hf", load_recipe("int8"))
    assert 0 < mean_kld(smollm2_logits, transformers_logits(tmp_path / "int8", smollm2_tokens)) < 1e-2


@pytest.fixture(scope="module")
def random_gpt_oss(tmp_path_factory: pytest.TempPathFactory, tiny_gpt_oss: Path) -> Path:
    """A BF16 gpt-oss saved by transformers, weights large enough that logits say something, with a tokenizer."""
    torch = pytest.importorskip("torch", reason="needs the extra `peers`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    folder = tmp_path_factory.mktemp("random") / "gpt-oss"
    config = json.loads((tiny_gpt_oss / "config.json").read_text())
    config.pop("quantization_config")
    torch.manual_seed(5)
    model = transformers.GptOssForCausalLM(transformers.GptOssConfig(**config | {"initializer_range": 0.1}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "sinks")):
                parameter.normal_(0, 0.3)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_gpt_oss / name, folder)
    return folder


TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 256, 60)]  # longer than the sliding window of 16


@pytest.mark.parametrize("made_by", ["transformers", "synth"])
def test_gpt_oss_goes_around_all_containers_and_llama_cpp_agrees(
    random_gpt_oss: Path, tiny_gpt_oss: Path, tmp_path: Path, made_by: str
) -> None:
    source = random_gpt_oss if made_by == "transformers" else tiny_gpt_oss
    stations = [source, tmp_path / "original", tmp_path / "x.gguf", tmp_path / "hf"]
    for before, after, container in zip(stations, stations[1:], ("original", "gguf", "hf"), strict=False):
        convert(before, after, container)
        with open_checkpoint(source) as a, open_checkpoint(after) as b:
            result = verify(a, b)
            assert result.equal, (result.said, result.differences[:2])
    reference = transformers_logits(source, TOKENS)
    assert np.ptp(reference, axis=-1).min() > 1  # the distribution is not flat
    assert mean_kld(reference, transformers_logits(tmp_path / "hf", TOKENS)) < 1e-9
    assert mean_kld(reference, llama_cpp_logits(tmp_path / "x.gguf", TOKENS)) < 1e-3


def test_a_bf16_fine_tune_goes_back_to_mxfp4_and_transformers_loads_it(random_gpt_oss: Path, tmp_path: Path) -> None:
    target = tmp_path / "mxfp4"
    convert(random_gpt_oss, target, "hf", load_recipe("mxfp4"))
    assert json.loads((target / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"
    model = transformers_model(target)
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    with open_checkpoint(target) as checkpoint:
        for name in ("gate_up_proj", "down_proj"):
            name = f"model.layers.1.mlp.experts.{name}"
            assert checkpoint.entries[name].format.name == "mxfp4"
            ours = checkpoint.read_tensor(name).dequantize()
            np.testing.assert_array_equal(state[name].swapaxes(1, 2), ours)
