"""FP8 e4m3 with a float32 scale for each block of 128 × 128 values, as DeepSeek-V3 and R1 are published: `weight` e4m3,
`weight_scale_inv` f32 [⌈rows / 128⌉, ⌈columns / 128⌉].

Source: DeepSeek-V3, README_WEIGHTS.md and inference/kernel.py (https://github.com/deepseek-ai/DeepSeek-V3).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from oss_tools.formats.base import Format
from oss_tools.formats.qtensor import Plane, QTensor, concatenate

SIDE = 128  # rows and columns of a block
BOUND = np.float32(464)  # half a step beyond the largest e4m3 value


class FP8Block(Format):
    """value = e4m3 code · scale of its block. Blocks at the last rows and columns are cut off.

    Planes: `codes` uint8 [.., K], e4m3fn bits; `scales` float32 [.., ⌈K / 128⌉], the same in the 128 rows of a block.

    Rule: a block's largest magnitude becomes 448, the largest code; values round to nearest, ties to even.
    """

    name = "fp8_block"
    summary = "8-bit floats (e4m3), one f32 scale for 128 × 128 values"
    block = SIDE
    rules = ("plain",)
    row_block = SIDE

    def planes(self, columns: int) -> dict[str, Plane]:
        scales = Plane(np.dtype(np.float32), -(-columns // SIDE), rows=SIDE)
        return {"codes": Plane(np.dtype(np.uint8), columns), "scales": scales}

    def fits(self, columns: int) -> bool:
        return True

    def quantize(self, values: np.ndarray, **options: Any) -> QTensor:
        if values.ndim < 3:
            return super().quantize(values, **options)
        matrices = values.reshape(-1, *values.shape[-2:])  # blocks end with each of them
        return concatenate([super(FP8Block, self).quantize(m, **options) for m in matrices]).reshape(*values.shape)

    def quantize_rows(
        self, rows: np.ndarray, weights: np.ndarray, planes: dict[str, np.ndarray], rule: str, amax: float, threads: int
    ) -> np.ndarray:
        from numba_kernels.codec import fp8
        from numba_kernels.parallel import over_rows

        fp8.block_scales(rows, planes["scales"], SIDE)
        over_rows(fp8.quantize_blocks, [rows, planes["scales"]], [planes["codes"]], (SIDE,), threads)
        return self._errors(rows, planes, threads)

    def _errors(self, rows: np.ndarray, planes: dict[str, np.ndarray], threads: int) -> np.ndarray:
        """What rounding cost each row: of its whole blocks, and of the one that is cut."""
        from numba_kernels.codec.error import SUMS, row_errors

        decoded = np.empty_like(rows)
        with np.errstate(over="ignore"):  # at the end of float32's range nothing is out of it
            high = planes["scales"] * BOUND
        self.dequantize_rows(planes, decoded, threads)
        whole, errors = rows.shape[1] // SIDE, np.zeros((len(rows), SUMS))
        for columns, blocks in ((slice(whole * SIDE), slice(whole)), (slice(whole * SIDE, None), slice(whole, None))):
            if high[:, blocks].size:
                part = row_errors(rows[:, columns], decoded[:, columns], -high[:, blocks], high[:, blocks], threads)
                largest = np.maximum(errors[:, 2], part[:, 2])
                errors += part
                errors[:, 2] = largest
        return errors

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        from numba_kernels.codec import fp8
        from numba_kernels.parallel import over_rows

        over_rows(fp8.dequantize_blocks, [planes["codes"], planes["scales"]], [out], (SIDE,), threads)

    def representable_range(self, tensor: QTensor) -> tuple[np.ndarray, np.ndarray]:
        scales = tensor.planes["scales"]
        high = scales.reshape(-1, scales.shape[-1]) * BOUND
        if tensor.columns % SIDE:  # the last block is cut: a range for each value
            high = high.repeat(SIDE, axis=1)[:, : tensor.columns]
        return -high, high
