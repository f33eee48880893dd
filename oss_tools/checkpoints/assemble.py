"""Safetensors tensors as the stored tensors that they make up: plain ones, and quantized ones from their planes.

The names and shapes of the planes are those of `compressed_tensors`, which writes them, and what other programs make of them:
scales for the whole tensor, of other dtypes, and beside them the scales of activations and of the KV cache, which are no part of
a weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from oss_tools.checkpoints.base import StoredTensor
from oss_tools.checkpoints.layouts import FLOATS, SCALE_DTYPES, Layout, Piece
from oss_tools.checkpoints.safetensors import RawTensor
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import get_format
from oss_tools.formats.fp8_block import SIDE

INT8_GROUPS = {128: "int8_g128", 32: "int8_g32"}
EMPTY = "DeepSpeed's ZeRO-3 saves weights so that were not gathered, and its zero_to_fp32.py makes whole ones"
CONTENT = ("I8", "F8_E4M3")  # dtypes of codes that have a scale beside them
# Scales and zero points of what a layer is given or gives, and of the cache: the weights are what they are without them.
ACTIVATIONS = re.compile(
    r"\.((input|output)_(scale|zero_point|global_scale|g_idx)|[qkv]_(scale|zero_point)|(prob|kv|kv_cache)_(output_)?scale)$"
)


@dataclass(frozen=True)
class Assembled:
    """What a folder's safetensors tensors make up.

    Attributes:
        layouts: stored name -> the tensor and its pieces, in the order of their first pieces.
        activations: the tensors that concern activations or the KV cache.
        others: tensors in dtypes that hold no weight (I64, BOOL, …): name -> dtype.
    """

    layouts: dict[str, Layout]
    activations: list[str]
    others: dict[str, str]


@dataclass(frozen=True)
class Declared:
    """What the configuration says of scales, where their shapes leave it open: that all int8 weights have them in groups, that
    FP8 weights have them in blocks of rows and columns."""

    in_groups: bool
    in_blocks: bool


def assemble(
    raw: Mapping[str, RawTensor], config: Mapping[str, Any], is_zero: Callable[[RawTensor], bool], where: str
) -> Assembled:
    """The stored tensors that safetensors tensors make up. `is_zero` looks whether all of a tensor's bytes are 0.

    Raises BadCheckpoint if pieces are missing or do not fit each other.
    """
    activations = [name for name in raw if ACTIVATIONS.search(name)]
    raw = {name: tensor for name, tensor in raw.items() if not ACTIVATIONS.search(name)}
    for name in [n for n in raw if n.endswith(".weight_zero_point") and is_zero(raw[n])]:  # symmetric, and says so at length
        del raw[name]
    layouts: dict[str, Layout] = {}
    used: dict[str, str] = {}
    declared = _declared(config)
    for tensor in raw.values():
        if 0 in tensor.shape:
            raise BadCheckpoint(f"{where}: tensor {tensor.name} is empty: shape {list(tensor.shape)}; {EMPTY}")
        layout = _quantized(tensor, raw, declared, where)
        if layout:
            if layout.tensor.name in layouts:
                raise BadCheckpoint(f"{where}: tensor {layout.tensor.name} is stored twice, in different formats")
            layouts[layout.tensor.name] = layout
            used |= {piece.name: layout.tensor.name for piece in layout.pieces}
    others = {}
    for tensor in raw.values():
        if tensor.name in used:
            continue
        if tensor.name in layouts:
            raise BadCheckpoint(f"{where}: tensor {tensor.name} is stored twice, in different formats")
        if tensor.dtype in FLOATS:
            layouts[tensor.name] = plain(tensor)
        else:
            others[tensor.name] = tensor.dtype
    order = {name: place for place, name in enumerate(raw)}
    layouts = dict(sorted(layouts.items(), key=lambda item: min(order[piece.name] for piece in item[1].pieces)))
    return Assembled(layouts, activations, others)


def plain(tensor: RawTensor) -> Layout:
    """A tensor in a plain float dtype."""
    stored = StoredTensor(tensor.name, get_format(FLOATS[tensor.dtype]), tensor.shape or (1,))
    return Layout(stored, (Piece("values", tensor.name, tensor.dtype, tensor.shape),))


def _quantized(tensor: RawTensor, raw: Mapping[str, RawTensor], declared: Declared, where: str) -> Layout | None:
    """The quantized tensor whose codes these are; None if they are none."""
    name = tensor.name
    if name.endswith("_blocks") and tensor.dtype == "U8":
        return assemble_mxfp4(tensor, raw, "_blocks", "_scales", where)
    if name.endswith("_packed"):
        return _packed(tensor, raw, where)
    if tensor.dtype in CONTENT and not name.endswith(("_scale", "_scale_inv", "_zero_point")):
        return _scaled(tensor, raw, declared, where)
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


def _scaled(tensor: RawTensor, raw: Mapping[str, RawTensor], declared: Declared, where: str) -> Layout:
    """Codes of one byte with scales per tensor, row, group or block."""
    if (inverse := f"{tensor.name}_scale_inv") in raw:
        return _blocks(tensor, raw[inverse], where)
    if tensor.dtype == "F8_E4M3" and f"{tensor.name}_scale" in raw and declared.in_blocks:
        return _blocks(tensor, raw[f"{tensor.name}_scale"], where)
    scale = _partner(raw, f"{tensor.name}_scale", tensor, where)
    if f"{tensor.name}_zero_point" in raw:
        raise BadCheckpoint(f"{where}: tensor {tensor.name} has zero points; asymmetric quantization is not supported")
    if scale.dtype not in SCALE_DTYPES or len(tensor.shape) < 2:
        raise _misfit(tensor, scale, f"a matrix, and scales of {' or '.join(SCALE_DTYPES)}", where)
    columns = tensor.shape[-1]
    kind = "int8" if tensor.dtype == "I8" else "fp8_e4m3"
    shared = scale.size == 1 and scale.shape != (*tensor.shape[:-1], 1)
    per_row = scale.shape in ((*tensor.shape[:-1], 1), tensor.shape[:-1])
    if per_row and kind == "int8" and columns in INT8_GROUPS and declared.in_groups:
        kind = INT8_GROUPS[columns]
    elif not per_row and not shared:
        grouped = len(scale.shape) == len(tensor.shape) and scale.shape[:-1] == tensor.shape[:-1]
        group = columns // scale.shape[-1] if grouped and columns % scale.shape[-1] == 0 else 0
        if kind != "int8" or group not in INT8_GROUPS:
            raise _misfit(tensor, scale, "one scale per tensor or row, or for int8 per group of 128 or 32", where)
        kind = INT8_GROUPS[group]
    layout = _layout(tensor.name, kind, tensor.shape, ("codes", tensor))
    return Layout(layout.tensor, (*layout.pieces, Piece("scales", scale.name, scale.dtype, scale.shape, shared=shared)))


def _blocks(tensor: RawTensor, scale: RawTensor, where: str) -> Layout:
    """FP8 with a scale for each block of 128 × 128 values, or one for the whole tensor."""
    if tensor.dtype != "F8_E4M3" or len(tensor.shape) < 2 or scale.dtype not in SCALE_DTYPES:
        raise _misfit(tensor, scale, f"a matrix in F8_E4M3, and scales of {' or '.join(SCALE_DTYPES)}", where)
    *lead, rows, columns = tensor.shape
    blocks = (*lead, -(-rows // SIDE), -(-columns // SIDE))
    whole = scale.size == 1 and scale.shape != blocks
    if not whole and scale.shape != blocks:
        raise _misfit(tensor, scale, f"a scale for each block of {SIDE} × {SIDE} values: {list(blocks)}", where)
    layout = _layout(tensor.name, "fp8_block", tensor.shape, ("codes", tensor))
    piece = Piece("scales", scale.name, scale.dtype, scale.shape, shared=whole, rows=1 if whole else SIDE)
    return Layout(layout.tensor, (*layout.pieces, piece))


def _declared(config: Mapping[str, Any]) -> Declared:
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return Declared(in_groups=False, in_blocks=False)
    if quantization.get("quant_method") == "oss-tools":
        kinds = quantization.get("formats")
        return Declared(in_groups=isinstance(kinds, dict) and "int8" not in kinds, in_blocks=False)
    groups = quantization.get("config_groups")
    listed = list(groups.values()) if isinstance(groups, dict) else []
    weights = [w for g in listed if isinstance(g, dict) and isinstance(w := g.get("weights"), dict)]
    int8 = [w.get("strategy") for w in weights if w.get("num_bits") == 8]
    in_groups = bool(int8) and all(strategy == "group" for strategy in int8)
    return Declared(in_groups, in_blocks=any(w.get("strategy") == "block" for w in weights))


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
