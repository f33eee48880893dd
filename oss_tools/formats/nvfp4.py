"""NVFP4 as compressed-tensors stores it: `weight_packed`, `weight_scale` e4m3, `weight_global_scale` = 1 / tensor scale."""

from __future__ import annotations

import numpy as np

from oss_tools.formats.base import Format, Lattice
from oss_tools.formats.mxfp4 import E2M1, e2m1_blocks
from oss_tools.formats.qtensor import Plane, QTensor

TOP = np.float32(6 * 448)  # the largest e2m1 value times the largest e4m3 scale
OTHER_SCALES = (-4, -3, -2, -1, 1, 2, 3, 4, 8)  # steps of e4m3 codes; 8 is a factor of two


class NVFP4(Format):
    """value = e2m1 code · (block's e4m3 scale · tensor scale).

    Planes: `blocks` uint8 [.., K/2], two codes a byte, value 2i in the lower nibble; `scales` uint8 [.., K/16], e4m3fn bits;
    `tensor_scale` float32 [.., 1], the same in every row.

    Rules: search tries 15 neighbours of the plain scale and keeps the one of least weighted squared error; plain takes
    the scale at which a block's largest magnitude is 6. The tensor scale makes the largest block scale 448.
    """

    name = "nvfp4"
    summary = "4-bit floats, an e4m3 scale for 16 values, one f32 scale a tensor"
    block = 16
    rules = ("search", "plain")
    needs_amax = True
    lattice_block = 16

    def planes(self, columns: int) -> dict[str, Plane]:
        return {
            "blocks": Plane(np.dtype(np.uint8), columns // 2),
            "scales": Plane(np.dtype(np.uint8), columns // 16),
            "tensor_scale": Plane(np.dtype(np.float32), 1, shared=True),
        }

    def quantize_rows(
        self, rows: np.ndarray, weights: np.ndarray, planes: dict[str, np.ndarray], rule: str, amax: float, threads: int
    ) -> np.ndarray:
        from numba_kernels.codec import nvfp4, tables
        from numba_kernels.codec.call import bound, over_rows
        from numba_kernels.codec.error import SUMS

        scale, errors = tensor_scale(amax), np.empty((len(rows), SUMS))
        planes["tensor_scale"][:] = scale
        arrays = {
            "values": rows,
            "weights": weights,
            "blocks": planes["blocks"],
            "scales": planes["scales"],
            "errors": errors,
        }
        quantize = bound(nvfp4.quantize_nvfp4, SEARCH=rule == "search")
        parameters = {"columns": rows.shape[1], "steps": tables.NVFP4_SEARCH, "tensor_scale": scale}
        over_rows(quantize, len(rows), arrays, threads, **parameters)
        return errors

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        from numba_kernels.codec import nvfp4
        from numba_kernels.codec.call import over_rows

        over_rows(nvfp4.dequantize_nvfp4, len(out), {**planes, "out": out}, threads, columns=out.shape[1])

    def representable_range(self, tensor: QTensor) -> tuple[np.ndarray, np.ndarray]:
        high = (_scales(tensor) * tensor.planes["tensor_scale"].reshape(-1, 1) * 7).astype(np.float32)
        return -high, high

    def lattice(self, tensor: QTensor) -> Lattice:
        scale = _scales(tensor).astype(np.float32) * tensor.planes["tensor_scale"].reshape(-1, 1)
        return Lattice(E2M1, scale, None, 16)

    def with_codes(self, tensor: QTensor, codes: np.ndarray) -> QTensor:
        return QTensor(self, tensor.shape, {**tensor.planes, "blocks": e2m1_blocks(codes)})

    def other_scales(self, tensor: QTensor) -> list[QTensor]:
        scales = tensor.planes["scales"].astype(np.int32)
        moved = (np.where(scales > 0, np.clip(scales + step, 1, 126), 0).astype(np.uint8) for step in OTHER_SCALES)
        return [QTensor(self, tensor.shape, {**tensor.planes, "scales": some}) for some in moved]


def _scales(tensor: QTensor) -> np.ndarray:
    """The e4m3 scales of all blocks as float64 [rows, K/16]."""
    codes = tensor.planes["scales"].reshape(-1, tensor.columns // 16).astype(np.int32)
    exponent, mantissa = codes >> 3, codes & 7
    return np.ldexp(np.where(exponent > 0, 8 + mantissa, mantissa), np.maximum(exponent, 1) - 10)


def tensor_scale(amax: float) -> np.float32:
    """The scale of a tensor whose largest magnitude is amax. Files hold its reciprocal.

    An amax below 2^-115, whose reciprocal overflows, gets 1; one at the end of float32's range, a little less than it needs.
    """
    global_scale = TOP / np.float64(min(max(amax, 2.0**-126), 3.4028e38))
    if global_scale > np.finfo(np.float32).max:
        return np.float32(1)
    return np.float32(1) / np.float32(global_scale)
