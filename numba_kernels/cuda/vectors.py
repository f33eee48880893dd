"""The vector that a matrix meets: from float32 in the device's memory to quads in shared memory, normalized on the way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import GROUP, Shape
from numba_kernels.cuda.intrinsics import round_to_int, warp_sum
from numba_kernels.cuda.seam import SHARED, WARP, cuda, device, require_shared, types

WARPS = 1
COLUMNS = 0
PADDED = 0
PARTS = 1
QUADS = 0
NORM = 0
ONE = np.float32(1)
CODE_MAX = np.float32(127)
BYTE = np.uint32(0xFF)
RESERVED = 32  # words of shared memory for what kernels that normalize hold beside vectors


def rms_gain(source, at, epsilon, sums):  # type: ignore[no-untyped-def]
    """1 / √(mean of squares + epsilon) of COLUMNS values, in every thread of the block; sums is shared, [WARPS]."""
    total = np.float32(0)
    for i in range(cuda.threadIdx.x, COLUMNS, WARPS * WARP):
        value = source[at + i]
        total += value * value
    total = warp_sum(total)
    if cuda.threadIdx.x % WARP == 0:
        sums[cuda.threadIdx.x // WARP] = total
    cuda.syncthreads()
    total = np.float32(0)
    for i in range(WARPS):
        total += sums[i]
    cuda.syncthreads()  # sums may be used again
    return ONE / np.float32(math.sqrt(total / np.float32(COLUMNS) + epsilon))


def fill_f32(source, at, gain, weight, first, x, x_scales):  # type: ignore[no-untyped-def]
    """Four values a quad, from quad `first` on; zeros beyond the last column."""
    for quad in range(cuda.threadIdx.x, QUADS, WARPS * WARP):
        part, chunk = quad // PADDED, quad % PADDED
        column = 4 * (chunk * PARTS + part)
        for i in range(4):
            value = np.float32(0)
            if column + i < COLUMNS:
                value = source[at + column + i]
                if NORM:
                    value = value * gain * weight[column + i]
            x[4 * (first + quad) + i] = value


@device
def code(value: Any, inverse: Any) -> Any:
    return np.uint32(round_to_int(value * inverse)) & BYTE


def fill_int8(source, at, gain, weight, first, x, x_scales):  # type: ignore[no-untyped-def]
    """Sixteen codes a quad, scale max |x| / 127; zeros beyond the last column. NaN and infinity give the scale NaN."""
    for quad in range(cuda.threadIdx.x, QUADS, WARPS * WARP):
        part, chunk = quad // PADDED, quad % PADDED
        column = GROUP * (chunk * PARTS + part)
        if column >= COLUMNS:
            for i in range(4):
                x[4 * (first + quad) + i] = np.uint32(0)
            x_scales[first + quad] = np.float32(0)
        else:
            top = trouble = np.float32(0)
            for i in range(GROUP):
                value = VALUE(source, at, column + i, gain, weight)
                top = max(top, abs(value))
                trouble += value - value  # 0, or NaN
            top += trouble
            inverse = CODE_MAX / top if top > np.float32(0) else np.float32(0)
            for i in range(4):
                word = np.uint32(0)
                for j in range(4):
                    value = VALUE(source, at, column + 4 * i + j, gain, weight)
                    word |= code(value, inverse) << np.uint32(8 * j)
                x[4 * (first + quad) + i] = np.uint32(word)
            x_scales[first + quad] = top / CODE_MAX


def value_at(source, at, column, gain, weight):  # type: ignore[no-untyped-def]
    if NORM:
        return source[at + column] * gain * weight[column]
    return source[at + column]


VALUE: Any = None


def _sizes(shape: Shape, vectors: int) -> tuple[int, int]:
    """Words of shared memory for vectors and for their scales."""
    return 4 * shape.quads * vectors, shape.quads * vectors if shape.quantized else 0


def _bytes(shape: Shape, norm: bool, vectors: int) -> int:
    return 4 * (sum(_sizes(shape, vectors)) + (RESERVED if norm else 0))


def fits_shared(shape: Shape, norm: bool) -> bool:
    """Whether a block can hold such a vector."""
    return _bytes(shape, norm, 1) <= SHARED


def constants(shape: Shape, norm: bool, warps: int, vectors: int = 1) -> dict[str, Any]:
    """What a kernel needs to hold such vectors: X_TYPE, X_SIZE and S_SIZE of the shared arrays, QUADS of one, GAIN and FILL."""
    numbers = {
        "WARPS": warps,
        "COLUMNS": shape.columns,
        "PADDED": shape.steps * WARP,
        "PARTS": shape.parts,
        "QUADS": shape.quads,
        "NORM": int(norm),
    }
    size, scales = _sizes(shape, vectors)
    what = f"{vectors} vectors of {shape.columns} values" if vectors > 1 else f"vectors of {shape.columns} values"
    require_shared(_bytes(shape, norm, vectors), what if shape.quantized else f"{what} in float32")
    gain = device(rms_gain, WARPS=warps, COLUMNS=shape.columns)
    if shape.quantized:
        fill = device(fill_int8, **numbers, VALUE=device(value_at, NORM=int(norm)))
    else:
        fill = device(fill_f32, **numbers)
    return {
        "X_TYPE": types.uint32 if shape.quantized else types.float32,
        "X_SIZE": size,
        "S_SIZE": max(scales, 1),
        "GAIN": gain,
        "FILL": fill,
    }
