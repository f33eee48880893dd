"""FP8 with a scale for each block of 128 × 128 values, against torch's e4m3, transformers and compressed-tensors."""

import json
from pathlib import Path

import numpy as np
import pytest

from oss_tools.errors import BadCheckpoint
from oss_tools.formats import get_format
from oss_tools.models.checkpoint import open_checkpoint
from tests.checkpoints.small_models import LINEARS
from tests.interop.test_hf_transformers import llama, rewrite

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.peers

NAME = "model.layers.0.self_attn.q_proj.weight"


def blocks_by_torch(weight, dtype=torch.float32):
    """DeepSeek-V3's rule (inference/kernel.py): e4m3 codes and scales, in torch's own arithmetic."""
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-rows // 128), -(-columns // 128), dtype=torch.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1))
            scales[i, j] = (weight[at].abs().max() / 448).to(dtype).float()
            codes[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
    return codes, scales.to(dtype)


def multiplied(codes, scales):
    """Value = code · its block's scale, edge blocks cut: README_WEIGHTS.md of DeepSeek-V3."""
    whole = scales.float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    return codes.float() * whole[: codes.shape[0], : codes.shape[1]]


@pytest.mark.parametrize("shape", [(576, 896), (64, 100), (128, 128), (129, 257)])
def test_the_codes_are_torchs(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1
    tensor = get_format("fp8_block").quantize(weight.numpy())
    codes, scales = blocks_by_torch(weight)
    assert np.array_equal(tensor.planes["codes"], codes.view(torch.uint8).numpy())
    assert np.array_equal(tensor.planes["scales"][::128], scales.numpy())
    assert np.array_equal(tensor.dequantize(), multiplied(codes, scales).numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("hidden", [128, 576])
def test_a_folder_as_deepseek_publishes_it(tmp_path: Path, dtype: str, hidden: int) -> None:
    """576 rows are four blocks and a half, as R1's kv_a_proj_with_mqa has them."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    shape = {"hidden_size": hidden, "intermediate_size": 200, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(num_hidden_layers=1, head_dim=hidden // 4, vocab_size=96, **shape)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    stored, expected = load_file(tmp_path / "model.safetensors"), {}
    for name in [n for n in stored if "_proj.weight" in n]:
        codes, scales = blocks_by_torch(stored[name].float(), getattr(torch, dtype))
        stored |= {name: codes, f"{name}_scale_inv": scales}
        expected[name] = multiplied(codes, scales).numpy()
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    declare(
        tmp_path, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    )
    with open_checkpoint(tmp_path) as checkpoint:
        for name, values in expected.items():
            assert checkpoint.entries[name].format.name == "fp8_block"
            assert np.array_equal(checkpoint.read_tensor(name).dequantize(), values), name
            rows = len(values)
            part = checkpoint.read(name, 0, rows // 3, rows - 1)  # from the middle of a block to the middle of another
            assert np.array_equal(part.dequantize(), values[rows // 3 : rows - 1]), name


def test_one_scale_for_a_tensor(tmp_path: Path) -> None:
    """As Mistral's FP8 checkpoints have it: a scalar `weight_scale_inv`, and scales of activations beside it."""
    from safetensors.torch import load_file, save_file

    llama(tmp_path, shard="1GB")
    stored = load_file(tmp_path / "model.safetensors")
    scale = torch.tensor(0.0123456)
    codes = (stored[NAME].float() / scale).to(torch.float8_e4m3fn)
    save_file(
        stored | {NAME: codes, f"{NAME}_scale_inv": scale, NAME.replace("weight", "input_scale"): torch.tensor(1.0)},
        tmp_path / "model.safetensors",
    )
    declare(tmp_path, {"quant_method": "fp8", "activation_scheme": "static"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert np.array_equal(checkpoint.read_tensor(NAME).dequantize(), (codes.float() * scale).numpy())


def test_transformers_dequantizes_what_we_write(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    values = rewrite(tmp_path / "a", tmp_path / "b", "hf", dict.fromkeys(LINEARS, "fp8_block"))
    declared = json.loads((tmp_path / "b/config.json").read_text())["quantization_config"]
    assert declared.pop("modules_to_not_convert") == ["lm_head"]
    assert declared == {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    }  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "b", quantization_config=transformers.FineGrainedFP8Config(dequantize=True)
    )
    state = model.state_dict()
    for name, expected in values.items():
        assert torch.equal(state[name], torch.from_numpy(np.ascontiguousarray(expected)).to(state[name].dtype)), name


def test_compressed_tensors_blocks(tmp_path: Path) -> None:
    """llm-compressor's strategy `block`: the same blocks, scales without the ending."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme
    from safetensors.torch import load_file, save_file

    llama(tmp_path, shard="1GB")
    scheme = preset_name_to_scheme("FP8_BLOCK", ["Linear"])
    compressor = BaseCompressor.get_value_from_registry("float-quantized")
    stored, expected = load_file(tmp_path / "model.safetensors"), {}
    for name in [n for n in stored if "_proj.weight" in n]:
        codes, scales = blocks_by_torch(stored[name].float())
        stored |= {name: codes, f"{name}_scale": scales}
        expected[name] = compressor.decompress({"weight": codes, "weight_scale": scales}, scheme)["weight"]
    save_file(stored, tmp_path / "model.safetensors")
    quantization = QuantizationConfig(
        config_groups={"group_0": scheme}, format="float-quantized", quantization_status="compressed"
    )
    declare(tmp_path, json.loads(quantization.model_dump_json()))
    with open_checkpoint(tmp_path) as checkpoint:
        for name, values in expected.items():
            found = torch.from_numpy(checkpoint.read_tensor(name).dequantize())
            assert torch.equal(found.to(values.dtype), values), name


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    llama(tmp_path, shard="1GB")
    stored = load_file(tmp_path / "model.safetensors")
    codes = stored[NAME].to(torch.float8_e4m3fn)
    save_file(stored | {NAME: codes, f"{NAME}_scale_inv": torch.ones(2, 1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        BadCheckpoint, match=r"q_proj\.weight_scale_inv F32 \[2, 1\] do not fit: .*128 × 128 values: \[1, 1\]"
    ):
        open_checkpoint(tmp_path)


def declare(folder: Path, quantization: dict) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
