"""Weights out of panels again: the inverse of `packing`, for panels of any number of lanes, whatever this processor's are.

What packing changes is undone: codes to value order, bytes that were raised by 128, MXFP4's scale bytes, which panels keep one
lower. The scale byte 0 lies there as 1 does: whoever has to tell them apart keeps `zero_scales` beside the panels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np

from numba_kernels.cpu import k_panels
from numba_kernels.cpu.geometry import BYTES, K_QUANTS, Geometry
from numba_kernels.cpu.op import specialize
from numba_kernels.cpu.packing import GGML_BLOCKS


def unpack(
    panels: np.ndarray, geometry: Geometry, planes: dict[str, np.ndarray], *, biased: bool, first: int, step: int = 1
) -> None:
    """Fills the planes of a format, [n, …] each, with rows first, first + step, … of a matrix.

    Args:
        panels: uint8 [k, panel_bytes], those that hold these rows; `first` is counted from their first row.
        geometry: of the matrix.
        planes: C-contiguous; as `packing.pack` takes them.
        biased: whether signed bytes are raised by 128.
    """
    name, g = geometry.format, geometry
    n = len(next(iter(planes.values())))
    if first < 0 or first + (n - 1) * step >= len(panels) * g.lanes or panels.shape[1] != g.panel_bytes:
        raise ValueError(f"rows {first} + {step} · {n} do not lie in {len(panels)} panels")
    where = (first, step, n, g.lanes, g.blocks, g.block_bytes, g.scales_at, g.scale_step)
    flip = 0x80808080 if biased and name in BYTES else 0
    if name == "mxfp4":
        _mxfp4(panels, planes["blocks"], planes["scales"], *where)
    elif name in GGML_BLOCKS:
        width, scale_at, high_at, codes_at = GGML_BLOCKS[name]
        words = 8 if name == "q8_0" else 4
        _ggml(panels, planes["blocks"], *where, width, scale_at, codes_at - scale_at - (4 if high_at >= 0 else 0), high_at,
              codes_at, words, flip)  # fmt: skip
    elif name in K_QUANTS:
        _k_kernel(name)(panels, planes["blocks"], *where)
    elif name in BYTES:
        _int8(panels, planes["codes"].view(np.uint8), planes["scales"].view(np.uint16), *where, flip)
    elif name == "f32":
        _f32(panels, planes["values"].view(np.uint32), *where)
    else:
        _16bit(panels, planes["values"].view(np.uint16), *where, name == "bf16")


def zero_scales(scales: np.ndarray) -> np.ndarray:
    """Which of MXFP4's scale bytes uint8 [n, blocks] are 0, as bits: uint8 [n, ceil(blocks / 8)], the first block lowest."""
    return np.packbits(scales == 0, axis=1, bitorder="little")


def restore_zero_scales(scales: np.ndarray, zeros: np.ndarray) -> None:
    """Puts those zeros back."""
    scales[np.unpackbits(zeros, axis=1, count=scales.shape[1], bitorder="little").astype(bool)] = 0


def _kernel(function: Any) -> Any:
    return numba.njit(nogil=True, cache=True, boundscheck=False)(function)


@cache
def _k_kernel(name: str) -> Any:
    """`unpack_k` for a format."""
    return _kernel(specialize(k_panels.unpack_k, f"unpack_{name}", **k_panels.constants(name)))


@_kernel
def _gathered(x):  # type: ignore[no-untyped-def]
    """The low nibbles of four bytes, side by side in 16 bits."""
    x &= np.uint32(0x0F0F0F0F)
    x = (x | (x >> np.uint32(4))) & np.uint32(0x00FF00FF)
    return np.uint16((x | (x >> np.uint32(8))) & np.uint32(0xFFFF))


@_kernel
def _mxfp4(panels, blocks_out, scales_out, first, step, n, lanes, blocks, block_bytes, scales_at, scale_step):  # type: ignore[no-untyped-def]
    words, halves = panels.view(np.uint32), blocks_out.view(np.uint16)
    for i in range(n):
        p, lane = divmod(first + i * step, lanes)
        for k in range(blocks):
            for j in range(4):
                word = words[p, k * block_bytes // 4 + j * lanes + lane]
                halves[i, k * 8 + j] = _gathered(word)
                halves[i, k * 8 + 4 + j] = _gathered(word >> np.uint32(4))
            byte = panels[p, scales_at + k * scale_step + lane]
            scales_out[i, k] = byte if byte == 255 else byte + 1


@_kernel
def _ggml(  # type: ignore[no-untyped-def]
    panels, out, first, step, n, lanes, blocks, block_bytes, scales_at, scale_step,
    width, scale_to, scale_bytes, high_to, codes_to, count, flip,
):  # fmt: skip
    words = panels.view(np.uint32)
    for i in range(n):
        p, lane = divmod(first + i * step, lanes)
        for k in range(blocks):
            at, base = k * width, k * block_bytes // 4
            for j in range(count):
                word = words[p, base + j * lanes + lane] ^ np.uint32(flip)
                for b in range(4):
                    out[i, at + codes_to + 4 * j + b] = (word >> np.uint32(8 * b)) & np.uint32(255)
            if high_to >= 0:
                word = words[p, base + count * lanes + lane]
                for byte in range(4):
                    bits = 0
                    for b in range(8):
                        c = byte * 8 + b
                        bits |= ((word >> np.uint32(c % 4 * 8 + c // 4)) & np.uint32(1)) << b
                    out[i, at + high_to + byte] = bits
            for s in range(0, scale_bytes, 2):
                source = scales_at + k * scale_step + s * lanes + lane * 2
                out[i, at + scale_to + s] = panels[p, source]
                out[i, at + scale_to + s + 1] = panels[p, source + 1]


@_kernel
def _int8(panels, codes, scales, first, step, n, lanes, blocks, block_bytes, scales_at, scale_step, flip):  # type: ignore[no-untyped-def]
    words, halves = panels.view(np.uint32), panels.view(np.uint16)
    columns = codes.shape[1]
    for i in range(n):
        p, lane = divmod(first + i * step, lanes)
        for k in range((columns + 3) // 4):
            word = words[p, k // 8 * (block_bytes // 4) + k % 8 * lanes + lane] ^ np.uint32(flip)
            for b in range(min(4, columns - 4 * k)):
                codes[i, 4 * k + b] = (word >> np.uint32(8 * b)) & np.uint32(255)
        for g in range(scales.shape[1]):
            scales[i, g] = halves[p, (scales_at + g * scale_step) // 2 + lane]


@_kernel
def _16bit(panels, values, first, step, n, lanes, blocks, block_bytes, scales_at, scale_step, paired):  # type: ignore[no-untyped-def]
    halves = panels.view(np.uint16)
    for i in range(n):
        p, lane = divmod(first + i * step, lanes)
        for k in range(values.shape[1]):
            values[i, k] = halves[p, (k // 2 * lanes + lane) * 2 + k % 2] if paired else halves[p, k * lanes + lane]


@_kernel
def _f32(panels, values, first, step, n, lanes, blocks, block_bytes, scales_at, scale_step):  # type: ignore[no-untyped-def]
    words = panels.view(np.uint32)
    for i in range(n):
        p, lane = divmod(first + i * step, lanes)
        for k in range(values.shape[1]):
            values[i, k] = words[p, k * lanes + lane]
