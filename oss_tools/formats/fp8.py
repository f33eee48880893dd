"""FP8 e4m3 with a bfloat16 scale a row, as in compressed-tensors' channel strategy: `weight` e4m3, `weight_scale` bf16; and with
a float32 scale for each block of 128 × 128, as DeepSeek publishes: `weight` e4m3, `weight_scale_inv`.

Source: OCP 8-bit Floating Point Specification (OFP8) 1.0.
"""

from __future__ import annotations

import numpy as np

from oss_tools.formats.base import Format, Plane, QTensor


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


def _values_of_codes() -> np.ndarray:
    """The value of each e4m3fn code, float32 [256]: no infinities, NaN at 0x7F and 0xFF."""
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    magnitudes = np.where(exponents > 0, (8 + mantissas) * 2.0 ** (exponents - 10), mantissas * 2.0**-9)
    magnitudes[codes & 127 == 127] = np.nan
    return np.where(codes < 128, magnitudes, -magnitudes).astype(np.float32)


class FP8E4M3Block128(Format):
    """Planes: `codes` uint8 [.., K], e4m3fn bits; `scales` float32 [.., ceil(K / 128)], of 128 neighbouring rows the same. A
    value is its code's times the scale, in float32. Read only.

    Source: https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md.
    """

    name = "fp8_e4m3_b128"
    summary = "8-bit floats (e4m3), a float32 scale for each block of 128 × 128 (DeepSeek; read only)"
    block = 0
    side = 128

    def planes(self, columns: int) -> dict[str, Plane]:
        groups = -(-columns // self.side)
        return {"codes": Plane(np.dtype(np.uint8), columns), "scales": Plane(np.dtype(np.float32), groups)}

    def bytes_per_row(self, columns: int) -> int:
        """Of the codes; the scales are one 4,096th of them."""
        return columns

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        scales = np.repeat(planes["scales"], self.side, axis=1)[:, : out.shape[1]]
        np.multiply(_values_of_codes()[planes["codes"]], scales, out=out)
