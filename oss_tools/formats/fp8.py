"""FP8 e4m3 with a bfloat16 scale a row, as in compressed-tensors' channel strategy: `weight` e4m3, `weight_scale` bf16.

Source: OCP 8-bit Floating Point Specification (OFP8) 1.0.
"""

from __future__ import annotations

import numpy as np

from oss_tools.formats.base import Format
from oss_tools.formats.qtensor import Plane, QTensor


class FP8E4M3(Format):
    """Planes: `codes` uint8 [.., K], e4m3fn bits; `scales` uint16 [.., 1], bfloat16 bits.

    Rule: a row's largest magnitude becomes 448, the largest code; values round to nearest, ties to even.
    """

    name = "fp8_e4m3"
    summary = "8-bit floats (e4m3), one bf16 scale a row"
    block = 0
    rules = ("plain",)

    def planes(self, columns: int) -> dict[str, Plane]:
        return {"codes": Plane(np.dtype(np.uint8), columns), "scales": Plane(np.dtype(np.uint16), 1)}

    def quantize_rows(
        self, rows: np.ndarray, weights: np.ndarray, planes: dict[str, np.ndarray], rule: str, amax: float, threads: int
    ) -> None:
        from numba_kernels.codec import fp8
        from numba_kernels.parallel import over_rows

        over_rows(fp8.quantize, [rows], [planes["codes"], planes["scales"]], threads=threads)

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        from numba_kernels.codec import fp8
        from numba_kernels.parallel import over_rows

        over_rows(fp8.dequantize, [planes["codes"], planes["scales"]], [out], threads=threads)

    def representable_range(self, tensor: QTensor) -> tuple[np.ndarray, np.ndarray]:
        high = (tensor.planes["scales"].reshape(-1, 1).astype(np.uint32) << 16).view(np.float32) * np.float32(464)
        return -high, high
