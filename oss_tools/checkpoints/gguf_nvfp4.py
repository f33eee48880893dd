"""NVFP4 as GGUF holds it: blocks of 64 values, and the tensor's scale in a tensor of its own (`….scale` beside `….weight`).

Layout after gguf-py (`quants.py`) and llama.cpp (`conversion/base.py`): 4 unsigned e4m3 scales, then 4 × 8 bytes; in each 8
the low nibbles are values 0 to 7 of their 16, the high nibbles 8 to 15. `….input_scale` concerns activations only.
"""

from __future__ import annotations

import numpy as np

SUPERBLOCK = 36  # bytes
NOT_A_NUMBER = 0x7F  # as a scale; ggml takes it for 0


def companions(name: str) -> tuple[str, str]:
    """The names of the tensors that hold a weight's scale and its activations' scale."""
    stem = name.removesuffix(".weight")
    return f"{stem}.scale", f"{stem}.input_scale"


def unpack(data: np.ndarray, tensor_scale: np.ndarray) -> dict[str, np.ndarray]:
    """The planes of the format nvfp4.

    Args:
        data: uint8 [rows, bytes], whole blocks of 64.
        tensor_scale: float32 [rows].
    """
    rows = len(data)
    blocks = data.reshape(rows, -1, SUPERBLOCK)
    scales = blocks[..., :4].reshape(rows, -1) & 0x7F
    codes = blocks[..., 4:].reshape(rows, -1, 8)
    values = np.concatenate([codes & 15, codes >> 4], axis=-1)
    return {
        "blocks": (values[..., ::2] | values[..., 1::2] << 4).reshape(rows, -1),
        "scales": np.where(scales == NOT_A_NUMBER, np.uint8(0), scales),
        "tensor_scale": np.asarray(tensor_scale, np.float32).reshape(rows, 1),
    }
