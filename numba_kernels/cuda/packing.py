"""From a format's planes to what the device keeps: rows of codes padded to 16 bytes, and scales apart. By NumPy, on the host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from numba_kernels.cuda.blocks import LAYOUTS

GGML_BLOCK_BYTES = {"q8_0": 34, "q4_0": 18}  # half-precision scale first


def packed_rows(format: str, planes: Mapping[str, np.ndarray], columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint32 [rows, words] and scales [rows, scales] (uint8 for mxfp4, else uint16; none for floats) of rows in a format
    of `LAYOUTS`. Views of the planes where they lie as the device wants them."""
    layout = LAYOUTS[format]
    if format in GGML_BLOCK_BYTES:
        blocks = planes["blocks"].reshape(-1, columns // 32, GGML_BLOCK_BYTES[format])
        codes = np.ascontiguousarray(blocks[..., 2:]).reshape(len(blocks), -1)
        scales = np.ascontiguousarray(blocks[..., :2]).reshape(len(blocks), -1).view(np.uint16)
    elif format == "mxfp4":
        codes, scales = planes["blocks"], planes["scales"]
    elif layout.is_float:
        codes, scales = planes["values"], np.empty((len(planes["values"]), 0), np.uint16)
    else:
        codes, scales = planes["codes"], planes["scales"]
    return _padded(codes, layout.row_words(columns)), np.ascontiguousarray(scales)


def _padded(codes: np.ndarray, words: int) -> np.ndarray:
    """uint32 [rows, words], zeros beyond the codes."""
    data = np.ascontiguousarray(codes).view(np.uint8).reshape(len(codes), -1)
    if data.shape[1] == 4 * words:
        return data.view(np.uint32)
    out = np.zeros((len(data), 4 * words), np.uint8)
    out[:, : data.shape[1]] = data
    return out.view(np.uint32)
