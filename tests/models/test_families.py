"""Families built as Llama is, and GPT-2: where their tensors lie in files of all kinds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from oss_tools.checkpoints import StoredTensor
from oss_tools.formats import get_format
from oss_tools.models.base import Architecture, architecture_of
from oss_tools.models.checkpoint import Checkpoint
from oss_tools.models.stored import Stored
from tests.models.memory import MemoryContainer
from tests.models.small_families import CONFIGS, NOT_IN_GGUF, model_of, small
from tests.models.test_placements import filled

Arrays = dict[str, np.ndarray]


@pytest.mark.parametrize("kind", CONFIGS, ids="-".join)
@pytest.mark.parametrize("container", ["hf", "gguf"])
def test_what_is_written_is_read_back(kind: tuple[str, str], container: str) -> None:
    if container == "gguf" and kind in NOT_IN_GGUF:
        return
    model = model_of(CONFIGS[kind])
    stored, values = filled(model, container)
    assert all(np.all(counts == 1) for counts in stored.written.values())
    checkpoint = Checkpoint(stored)
    for spec in model.tensors():
        if spec.name in checkpoint.entries:
            assert np.array_equal(checkpoint.read_tensor(spec.name).planes["values"], values[spec.name]), spec.name
    assert {spec.name for spec in model.tensors() if not spec.optional} <= set(checkpoint.entries)


def in_memory(model: Architecture, container: str, arrays: Arrays) -> Checkpoint:
    tensors = [StoredTensor(name, get_format("f32"), array.shape) for name, array in arrays.items()]
    config = model.hf_config() if container == "hf" else model.container_config("gguf")
    memory = MemoryContainer(container, model.gguf_name if container == "gguf" else model.model_type, config, tensors)
    for name, array in arrays.items():
        memory.arrays[name]["values"][:] = array.reshape(memory.arrays[name]["values"].shape)
    return Checkpoint(memory)


def usual(model: Architecture, container: str) -> tuple[Arrays, Arrays]:
    """The files' arrays as we write them, and the canonical values."""
    stored, values = filled(model, container)
    return {name: stored.values(name) for name in stored.tensors}, values


def transformers_5(arrays: Arrays, values: Arrays) -> Arrays:
    """Stacks of experts, gate's rows before up's; a router of `mlp`."""
    found = {n.replace("block_sparse_moe", "mlp"): a for n, a in arrays.items() if ".experts." not in n}
    for name, gate in values.items():
        if name.endswith("experts.gate_proj"):
            stack = name.removesuffix("gate_proj")
            found[stack + "gate_up_proj"] = np.concatenate([gate, values[stack + "up_proj"]], axis=1)
            found[stack + "down_proj"] = values[stack + "down_proj"]
    return found


def fused_gguf(arrays: Arrays, values: Arrays) -> Arrays:
    found = {n: a for n, a in arrays.items() if "_gate_exps" not in n and "_up_exps" not in n}
    for name, gate in arrays.items():
        if "ffn_gate_exps" in name:
            up = arrays[name.replace("gate", "up")]
            found[name.replace("gate", "gate_up")] = np.concatenate([gate, up], axis=1)
    return found


def old_gguf(arrays: Arrays, values: Arrays) -> Arrays:
    found = {n: a for n, a in arrays.items() if "_exps" not in n}
    for name, stack in arrays.items():
        if "_exps" in name:
            found |= {name.replace("_exps", f".{expert}"): matrix for expert, matrix in enumerate(stack)}
    return found


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize(("container", "layout"), [("hf", transformers_5), ("gguf", fused_gguf), ("gguf", old_gguf)])
def test_experts_as_other_programs_lay_them_out(
    model_type: str, container: str, layout: Callable[[Arrays, Arrays], Arrays]
) -> None:
    model = small(model_type)
    arrays, values = usual(model, container)
    checkpoint = in_memory(model, container, layout(arrays, values))
    assert set(checkpoint.entries) == {spec.name for spec in model.tensors()}
    for name, expected in values.items():
        assert np.array_equal(checkpoint.read_tensor(name).planes["values"], expected), name


def test_published_names() -> None:
    """What files on the hub and llama.cpp's converter hold of a layer."""
    published = {
        "mixtral": ("block_sparse_moe.experts.7.w2.weight", (64, 96), "block_sparse_moe.gate.weight", (8, 64)),
        "qwen3_moe": ("mlp.experts.5.down_proj.weight", (64, 48), "self_attn.q_norm.weight", (32,)),
        "qwen2_moe": ("mlp.experts.5.up_proj.weight", (48, 64), "mlp.shared_expert_gate.weight", (1, 64)),
    }
    for model_type, (one, shape, two, other) in published.items():
        arrays, _ = usual(small(model_type), "hf")
        assert arrays[f"model.layers.1.{one}"].shape == shape
        assert arrays[f"model.layers.1.{two}"].shape == other
    arrays, _ = usual(small("qwen2_moe"), "gguf")
    layer = {name.removeprefix("blk.1."): a.shape for name, a in arrays.items() if name.startswith("blk.1.")}
    assert layer == {
        "attn_norm.weight": (64,),
        "attn_q.weight": (64, 64),
        "attn_q.bias": (64,),
        "attn_k.weight": (32, 64),
        "attn_k.bias": (32,),
        "attn_v.weight": (32, 64),
        "attn_v.bias": (32,),
        "attn_output.weight": (64, 64),
        "ffn_norm.weight": (64,),
        "ffn_gate_inp.weight": (6, 64),
        "ffn_gate_exps.weight": (6, 48, 64),
        "ffn_up_exps.weight": (6, 48, 64),
        "ffn_down_exps.weight": (6, 64, 48),
        "ffn_gate_shexp.weight": (80, 64),
        "ffn_up_shexp.weight": (80, 64),
        "ffn_down_shexp.weight": (64, 80),
        "ffn_gate_inp_shexp.weight": (64,),
    }


def test_gpt2_holds_query_key_and_value_in_one_transposed_tensor() -> None:
    model = small("gpt2")
    arrays, values = usual(model, "hf")
    at = "model.layers.2.self_attn."
    stacked = np.concatenate([values[f"{at}{letter}_proj.weight"] for letter in "qkv"])
    assert np.array_equal(arrays["transformer.h.2.attn.c_attn.weight"], stacked.T)
    assert np.array_equal(usual(model, "gguf")[0]["blk.2.attn_qkv.weight"], stacked)
    assert arrays["transformer.h.0.mlp.c_fc.weight"].shape == (64, 256)


def test_gpt2_without_prefix_and_with_its_masks() -> None:
    """The files of OpenAI's own account."""
    model = small("gpt2")
    arrays, values = usual(model, "hf")
    bare = {name.removeprefix("transformer."): array for name, array in arrays.items() if name != "lm_head.weight"}
    bare |= {f"h.{layer}.attn.bias": np.tril(np.ones((1, 1, 8, 8), np.float32)) for layer in range(3)}
    checkpoint = in_memory(model, "hf", bare)
    assert checkpoint.remarks == []
    for name in checkpoint.entries:
        assert np.array_equal(checkpoint.read_tensor(name).planes["values"], values[name]), name


def latent() -> tuple[Architecture, Arrays, Arrays]:
    model = small("deepseek_v3")
    return model, *usual(model, "gguf")


def test_llama_cpps_latents_have_each_heads_keys_transposed() -> None:
    _, arrays, values = latent()
    heads = values["model.layers.2.self_attn.kv_b_proj.weight"].reshape(4, 24 + 20, 32)
    assert np.array_equal(arrays["blk.2.attn_k_b.weight"], heads[:, :24].swapaxes(1, 2))
    assert np.array_equal(arrays["blk.2.attn_v_b.weight"], heads[:, 24:])
    assert np.array_equal(arrays["blk.2.exp_probs_b.bias"], values["model.layers.2.mlp.gate.e_score_correction_bias"])


def test_latents_of_older_files_are_whole() -> None:
    model, arrays, values = latent()
    old = {name: array for name, array in arrays.items() if "attn_k_b" not in name and "attn_v_b" not in name}
    names = [f"model.layers.{layer}.self_attn.kv_b_proj.weight" for layer in range(3)]
    old |= {f"blk.{layer}.attn_kv_b.weight": values[name] for layer, name in enumerate(names)}
    checkpoint = in_memory(model, "gguf", old)
    for name in names:
        assert np.array_equal(checkpoint.read_tensor(name).planes["values"], values[name])


def test_older_files_say_the_size_of_heads_without_latents() -> None:
    model, _, _ = latent()
    keys = {k: v for k, v in model.container_config("gguf").items() if not k.endswith("_mla") and "oss-tools" not in k}
    keys |= {"deepseek2.attention.key_length": 40, "deepseek2.attention.value_length": 20}
    keys |= {"deepseek2.attention.head_count_kv": 4}
    kind = architecture_of("deepseek2", keys)
    assert kind.model_type == "deepseek_v3"
    assert kind.from_words("gguf", keys, Stored()).computation() == model.computation()


def test_quantized_keys_of_latents_are_read_as_floats() -> None:
    """Their blocks lie across the rows of what Hugging Face has."""
    model = small("deepseek_v3", qk_nope_head_dim=32, v_head_dim=32)
    arrays, values = usual(model, "gguf")
    form = get_format("q8_0")
    tensors = [
        StoredTensor(name, form if name.endswith("attn_k_b.weight") else get_format("f32"), array.shape)
        for name, array in arrays.items()
    ]
    memory = MemoryContainer("gguf", "deepseek2", model.container_config("gguf"), tensors)
    for name, array in arrays.items():
        rows = memory.tensors[name].format.quantize(np.ascontiguousarray(array.reshape(-1, array.shape[-1])))
        for plane, content in rows.planes.items():
            memory.arrays[name][plane][:] = content.reshape(-1)
    checkpoint = Checkpoint(memory)
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    found, wanted = checkpoint.read_tensor(name).dequantize().reshape(4, 64, 32), values[name].reshape(4, 64, 32)
    keys = form.quantize(np.ascontiguousarray(wanted[:, :32].swapaxes(1, 2).reshape(-1, 32))).dequantize()
    assert np.array_equal(found[:, :32], keys.reshape(4, 32, 32).swapaxes(1, 2))
    assert np.array_equal(found[:, 32:], wanted[:, 32:])
    assert [form.name for form in checkpoint.entries[name].mixed] == ["q8_0", "f32"]


def test_layers_that_predict_further_tokens_are_left_out_with_a_line() -> None:
    model = small("deepseek_v3", num_nextn_predict_layers=1)
    arrays, _ = usual(model, "hf")
    arrays |= {"model.layers.3.eh_proj.weight": np.zeros((64, 128), np.float32)}
    arrays |= {"model.layers.3.self_attn.o_proj.weight": np.zeros((64, 80), np.float32)}
    checkpoint = in_memory(model, "hf", arrays)
    (remark,) = checkpoint.remarks
    assert remark == "model.layers.3 and those behind it predict further tokens (MTP); they are left out"
