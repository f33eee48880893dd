"""ggml's k-quants, stored in ggml's own bytes: blocks of 256 values, whose groups have scales that are themselves rounded.

Source: ggml's `ggml-common.h` and `ggml-quants.c`. Their companion q8_k is a form of activations, which no file holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from oss_tools.formats.base import Format, Lattice
from oss_tools.formats.qtensor import Plane, QTensor


class _KQuant(Format):
    """Groups of 16 or 32 values have a scale, or a scale and a minimum, which are whole numbers times the block's own.

    Plane: `blocks` uint8 [.., block bytes · K/256].

    Rules: search fits the groups' scales and then the block's to least weighted squared error, as they will be stored, and
    keeps the plain ones unless that is surely less in the block; plain takes each group's range.
    """

    block = 256
    lattice_block = 256
    rules = ("search", "plain")
    bits: int
    group: int
    most: int
    block_bytes: int

    def planes(self, columns: int) -> dict[str, Plane]:
        return {"blocks": Plane(np.dtype(np.uint8), columns // 256 * self.block_bytes)}

    def quantize_rows(
        self, rows: np.ndarray, weights: np.ndarray, planes: dict[str, np.ndarray], rule: str, amax: float, threads: int
    ) -> np.ndarray:
        from numba_kernels.codec.call import bound, over_rows
        from numba_kernels.codec.error import SUMS

        kernel, steps, nearby = self._kernel()
        op = bound(kernel, SEARCH=rule == "search", BITS=self.bits, SIZE=self.group, MOST=self.most, BYTES=self.block_bytes)
        errors = np.empty((len(rows), SUMS))
        arrays = {"values": rows, "weights": weights, "blocks": planes["blocks"], "errors": errors}
        over_rows(op, len(rows), arrays, threads, columns=rows.shape[1], steps=steps, nearby=nearby)
        return errors

    def _kernel(self) -> tuple[Any, np.ndarray, np.ndarray]:
        """The operation, and the steps of its searches."""
        raise NotImplementedError

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        from numba_kernels.codec import k_quants
        from numba_kernels.parallel import over_rows

        over_rows(getattr(k_quants, f"dequantize_{self.name}"), [planes["blocks"]], [out], threads=threads)

    def _blocks(self, tensor: QTensor) -> np.ndarray:
        """uint8 [R, K/256, block bytes]."""
        return np.ascontiguousarray(tensor.planes["blocks"]).reshape(-1, tensor.columns // 256, self.block_bytes)

    def _scales(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Of blocks uint8 [R, B, block bytes]: each group's scale and what is added to it, float32 [R, B · 256/group]."""
        raise NotImplementedError

    def _levels(self) -> tuple[int, int]:
        """What the least and the largest code stand for."""
        raise NotImplementedError

    def representable_range(self, tensor: QTensor) -> tuple[np.ndarray, np.ndarray]:
        low, high = self._levels()
        scale, offset = self._scales(self._blocks(tensor))
        base = np.float32(0) if offset is None else offset
        ends = [scale * np.float32(code) + base for code in (low - 0.5, high + 0.5)]
        return np.minimum(*ends), np.maximum(*ends)

    def lattice(self, tensor: QTensor) -> Lattice:
        low, high = self._levels()
        return Lattice(np.arange(low, high + 1, dtype=np.float32), *self._scales(self._blocks(tensor)), self.group)

    def with_codes(self, tensor: QTensor, codes: np.ndarray) -> QTensor:
        blocks = self._blocks(tensor).copy()
        self._store_codes(blocks, codes.reshape(len(blocks), -1, 256).astype(np.uint8))
        return QTensor(self, (len(blocks), tensor.columns), {"blocks": blocks.reshape(len(blocks), -1)})

    def _store_codes(self, blocks: np.ndarray, codes: np.ndarray) -> None:
        """Writes codes uint8 [R, B, 256], counted from the least, into blocks uint8 [R, B, block bytes]."""
        raise NotImplementedError


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """A half-precision number of each block as float32 [R, B, 1]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16).astype(np.float32)


def _gathered(codes: np.ndarray, apart: int, bits: int, shift: int = 0) -> np.ndarray:
    """Some bits of codes [..., n]: in byte j of each run those of the codes j, j + apart, …, 8 / bits of them, lowest first."""
    pieces = (codes >> shift & (1 << bits) - 1).reshape(*codes.shape[:-1], -1, 8 // bits, apart)
    places = (np.arange(0, 8, bits, dtype=np.uint8))[:, None]
    return (pieces << places).sum(-2, dtype=np.uint8).reshape(*codes.shape[:-1], -1)


class _Pairs(_KQuant):
    """Codes from 0 on times a scale, less a minimum that is not negative."""

    def _kernel(self) -> tuple[Any, np.ndarray, np.ndarray]:
        from numba_kernels.codec import k_quants_write, tables

        return k_quants_write.quantize_pairs, tables.K_RANGES[self.bits], tables.K_NEARBY

    def _levels(self) -> tuple[int, int]:
        return 0, (1 << self.bits) - 1


class Q2K(_Pairs):
    name = "q2_k"
    summary = "ggml: 2-bit integers in blocks of 256, scales and minima of 4 bits for 16 values"
    ggml_type = 10
    bits, group, most, block_bytes = 2, 16, 15, 84

    def _scales(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        scale, offset = _half(blocks, 80) * (blocks[..., :16] & 15), -(_half(blocks, 82) * (blocks[..., :16] >> 4))
        return scale.reshape(len(blocks), -1), offset.reshape(len(blocks), -1)

    def _store_codes(self, blocks: np.ndarray, codes: np.ndarray) -> None:
        blocks[..., 16:80] = _gathered(codes, 32, 2)


class _SixBitPairs(_Pairs):
    """q4_k and q5_k: d, dmin, then six bits for each scale and minimum."""

    def _scales(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        first, second, third = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
        scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], -1)
        minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], -1)
        scale, offset = _half(blocks, 0) * scales, -(_half(blocks, 2) * minima)
        return scale.reshape(len(blocks), -1), offset.reshape(len(blocks), -1)

    def _store_codes(self, blocks: np.ndarray, codes: np.ndarray) -> None:
        blocks[..., -128:] = _gathered(codes, 32, 4)
        if self.bits == 5:
            blocks[..., 16:48] = _gathered(codes, 32, 1, 4)


class Q4K(_SixBitPairs):
    name = "q4_k"
    summary = "ggml: 4-bit integers in blocks of 256, scales and minima of 6 bits for 32 values"
    ggml_type = 12
    bits, group, most, block_bytes = 4, 32, 63, 144


class Q5K(_SixBitPairs):
    name = "q5_k"
    summary = "ggml: 5-bit integers in blocks of 256, scales and minima of 6 bits for 32 values"
    ggml_type = 13
    bits, group, most, block_bytes = 5, 32, 63, 176


class _Signed(_KQuant):
    """Codes around 0 times a scale of either sign, for 16 values."""

    group = 16

    def _kernel(self) -> tuple[Any, np.ndarray, np.ndarray]:
        from numba_kernels.codec import k_quants_write, tables

        return k_quants_write.quantize_signed, tables.K_FACTORS[self.bits], tables.K_NEARBY_SCALES

    def _levels(self) -> tuple[int, int]:
        return -(1 << self.bits - 1), (1 << self.bits - 1) - 1


class Q3K(_Signed):
    name = "q3_k"
    summary = "ggml: 3-bit integers in blocks of 256, scales of 6 bits for 16 values"
    ggml_type = 11
    bits, most, block_bytes = 3, 32, 110

    def _scales(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        low = np.concatenate([blocks[..., 96:104] & 15, blocks[..., 96:104] >> 4], -1)
        high = np.concatenate([blocks[..., 104:108] >> shift & 3 for shift in (0, 2, 4, 6)], -1)
        numbers = (low | high << 4).astype(np.float32) - np.float32(32)
        return (_half(blocks, 108) * numbers).reshape(len(blocks), -1), None

    def _store_codes(self, blocks: np.ndarray, codes: np.ndarray) -> None:
        blocks[..., :32], blocks[..., 32:96] = _gathered(codes, 32, 1, 2), _gathered(codes, 32, 2)


class Q6K(_Signed):
    name = "q6_k"
    summary = "ggml: 6-bit integers in blocks of 256, scales of 8 bits for 16 values"
    ggml_type = 14
    bits, most, block_bytes = 6, 128, 210

    def _scales(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        numbers = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
        return (_half(blocks, 208) * numbers).reshape(len(blocks), -1), None

    def _store_codes(self, blocks: np.ndarray, codes: np.ndarray) -> None:
        blocks[..., :128], blocks[..., 128:192] = _gathered(codes, 64, 4), _gathered(codes, 32, 2, 4)
