"""Weights repacked for the kernels, once, while they are loaded: from a format's planes to panels."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from numba_kernels.cpu import k_panels
from numba_kernels.cpu.blocks import LAYOUTS
from numba_kernels.cpu.k_panels import K_BLOCKS
from numba_kernels.cpu.op import specialize
from numba_kernels.cpu.packed import Packed, kernel_format
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import LANES

# bytes of a ggml block, and where its scale bytes, its high bits and its codes begin (-1: it has none)
GGML_BLOCKS = {
    "q8_0": (34, 0, -1, 2),
    "q4_0": (18, 0, -1, 2),
    "q4_1": (20, 0, -1, 4),
    "iq4_nl": (18, 0, -1, 2),
    "q5_0": (22, 0, 2, 6),
    "q5_1": (24, 0, 4, 8),
}


def pack(
    packed: Packed,
    planes: Mapping[str, np.ndarray],
    *,
    matrix: int = 0,
    first: int = 0,
    step: int = 1,
    threads: int = 1,
) -> None:
    """Writes rows of a matrix into its panels.

    Args:
        packed: where to.
        planes: the rows as the format's planes, [n, …] each: `blocks` and `scales` of mxfp4, `blocks` of a ggml format,
            `codes` and `scales` of int8, `values` of a float format (bf16 as uint16 patterns).
        matrix: which matrix.
        first, step: row i of the planes becomes row first + i · step (step 2 interleaves gate and up projections).
        threads: how many threads share the work; they take different panels.
    """
    sources = _sources(packed, planes)
    n = sources[0].shape[0]
    if n == 0:
        return
    if not 0 <= matrix < packed.matrices or first < 0 or first + (n - 1) * step >= packed.rows:
        raise ValueError(f"rows {first} + {step} · {n} of matrix {matrix} do not lie in {packed.matrices} × {packed.rows}")
    kernel = pack_kernel(packed.format)
    target = packed.data[matrix]
    low, high = first // LANES, (first + (n - 1) * step) // LANES + 1

    def run(begin: int, end: int) -> None:
        kernel(*sources, target, first, step, begin, end, packed.blocks, packed.scales_at)

    share = -(-(high - low) // threads)
    ranges = [(begin, min(begin + share, high)) for begin in range(low, high, share)]
    if len(ranges) == 1:
        run(*ranges[0])
        return
    with ThreadPoolExecutor(len(ranges)) as pool:
        for job in [pool.submit(run, *r) for r in ranges]:
            job.result()


def _sources(packed: Packed, planes: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays that a packing kernel reads, checked: words or values, and scale bytes."""
    name, columns = packed.format, packed.columns
    if name == "mxfp4":
        return _plane(planes, "blocks", columns // 2, np.uint8), _plane(planes, "scales", columns // 32, np.uint8)
    if name in GGML_BLOCKS:
        blocks = _plane(planes, "blocks", columns // 32 * GGML_BLOCKS[name][0], np.uint8)
        return blocks, blocks
    if name in K_BLOCKS:
        blocks = _plane(planes, "blocks", columns // 256 * K_BLOCKS[name].nbytes, np.uint8)
        return blocks, blocks
    if name.startswith("int8"):
        scales = _plane(planes, "scales", packed.groups, np.uint16)
        return _plane(planes, "codes", columns, np.int8).view(np.uint8), scales.view(np.uint8)
    kind = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32}[name]
    values = _plane(planes, "values", columns, kind).view(np.uint8)
    return values, values


def _plane(planes: Mapping[str, np.ndarray], name: str, columns: int, dtype: Any) -> np.ndarray:
    plane = planes[name]
    if plane.dtype == np.dtype(bool) or plane.dtype.itemsize != np.dtype(dtype).itemsize or plane.ndim != 2:
        raise ValueError(f"plane {name}: {plane.dtype} {plane.shape}, expected {np.dtype(dtype)} [rows, {columns}]")
    if plane.shape[1] != columns:
        raise ValueError(f"plane {name} has {plane.shape[1]} columns, expected {columns}")
    return np.ascontiguousarray(plane).view(dtype)


# ---- kernels: (source, scales, target [panels, panel_bytes], first, step, panels begin and end, blocks, scales_at) ----
BLOCK_BYTES, SCALE_STEP = 0, 0  # from block to block of a panel, and from group to group of its scales


# Rows go to lanes; `range(lane0, LANES)` below visits the lanes of a panel that the source has a row for.


@numba.njit(nogil=True, inline="always")
def _lanes(p, first, step, n):  # type: ignore[no-untyped-def]
    """The source rows that belong to panel p: the first of them and the one after the last."""
    low = max(-((first - p * LANES) // step), 0)
    high = min(-((first - (p + 1) * LANES) // step), n)
    return low, high


@numba.njit(nogil=True, inline="always")
def _spread(x):  # type: ignore[no-untyped-def]
    """Four nibbles of 16 bits to the low halves of four bytes."""
    x = (x | (x << 8)) & 0x00FF00FF
    return (x | (x << 4)) & 0x0F0F0F0F


def _pack_mxfp4(source, scales, target, first, step, begin, end, blocks, scales_at):  # type: ignore[no-untyped-def]
    """Nibbles in order (2i, 2i + 1) to halves (i, i + 16); a scale byte s becomes s − 1, as the codes are doubled."""
    halfwords = source.view(np.uint16)
    words = target.view(np.uint32)
    for p in range(begin, end):
        low, high = _lanes(p, first, step, source.shape[0])
        for k in range(blocks):
            for row in range(low, high):
                lane = first + row * step - p * LANES
                for j in range(4):
                    near = np.uint32(halfwords[row, k * 8 + j])
                    far = np.uint32(halfwords[row, k * 8 + 4 + j])
                    words[p, k * BLOCK_BYTES // 4 + j * LANES + lane] = _spread(near) | (_spread(far) << 4)
                byte = scales[row, k]
                target[p, scales_at + k * SCALE_STEP + lane] = byte if byte == 255 or byte == 0 else byte - 1


WIDTH, SCALE_AT, SCALE_BYTES, HIGH_AT, CODES_AT, WORDS, FLIP = 34, 0, 2, -1, 2, 8, 0


def _pack_ggml(source, scales, target, first, step, begin, end, blocks, scales_at):  # type: ignore[no-untyped-def]
    """Blocks of scale bytes, high bits and codes, apart."""
    words = target.view(np.uint32)
    for p in range(begin, end):
        low, high = _lanes(p, first, step, source.shape[0])
        for k in range(blocks):
            at = k * WIDTH
            for row in range(low, high):
                lane = first + row * step - p * LANES
                for j in range(WORDS):
                    word = np.uint32(0)
                    for i in range(4):
                        word |= np.uint32(source[row, at + CODES_AT + 4 * j + i]) << np.uint32(8 * i)
                    words[p, k * BLOCK_BYTES // 4 + j * LANES + lane] = word ^ np.uint32(FLIP)
                if HIGH_AT >= 0:
                    word = np.uint32(0)  # bit i of byte j is the fifth bit of column 4i + j
                    for c in range(32):
                        bit = (source[row, at + HIGH_AT + c // 8] >> (c % 8)) & 1
                        word |= np.uint32(bit) << np.uint32(c % 4 * 8 + c // 4)
                    words[p, k * BLOCK_BYTES // 4 + WORDS * LANES + lane] = word
                for s in range(0, SCALE_BYTES, 2):  # the rows' scales, then the rows' minima
                    to = scales_at + k * SCALE_STEP + s * LANES + lane * 2
                    target[p, to] = source[row, at + SCALE_AT + s]
                    target[p, to + 1] = source[row, at + SCALE_AT + s + 1]


def _pack_int8(source, scales, target, first, step, begin, end, blocks, scales_at):  # type: ignore[no-untyped-def]
    """Bytes, four columns to a lane; 16-bit scales."""
    words = target.view(np.uint32)
    scales16, target16 = scales.view(np.uint16), target.view(np.uint16)
    columns = source.shape[1]
    for p in range(begin, end):
        low, high = _lanes(p, first, step, source.shape[0])
        for k in range(blocks * 8):
            for row in range(low, high):
                word = np.uint32(0)
                for i in range(min(4, columns - 4 * k)):
                    word |= np.uint32(source[row, 4 * k + i]) << np.uint32(8 * i)
                lane = first + row * step - p * LANES
                words[p, k // 8 * (BLOCK_BYTES // 4) + k % 8 * LANES + lane] = word ^ np.uint32(FLIP)
        for row in range(low, high):
            lane = first + row * step - p * LANES
            for g in range(scales16.shape[1]):
                target16[p, (scales_at + g * SCALE_STEP) // 2 + lane] = scales16[row, g]


PAIRED = True


def _pack_16bit(source, scales, target, first, step, begin, end, blocks, scales_at):  # type: ignore[no-untyped-def]
    """16-bit floats: bf16 in pairs of columns to a lane, f16 column by column."""
    values, into = source.view(np.uint16), target.view(np.uint16)
    columns = values.shape[1]
    whole = columns // 2 * 2 if PAIRED and columns % 2 == 0 else 0
    for p in range(begin, end):
        low, high = _lanes(p, first, step, source.shape[0])
        if whole:
            pairs, into_pairs = source.view(np.uint32), target.view(np.uint32)
            for k in range(columns // 2):
                for row in range(low, high):
                    into_pairs[p, k * LANES + first + row * step - p * LANES] = pairs[row, k]
        for k in range(whole, columns):
            for row in range(low, high):
                lane = first + row * step - p * LANES
                if PAIRED:
                    into[p, (k // 2 * LANES + lane) * 2 + k % 2] = values[row, k]
                else:
                    into[p, k * LANES + lane] = values[row, k]


def _pack_f32(source, scales, target, first, step, begin, end, blocks, scales_at):  # type: ignore[no-untyped-def]
    """float32, column by column."""
    values, into = source.view(np.uint32), target.view(np.uint32)
    for p in range(begin, end):
        low, high = _lanes(p, first, step, source.shape[0])
        for k in range(values.shape[1]):
            for row in range(low, high):
                into[p, k * LANES + first + row * step - p * LANES] = values[row, k]


_KERNELS: dict[str, Any] = {}


def pack_kernel(name: str) -> Any:
    """The packing kernel of a format, compiled or from the cache."""
    kind = kernel_format(name)
    if kind not in _KERNELS:
        layout = LAYOUTS[kind]
        flip = 0x80808080 if layout.is_byte and ACTIVE.biased_bytes else 0
        steps = {"BLOCK_BYTES": layout.block_bytes, "SCALE_STEP": layout.scale_step}
        if kind == "mxfp4":
            made = specialize(_pack_mxfp4, "pack_mxfp4", **steps)
        elif kind in GGML_BLOCKS:
            width, scale_at, high_at, codes_at = GGML_BLOCKS[kind]
            made = specialize(
                _pack_ggml, f"pack_{kind}", WIDTH=width, SCALE_AT=scale_at, HIGH_AT=high_at, CODES_AT=codes_at, FLIP=flip,
                SCALE_BYTES=layout.scale_bytes, WORDS=8 if kind == "q8_0" else 4, **steps,
            )  # fmt: skip
        elif kind in K_BLOCKS:
            made = specialize(k_panels.pack_k, f"pack_{kind}", LANES=LANES, **k_panels.constants(kind), **steps)
        elif kind.startswith("int8"):
            made = specialize(_pack_int8, f"pack_{kind}", FLIP=flip, **steps)
        elif kind == "f32":
            made = specialize(_pack_f32, "pack_f32")
        else:
            made = specialize(_pack_16bit, f"pack_{kind}", PAIRED=kind == "bf16")
        u8 = numba.types.uint8[:, ::1]
        integers = [numba.types.int64] * 6
        _KERNELS[kind] = numba.njit(numba.types.void(u8, u8, u8, *integers), nogil=True, cache=True, boundscheck=False)(made)
    return _KERNELS[kind]
