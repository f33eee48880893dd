"""Checkpoints as other programs write and rearrange them: the weights that we read are those that the programs hold."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from oss_tools.models.checkpoint import open_checkpoint
from tests.checkpoints.small_models import LINEARS
from tests.interop.test_hf_transformers import as_transformers_holds_it, assert_same, gpt_oss, llama, load, rewrite

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("torchao").setLevel(logging.ERROR)


def as_we_read(folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Canonical values in transformers' shapes, and the remarks."""
    with open_checkpoint(folder) as checkpoint:
        found = {
            name: as_transformers_holds_it(e, checkpoint.read_tensor(name).dequantize())
            for name, e in checkpoint.entries.items()
        }
        return found, checkpoint.remarks


@pytest.mark.parametrize("make", [llama, gpt_oss])
def test_the_bare_model_saved_alone(tmp_path: Path, make) -> None:
    """transformers' AutoModel has no head and no `model.` in its names; with tied embeddings it is the whole model."""
    model = make(tmp_path / "a")
    config = json.loads((tmp_path / "a/config.json").read_text()) | {"tie_word_embeddings": True}
    model.lm_head.weight = model.model.embed_tokens.weight
    model.model.save_pretrained(tmp_path / "b")
    (tmp_path / "b/config.json").write_text(json.dumps(config))
    found, remarks = as_we_read(tmp_path / "b")
    assert any("lack 'model.'" in remark for remark in remarks)
    assert_same(load(tmp_path / "b"), found)


def test_a_classifier_is_the_same_model_with_another_head(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        num_hidden_layers=1, hidden_size=64, intermediate_size=96, num_attention_heads=2, vocab_size=99, num_labels=3,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    found, remarks = as_we_read(tmp_path)
    assert "not the model's, and left out: score.weight" in remarks
    state = model.state_dict()
    assert set(found) == set(state) - {"score.weight"}
    for name, values in found.items():
        assert np.array_equal(values, state[name].numpy()), name


def test_gpt_oss_resaved_after_it_was_unpacked(tmp_path: Path) -> None:
    """transformers unpacks MXFP4 to BF16 without its kernels, and saves that under the packed names."""
    experts = {"experts.gate_up": "mxfp4", "experts.down": "mxfp4"}
    gpt_oss(tmp_path / "a")
    rewrite(tmp_path / "a", tmp_path / "packed", "hf", experts)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "again")
    found, _ = as_we_read(tmp_path / "again")
    assert_same(model, found)
    packed, _ = as_we_read(tmp_path / "packed")
    for name, values in packed.items():
        assert np.array_equal(found[name], values), name


def test_experts_as_linears_compute_what_the_stack_does(tmp_path: Path) -> None:
    """One linear an expert, weights [out, in], rows of gate and up in turn: torch's own linear makes the same product."""
    from safetensors.torch import load_file, save_file

    model = gpt_oss(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    linears = {}
    for name in [n for n in stored if ".mlp.experts." in n]:
        values = stored.pop(name)
        module, _, what = name.rpartition(".")
        for expert, array in enumerate(values):
            part = f"{what.removesuffix('_bias')}s.{expert}"
            bias = what.endswith("_bias")
            linears[f"{module}.{part}.{'bias' if bias else 'weight'}"] = (array if bias else array.T).contiguous()
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    at = "model.layers.1.mlp.experts."
    experts = model.model.layers[1].mlp.experts
    stack = torch.nn.functional.linear(x, linears[f"{at}gate_up_projs.2.weight"], linears[f"{at}gate_up_projs.2.bias"])
    assert torch.allclose(stack, x @ experts.gate_up_proj[2] + experts.gate_up_proj_bias[2], rtol=0.02, atol=0.02)
    save_file(stored | linears, tmp_path / "model.safetensors")
    assert_same(model, as_we_read(tmp_path)[0])


def test_both_ends_of_a_tie_may_be_stored(tmp_path: Path) -> None:
    """transformers does not tie what the file holds twice with different values, whatever config.json says; nor do we."""
    from safetensors.torch import load_file, save_file

    llama(tmp_path, tie_word_embeddings=True, shard="1GB")
    stored = load_file(tmp_path / "model.safetensors")
    other = torch.randn_like(stored["model.embed_tokens.weight"])
    save_file(stored | {"lm_head.weight": other}, tmp_path / "model.safetensors", {"format": "pt"})
    found, _ = as_we_read(tmp_path)
    peer = load(tmp_path)
    assert np.array_equal(found["lm_head.weight"], peer.lm_head.weight.detach().float().numpy())
    del stored["model.embed_tokens.weight"]
    save_file(stored | {"lm_head.weight": other}, tmp_path / "model.safetensors", {"format": "pt"})
    found, _ = as_we_read(tmp_path)
    peer = load(tmp_path)
    assert np.array_equal(found["model.embed_tokens.weight"], peer.model.embed_tokens.weight.detach().float().numpy())


@pytest.mark.parametrize("kind", ["fp8_e4m3", "nvfp4", "int8"])
def test_weights_beside_scales_of_activations(tmp_path: Path, kind: str) -> None:
    """What compressed-tensors registers for static activations and an FP8 cache does not change what it decompresses."""
    from safetensors.torch import load_file, save_file

    llama(tmp_path / "a")
    values = rewrite(tmp_path / "a", tmp_path / "b", "hf", dict.fromkeys(LINEARS, kind))
    file = tmp_path / "b/model.safetensors"
    stored = load_file(file)
    modules = sorted({name.rpartition(".")[0] for name in stored if name.endswith("weight_scale")})
    more = {
        f"{module}.{name}": torch.full((1,), 0.5) for module in modules for name in ("input_scale", "input_global_scale")
    }
    more |= {
        f"model.layers.{n}.self_attn.{letter}_scale": torch.ones(1, dtype=torch.bfloat16) for n in (0, 1) for letter in "kv"
    }
    save_file(stored | more, file, {"format": "pt"})
    found, remarks = as_we_read(tmp_path / "b")
    for name, expected in values.items():
        assert np.array_equal(found[name], expected), name
    assert any("scales of activations or of the KV cache, left out" in remark for remark in remarks)
