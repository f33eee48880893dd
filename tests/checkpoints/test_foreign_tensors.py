"""Tensors as other programs name them, and what they put beside them: read as if named as usual, left out, or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as library

from oss_tools.checkpoints import prefixes
from oss_tools.errors import BadCheckpoint
from oss_tools.models.checkpoint import Checkpoint, open_checkpoint
from oss_tools.models.strangers import sort_out
from tests.checkpoints.small_models import GPT_OSS, LINEARS, LLAMA, rename_tensors, save

F32 = dict.fromkeys((*LINEARS, "embedding", "output", "norm"), "f32")
LAYER = "model.layers.1.self_attn."


def edit(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """Writes a folder's tensors again, changed; they must be of dtypes that NumPy has."""
    file = folder / "model.safetensors"
    library.save_file(change(library.load_file(file)), file)


def values(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {name: checkpoint.read_tensor(name).dequantize() for name in checkpoint.entries}


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A llama in F32, and its values."""
    save(LLAMA, "hf", tmp_path, F32)
    return tmp_path, values(open_checkpoint(tmp_path))


def assert_same(folder: Path, expected: dict[str, np.ndarray]) -> list[str]:
    checkpoint = open_checkpoint(folder)
    found = values(checkpoint)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert np.array_equal(found[name], array), name
    return checkpoint.remarks


# ---- prefixes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "head", "said"),
    [
        ("", "", "lack 'model.'"),
        ("module.model.", "module.", "'module.' (torch's DataParallel)"),
        ("_orig_mod.model.", "_orig_mod.", "'_orig_mod.'"),
        ("module._orig_mod.model.", "module._orig_mod.", "'module.'"),
        ("base_model.model.model.", "base_model.model.", "'base_model.model.' (PEFT)"),
        ("language_model.model.", "language_model.", "'language_model.'"),
        ("model.language_model.", "", "'model.language_model.'"),
        ("model.language_model.", "model.language_model.", "'model.language_model.'"),
        ("some.wrapper.of.mine.model.", "some.wrapper.of.mine.", "'some.wrapper.of.mine.'"),
        ("transformer.", "", "'transformer.'"),
    ],
)
def test_a_common_prefix_is_passed_over(plain, body: str, head: str, said: str) -> None:
    folder, expected = plain

    def wrapped(name: str) -> str:
        return body + name.removeprefix("model.") if name.startswith("model.") else head + name

    edit(folder, lambda tensors: {wrapped(name): array for name, array in tensors.items()})
    assert any(said in remark for remark in assert_same(folder, expected))


def test_wrappers_in_the_middle_of_a_name_are_passed_over(plain) -> None:
    folder, expected = plain
    edit(folder, lambda t: {n.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."): a for n, a in t.items()})
    assert any("activation checkpointing" in remark for remark in assert_same(folder, expected))


def test_names_as_they_should_be_are_left_alone(plain) -> None:
    folder, expected = plain
    assert assert_same(folder, expected) == []
    for naming in (prefixes.HF, prefixes.ORIGINAL):
        body = naming.body
        assert prefixes.unwrapped([f"{body}{anchor}" for anchor in naming.anchors], naming) == ({}, "")


def test_a_prefix_before_quantized_tensors(tmp_path: Path) -> None:
    tensors = save(LLAMA, "hf", tmp_path, dict.fromkeys(LINEARS, "int8"))
    expected = {name: tensor.dequantize() for name, tensor in tensors.items()}
    rename_tensors(tmp_path / "model.safetensors", "module.{}".format)
    checkpoint = open_checkpoint(tmp_path)
    for name, array in values(checkpoint).items():
        assert np.array_equal(array.reshape(expected[name].shape), expected[name]), name


def test_openais_layout_in_a_wrapper(tmp_path: Path) -> None:
    formats = dict.fromkeys([spec.role for spec in GPT_OSS.tensors()], "f32")
    save(GPT_OSS, "original", tmp_path, formats)
    expected = values(open_checkpoint(tmp_path))
    edit(tmp_path, lambda tensors: {f"module.{name}": array for name, array in tensors.items()})
    assert any("'module.'" in remark for remark in assert_same(tmp_path, expected))


def test_two_tensors_that_differ_by_the_prefix_alone_are_refused(plain) -> None:
    folder, _ = plain
    norm = "model.layers.0.input_layernorm.weight"
    edit(folder, lambda t: {f"module.{n}": a for n, a in t.items()} | {norm: t[norm]})
    with pytest.raises(BadCheckpoint, match=f"are both {norm} without prefix"):
        open_checkpoint(folder)


# ---- tensors that are not the model's -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("score.weight", np.ones((2, 128), np.float32)),
        ("classifier.bias", np.ones(2, np.float32)),
        ("v_head.summary.weight", np.ones((1, 128), np.float32)),
        ("v_head.summary.bias", np.ones(1, np.float32)),
        ("vision_tower.encoder.layers.0.layer_norm1.weight", np.ones(4, np.float32)),
        ("model.visual.patch_embed.proj.weight", np.ones((4, 4), np.float32)),
        (f"{LAYER}rotary_emb.inv_freq", np.ones(16, np.float32)),
        (f"{LAYER}rotary_emb.cos_cached", np.ones((1, 1, 8, 16), np.float32)),
        (f"{LAYER}masked_bias", np.float32(-1e4).reshape(1)),
        (f"{LAYER}bias", np.ones((1, 1, 8, 8), np.bool_)),
        ("model.embeddings.position_ids", np.arange(8, dtype=np.int64).reshape(1, 8)),
        ("global_step", np.array([3], np.int32)),
        ("optimizer.exp_avg.0", np.ones(4, np.float32)),
        ("rng_state", np.zeros(8, np.uint8)),
        ("counts", np.zeros(8, np.uint64)),
    ],
)
def test_what_no_language_model_computes_with_is_left_out(plain, name: str, array: np.ndarray) -> None:
    folder, expected = plain
    edit(folder, lambda tensors: tensors | {name: array})
    assert assert_same(folder, expected) == [f"not the model's, and left out: {name}"]


def test_many_that_are_left_out_are_counted(plain) -> None:
    folder, expected = plain
    edit(folder, lambda tensors: tensors | {f"score.{n}.weight": np.ones(1, np.float32) for n in range(5)})
    (remark,) = assert_same(folder, expected)
    assert remark.endswith(" and 2 more")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lm_head.bias", "is not part of a llama model"),
        ("model.norm.bias", "is not part of a llama model"),
        (f"{LAYER}q_norm.weight", "is not part of a llama model"),
        (f"{LAYER}rotary_emb.scale_factors", "is not part of a llama model"),
        ("model.layers.7.input_layernorm.weight", "is not part of a llama model"),
        ("model.embed_positions.weight", "is not part of a llama model"),
        ("extra.weight", "is not part of a llama model"),
        (f"{LAYER}q_proj.lora_A.default.weight", "adapter"),
        (f"base_model.{LAYER}v_proj.lora_B.weight", "adapter"),
        (f"{LAYER}q_proj.base_layer.weight", "adapter"),
        ("prompt_encoder.default.embedding.weight", "adapter"),
        ("model.layers.0.mlp.adapter_down.weight", "adapter"),
    ],
)
def test_what_might_be_part_of_the_computation_is_refused_by_name(plain, name: str, reason: str) -> None:
    folder, _ = plain
    edit(folder, lambda tensors: tensors | {name: np.ones((4, 4), np.float32)})
    with pytest.raises(BadCheckpoint, match=reason) as caught:
        open_checkpoint(folder)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_adapters_are_refused_whatever_their_dtype() -> None:
    found = sort_out([], {f"{LAYER}q_proj.lora_A.weight": "I64", "steps": "I64"}, [], "llama")
    assert [name for name, _ in found.refused] == [f"{LAYER}q_proj.lora_A.weight"]
    assert found.left_out == ["steps"]


def test_integers_beside_a_weight_may_say_how_to_read_it(tmp_path: Path) -> None:
    save(LLAMA, "hf", tmp_path, F32 | dict.fromkeys(LINEARS, "int8_g32"))
    name = "model.layers.0.mlp.up_proj.weight_g_idx"
    edit_in_bytes(tmp_path, {name: np.arange(LLAMA.config.hidden_size, dtype=np.int32)})
    with pytest.raises(BadCheckpoint, match=r"up_proj\.weight_g_idx \(I32\) may say how the weight beside it"):
        open_checkpoint(tmp_path)


def test_a_missing_tensor_says_what_is_in_its_place(plain) -> None:
    folder, _ = plain
    name = f"{LAYER}q_proj.weight"
    edit(
        folder, lambda t: {n: a for n, a in t.items() if n != name} | {f"{LAYER}q_proj.packed_weight": np.zeros(3, np.int32)}
    )
    with pytest.raises(BadCheckpoint, match=f"{name} is missing; in its place there is {LAYER}q_proj.packed_weight"):
        open_checkpoint(folder)
    edit(folder, lambda t: t | {name: np.zeros((4, 4), np.uint8)})
    with pytest.raises(BadCheckpoint, match=f"{name} has dtype U8, which is no weight's"):
        open_checkpoint(folder)


def test_a_tie_may_be_stored_at_its_other_end(plain) -> None:
    folder, expected = plain
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    edit(folder, lambda t: {name: array for name, array in t.items() if "embed_tokens" not in name})
    found = values(open_checkpoint(folder))
    assert np.array_equal(found["model.embed_tokens.weight"], expected["lm_head.weight"])


# ---- dtypes and scales ----------------------------------------------------------------------------------------------


def test_doubles_are_read_as_float32(plain) -> None:
    folder, expected = plain
    edit(folder, lambda tensors: {name: array.astype(np.float64) + 1e-12 for name, array in tensors.items()})
    checkpoint = open_checkpoint(folder)
    for name, array in values(checkpoint).items():
        assert np.array_equal(array, (expected[name].astype(np.float64) + 1e-12).astype(np.float32))
    assert checkpoint.remarks == [f"{len(expected)} tensors are F64 and are read as F32"]


def test_a_double_beyond_float32_is_refused(plain) -> None:
    folder, _ = plain
    edit(folder, lambda tensors: tensors | {"model.norm.weight": np.full(LLAMA.config.hidden_size, 1e300)})
    with pytest.raises(BadCheckpoint, match=r"model\.norm\.weight: the F64 value 1e\+300 is beyond"):
        open_checkpoint(folder).read_tensor("model.norm.weight")


@pytest.mark.parametrize(
    "name",
    [
        "self_attn.q_proj.input_scale",
        "self_attn.q_proj.input_zero_point",
        "mlp.down_proj.output_scale",
        "mlp.down_proj.input_global_scale",
        "self_attn.k_scale",
        "self_attn.v_scale",
        "self_attn.k_proj.k_scale",
        "self_attn.kv_scale",
        "self_attn.attn.prob_output_scale",
    ],
)
def test_scales_of_activations_and_of_the_cache_are_left_out(tmp_path: Path, name: str) -> None:
    save(LLAMA, "hf", tmp_path, F32 | dict.fromkeys(LINEARS, "int8"))
    expected = values(open_checkpoint(tmp_path))
    for dtype in (np.float32, np.float16, np.int8):
        edit_in_bytes(tmp_path, {f"model.layers.0.{name}": np.ones(1, dtype)})
        (remark,) = assert_same(tmp_path, expected)
        assert remark == f"tensor model.layers.0.{name}: scales of activations or of the KV cache, left out"


def edit_in_bytes(folder: Path, more: dict[str, np.ndarray]) -> None:
    """Adds tensors at a file's end; the others may be of dtypes that NumPy has not."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    kinds = {"float32": "F32", "float16": "F16", "int8": "I8", "int32": "I32"}
    for name, array in more.items():
        data = data[: header.pop(name)["data_offsets"][0]] if name in header else data
        span = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": kinds[array.dtype.name], "shape": list(array.shape), "data_offsets": span}
        data += array.tobytes()
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_zero_points_that_are_zero_say_nothing(tmp_path: Path) -> None:
    save(LLAMA, "hf", tmp_path, F32 | dict.fromkeys(LINEARS, "int8"))
    expected = values(open_checkpoint(tmp_path))
    name = "model.layers.0.mlp.up_proj.weight_zero_point"
    edit_in_bytes(tmp_path, {name: np.zeros((LLAMA.config.intermediate_size, 1), np.int8)})
    assert_same(tmp_path, expected)
    edit_in_bytes(tmp_path, {name: np.eye(LLAMA.config.intermediate_size, 1, dtype=np.int8)})
    with pytest.raises(BadCheckpoint, match="zero points; asymmetric"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("q_proj.qweight", "GPTQ or AWQ"),
        ("q_proj.weight.absmax", "bitsandbytes"),
        ("q_proj.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("q_proj.SCB", "bitsandbytes"),
        ("q_proj.q_weight", "ExLlama"),
        ("q_proj.weight_scale_inv", "may say how the weight beside it is to be read"),  # of a weight that is not FP8
        ("q_proj.weight_scale_2", "ModelOpt"),
        ("q_proj.W_q", "HQQ"),
    ],
)
def test_layouts_of_other_quantizers_are_named_without_a_configuration(plain, name: str, whose: str) -> None:
    folder, _ = plain
    edit(folder, lambda tensors: tensors | {LAYER + name: np.zeros((4, 4), np.uint8)})
    with pytest.raises(BadCheckpoint, match=whose) as caught:
        open_checkpoint(folder)
    assert LAYER + name in str(caught.value)
