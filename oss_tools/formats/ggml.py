"""ggml's simple block formats, stored in ggml's own bytes. Source: ggml's `ggml-common.h`, `ggml-quants.c` and gguf-py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from oss_tools.formats.base import Format, Lattice
from oss_tools.formats.qtensor import Plane, QTensor

if TYPE_CHECKING:
    from numba_kernels.cpu.op import Op

# Scales near a given one, and minima that are moved by so many scales, that a search may try: (factor, shift).
SYMMETRIC_STEPS = tuple(
    (sign * factor, 0.0) for sign in (1, -1) for factor in (0.9, 0.94, 0.97, 1.03, 1.07, 1.12) if sign > 0 or factor > 1
)
MINIMUM_STEPS = tuple(
    (factor, shift) for factor in (0.94, 1.0, 1.06) for shift in (-0.3, 0.0, 0.3) if (factor, shift) != (1, 0)
)


class _Block32(Format):
    """32 values share a half-precision scale, or a scale and a minimum.

    Plane: `blocks` uint8 [.., block bytes · K/32].

    Rules: search tries some dozens of scales (and minima) and keeps those of least weighted squared error as stored, the
    plain ones unless others are better; plain makes gguf-py's bytes. Where a scale exceeds half precision, both
    take the largest there is.
    """

    block = lattice_block = 32
    rules = ("search", "plain")
    block_bytes: int
    code_range: tuple[float, float]
    has_minimum = False
    levels: np.ndarray
    scale_steps: tuple[tuple[float, float], ...] = SYMMETRIC_STEPS

    def planes(self, columns: int) -> dict[str, Plane]:
        return {"blocks": Plane(np.dtype(np.uint8), columns // 32 * self.block_bytes)}

    def run(
        self,
        op: Op,
        steps: np.ndarray,
        rows: np.ndarray,
        weights: np.ndarray,
        planes: dict[str, np.ndarray],
        threads: int,
        **constants: Any,
    ) -> np.ndarray:
        """Quantizes rows by an operation; returns what it says of their errors."""
        from numba_kernels.codec.call import bound, over_rows
        from numba_kernels.codec.error import SUMS

        errors = np.empty((len(rows), SUMS))
        arrays = {"values": rows, "weights": weights, "blocks": planes["blocks"], "errors": errors}
        over_rows(bound(op, **constants), len(rows), arrays, threads, columns=rows.shape[1], steps=steps)
        return errors

    def representable_range(self, tensor: QTensor) -> tuple[np.ndarray, np.ndarray]:
        scale, minimum = self._header(tensor)
        ends = [scale * np.float32(code) + minimum for code in self.code_range]
        return np.minimum(*ends), np.maximum(*ends)

    def _header(self, tensor: QTensor) -> tuple[np.ndarray, np.ndarray]:
        """Scales and minima of all blocks, float32 [rows, K/32] each; minima mean nothing where the format has none."""
        header = np.ascontiguousarray(self._blocks(tensor)[..., :4]).view(np.float16).astype(np.float32)
        return header[..., 0], header[..., 1] if self.has_minimum else np.zeros_like(header[..., 0])

    def _blocks(self, tensor: QTensor) -> np.ndarray:
        return tensor.planes["blocks"].reshape(-1, tensor.columns // 32, self.block_bytes)

    def lattice(self, tensor: QTensor) -> Lattice:
        scale, minimum = self._header(tensor)
        return Lattice(self.levels, scale, minimum if self.has_minimum else None, 32)

    def with_codes(self, tensor: QTensor, codes: np.ndarray) -> QTensor:
        blocks = self._blocks(tensor).copy()
        blocks[..., 4 if self.has_minimum else 2 :] = self.code_bytes(codes.reshape(len(blocks), -1, 32))
        return QTensor(self, tensor.shape, {"blocks": blocks.reshape(tensor.planes["blocks"].shape)})

    def code_bytes(self, codes: np.ndarray) -> np.ndarray:
        """uint8 [R, K/32, 32], indices into `levels` -> what a block has behind its header, uint8 [R, K/32, bytes]."""
        low = codes & 15
        return low[..., :16] | low[..., 16:] << 4

    def other_scales(self, tensor: QTensor) -> list[QTensor]:
        scale, minimum = self._header(tensor)
        tried = ((scale * np.float32(factor), minimum + scale * np.float32(shift)) for factor, shift in self.scale_steps)
        return [self._with_header(tensor, *some) for some in tried]

    def _with_header(self, tensor: QTensor, scale: np.ndarray, minimum: np.ndarray) -> QTensor:
        header = np.clip(np.stack([scale, minimum], -1), -65504, 65504).astype(np.float16).view(np.uint8)
        blocks = self._blocks(tensor).copy()
        size = 4 if self.has_minimum else 2
        blocks[..., :size] = header[..., :size]
        return QTensor(self, tensor.shape, {"blocks": blocks.reshape(tensor.planes["blocks"].shape)})


class Q8_0(_Block32):
    name = "q8_0"
    summary = "ggml: 8-bit integers, a scale for 32 values"
    ggml_type = 8
    block_bytes = 34
    code_range = (-127.5, 127.5)
    levels = np.arange(-127, 128, dtype=np.float32)
    scale_steps = tuple((factor, 0.0) for factor in (0.99, 1.01))

    def code_bytes(self, codes: np.ndarray) -> np.ndarray:
        return (codes.astype(np.int16) - 127).astype(np.int8).view(np.uint8)

    def quantize_rows(
        self, rows: np.ndarray, weights: np.ndarray, planes: dict[str, np.ndarray], rule: str, amax: float, threads: int
    ) -> np.ndarray:
        from numba_kernels.codec import ggml, tables

        return self.run(ggml.quantize_q8_0, tables.STEPS_8_BITS, rows, weights, planes, threads, SEARCH=rule == "search")

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        from numba_kernels.codec import ggml_decode
        from numba_kernels.parallel import over_rows

        over_rows(ggml_decode.dequantize_q8_0, [planes["blocks"]], [out], threads=threads)


class _Nibbles(_Block32):
    """q4_0, q4_1, q5_0, q5_1."""

    bits: int

    def code_bytes(self, codes: np.ndarray) -> np.ndarray:
        nibbles = super().code_bytes(codes)
        if self.bits == 4:
            return nibbles
        return np.concatenate([np.packbits(codes >> 4, axis=-1, bitorder="little"), nibbles], -1)

    def quantize_rows(
        self, rows: np.ndarray, weights: np.ndarray, planes: dict[str, np.ndarray], rule: str, amax: float, threads: int
    ) -> np.ndarray:
        from numba_kernels.codec import ggml, tables

        op = ggml.quantize_minimum if self.has_minimum else ggml.quantize_symmetric
        steps = (tables.STEPS_MINIMUM if self.has_minimum else tables.STEPS_SYMMETRIC)[self.bits]
        return self.run(op, steps, rows, weights, planes, threads, SEARCH=rule == "search", BITS=self.bits)

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        from numba_kernels.codec import ggml_decode
        from numba_kernels.parallel import over_rows

        over_rows(ggml_decode.dequantize_nibbles, [planes["blocks"]], [out], (self.bits, self.has_minimum), threads)


class Q4_0(_Nibbles):
    name = "q4_0"
    summary = "ggml: 4-bit integers, a scale for 32 values"
    ggml_type = 2
    block_bytes = 18
    bits = 4
    code_range = (-8.5, 7.5)
    levels = np.arange(-8, 8, dtype=np.float32)


class Q4_1(_Nibbles):
    name = "q4_1"
    summary = "ggml: 4-bit integers, a scale and a minimum for 32 values"
    ggml_type = 3
    block_bytes = 20
    bits = 4
    has_minimum = True
    scale_steps = MINIMUM_STEPS
    code_range = (-0.5, 15.5)
    levels = np.arange(16, dtype=np.float32)


class Q5_0(_Nibbles):
    name = "q5_0"
    summary = "ggml: 5-bit integers, a scale for 32 values"
    ggml_type = 6
    block_bytes = 22
    bits = 5
    code_range = (-16.5, 15.5)
    levels = np.arange(-16, 16, dtype=np.float32)


class Q5_1(_Nibbles):
    name = "q5_1"
    summary = "ggml: 5-bit integers, a scale and a minimum for 32 values"
    ggml_type = 7
    block_bytes = 24
    bits = 5
    has_minimum = True
    scale_steps = MINIMUM_STEPS
    code_range = (-0.5, 31.5)
    levels = np.arange(32, dtype=np.float32)


class IQ4NL(_Block32):
    """Codes are indices into a fixed table of 16 values, denser near zero. The plain rule is ggml's
    `quantize_row_iq4_nl_ref`, bit for bit where the C compiler fuses no multiply and add."""

    name = "iq4_nl"
    summary = "ggml: 4-bit codes of a non-linear table, a scale for 32 values"
    ggml_type = 20
    block_bytes = 18
    code_range = (-138.5, 125.0)
    levels = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)

    def quantize_rows(
        self, rows: np.ndarray, weights: np.ndarray, planes: dict[str, np.ndarray], rule: str, amax: float, threads: int
    ) -> np.ndarray:
        from numba_kernels.codec import iq4_nl, tables

        return self.run(iq4_nl.quantize_iq4_nl, tables.STEPS_IQ4_NL, rows, weights, planes, threads, SEARCH=rule == "search")

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        from numba_kernels.codec import ggml_decode
        from numba_kernels.parallel import over_rows

        over_rows(ggml_decode.dequantize_iq4_nl, [planes["blocks"]], [out], threads=threads)
