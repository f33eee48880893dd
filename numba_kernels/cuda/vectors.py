"""The vector that a matrix meets: from float32 in the device's memory to quads in shared memory, normalized on the way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.intrinsics import (
    byte_permute,
    early_floats,
    let_next_begin,
    load_floats,
    prefetch_span,
    reciprocal,
    round_to_int,
    settled_floats,
    shuffle_xor,
    store_floats,
    wait_for_launch_before,
    warp_sum,
)
from numba_kernels.cuda.seam import SHARED, WARP, cuda, device, require_shared, types

WARPS = 1
COLUMNS = 0
PADDED = 0
PARTS, PART_BITS = 1, 0  # a power of two, and of which
QUADS = 0
UNITS = WARP  # fours of values of a padded vector: a multiple of 32
BATCH = 1
ASKING = 8  # blocks
NORM = ALIGNED = 0
FOUR: Any = None
LOAD: Any = load_floats
WAITS = 1
PUT: Any = None
PUT_ONE: Any = None
WEIGHTS_OF: Any = None
ZERO, ONE = np.float32(0), np.float32(1)
CODE_MAX, CODE_UNIT = np.float32(127), np.float32(1 / 127)
PAIR_OF_BYTES, TWO_PAIRS = np.uint32(0x0040), np.uint32(0x5410)  # the low bytes of two words; the low halves of two words
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
            return LOAD(values, at + column)
        return ZERO, ZERO, ZERO, ZERO
    return (
        values[at + column] if column < COLUMNS else ZERO,
        values[at + column + 1] if column + 1 < COLUMNS else ZERO,
        values[at + column + 2] if column + 2 < COLUMNS else ZERO,
        values[at + column + 3] if column + 3 < COLUMNS else ZERO,
    )


def put_f32(v, i, first, x, x_scales):  # type: ignore[no-untyped-def]
    """Values 4i … of a vector as a quad; the vector's quads begin at `first`."""
    store_floats(x, 4 * (first + (i & PARTS - 1) * PADDED + (i >> PART_BITS)), v[0], v[1], v[2], v[3])


@device
def code(value: Any, inverse: Any) -> Any:
    return np.uint32(round_to_int(value * inverse))


def put_int8(v, i, first, x, x_scales):  # type: ignore[no-untyped-def]
    """Values 4i … of a vector as a word of codes. The four threads that have 16 values make a quad, whose scale is
    max |x| / 127; NaN and infinity give the scale NaN. For all threads of a warp."""
    top = max(max(abs(v[0]), abs(v[1])), max(abs(v[2]), abs(v[3])))
    top += (v[0] - v[0]) + (v[1] - v[1]) + (v[2] - v[2]) + (v[3] - v[3])  # 0, or NaN
    top = larger_or_nan(top, shuffle_xor(top, 1))
    top = larger_or_nan(top, shuffle_xor(top, 2))
    inverse = CODE_MAX * reciprocal(top) if top > ZERO else ZERO
    low = byte_permute(code(v[0], inverse), code(v[1], inverse), PAIR_OF_BYTES)
    high = byte_permute(code(v[2], inverse), code(v[3], inverse), PAIR_OF_BYTES)
    quad = first + (i >> 2 & PARTS - 1) * PADDED + (i >> 2 + PART_BITS)
    x[4 * quad + (i & 3)] = byte_permute(low, high, TWO_PAIRS)
    if i & 3 == 0:
        x_scales[quad] = top * CODE_UNIT


def code_group(values, at, group, first, out, out_scales):  # type: ignore[no-untyped-def]
    """Sixteen values of a vector, number `group` of such, from shared memory as codes and a scale into their places; the vector's
    quads begin at `first`. For one warp."""
    lane = cuda.threadIdx.x % WARP
    part = lane % 4
    v0, v1, v2, v3 = load_floats(values, at + 4 * part)
    top = max(max(abs(v0), abs(v1)), max(abs(v2), abs(v3)))
    top += (v0 - v0) + (v1 - v1) + (v2 - v2) + (v3 - v3)
    top = larger_or_nan(top, shuffle_xor(top, 1))
    top = larger_or_nan(top, shuffle_xor(top, 2))
    inverse = CODE_MAX * reciprocal(top) if top > ZERO else ZERO
    low = byte_permute(code(v0, inverse), code(v1, inverse), PAIR_OF_BYTES)
    high = byte_permute(code(v2, inverse), code(v3, inverse), PAIR_OF_BYTES)
    quad = first + (group & PARTS - 1) * PADDED + (group >> PART_BITS)
    if lane < 4:
        out[4 * quad + part] = byte_permute(low, high, TWO_PAIRS)
    if lane == 0:
        out_scales[quad] = top * CODE_UNIT


@device
def larger_or_nan(a: Any, b: Any) -> Any:
    return max(a, b) + ((a - a) + (b - b))


def fill(source, at, stride, count, x, x_scales):  # type: ignore[no-untyped-def]
    """Puts `count` vectors, `stride` values apart, into shared memory. Consecutive threads read consecutive 16 bytes, of
    which BATCH are under way together."""
    thread, all_units, none = cuda.threadIdx.x, count * UNITS, (ZERO, ZERO, ZERO, ZERO)
    for u0 in range(thread, all_units, BATCH * WARPS * WARP):  # UNITS is a multiple of 32: whole warps go on
        u1, u2, u3 = u0 + WARPS * WARP, u0 + 2 * WARPS * WARP, u0 + 3 * WARPS * WARP
        v0 = FOUR(source, at + u0 // UNITS * stride, 4 * (u0 % UNITS))
        v1, v2, v3 = v0, v0, v0
        if BATCH > 1 and u1 < all_units:
            v1 = FOUR(source, at + u1 // UNITS * stride, 4 * (u1 % UNITS))
        if BATCH > 2 and u2 < all_units:
            v2 = FOUR(source, at + u2 // UNITS * stride, 4 * (u2 % UNITS))
        if BATCH > 3 and u3 < all_units:
            v3 = FOUR(source, at + u3 // UNITS * stride, 4 * (u3 % UNITS))
        PUT_ONE(v0, none, u0 % UNITS, u0 // UNITS * QUADS, x, x_scales)
        if BATCH > 1 and u1 < all_units:
            PUT_ONE(v1, none, u1 % UNITS, u1 // UNITS * QUADS, x, x_scales)
        if BATCH > 2 and u2 < all_units:
            PUT_ONE(v2, none, u2 % UNITS, u2 // UNITS * QUADS, x, x_scales)
        if BATCH > 3 and u3 < all_units:
            PUT_ONE(v3, none, u3 % UNITS, u3 // UNITS * QUADS, x, x_scales)


def put_one(v, w, i, first, x, x_scales):  # type: ignore[no-untyped-def]
    """Puts four values into place, with NORM times a weight; the sum of their squares."""
    if NORM:
        PUT((v[0] * w[0], v[1] * w[1], v[2] * w[2], v[3] * w[3]), i, first, x, x_scales)
        return v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3]
    PUT(v, i, first, x, x_scales)
    return ZERO


def weights_of(weight, i):  # type: ignore[no-untyped-def]
    """The norm's weights of values 4i …, which nothing writes; whatever there is beyond the last."""
    if ALIGNED:
        return early_floats(weight, min(4 * i, COLUMNS - 4))
    last = COLUMNS - 1
    return weight[min(4 * i, last)], weight[min(4 * i + 1, last)], weight[min(4 * i + 2, last)], weight[min(4 * i + 3, last)]


def prepare(source, at, weight, epsilon, x, x_scales, sums):  # type: ignore[no-untyped-def]
    """Waits for the launch before, with WAITS, puts one vector into shared memory, and waits until it is there. Returns what
    products with it are to be multiplied with so that the vector counts as normalized, 1 / √(mean of squares + epsilon), or 1
    without NORM; sums is shared, [WARPS]."""
    i0, size = cuda.threadIdx.x, WARPS * WARP
    i1, i2, i3 = i0 + size, i0 + 2 * size, i0 + 3 * size
    if WAITS and not (NORM and ALIGNED):
        wait_for_launch_before()
    w0 = w1 = w2 = w3 = (ZERO, ZERO, ZERO, ZERO)
    if NORM:
        w0 = WEIGHTS_OF(weight, i0)
        if BATCH > 1:
            w1 = WEIGHTS_OF(weight, i1)
        if BATCH > 2:
            w2 = WEIGHTS_OF(weight, i2)
        if BATCH > 3:
            w3 = WEIGHTS_OF(weight, i3)
    if WAITS and NORM and ALIGNED:
        wait_for_launch_before()
    if WAITS:
        let_next_begin()
    v0 = FOUR(source, at, 4 * i0)
    v1, v2, v3 = v0, v0, v0
    if BATCH > 1:
        v1 = FOUR(source, at, 4 * i1)
    if BATCH > 2:
        v2 = FOUR(source, at, 4 * i2)
    if BATCH > 3:
        v3 = FOUR(source, at, 4 * i3)
    total = ZERO
    if i0 < UNITS:  # a multiple of 32: whole warps
        total += PUT_ONE(v0, w0, i0, 0, x, x_scales)
    if BATCH > 1 and i1 < UNITS:
        total += PUT_ONE(v1, w1, i1, 0, x, x_scales)
    if BATCH > 2 and i2 < UNITS:
        total += PUT_ONE(v2, w2, i2, 0, x, x_scales)
    if BATCH > 3 and i3 < UNITS:
        total += PUT_ONE(v3, w3, i3, 0, x, x_scales)
    if BATCH * WARPS * WARP < UNITS:
        for i in range(i0 + BATCH * size, UNITS, size):
            v, w = FOUR(source, at, 4 * i), w0
            if NORM:
                w = WEIGHTS_OF(weight, i)
            total += PUT_ONE(v, w, i, 0, x, x_scales)
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
    """Has a norm's weight brought into the second cache, by some blocks. Its size is a multiple of 16 bytes."""
    if NORM and cuda.blockIdx.x < ASKING and cuda.threadIdx.x == 0:
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
    """What a kernel needs to hold such vectors: X_TYPE, X_SIZE and S_SIZE of the shared arrays, QUADS of one, FILL and PREPARE;
    ALIGNED, whether what it reads begins at multiples of four values, as `aligned` says of the vectors."""
    size, scales = _sizes(shape, vectors)
    what = f"{vectors} vectors of {shape.columns} values" if vectors > 1 else f"vectors of {shape.columns} values"
    require_shared(_bytes(shape, norm, vectors), what if shape.quantized else f"{what} in float32")
    units = shape.quads * (4 if shape.quantized else 1)
    numbers = {"COLUMNS": shape.columns, "NORM": int(norm), "ALIGNED": int(aligned and shape.columns % 4 == 0)}
    sizes = {
        "PADDED": shape.steps * WARP,
        "PARTS": shape.parts,
        "PART_BITS": shape.parts.bit_length() - 1,
        "QUADS": shape.quads,
        "UNITS": units,
    }
    four = device(four_at, COLUMNS=shape.columns, ALIGNED=numbers["ALIGNED"])
    put = device(put_int8 if shape.quantized else put_f32, **sizes)
    batch = {"WARPS": warps, "BATCH": min(-(-units * vectors // (warps * WARP)), MOST_AT_ONCE), "FOUR": four}
    filled = device(fill, **sizes, **batch, PUT_ONE=device(put_one, NORM=0, PUT=put))
    prepared = device(
        prepare, **numbers, **batch, UNITS=units, PUT_ONE=device(put_one, NORM=int(norm), PUT=put),
        WEIGHTS_OF=device(weights_of, COLUMNS=shape.columns, ALIGNED=numbers["ALIGNED"]),
    )  # fmt: skip
    return {
        "X_TYPE": types.uint32 if shape.quantized else types.float32,
        "X_SIZE": size,
        "S_SIZE": max(scales, 1),
        "ALIGNED": numbers["ALIGNED"],
        "FILL": filled,
        "PREPARE": prepared,
    }


def prepare_early(shape: Shape, warps: int) -> Any:
    """PREPARE of a normalized vector that a launch wrote which has ended, before the wait for the launch before; it and its
    weight begin at multiples of four values."""
    units = shape.quads * (4 if shape.quantized else 1)
    put = device(
        put_int8 if shape.quantized else put_f32,
        PADDED=shape.steps * WARP,
        PARTS=shape.parts,
        PART_BITS=shape.parts.bit_length() - 1,
        QUADS=shape.quads,
        UNITS=units,
    )
    return device(
        prepare, COLUMNS=shape.columns, NORM=1, ALIGNED=1, WARPS=warps, BATCH=min(-(-units // (warps * WARP)), MOST_AT_ONCE),
        FOUR=device(four_at, COLUMNS=shape.columns, ALIGNED=1, LOAD=settled_floats), UNITS=units, WAITS=0,
        PUT_ONE=device(put_one, NORM=1, PUT=put), WEIGHTS_OF=device(weights_of, COLUMNS=shape.columns, ALIGNED=1),
    )  # fmt: skip
