"""MXFP4, the format that gpt-oss's experts are published in.

Sources: OCP Microscaling Formats (MX) Specification 1.0; the tie rules are those of ggml, torchao and Triton's kernels.
"""

from __future__ import annotations

import numpy as np

from oss_tools.formats.base import Format, Lattice
from oss_tools.formats.qtensor import Plane, QTensor

E2M1 = np.array(
    [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32
)  # without the zero of negative sign
NIBBLES = np.array([15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7], np.uint8)  # their codes


class MXFP4(Format):
    """32 values share a power-of-two scale; each is a 4-bit float (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives).

    Planes: `blocks` uint8 [.., K/2], two codes a byte, value 2i in the lower nibble of byte i as in Hugging Face's files;
    `scales` uint8 [.., K/32], the scale's exponent + 127.

    Rules: search tries four neighbouring exponents and keeps the one of least weighted squared error, ggml's unless
    another is better; floor is ggml's (values from 6 to 8 scales clip; ties to the smaller magnitude); ocp has the same
    scales but rounds ties to even and keeps the sign of zero, as torchao does; ceil takes the least scale that clips
    nothing, ties away from zero, as Triton's kernels do.
    """

    name = "mxfp4"
    summary = "4-bit floats, a power-of-two scale for 32 values (OCP MX); gpt-oss's experts"
    block = 32
    rules = ("search", "floor", "ceil", "ocp")
    ggml_type = 39
    exact_in = "bf16"
    lattice_block = 32

    def planes(self, columns: int) -> dict[str, Plane]:
        return {"blocks": Plane(np.dtype(np.uint8), columns // 2), "scales": Plane(np.dtype(np.uint8), columns // 32)}

    def quantize_rows(
        self, rows: np.ndarray, weights: np.ndarray, planes: dict[str, np.ndarray], rule: str, amax: float, threads: int
    ) -> np.ndarray:
        from numba_kernels.codec import mxfp4
        from numba_kernels.codec.call import bound, over_rows
        from numba_kernels.codec.error import SUMS

        errors = np.empty((len(rows), SUMS))
        arrays = {"values": rows, "weights": weights, **planes, "errors": errors}
        over_rows(bound(mxfp4.quantize_mxfp4, RULE=rule), len(rows), arrays, threads, columns=rows.shape[1])
        return errors

    def dequantize_rows(self, planes: dict[str, np.ndarray], out: np.ndarray, threads: int) -> None:
        from numba_kernels.codec import mxfp4
        from numba_kernels.parallel import over_rows

        over_rows(mxfp4.dequantize, [planes["blocks"], planes["scales"]], [out], threads=threads)

    def representable_range(self, tensor: QTensor) -> tuple[np.ndarray, np.ndarray]:
        scales = tensor.planes["scales"].reshape(-1, tensor.columns // 32)
        high = np.ldexp(np.float32(7), np.minimum(scales.astype(np.int32) - 127, 125))
        return -high, high

    def lattice(self, tensor: QTensor) -> Lattice:
        scales = tensor.planes["scales"].reshape(-1, tensor.columns // 32).astype(np.int32)
        return Lattice(E2M1, np.ldexp(np.float32(1), scales - 127), None, 32)

    def with_codes(self, tensor: QTensor, codes: np.ndarray) -> QTensor:
        return QTensor(self, tensor.shape, {**tensor.planes, "blocks": e2m1_blocks(codes)})

    def other_scales(self, tensor: QTensor) -> list[QTensor]:
        from numba_kernels.codec.tables import MXFP4_TOP

        scales = tensor.planes["scales"].astype(np.int32)
        moved = (np.clip(scales + step, 0, MXFP4_TOP).astype(np.uint8) for step in (-1, 1))
        return [QTensor(self, tensor.shape, {**tensor.planes, "scales": some}) for some in moved]

    def pack_ggml(self, tensor: QTensor) -> np.ndarray:
        """ggml's 17-byte blocks, uint8 [rows, 17·K/32]: the scale, then codes j and j + 16 in byte j. No byte is changed."""
        from numba_kernels.codec import mxfp4

        blocks, scales = (np.ascontiguousarray(tensor.planes[name]) for name in ("blocks", "scales"))
        out = np.empty((scales.size * 32 // tensor.columns, tensor.columns // 32 * 17), np.uint8)
        mxfp4.pack_ggml(blocks.reshape(-1), scales.reshape(-1), out.reshape(-1))
        return out

    def unpack_ggml(self, data: np.ndarray, columns: int) -> QTensor:
        from numba_kernels.codec import mxfp4

        rows = data.shape[0]
        planes = {name: np.empty((rows, plane.columns), np.uint8) for name, plane in self.planes(columns).items()}
        source = np.ascontiguousarray(data).reshape(-1)
        mxfp4.unpack_ggml(source, planes["blocks"].reshape(-1), planes["scales"].reshape(-1))
        return QTensor(self, (rows, columns), planes)


def e2m1_blocks(codes: np.ndarray) -> np.ndarray:
    """uint8 [R, K], indices into `E2M1` -> two codes a byte, value 2i in the lower nibble: uint8 [R, K/2]."""
    nibbles = NIBBLES[codes]
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4
