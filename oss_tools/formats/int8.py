"""Symmetric 8-bit integers with bfloat16 scales, as compressed-tensors stores them: `weight` int8, `weight_scale` bf16."""

from __future__ import annotations

import numpy as np

from oss_tools.formats.base import Format, Lattice
from oss_tools.formats.qtensor import Plane, QTensor

LEVELS = np.arange(-127, 128, dtype=np.float32)
OTHER_SCALES = (0.98, 0.99, 1.01, 1.02)


class _Int8(Format):
    """Codes −127 … 127 times a scale for each group of values.

    Planes: `codes` int8 [.., K]; `scales` uint16 [.., groups], bfloat16 bits. Values round to nearest, ties to even.

    Rules: search tries multiples of the plain scale and keeps the one of least weighted squared error; plain takes the
    scale at which the largest magnitude is 127.
    """

    rules = ("search", "plain")
    power_of_two = False

    def planes(self, columns: int) -> dict[str, Plane]:
        groups = columns // self.block if self.block else 1
        return {"codes": Plane(np.dtype(np.int8), columns), "scales": Plane(np.dtype(np.uint16), groups)}

    def quantize_rows(
        self, rows: np.ndarray, weights: np.ndarray, planes: dict[str, np.ndarray], rule: str, amax: float, threads: int
    ) -> None:
        from numba_kernels.codec import integer, tables
        from numba_kernels.parallel import over_rows

        steps = tables.STEPS_INT8_POWER_OF_TWO if self.power_of_two else tables.STEPS_INT8
        parameters = (self.power_of_two, rule == "search", steps)
        values, importance, codes = (self._grouped(a) for a in (rows, weights, planes["codes"]))
        over_rows(integer.quantize, [values, importance], [codes, planes["scales"]], parameters, threads)

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        from numba_kernels.codec import integer
        from numba_kernels.parallel import over_rows

        over_rows(
            integer.dequantize, [self._grouped(planes["codes"]), planes["scales"]], [self._grouped(out)], threads=threads
        )

    def _grouped(self, rows: np.ndarray) -> np.ndarray:
        """[R, K] as [R, groups, values of a group]."""
        size = self.block or rows.shape[-1]
        return rows.reshape(len(rows), rows.shape[-1] // size, size)

    def representable_range(self, tensor: QTensor) -> tuple[np.ndarray, np.ndarray]:
        high = _scales(tensor) * np.float32(127.5)
        return -high, high

    def lattice(self, tensor: QTensor) -> Lattice:
        return Lattice(LEVELS, _scales(tensor), None, self.block or tensor.columns)

    def with_codes(self, tensor: QTensor, codes: np.ndarray) -> QTensor:
        signed = (codes.astype(np.int16) - 127).astype(np.int8)
        return QTensor(self, tensor.shape, {**tensor.planes, "codes": signed})

    def other_scales(self, tensor: QTensor) -> list[QTensor]:
        from numba_kernels.reference.formats import encode_bfloat16

        scales = (_scales(tensor) * factor for factor in ((0.5, 2) if self.power_of_two else OTHER_SCALES))
        return [QTensor(self, tensor.shape, {**tensor.planes, "scales": encode_bfloat16(some)}) for some in scales]


def _scales(tensor: QTensor) -> np.ndarray:
    """The scales of all groups, float32 [rows, groups]."""
    scales = tensor.planes["scales"]
    return (scales.reshape(-1, scales.shape[-1]).astype(np.uint32) << 16).view(np.float32)


class Int8(_Int8):
    name = "int8"
    summary = "8-bit integers, one bf16 scale a row (per channel)"
    block = lattice_block = 0


class Int8Group128(_Int8):
    name = "int8_g128"
    summary = "8-bit integers, a bf16 scale for 128 values"
    block = lattice_block = 128


class Int8Group32(_Int8):
    """Scales are powers of two, so MXFP4's values are held exactly: its 4-bit floats are multiples of half a scale."""

    name = "int8_g32"
    summary = "8-bit integers, a power-of-two scale for 32 values; holds MXFP4 without loss"
    block = lattice_block = 32
    power_of_two = True
