"""Plain floats: f32, f16 (IEEE 754 binary16) and bf16 (the upper half of a float32)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oss_tools.formats.base import Format
from oss_tools.formats.qtensor import Plane, QTensor


class Float32(Format):
    name = "f32"
    summary = "IEEE single precision"
    block = 1
    rules = ("plain",)
    ggml_type = 0
    is_float = True

    def planes(self, columns: int) -> dict[str, Plane]:
        return {"values": Plane(np.dtype(np.float32), columns)}

    def quantize_rows(
        self, rows: np.ndarray, weights: np.ndarray, planes: dict[str, np.ndarray], rule: str, amax: float, threads: int
    ) -> None:
        planes["values"][:] = rows

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        out[:] = planes["values"]


class _Float16(Format):
    """A 16-bit float. Rounds to nearest, ties to even; finite values beyond the range become the largest, and NaN and
    infinity stay what they are."""

    block = 1
    rules = ("plain",)
    is_float = True
    largest: float

    def kernels(self) -> tuple[Callable[..., None], Callable[..., None]]:
        """(encode, decode) between float32 and the 16 bits."""
        raise NotImplementedError

    def quantize_rows(
        self, rows: np.ndarray, weights: np.ndarray, planes: dict[str, np.ndarray], rule: str, amax: float, threads: int
    ) -> None:
        from numba_kernels.parallel import over_rows

        over_rows(self.kernels()[0], [rows], [planes["values"].view(np.uint16)], threads=threads)

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        from numba_kernels.parallel import over_rows

        over_rows(self.kernels()[1], [planes["values"].view(np.uint16)], [out], threads=threads)

    def representable_range(self, tensor: QTensor) -> tuple[np.ndarray, np.ndarray]:
        high = np.full((tensor.reshape(-1, tensor.columns).planes["values"].shape[0], 1), self.largest, np.float32)
        return -high, high


class Float16(_Float16):
    name = "f16"
    summary = "IEEE half precision"
    ggml_type = 1
    exact_in = "f16"
    largest = 65504.0

    def planes(self, columns: int) -> dict[str, Plane]:
        return {"values": Plane(np.dtype(np.float16), columns)}

    def kernels(self) -> tuple[Callable[..., None], Callable[..., None]]:
        from numba_kernels.codec.floats import decode_half, encode_half

        return encode_half, decode_half


class BFloat16(_Float16):
    name = "bf16"
    summary = "bfloat16: float32's exponent, 8 bits of precision"
    ggml_type = 30
    exact_in = "bf16"
    largest = 3.3895313892515355e38

    def planes(self, columns: int) -> dict[str, Plane]:
        return {"values": Plane(np.dtype(np.uint16), columns)}

    def kernels(self) -> tuple[Callable[..., None], Callable[..., None]]:
        from numba_kernels.codec.floats import decode_bfloat16, encode_bfloat16

        return encode_bfloat16, decode_bfloat16
