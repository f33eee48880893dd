"""The vector that a matrix meets: from float32 in the device's memory to quads in shared memory, normalized on the way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.intrinsics import load_floats, prefetch_span, round_to_int, shuffle_xor, store_floats, warp_sum
from numba_kernels.cuda.seam import SHARED, WARP, cuda, device, require_shared, types

WARPS = 1
COLUMNS = 0
PADDED = 0
PARTS = 1
QUADS = 0
UNITS = WARP  # fours of values of a padded vector: a multiple of 32
BATCH = 1
ASKING = 8  # blocks
NORM = ALIGNED = 0
FOUR: Any = None
PUT: Any = None
PUT_ONE: Any = None
FILL: Any = None
ZERO, ONE = np.float32(0), np.float32(1)
CODE_MAX = np.float32(127)
BYTE = np.uint32(0xFF)
MOST_AT_ONCE = 4  # loads of a thread
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


def four_at(values, at, column):  # type: ignore[no-untyped-def]
    """Four values from a column on; zeros beyond the last."""
    if ALIGNED:
        if column < COLUMNS:
            return load_floats(values, at + column)
        return ZERO, ZERO, ZERO, ZERO
    return (
        values[at + column] if column < COLUMNS else ZERO,
        values[at + column + 1] if column + 1 < COLUMNS else ZERO,
        values[at + column + 2] if column + 2 < COLUMNS else ZERO,
        values[at + column + 3] if column + 3 < COLUMNS else ZERO,
    )


@device
def squares(v: Any) -> Any:
    return v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3]


def put_f32(v, i, first, x, x_scales):  # type: ignore[no-untyped-def]
    """Values 4i … of a vector as a quad; the vector's quads begin at `first`."""
    store_floats(x, 4 * (first + i % PARTS * PADDED + i // PARTS), v[0], v[1], v[2], v[3])


@device
def code(value: Any, inverse: Any) -> Any:
    return np.uint32(round_to_int(value * inverse)) & BYTE


def put_int8(v, i, first, x, x_scales):  # type: ignore[no-untyped-def]
    """Values 4i … of a vector as a word of codes. The four threads that have 16 values make a quad, whose scale is
    max |x| / 127; NaN and infinity give the scale NaN. For all threads of a warp."""
    top = max(max(abs(v[0]), abs(v[1])), max(abs(v[2]), abs(v[3])))
    top += (v[0] - v[0]) + (v[1] - v[1]) + (v[2] - v[2]) + (v[3] - v[3])  # 0, or NaN
    top = larger_or_nan(top, shuffle_xor(top, 1))
    top = larger_or_nan(top, shuffle_xor(top, 2))
    inverse = CODE_MAX / top if top > ZERO else ZERO
    low = np.uint32(code(v[0], inverse) | code(v[1], inverse) << np.uint32(8))
    high = np.uint32(code(v[2], inverse) | code(v[3], inverse) << np.uint32(8))
    quad = first + i // 4 % PARTS * PADDED + i // 4 // PARTS
    x[4 * quad + i % 4] = np.uint32(low | high << np.uint32(16))
    if i % 4 == 0:
        x_scales[quad] = top / CODE_MAX


@device
def larger_or_nan(a: Any, b: Any) -> Any:
    return max(a, b) + ((a - a) + (b - b))


def fill(source, at, stride, count, weight, x, x_scales):  # type: ignore[no-untyped-def]
    """Puts `count` vectors, `stride` values apart, into shared memory, with NORM times the weight. Returns the thread's part of
    the sum of squares. Consecutive threads read consecutive 16 bytes; BATCH of them are under way together."""
    thread, total, all_units = cuda.threadIdx.x, ZERO, count * UNITS
    for begun in range(0, all_units, BATCH * WARPS * WARP):
        if begun + thread // WARP * WARP < all_units:  # UNITS is a multiple of 32: whole warps go on
            u0 = begun + thread
            i0 = u0 % UNITS
            v0 = FOUR(source, at + u0 // UNITS * stride, 4 * i0)
            u1, i1, v1 = u0 + WARPS * WARP, i0, v0
            u2, i2, v2 = u0 + 2 * WARPS * WARP, i0, v0
            u3, i3, v3 = u0 + 3 * WARPS * WARP, i0, v0
            if BATCH > 1 and u1 < all_units:
                i1 = u1 % UNITS
                v1 = FOUR(source, at + u1 // UNITS * stride, 4 * i1)
            if BATCH > 2 and u2 < all_units:
                i2 = u2 % UNITS
                v2 = FOUR(source, at + u2 // UNITS * stride, 4 * i2)
            if BATCH > 3 and u3 < all_units:
                i3 = u3 % UNITS
                v3 = FOUR(source, at + u3 // UNITS * stride, 4 * i3)
            total += PUT_ONE(v0, u0, i0, weight, x, x_scales)
            if BATCH > 1 and u1 < all_units:
                total += PUT_ONE(v1, u1, i1, weight, x, x_scales)
            if BATCH > 2 and u2 < all_units:
                total += PUT_ONE(v2, u2, i2, weight, x, x_scales)
            if BATCH > 3 and u3 < all_units:
                total += PUT_ONE(v3, u3, i3, weight, x, x_scales)
    return total


def put_one(v, u, i, weight, x, x_scales):  # type: ignore[no-untyped-def]
    """Puts four values into place; the sum of their squares."""
    if NORM:
        w = FOUR(weight, 0, 4 * i)
        PUT((v[0] * w[0], v[1] * w[1], v[2] * w[2], v[3] * w[3]), i, u // UNITS * QUADS, x, x_scales)
        return squares(v)
    PUT(v, i, u // UNITS * QUADS, x, x_scales)
    return ZERO


def prepare(source, at, weight, epsilon, x, x_scales, sums):  # type: ignore[no-untyped-def]
    """Puts one vector into shared memory and waits until it is there. With NORM, what products with it are to be multiplied with,
    so that the vector counts as normalized: 1 / √(mean of squares + epsilon); sums is shared, [WARPS]."""
    total = FILL(source, at, 0, 1, weight, x, x_scales)
    if NORM:
        total = warp_sum(total)
        if cuda.threadIdx.x % WARP == 0:
            sums[cuda.threadIdx.x // WARP] = total
    cuda.syncthreads()
    if NORM:
        total = ZERO
        for i in range(WARPS):
            total += sums[i]
        return ONE / np.float32(math.sqrt(total / np.float32(COLUMNS) + epsilon))
    return ONE


def ask_for_weight(weight):  # type: ignore[no-untyped-def]
    """Has the norm's weight brought into the second cache, by some blocks."""
    if NORM and ALIGNED and cuda.blockIdx.x < ASKING and cuda.threadIdx.x == 0:
        prefetch_span(weight, 0, np.uint32(4 * COLUMNS))


def _sizes(shape: Shape, vectors: int) -> tuple[int, int]:
    """Words of shared memory for vectors and for their scales."""
    return 4 * shape.quads * vectors, shape.quads * vectors if shape.quantized else 0


def _bytes(shape: Shape, norm: bool, vectors: int) -> int:
    return 4 * (sum(_sizes(shape, vectors)) + (RESERVED if norm else 0))


def fits_shared(shape: Shape, norm: bool) -> bool:
    """Whether a block can hold such a vector."""
    return _bytes(shape, norm, 1) <= SHARED


def constants(shape: Shape, norm: bool, warps: int, vectors: int = 1, *, aligned: bool = True) -> dict[str, Any]:
    """What a kernel needs to hold such vectors: X_TYPE, X_SIZE and S_SIZE of the shared arrays, QUADS of one, FILL, PREPARE and
    ASK_FOR_WEIGHT; ALIGNED, whether what it reads begins at multiples of four values, as `aligned` says of the vectors."""
    size, scales = _sizes(shape, vectors)
    what = f"{vectors} vectors of {shape.columns} values" if vectors > 1 else f"vectors of {shape.columns} values"
    require_shared(_bytes(shape, norm, vectors), what if shape.quantized else f"{what} in float32")
    units = shape.quads * (4 if shape.quantized else 1)
    numbers = {
        "WARPS": warps,
        "COLUMNS": shape.columns,
        "NORM": int(norm),
        "ALIGNED": int(aligned and shape.columns % 4 == 0),
    }
    sizes = {"PADDED": shape.steps * WARP, "PARTS": shape.parts, "QUADS": shape.quads, "UNITS": units}
    four = device(four_at, COLUMNS=shape.columns, ALIGNED=numbers["ALIGNED"])
    put = device(put_int8 if shape.quantized else put_f32, **sizes)
    put_one_of = device(put_one, **sizes, NORM=int(norm), FOUR=four, PUT=put)
    batch = min(-(-units * vectors // (warps * WARP)), MOST_AT_ONCE)
    filled = device(fill, **sizes, WARPS=warps, BATCH=batch, FOUR=four, PUT_ONE=put_one_of)
    return {
        "X_TYPE": types.uint32 if shape.quantized else types.float32,
        "X_SIZE": size,
        "S_SIZE": max(scales, 1),
        "ALIGNED": numbers["ALIGNED"],
        "FILL": filled,
        "PREPARE": device(prepare, **numbers, FILL=filled),
        "ASK_FOR_WEIGHT": device(ask_for_weight, **numbers),
    }
