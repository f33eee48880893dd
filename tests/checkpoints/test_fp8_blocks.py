"""FP8 with a scale for each block of 128 × 128, as DeepSeek publishes it: any range of rows is read, decoded, rounded anew."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from oss_tools.checkpoints.safetensors import SafetensorsFile
from oss_tools.convert.options import Options
from oss_tools.convert.pipeline import run
from oss_tools.convert.plan import make_plan
from oss_tools.convert.recipe import KEEP_ALL, load_recipe, recipe_of_format
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import QTensor, get_format
from oss_tools.models import architecture_of, open_checkpoint
from oss_tools.models.base import Architecture
from tests.checkpoints.small_models import save

FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
CONFIG = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 2,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "moe_intermediate_size": 160,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 144,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}


def write(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, object]) -> None:
    """A folder with float8 tensors, which safetensors' NumPy does not know."""
    names = {"float32": "F32", "float8_e4m3fn": "F8_E4M3", "bfloat16": "BF16"}
    header, at = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": names[array.dtype.name], "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content)
    (folder / "config.json").write_text(json.dumps(config))


def in_blocks(values: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, a scale for each block, and what they stand for, one block after another."""
    rows, columns = values.shape
    codes, meant = np.empty(values.shape, FP8), np.empty(values.shape, np.float32)
    scales = np.empty((-(-rows // 128), -(-columns // 128)), dtype)
    for i, j in np.ndindex(scales.shape):
        at = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
        scales[i, j] = np.abs(values[at]).max() / 448
        codes[at] = (values[at] / scales[i, j].astype(np.float32)).astype(FP8)
        meant[at] = codes[at].astype(np.float32) * scales[i, j].astype(np.float32)
    return codes, scales, meant


@pytest.fixture
def fp8(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A small DeepSeek in blocks, and what its quantized tensors stand for, by the names of its files."""
    model: Architecture = architecture_of("deepseek_v3").from_config("hf", CONFIG)
    save(model, "hf", tmp_path, {spec.name: "f32" for spec in model.tensors()})
    plain = load_file(tmp_path / "model.safetensors")
    tensors, meant = {}, {}
    for name, values in plain.items():
        is_linear = values.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "mlp.gate.weight"))
        if not is_linear:
            tensors[name] = values
            continue
        kind = np.dtype(ml_dtypes.bfloat16) if "shared" in name else np.dtype(np.float32)  # Qwen's are bfloat16
        tensors[name], tensors[f"{name}_scale_inv"], meant[name] = in_blocks(values, kind)
    folder = tmp_path / "fp8"
    folder.mkdir()
    write(folder, tensors, CONFIG | {"quantization_config": BLOCKS})
    return folder, meant


def test_values_are_codes_times_their_blocks_scale(fp8: tuple[Path, dict[str, np.ndarray]]) -> None:
    """288 rows and 192 columns are no whole blocks."""
    folder, meant = fp8
    with open_checkpoint(folder) as checkpoint:
        kinds = {entry.spec.role: entry.format.name for entry in checkpoint.entries.values()}
        assert {kinds[r] for r in kinds if r.startswith(("attention", "experts", "mlp"))} == {"fp8_block"}
        for name, expected in meant.items():
            if ".mlp.experts." in name:
                stack, expert, projection, _ = name.rsplit(".", 3)
                found = checkpoint.read(f"{stack}.{projection}", int(expert), 0, len(expected))
            else:
                found = checkpoint.read(name, 0, 0, len(expected))
            assert np.array_equal(found.dequantize(), expected), name
        latent = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
        for start, stop in ((0, 1), (127, 129), (130, 288), (256, 257)):
            assert np.array_equal(checkpoint.read(latent, 0, start, stop).dequantize(), meant[latent][start:stop])


@pytest.mark.parametrize("format", ["bf16", "q8_0"])
def test_they_are_converted(fp8: tuple[Path, dict[str, np.ndarray]], format: str, tmp_path: Path) -> None:
    folder, meant = fp8
    with open_checkpoint(folder) as checkpoint:
        run(make_plan(checkpoint, "gguf", recipe_of_format(format).falling_back(("bf16",))), tmp_path / "x.gguf", Options())
    form, name = get_format(format), "model.layers.1.self_attn.q_a_proj.weight"
    with open_checkpoint(tmp_path / "x.gguf") as written:
        found = written.read_tensor(name)
        assert found.format.name == format
        assert np.array_equal(found.dequantize(), form.quantize(meant[name]).dequantize())


def test_the_latents_projection_stays_a_float_in_gguf(fp8: tuple[Path, dict[str, np.ndarray]]) -> None:
    """Its keys' part is transposed there; the plan says so, whether the rule's own format is held or only its second."""
    with open_checkpoint(fp8[0]) as checkpoint:
        for recipe in (recipe_of_format("q8_0"), load_recipe("int8")):
            plan = make_plan(checkpoint, "gguf", recipe.falling_back(("bf16",)))
            (step, *_) = (step for step in plan.steps if step.source.spec.role == "attention.kv_b")
            assert step.target.format.name == "bf16"
            assert "gguf has no q8_0 for attention.kv_b" in step.note


def test_without_a_recipe_they_stay(fp8: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    folder, meant = fp8
    with open_checkpoint(folder) as checkpoint:
        plan = make_plan(checkpoint, "hf", KEEP_ALL)
        assert plan.lossless
        run(plan, tmp_path / "again", Options())
    before, after = (SafetensorsFile(f / "model.safetensors").tensors for f in (folder, tmp_path / "again"))
    assert set(after) == set(before)
    for name, tensor in before.items():
        if name in meant:
            assert (after[name].shape, after[name].dtype) == (tensor.shape, "F8_E4M3")
        elif name.endswith("_inv"):
            assert (after[name].shape, after[name].dtype) == (tensor.shape, "F32")
    with open_checkpoint(folder) as old, open_checkpoint(tmp_path / "again") as new:
        for name in old.entries:
            assert np.array_equal(new.read_tensor(name).dequantize(), old.read_tensor(name).dequantize()), name
    written = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert {key: written[key] for key in BLOCKS} == BLOCKS
    assert set(written["modules_to_not_convert"]) == {"lm_head", "model.layers.1.mlp.gate"}


def test_every_code_is_ml_dtypes_value() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    planes = {"codes": codes, "scales": np.ones((2, 1), np.float32)}
    found = QTensor(get_format("fp8_block"), (2, 128), planes).dequantize()
    assert np.array_equal(found, codes.view(FP8).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 2), (3, 1), (288, 2), (3, 2, 1)])
def test_scales_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    model: Architecture = architecture_of("deepseek_v3").from_config("hf", CONFIG)
    save(model, "hf", tmp_path, {spec.name: "f32" for spec in model.tensors()})
    tensors = dict(load_file(tmp_path / "model.safetensors"))
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    tensors[name] = tensors[name].astype(FP8)
    tensors[f"{name}_scale_inv"] = np.ones(shape, np.float32)
    write(tmp_path, tensors, CONFIG | {"quantization_config": BLOCKS})
    with pytest.raises(BadCheckpoint, match=r"a scale for each block of 128 × 128 values: \[3, 2\]"):
        open_checkpoint(tmp_path)
