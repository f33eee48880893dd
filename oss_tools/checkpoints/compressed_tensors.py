"""How quantized tensors lie in Hugging Face checkpoints: name suffixes, dtypes, shapes, and `quantization_config`.

Dense weights follow compressed-tensors (https://github.com/vllm-project/compressed-tensors: `compressors/`), gpt-oss experts
OpenAI's MXFP4 on the hub (transformers: `integrations/mxfp4.py`), FP8 in blocks DeepSeek's (`integrations/finegrained_fp8.py`).
Stacked experts in other formats have no convention in the
field; they get the suffixes of compressed-tensors and the quantization method `oss-tools`.

For a weight [..., K]:

    format               planes (name suffix, dtype, shape)
    mxfp4, experts       _blocks U8 [..., K/32, 16]   _scales U8 [..., K/32]
    mxfp4, dense         _packed U8 [..., K/2]        _scale U8 [..., K/32]
    nvfp4                _packed U8 [..., K/2]        _scale F8_E4M3 [..., K/16]   _global_scale F32 [1]
    int8                 (none) I8 [..., K]           _scale BF16 [..., 1]
    int8_g128, int8_g32  (none) I8 [..., K]           _scale BF16 [..., K/group]
    fp8_e4m3             (none) F8_E4M3 [..., K]      _scale BF16 [..., 1]
    fp8_block            (none) F8_E4M3 [..., K]      _scale_inv F32 [..., ⌈R/128⌉, ⌈K/128⌉]
"""

from __future__ import annotations

from typing import Any

from oss_tools.checkpoints.base import StoredTensor
from oss_tools.checkpoints.layouts import FLOAT_DTYPES, Layout, Piece, mxfp4_layout
from oss_tools.formats.fp8_block import SIDE

# format -> how compressed-tensors calls it: (compression format, weight arguments)
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "group_size": None}),
    "int8_g128": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 128}),
    "int8_g32": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 32}),
    "fp8_e4m3": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel", "group_size": None}),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"},
    ),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
}
QUANTIZED = (*SCHEMES, "fp8_block")  # the formats that a folder can hold beside plain floats
MXFP4_NOT_CONVERTED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


def lay_out(tensor: StoredTensor) -> Layout:
    """The safetensors tensors that a stored tensor becomes in a Hugging Face folder."""
    name, shape, lead, columns = tensor.name, tensor.shape, tensor.shape[:-1], tensor.shape[-1]
    kind = tensor.format.name
    if tensor.format.is_float:
        pieces = [Piece("values", name, FLOAT_DTYPES[kind], shape)]
    elif kind == "mxfp4" and not is_dense(name):
        return mxfp4_layout(tensor, "_blocks", "_scales")
    elif kind == "mxfp4":
        pieces = [
            Piece("blocks", f"{name}_packed", "U8", (*lead, columns // 2)),
            Piece("scales", f"{name}_scale", "U8", (*lead, columns // 32)),
        ]
    elif kind == "nvfp4":
        pieces = [
            Piece("blocks", f"{name}_packed", "U8", (*lead, columns // 2)),
            Piece("scales", f"{name}_scale", "F8_E4M3", (*lead, columns // 16)),
            Piece("tensor_scale", f"{name}_global_scale", "F32", (1,), shared=True, reciprocal=True),
        ]
    elif kind == "fp8_block":
        blocks = (*lead[:-1], -(-lead[-1] // SIDE), -(-columns // SIDE))
        scales = Piece("scales", f"{name}_scale_inv", "F32", blocks, rows=SIDE)
        pieces = [Piece("codes", name, "F8_E4M3", shape), scales]
    else:
        groups = columns // (SCHEMES[kind][1]["group_size"] or columns)
        dtype = "I8" if SCHEMES[kind][1]["type"] == "int" else "F8_E4M3"
        pieces = [Piece("codes", name, dtype, shape), Piece("scales", f"{name}_scale", "BF16", (*lead, groups))]
    return Layout(tensor, tuple(pieces))


def is_dense(name: str) -> bool:
    """Whether a tensor is a module's own weight, as compressed-tensors knows them, and not a stack of experts."""
    return name.endswith(".weight")


def quantization_config(tensors: list[StoredTensor]) -> dict[str, Any] | None:
    """config.json's `quantization_config` for these tensors; None if all are plain floats."""
    quantized = [t for t in tensors if not t.format.is_float]
    if not quantized:
        return None
    if all(t.format.name == "fp8_block" for t in quantized):
        return _fp8_config(tensors)
    if all(is_dense(t.name) and t.format.name in SCHEMES for t in quantized):
        return _compressed_tensors_config(tensors)
    stacks: dict[str, set[str]] = {}  # module of experts -> formats of its stacks
    for tensor in tensors:
        if not is_dense(tensor.name) and len(tensor.shape) == 3:
            stacks.setdefault(tensor.name.rpartition(".")[0], set()).add(
                "float" if tensor.format.is_float else tensor.format.name
            )
    only_experts = not any(is_dense(t.name) for t in quantized)
    if only_experts and all(kinds in ({"mxfp4"}, {"float"}) for kinds in stacks.values()):
        kept = sorted(module for module, kinds in stacks.items() if kinds == {"float"})
        return {"modules_to_not_convert": [*MXFP4_NOT_CONVERTED, *kept], "quant_method": "mxfp4"}
    formats: dict[str, list[str]] = {}
    for tensor in quantized:
        formats.setdefault(tensor.format.name, []).append(tensor.name)
    return {"quant_method": "oss-tools", "formats": formats}


def _fp8_config(tensors: list[StoredTensor]) -> dict[str, Any]:
    """As DeepSeek-V3 has it, with the linear layers that are left in floats by name, as transformers' quantizer wants them."""
    plain = [t.name.removesuffix(".weight") for t in tensors if t.format.is_float and is_dense(t.name) and len(t.shape) == 2]
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [SIDE, SIDE],
        "modules_to_not_convert": sorted(name for name in plain if not name.endswith("embed_tokens")),
    }


def _compressed_tensors_config(tensors: list[StoredTensor]) -> dict[str, Any]:
    """One config group per format. With a single format, the usual form: all of class Linear but those to ignore."""
    modules: dict[str, list[str]] = {}  # format -> modules
    ignore = []
    for tensor in tensors:
        module = tensor.name.removesuffix(".weight")
        if is_dense(tensor.name) and len(tensor.shape) == 2:
            if not tensor.format.is_float:
                modules.setdefault(tensor.format.name, []).append(module)
            elif not module.endswith("embed_tokens"):
                ignore.append(module)
    if "lm_head.weight" not in {t.name for t in tensors}:  # tied: a Linear of the model without a tensor of its own
        ignore.append("lm_head")
    groups = {}
    for number, (kind, names) in enumerate(modules.items()):
        scheme, weights = SCHEMES[kind]
        groups[f"group_{number}"] = {
            "targets": names if len(modules) > 1 else ["Linear"],
            "weights": {**weights, "symmetric": True, "dynamic": False},
            "input_activations": None,
            "output_activations": None,
            "format": scheme,
        }
    schemes = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": schemes.pop() if len(schemes) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore if len(modules) == 1 else [],
    }
