"""Random packed weights of any format and size."""

from __future__ import annotations

import numpy as np

from numba_kernels.cpu.blocks import LAYOUTS
from numba_kernels.cpu.k_panels import K_BLOCKS
from numba_kernels.cpu.packed import INT8_GROUPS, Packed
from numba_kernels.cpu.packing import GGML_BLOCKS, pack
from numba_kernels.simd.values import LANES


def random_planes(name: str, count: int, columns: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Planes of a random matrix whose scales are moderate numbers."""

    def any_bytes(width: int) -> np.ndarray:
        return rng.integers(0, 256, (count, width), dtype=np.uint8)

    if name == "mxfp4":
        return {"blocks": any_bytes(columns // 2), "scales": any_bytes(columns // 32) % 8 + 118}
    if name in GGML_BLOCKS:
        raw = any_bytes(columns // 32 * GGML_BLOCKS[name][0]).reshape(count, columns // 32, -1)
        for at in range(0, LAYOUTS[name].scale_bytes, 2):
            raw[..., at], raw[..., at + 1] = 0, 0x1C  # a half-precision 0.004
        return {"blocks": raw.reshape(count, -1)}
    if name in K_BLOCKS:
        block = K_BLOCKS[name]
        raw = any_bytes(columns // 256 * block.nbytes).reshape(count, columns // 256, -1)
        for at in block.halves:
            if at >= 0:
                raw[..., at], raw[..., at + 1] = 0, 0x08  # a half-precision 0.0001
        return {"blocks": raw.reshape(count, -1)}
    if name.startswith("int8"):
        groups = columns // INT8_GROUPS.get(name, columns)
        return {"codes": any_bytes(columns).view(np.int8), "scales": np.full((count, groups), 0x3B80, np.uint16)}
    values = rng.normal(size=(count, columns)).astype(np.float32)
    if name == "bf16":
        return {"values": (values.view(np.uint32) >> 16).astype(np.uint16)}
    return {"values": values.astype(np.float16 if name == "f16" else np.float32)}


def random_weights(name: str, matrices: int, height: int, columns: int, rng: np.random.Generator) -> Packed:
    """A packed matrix, its first panels repeated to its size."""
    packed = Packed(name, matrices, height, columns)
    few = Packed(name, 1, min(height, 8 * LANES), columns)
    pack(few, random_planes(name, few.rows, columns, rng))
    flat = packed.data.reshape(-1, packed.panel_bytes)
    for at in range(0, len(flat), few.panels):
        flat[at : at + few.panels] = few.data[0][: len(flat) - at]
    return packed
