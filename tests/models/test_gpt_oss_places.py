"""gpt-oss as other programs lay it out: every layout gives back the values of the usual one, whatever range is read."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from oss_tools.checkpoints import StoredTensor
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import get_format
from oss_tools.models.checkpoint import Checkpoint, open_checkpoint
from oss_tools.models.entries import chunks
from tests.models.memory import MemoryContainer
from tests.models.test_placements import GPT_OSS, canonical_values

Arrays = dict[str, np.ndarray]
EXPERTS = "mlp.experts."


def usual(values: Arrays) -> Arrays:
    """Canonical values as transformers stores them: stacks in floats are [experts, in, out]."""
    return {n: a.swapaxes(1, 2) if n.endswith(("gate_up_proj", "down_proj")) else a for n, a in values.items()}


def one_by_one(values: Arrays, name_of: Callable[[str, int], dict[str, slice]]) -> Arrays:
    """Every expert's rows in tensors of their own; `name_of` gives their names and rows for a projection."""
    stored = {}
    for name, array in values.items():
        at, _, what = name.partition(EXPERTS)
        if not what:
            stored[name] = array
            continue
        part = "bias" if what.endswith("_bias") else "weight"
        for expert in range(len(array)):
            for new, rows in name_of(what.removesuffix("_bias"), expert).items():
                stored[f"{at}mlp.{new}.{part}"] = array[expert][rows]
    return stored


def unsloth(values: Arrays) -> Arrays:
    """Linears gate_up_projs.N and down_projs.N, the router a linear inside a module."""
    stored = one_by_one(values, lambda what, expert: {f"experts.{what}s.{expert}": slice(None)})
    return {name.replace("mlp.router.", "mlp.router.linear."): array for name, array in stored.items()}


def apart(prefix: str) -> Callable[[Arrays], Arrays]:
    """gate_proj, up_proj and down_proj of each expert: gate in the even rows of OpenAI's fused tensor, up in the odd ones."""

    def names(what: str, expert: int) -> dict[str, slice]:
        at = f"{prefix}{expert}"
        if what == "down_proj":
            return {f"{at}.down_proj": slice(None)}
        return {f"{at}.gate_proj": slice(0, None, 2), f"{at}.up_proj": slice(1, None, 2)}

    return lambda values: one_by_one(values, names)


def under_packed_names(values: Arrays) -> Arrays:
    return {f"{n}_blocks" if n.endswith(("gate_up_proj", "down_proj")) else n: a for n, a in usual(values).items()}


def gguf_names(values: Arrays) -> Arrays:
    """llama.cpp's names for what a test leaves alone."""
    stored = {}
    for spec in GPT_OSS.tensors():
        placements = GPT_OSS.placements("gguf", spec, True)
        if len(placements) == 1:
            stored[placements[0].stored] = values[spec.name]
    return stored


def fused(values: Arrays, suffix: str, order: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    stored = gguf_names(values)
    for name, array in values.items():
        if EXPERTS + "gate_up_proj" in name:
            layer = name.split(".")[2]
            stored[f"blk.{layer}.ffn_gate_up_exps{suffix}.{'bias' if name.endswith('_bias') else 'weight'}"] = order(array)
    return stored


def gate_then_up(values: Arrays) -> Arrays:
    return fused(values, "", lambda array: np.concatenate([array[:, 0::2], array[:, 1::2]], axis=1))


def in_turn_with_fused_attention(values: Arrays) -> Arrays:
    stored = fused(values, "_interleaved", lambda array: array)
    for layer in range(GPT_OSS.config.num_hidden_layers):
        for part in ("weight", "bias"):
            names = [f"blk.{layer}.attn_{letter}.{part}" for letter in "qkv"]
            stored[f"blk.{layer}.attn_qkv.{part}"] = np.concatenate([stored.pop(name) for name in names])
    return stored


LAYOUTS = {
    "usual": ("hf", usual),
    "unsloth": ("hf", unsloth),
    "gate and up apart": ("hf", apart("experts.")),
    "gate and up apart in a list of a list": ("hf", apart("experts.experts.")),
    "unpacked under packed names": ("hf", under_packed_names),
    "gate then up": ("gguf", gate_then_up),
    "in turn, with fused attention": ("gguf", in_turn_with_fused_attention),
}


def opened(container: str, stored: Arrays) -> Checkpoint:
    tensors = [StoredTensor(name, get_format("f32"), array.shape) for name, array in stored.items()]
    config = GPT_OSS.hf_config() if container == "hf" else GPT_OSS.container_config(container)
    memory = MemoryContainer(container, "gpt_oss", config, tensors)
    for name, array in stored.items():
        memory.arrays[name] = {"values": np.ascontiguousarray(array).reshape(-1)}
    return Checkpoint(memory)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk", [1, 700, 1 << 20])
def test_every_layout_gives_the_same_values(layout: str, chunk: int) -> None:
    container, arrange = LAYOUTS[layout]
    values = canonical_values(GPT_OSS)
    checkpoint = opened(container, arrange(values))
    assert list(checkpoint.entries) == list(values)
    assert checkpoint.parameters == sum(array.size for array in values.values())
    assert checkpoint.remarks == []
    for name, expected in values.items():
        flat = expected.reshape(checkpoint.entries[name].spec.matrices)
        for matrix, start, stop in chunks([checkpoint.entries[name]], chunk):
            found = checkpoint.read(name, matrix, start, stop).planes["values"]
            assert np.array_equal(found, flat[matrix, start:stop]), (name, matrix, start, stop)


def test_an_expert_that_is_missing_is_named() -> None:
    values = unsloth(canonical_values(GPT_OSS))
    del values["model.layers.1.mlp.experts.gate_up_projs.2.weight"]
    with pytest.raises(BadCheckpoint, match=r"experts\.gate_up_proj is missing; in its place there is .*projs\.0"):
        opened("hf", values)


def test_what_an_inspection_counts_is_each_value_once() -> None:
    from oss_tools.models.summary import _by_format

    values = canonical_values(GPT_OSS)
    for arrange in (unsloth, apart("experts.")):
        checkpoint = opened("hf", arrange(values))
        for name, entry in checkpoint.entries.items():
            assert _by_format(checkpoint, entry) == {"f32": (values[name].size, 4 * values[name].size)}


def test_experts_one_by_one_may_be_quantized(tmp_path: Path) -> None:
    """As compressed-tensors stores a linear's codes and scales."""
    values, form = canonical_values(GPT_OSS), get_format("int8")
    stored: Arrays = {}
    expected = {}
    for name, array in apart("experts.")(values).items():
        if ".experts." not in name or not name.endswith(".weight"):
            stored[name] = array
            continue
        tensor = form.quantize(array)
        stored[name] = tensor.planes["codes"]
        scales = (tensor.planes["scales"].astype(np.uint32) << 16).view(np.float32)  # bfloat16's bits
        stored[f"{name}_scale"] = scales
        expected[name] = tensor.dequantize()
    save_file({name: np.ascontiguousarray(array) for name, array in stored.items()}, tmp_path / "model.safetensors")
    group = {"weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}, "targets": ["Linear"]}
    quantization = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": group}}
    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS.hf_config() | {"quantization_config": quantization}))
    with open_checkpoint(tmp_path) as checkpoint:
        for layer in range(GPT_OSS.config.num_hidden_layers):
            found = checkpoint.read_tensor(f"model.layers.{layer}.mlp.experts.gate_up_proj")
            assert found.format == form
            for expert, rows in enumerate(found.dequantize()):
                at = f"model.layers.{layer}.mlp.experts.{expert}"
                assert np.array_equal(rows[0::2], expected[f"{at}.gate_proj.weight"])
                assert np.array_equal(rows[1::2], expected[f"{at}.up_proj.weight"])
