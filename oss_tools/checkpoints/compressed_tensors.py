"""How quantized tensors lie in Hugging Face checkpoints: name suffixes, dtypes, shapes, and `quantization_config`.

Dense weights follow compressed-tensors (https://github.com/vllm-project/compressed-tensors: `compressors/`), gpt-oss experts
OpenAI's MXFP4 on the hub (transformers: `integrations/mxfp4.py`). Stacked experts in other formats have no convention in the
field; they get the suffixes of compressed-tensors and the quantization method `oss-tools`.

For a weight [..., K]:

    format               planes (name suffix, dtype, shape)
    mxfp4, experts       _blocks U8 [..., K/32, 16]   _scales U8 [..., K/32]
    mxfp4, dense         _packed U8 [..., K/2]        _scale U8 [..., K/32]
    nvfp4                _packed U8 [..., K/2]        _scale F8_E4M3 [..., K/16]   _global_scale F32 [1]
    int8                 (none) I8 [..., K]           _scale BF16 [..., 1]
    int8_g128, int8_g32  (none) I8 [..., K]           _scale BF16 [..., K/group]
    fp8_e4m3             (none) F8_E4M3 [..., K]      _scale BF16 [..., 1]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from oss_tools.checkpoints.base import StoredTensor
from oss_tools.checkpoints.safetensors import RawTensor
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import Format, get_format

NUMPY: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "F8_E4M3": np.dtype(np.uint8),
    "F8_E8M0": np.dtype(np.uint8),
}
FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
FLOAT_DTYPES = {name: dtype for dtype, name in FLOATS.items()}
SCALE_DTYPES = ("BF16", "F16", "F32")

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
INT8_GROUPS = {128: "int8_g128", 32: "int8_g32"}
READABLE = ("dense", "naive-quantized", "mixed-precision", *dict.fromkeys(scheme for scheme, _ in SCHEMES.values()))
METHODS = ("mxfp4", "compressed-tensors", "oss-tools")
MXFP4_NOT_CONVERTED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


@dataclass(frozen=True)
class Piece:
    """A plane of a tensor, as a safetensors tensor of its own.

    Attributes:
        plane: the plane's name in the format.
        name, dtype, shape: of the safetensors tensor.
        shared: one value stands for all rows.
        reciprocal: the file holds the value's reciprocal.
    """

    plane: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    shared: bool = False
    reciprocal: bool = False


@dataclass(frozen=True)
class Layout:
    """A stored tensor and the safetensors tensors that make it up."""

    tensor: StoredTensor
    pieces: tuple[Piece, ...]


# ---- writing --------------------------------------------------------------------------------------------------------


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
    else:
        groups = columns // (SCHEMES[kind][1]["group_size"] or columns)
        dtype = "I8" if SCHEMES[kind][1]["type"] == "int" else "F8_E4M3"
        pieces = [Piece("codes", name, dtype, shape), Piece("scales", f"{name}_scale", "BF16", (*lead, groups))]
    return Layout(tensor, tuple(pieces))


def mxfp4_layout(tensor: StoredTensor, blocks: str, scales: str) -> Layout:
    """MXFP4 as OpenAI lays it out: blocks of 16 bytes on an axis of their own, a scale each, under the given suffixes."""
    lead, count = tensor.shape[:-1], tensor.shape[-1] // 32
    return Layout(
        tensor,
        (
            Piece("blocks", tensor.name + blocks, "U8", (*lead, count, 16)),
            Piece("scales", tensor.name + scales, "U8", (*lead, count)),
        ),
    )


def is_dense(name: str) -> bool:
    """Whether a tensor is a module's own weight, as compressed-tensors knows them, and not a stack of experts."""
    return name.endswith(".weight")


def quantization_config(tensors: list[StoredTensor]) -> dict[str, Any] | None:
    """config.json's `quantization_config` for these tensors; None if all are plain floats."""
    quantized = [t for t in tensors if not t.format.is_float]
    if not quantized:
        return None
    if all(is_dense(t.name) for t in quantized):
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


# ---- reading --------------------------------------------------------------------------------------------------------


def check_method(config: Mapping[str, Any], where: str) -> None:
    """Raises BadCheckpoint if `quantization_config` names a method or variant that cannot be read."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return
    if not isinstance(quantization, dict):
        raise BadCheckpoint(f"{where}: quantization_config is not an object")
    method = quantization.get("quant_method")
    if method not in METHODS:
        raise BadCheckpoint(
            f"{where}: quantization method {str(method)[:40]!r} is not supported; supported: {', '.join(METHODS)}"
        )
    if method == "compressed-tensors":
        _check_compressed_tensors(quantization, where)


def _check_compressed_tensors(quantization: Mapping[str, Any], where: str) -> None:
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        raise BadCheckpoint(f"{where}: quantization_config.config_groups is not an object of objects")
    for scheme in (quantization.get("format"), *(group.get("format") for group in groups.values())):
        if scheme is not None and scheme not in READABLE:
            raise BadCheckpoint(
                f"{where}: compressed-tensors format {str(scheme)[:40]!r} is not supported; supported: {', '.join(READABLE)}"
            )
    for weights in (group.get("weights") for group in groups.values()):
        if not isinstance(weights, dict):
            continue
        if weights.get("symmetric") is False:
            raise BadCheckpoint(f"{where}: asymmetric quantization (compressed-tensors, symmetric: false) is not supported")
        if weights.get("strategy") == "block":
            raise BadCheckpoint(f"{where}: compressed-tensors strategy 'block' (fp8 blocks) is not supported")
    for key in ("sparsity_config", "transform_config"):
        if quantization.get(key):
            raise BadCheckpoint(f"{where}: compressed-tensors {key} is not supported")


def assemble(raw: Mapping[str, RawTensor], config: Mapping[str, Any], where: str) -> dict[str, Layout]:
    """The stored tensors that safetensors tensors make up, by name, in the order of their first pieces.

    Raises BadCheckpoint if pieces are missing or do not fit each other.
    """
    layouts: dict[str, Layout] = {}
    used: dict[str, str] = {}
    for tensor in raw.values():
        if 0 in tensor.shape:
            raise BadCheckpoint(f"{where}: tensor {tensor.name} is empty: shape {list(tensor.shape)}")
        layout = _quantized(tensor, raw, config, where)
        if layout:
            if layout.tensor.name in layouts:
                raise BadCheckpoint(f"{where}: tensor {layout.tensor.name} is stored twice, in different formats")
            layouts[layout.tensor.name] = layout
            used |= {piece.name: layout.tensor.name for piece in layout.pieces}
    for tensor in raw.values():
        if tensor.name in used:
            continue
        if tensor.dtype not in FLOATS:
            raise BadCheckpoint(f"{where}: tensor {tensor.name} has dtype {tensor.dtype}, which is no weight's")
        if tensor.name in layouts:
            raise BadCheckpoint(f"{where}: tensor {tensor.name} is stored twice, in different formats")
        stored = StoredTensor(tensor.name, get_format(FLOATS[tensor.dtype]), tensor.shape or (1,))
        layouts[tensor.name] = Layout(stored, (Piece("values", tensor.name, tensor.dtype, tensor.shape),))
    order = {name: place for place, name in enumerate(raw)}
    return dict(sorted(layouts.items(), key=lambda item: min(order[piece.name] for piece in item[1].pieces)))


def _quantized(tensor: RawTensor, raw: Mapping[str, RawTensor], config: Mapping[str, Any], where: str) -> Layout | None:
    """The quantized tensor whose codes these are; None if they are none."""
    name = tensor.name
    if name.endswith("_blocks") and tensor.dtype == "U8":
        return assemble_mxfp4(tensor, raw, "_blocks", "_scales", where)
    if name.endswith("_packed"):
        return _packed(tensor, raw, where)
    if tensor.dtype in ("I8", "F8_E4M3") and not name.endswith("_scale"):
        return _scaled(tensor, raw, config, where)
    return None


def assemble_mxfp4(tensor: RawTensor, raw: Mapping[str, RawTensor], blocks: str, scales: str, where: str) -> Layout:
    """MXFP4 from its blocks [..., K/32, 16] and the scales beside them. Raises BadCheckpoint."""
    name = tensor.name.removesuffix(blocks)
    scale = _partner(raw, name + scales, tensor, where)
    fits = tensor.shape[-1:] == (16,) and scale.shape == tensor.shape[:-1] and len(tensor.shape) > 1
    if not fits or {tensor.dtype, scale.dtype} - {"U8", "F8_E8M0"}:
        raise _misfit(tensor, scale, "[..., blocks, 16] and [..., blocks], both U8", where)
    shape = (*tensor.shape[:-2], tensor.shape[-2] * 32)
    return _layout(name, "mxfp4", shape, ("blocks", tensor), ("scales", scale))


def _packed(tensor: RawTensor, raw: Mapping[str, RawTensor], where: str) -> Layout:
    """compressed-tensors' 4-bit floats: MXFP4 or NVFP4, told apart by their scales."""
    name = tensor.name.removesuffix("_packed")
    if tensor.dtype != "U8":
        raise BadCheckpoint(
            f"{where}: tensor {tensor.name} is packed in {tensor.dtype} (pack-quantized), which is not supported; "
            "only the 4-bit floats packed in U8 are"
        )
    scale = _partner(raw, f"{name}_scale", tensor, where)
    if not tensor.shape:
        raise _misfit(tensor, scale, "[..., K/2] and [..., groups]", where)
    shape = (*tensor.shape[:-1], 2 * tensor.shape[-1])
    if scale.dtype == "F8_E4M3" and scale.shape == (*shape[:-1], shape[-1] // 16) and shape[-1] % 16 == 0:
        whole = _partner(raw, f"{name}_global_scale", tensor, where)
        if whole.dtype != "F32" or whole.size != 1:
            raise _misfit(tensor, whole, "a single F32 for the global scale", where)
        layout = _layout(name, "nvfp4", shape, ("blocks", tensor), ("scales", scale))
        shared = Piece("tensor_scale", whole.name, "F32", whole.shape, shared=True, reciprocal=True)
        return Layout(layout.tensor, (*layout.pieces, shared))
    if scale.dtype in ("U8", "F8_E8M0") and scale.shape == (*shape[:-1], shape[-1] // 32) and shape[-1] % 32 == 0:
        return _layout(name, "mxfp4", shape, ("blocks", tensor), ("scales", scale))
    raise _misfit(tensor, scale, "scales F8_E4M3 for groups of 16 (NVFP4) or U8 for groups of 32 (MXFP4)", where)


def _scaled(tensor: RawTensor, raw: Mapping[str, RawTensor], config: Mapping[str, Any], where: str) -> Layout:
    """Codes of one byte with scales per tensor, row or group."""
    scale = _partner(raw, f"{tensor.name}_scale", tensor, where)
    if f"{tensor.name}_zero_point" in raw:
        raise BadCheckpoint(f"{where}: tensor {tensor.name} has zero points; asymmetric quantization is not supported")
    if scale.dtype not in SCALE_DTYPES or len(tensor.shape) < 2:
        raise _misfit(tensor, scale, f"a matrix, and scales of {' or '.join(SCALE_DTYPES)}", where)
    columns = tensor.shape[-1]
    kind = "int8" if tensor.dtype == "I8" else "fp8_e4m3"
    shared = scale.size == 1 and scale.shape != (*tensor.shape[:-1], 1)
    per_row = scale.shape in ((*tensor.shape[:-1], 1), tensor.shape[:-1])
    if per_row and kind == "int8" and columns in INT8_GROUPS and _declares_groups(config):
        kind = INT8_GROUPS[columns]
    elif not per_row and not shared:
        grouped = len(scale.shape) == len(tensor.shape) and scale.shape[:-1] == tensor.shape[:-1]
        group = columns // scale.shape[-1] if grouped and columns % scale.shape[-1] == 0 else 0
        if kind != "int8" or group not in INT8_GROUPS:
            raise _misfit(tensor, scale, "one scale per tensor or row, or for int8 per group of 128 or 32", where)
        kind = INT8_GROUPS[group]
    layout = _layout(tensor.name, kind, tensor.shape, ("codes", tensor))
    return Layout(layout.tensor, (*layout.pieces, Piece("scales", scale.name, scale.dtype, scale.shape, shared=shared)))


def _declares_groups(config: Mapping[str, Any]) -> bool:
    """Whether all int8 weights are in groups, by the configuration: it decides where a row is just one group long."""
    quantization = config.get("quantization_config") or {}
    if quantization.get("quant_method") == "oss-tools":
        kinds = quantization.get("formats")
        return isinstance(kinds, dict) and "int8" not in kinds
    groups = quantization.get("config_groups") or {}
    weights = [g.get("weights") for g in groups.values()]
    strategies = {w.get("strategy") for w in weights if isinstance(w, dict) and w.get("num_bits") == 8}
    return strategies == {"group"}


def _layout(name: str, kind: str, shape: tuple[int, ...], *planes: tuple[str, RawTensor]) -> Layout:
    pieces = tuple(Piece(plane, tensor.name, tensor.dtype, tensor.shape) for plane, tensor in planes)
    return Layout(StoredTensor(name, get_format(kind), shape), pieces)


def _partner(raw: Mapping[str, RawTensor], name: str, of: RawTensor, where: str) -> RawTensor:
    if name not in raw:
        raise BadCheckpoint(f"{where}: tensor {name} is missing; {of.name} ({of.dtype}) needs it")
    return raw[name]


def _misfit(tensor: RawTensor, scale: RawTensor, expected: str, where: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{where}: {tensor.name} {tensor.dtype} {list(tensor.shape)} and {scale.name} {scale.dtype} {list(scale.shape)} "
        f"do not fit: expected {expected}"
    )


# ---- values ---------------------------------------------------------------------------------------------------------


def decode(data: np.ndarray, piece: Piece, format: Format, rows: int, columns: int, where: str) -> np.ndarray:
    """A plane [rows, plane columns] from a piece's bytes. Raises BadCheckpoint if a scale's dtype cannot be had exactly."""
    plane = format.planes(columns)[piece.plane]
    values = data.view(NUMPY[piece.dtype])
    if piece.dtype in SCALE_DTYPES and piece.plane == "scales":
        values = _to_bfloat16(values, piece, where)
    if piece.reciprocal:
        if not np.all(np.isfinite(values) & (values > 0)):
            raise BadCheckpoint(f"{where}: tensor {piece.name} is {values[0]}, expected a positive number")
        values = 1 / values
    values = values.view(plane.dtype)
    if piece.shared:
        return np.full((rows, plane.columns), values[0], plane.dtype)
    return values.reshape(rows, plane.columns)


def _to_bfloat16(values: np.ndarray, piece: Piece, where: str) -> np.ndarray:
    """Scales of another float dtype as bfloat16 bits, if they are exactly such numbers."""
    if piece.dtype == "BF16":
        return values
    bits = values.astype(np.float32).view(np.uint32)
    inexact = np.flatnonzero(bits & 0xFFFF)
    if len(inexact):
        raise BadCheckpoint(
            f"{where}: tensor {piece.name}: the {piece.dtype} scale {values[inexact[0]]} has no exact bfloat16, which "
            "this format's scales are; dequantize the checkpoint to BF16 with the program that made it"
        )
    return (bits >> 16).astype(np.uint16)
