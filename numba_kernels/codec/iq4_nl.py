"""iq4_nl: 32 values share a half-precision scale; codes are indices into a fixed table. Blocks: scale f16, 16 bytes of codes.

Byte j holds values j (lower nibble) and j + 16. Source: ggml's `ggml-quants.c`.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.codec.bits import float_to_half, inline
from numba_kernels.codec.error import add_errors, store_errors
from numba_kernels.codec.ggml import TILE, largest, store_codes, within_half
from numba_kernels.codec.search import VECTORS as CANDIDATE_VECTORS
from numba_kernels.codec.tables import IQ4_NL, IQ4_NL_LEAST, IQ4_NL_MIDPOINTS, SURE
from numba_kernels.cpu.op import inner, op
from numba_kernels.simd.doubles import no_doubles
from numba_kernels.simd.kinds import Address, Float, Floats, Int
from numba_kernels.simd.memory import get_f32, load_floats, set_f32, set_u16, stack, store_floats
from numba_kernels.simd.numbers import as_half, first_lane, least_lane, reciprocal, table_codes, table_values, with_first
from numba_kernels.simd.values import LANES, maximum, minimum, splat, to_floats

SEARCH = True
VECTORS = 32 // LANES
FIRST = IQ4_NL[0]
nearest = table_codes("nearest", [float(m) for m in IQ4_NL_MIDPOINTS])  # ties to the larger
value_of = table_values("value_of", [float(v) for v in IQ4_NL])


@op
def quantize_iq4_nl(  # type: ignore[no-untyped-def]
    values, values_stride, weights, weights_stride, blocks, blocks_stride, errors, errors_stride, rows, columns, steps,
    team, thread,
):  # fmt: skip
    """float32 [rows, columns] -> uint8 [rows, 18 · columns / 32]. SEARCH: whether to search the scale over `steps`."""
    tops, scales, inverses, codes = stack(256), stack(256), stack(256), stack(128)
    for r in range(rows):
        squared, squares, most, outside = no_doubles(), no_doubles(), no_doubles(), 0
        for b in range(columns // 32):
            x, at = values + r * values_stride + 128 * b, blocks + r * blocks_stride + 18 * b
            if b % TILE == 0:
                count = min(columns // 32 - b, TILE)
                for i in range(count):
                    top = largest(x + 128 * i)
                    set_f32(tops + 4 * i, top)
                    set_f32(inverses + 4 * i, first_inverse(top))  # ggml's codes are those of the scale that it begins with
                    set_f32(scales + 4 * i, plain_scale(x + 128 * i, top))
                if SEARCH:
                    search(x, weights + r * weights_stride + 128 * b, tops, scales, inverses, count, steps)
            top, scale = get_f32(tops + 4 * (b % TILE)), get_f32(scales + 4 * (b % TILE))
            inverse = splat(get_f32(inverses + 4 * (b % TILE)))
            stored = as_half(splat(scale))
            first, last = stored * splat(np.float32(-138.5)), stored * splat(np.float32(125))
            bottom, end = minimum(first, last), maximum(first, last)
            for i in range(VECTORS):
                value = load_floats(x + 4 * LANES * i)
                code = nearest(value * inverse)
                if abs(top) < IQ4_NL_LEAST:
                    code = code - code
                store_floats(codes + 4 * LANES * i, to_floats(code))
                squared, squares, most, outside = add_errors(
                    value, value_of(code) * stored, bottom, end, (squared, squares, most, outside)
                )
            set_u16(at, float_to_half(scale))
            store_codes(at + 2, codes, 4)
        store_errors(errors + r * errors_stride, (squared, squares, most, outside))


@inline
def first_inverse(top: np.float32) -> np.float32:
    """What codes are found with first: the inverse of the scale that makes the largest value −127; 0 for a block of zeros."""
    return np.float32(1) / (top / FIRST) if abs(top) >= IQ4_NL_LEAST else np.float32(0)


@inner
def plain_scale(x: Address, top: Float) -> Float:
    """ggml's reference rule: codes by the largest value, which becomes −127, then the scale of least x²-weighted error."""
    place, inverse = stack(128), splat(first_inverse(top))
    for i in range(VECTORS):
        store_floats(place + 4 * LANES * i, value_of(nearest(load_floats(x + 4 * LANES * i) * inverse)))
    products, squares = np.float32(0), np.float32(0)
    for i in range(0, 128, 4):
        value, decoded = get_f32(x + i), get_f32(place + i)
        weighted = (value * value) * decoded
        products += weighted * value
        squares += weighted * decoded
    scale = products / squares if np.float32(0) < squares < np.float32(np.inf) else top / FIRST
    return within_half(scale) if abs(top) >= IQ4_NL_LEAST else np.float32(0)


@inner
def search(
    x: Address, weights: Address, tops: Address, scales: Address, inverses: Address, count: Int, steps: Address
) -> None:
    """As `search_scales`, for the table's codes. The coarse pass is around the scale that makes the largest value −127, and
    its first candidate is the plain scale. Blocks whose plain scale is 0 keep it."""
    tried, errors = stack(64), stack(64)
    for b in range(count):
        plain = get_f32(scales + 4 * b)
        if plain != np.float32(0):
            centre = within_half(get_f32(tops + 4 * b) / FIRST)
            for p in range(2):
                for v in range(CANDIDATE_VECTORS):
                    at = 4 * LANES * v
                    scale = splat(centre) * load_floats(steps + 128 * p + at)
                    if v == 0 and p == 0:
                        scale = with_first(scale, plain)
                    scale = as_half(scale)
                    store_floats(tried + at, scale)
                    found = table_errors(x + 128 * b, weights + 128 * b, scale, reciprocal(scale))
                    store_floats(errors + at, found)
                centre = get_f32(tried + 4 * least_lane(errors, SURE))
            set_f32(scales + 4 * b, centre)
            set_f32(inverses + 4 * b, first_lane(reciprocal(splat(centre))))


@inner
def table_errors(x: Address, weights: Address, scale: Floats, inverse: Floats) -> Floats:
    """The errors of 32 values as scale · (a value of the table), added one after another."""
    total = splat(np.float32(0))
    for i in range(0, 128, 4):
        value = splat(get_f32(x + i))
        difference = value - value_of(nearest(value * inverse)) * scale
        total = total + splat(get_f32(weights + i)) * (difference * difference)
    return total
