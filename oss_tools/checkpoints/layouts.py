"""How a tensor's planes lie in safetensors files: which safetensors tensors hold them, and how their bytes become arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oss_tools.checkpoints.base import StoredTensor
from oss_tools.errors import BadCheckpoint
from oss_tools.formats import Format

NUMPY: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "F8_E4M3": np.dtype(np.uint8),
    "F8_E8M0": np.dtype(np.uint8),
}
FLOAT_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}  # format -> dtype
FLOATS = {**{dtype: name for name, dtype in FLOAT_DTYPES.items()}, "F64": "f32"}  # dtype -> format it is read as
SCALE_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Piece:
    """A plane of a tensor, as a safetensors tensor of its own.

    Attributes:
        plane: the plane's name in the format.
        name, dtype, shape: of the safetensors tensor.
        shared: one value stands for all rows.
        reciprocal: the file holds the value's reciprocal.
        repeated: so many rows share one row of the piece.
    """

    plane: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    shared: bool = False
    reciprocal: bool = False
    repeated: int = 1


@dataclass(frozen=True)
class Layout:
    """A stored tensor and the safetensors tensors that make it up."""

    tensor: StoredTensor
    pieces: tuple[Piece, ...]


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


def decode(data: np.ndarray, piece: Piece, format: Format, rows: int, columns: int, where: str) -> np.ndarray:
    """A plane [rows, plane columns] from a piece's bytes. Raises BadCheckpoint if a scale's dtype cannot be had exactly."""
    plane = format.planes(columns)[piece.plane]
    values = data.view(NUMPY[piece.dtype])
    if piece.dtype == "F64":
        values = to_float32(values, piece.name, where)
    if plane.dtype == np.float32 and piece.dtype in SCALE_DTYPES:
        values = _to_float32_exactly(values, piece.dtype)
    elif piece.dtype in SCALE_DTYPES and piece.plane == "scales":
        values = _to_bfloat16(values, piece, where)
    if piece.reciprocal:
        if not np.all(np.isfinite(values) & (values > 0)):
            raise BadCheckpoint(f"{where}: tensor {piece.name} is {values[0]}, expected a positive number")
        values = 1 / values
    values = values.view(plane.dtype)
    if piece.shared:
        return np.full((rows, plane.columns), values[0], plane.dtype)
    return values.reshape(rows, plane.columns)


def _to_float32_exactly(values: np.ndarray, dtype: str) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values.astype(np.float32)


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


def to_float32(values: np.ndarray, name: str, where: str) -> np.ndarray:
    """Doubles rounded to float32. Raises BadCheckpoint if one of them is beyond its range."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    beyond = np.flatnonzero(np.isinf(rounded) & np.isfinite(values))
    if len(beyond):
        raise BadCheckpoint(f"{where}: tensor {name}: the F64 value {values[beyond[0]]} is beyond float32's range")
    return rounded
