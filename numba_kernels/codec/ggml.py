"""ggml's simple block formats: 32 values with a half-precision scale, or scale and minimum, in ggml's own block bytes.

Blocks (little endian): q8_0 = scale f16, 32 int8; q4_0 = scale, 16 bytes; q4_1 = scale, minimum, 16 bytes; q5_0 and q5_1
put 4 bytes with each value's fifth bit before the nibbles; iq4_nl = scale, 16 bytes of indices into a fixed table.
In the nibbles, byte j holds values j (lower) and j + 16. Source: ggml's `ggml-common.h` and `ggml-quants.c`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from numba_kernels.codec.bits import as_half, float_to_half, half_to_float, inline, round_away, round_even
from numba_kernels.codec.search import least, reciprocal, search_scale, search_scale_and_minimum
from numba_kernels.codec.tables import HALF_MAX, HALF_OVERFLOW, IQ4_NL, IQ4_NL_LEAST, IQ4_NL_MIDPOINTS, LANES


@inline
def store_half(blocks: np.ndarray, row: int, at: int, x: np.float32) -> None:
    bits = np.int32(float_to_half(x))
    blocks[row, at] = np.uint8(bits & np.int32(255))
    blocks[row, at + 1] = np.uint8(bits >> np.int32(8))


@inline
def load_half(blocks: np.ndarray, row: int, at: int) -> np.float32:
    return half_to_float(np.uint16(np.int32(blocks[row, at]) | np.int32(np.int32(blocks[row, at + 1]) << np.int32(8))))


@inline
def within_half(x: np.float32) -> np.float32:
    """x, or half precision's largest value where x would round to infinity."""
    if abs(x) < HALF_OVERFLOW:
        return x
    return HALF_MAX if x > np.float32(0) else -HALF_MAX


@inline
def largest(values: np.ndarray, row: int, start: int) -> np.float32:
    """The first value of largest magnitude among 32."""
    bits = values.view(np.int32)
    top = np.int32(0)
    for i in range(32):
        top = max(top, np.int32(bits[row, start + i] & np.int32(0x7FFFFFFF)))
    i = 0
    while np.int32(bits[row, start + i] & np.int32(0x7FFFFFFF)) != top:
        i += 1
    return values[row, start + i]


@njit(cache=True, nogil=True)
def quantize_q8_0(values: np.ndarray, importance: np.ndarray, blocks: np.ndarray, search: bool, steps: np.ndarray) -> None:
    """float32 [R, K] -> uint8 [R, 34·K/32]. search: whether to search the scale over `steps` (see `search_scale`)."""
    scratch = np.empty((4, LANES), np.float32)
    low, high = np.float32(-127), np.float32(127)
    bits = values.view(np.int32)
    for r in range(values.shape[0]):
        w = r if importance.shape[0] > 1 else 0
        for b in range(values.shape[1] // 32):
            start, at = 32 * b, 34 * b
            top = np.int32(0)
            for i in range(32):
                top = max(top, np.int32(bits[r, start + i] & np.int32(0x7FFFFFFF)))
            scale = within_half(np.int32(top).view(np.float32) / high)
            if search:
                scale = search_scale(values, r, importance, w, start, scale, steps, scratch, low, high)
            inverse = reciprocal(scale)
            if search:
                for i in range(32):
                    code = round_even(min(max(values[r, start + i] * inverse, low), high))
                    blocks[r, at + 2 + i] = np.uint8(np.int32(code))
            else:
                for i in range(32):
                    blocks[r, at + 2 + i] = np.uint8(round_away(min(max(values[r, start + i] * inverse, low), high)))
            store_half(blocks, r, at, scale)


@njit(cache=True, nogil=True)
def dequantize_q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 34·K/32] -> float32 [R, K]."""
    for r in range(blocks.shape[0]):
        for b in range(blocks.shape[1] // 34):
            scale = load_half(blocks, r, 34 * b)
            for i in range(32):
                out[r, 32 * b + i] = np.float32(np.int8(blocks[r, 34 * b + 2 + i])) * scale


@njit(cache=True, nogil=True)
def quantize_symmetric(
    values: np.ndarray, importance: np.ndarray, blocks: np.ndarray, bits: int, search: bool, steps: np.ndarray
) -> None:
    """q4_0 (bits = 4) and q5_0 (bits = 5): codes −2^(bits−1) … 2^(bits−1) − 1 times a scale of either sign.

    float32 [R, K] -> uint8 [R, 18·K/32] or [R, 22·K/32]. search: whether to search the scale over `steps`.
    """
    codes, scratch = np.empty(32, np.int32), np.empty((4, LANES), np.float32)
    half = np.float32(1 << (bits - 1))
    size = 18 if bits == 4 else 22
    for r in range(values.shape[0]):
        w = r if importance.shape[0] > 1 else 0
        for b in range(values.shape[1] // 32):
            start = 32 * b
            scale = within_half(largest(values, r, start) / -half)
            if search:
                scale = search_scale(values, r, importance, w, start, scale, steps, scratch, -half, half - np.float32(1))
            inverse = reciprocal(scale)
            top = half + half - np.float32(1)
            if search:
                for i in range(32):
                    code = round_even(min(max(values[r, start + i] * inverse, -half), half - np.float32(1)))
                    codes[i] = np.int32(code + half)
            else:
                for i in range(32):
                    code = values[r, start + i] * inverse + (half + np.float32(0.5))
                    codes[i] = np.int32(min(max(code, np.float32(0)), top))
            store_half(blocks, r, size * b, scale)
            store_codes(blocks, r, size * b + 2, codes, bits)


@njit(cache=True, nogil=True)
def quantize_minimum(
    values: np.ndarray, importance: np.ndarray, blocks: np.ndarray, bits: int, search: bool, steps: np.ndarray
) -> None:
    """q4_1 (bits = 4) and q5_1 (bits = 5): codes 0 … 2^bits − 1 times a scale, plus a minimum.

    float32 [R, K] -> uint8 [R, 20·K/32] or [R, 24·K/32]. search: whether to search scale and minimum over `steps`.
    """
    codes, scratch = np.empty(32, np.int32), np.empty((4, LANES), np.float32)
    top = np.float32((1 << bits) - 1)
    size = 20 if bits == 4 else 24
    for r in range(values.shape[0]):
        w = r if importance.shape[0] > 1 else 0
        for b in range(values.shape[1] // 32):
            start = 32 * b
            low = high = values[r, start]
            for i in range(32):
                low, high = min(low, values[r, start + i]), max(high, values[r, start + i])
            scale, minimum = within_half((high - low) / top), within_half(low)
            if search:
                scale, minimum = search_scale_and_minimum(
                    values, r, importance, w, start, scale, minimum, steps, scratch, top
                )
            inverse = reciprocal(scale)
            if search:
                for i in range(32):
                    code = (values[r, start + i] - minimum) * inverse
                    codes[i] = np.int32(round_even(min(max(code, np.float32(0)), top)))
            else:
                for i in range(32):
                    code = (values[r, start + i] - minimum) * inverse + np.float32(0.5)
                    codes[i] = np.int32(min(max(code, np.float32(0)), top))
            store_half(blocks, r, size * b, scale)
            store_half(blocks, r, size * b + 2, minimum)
            store_codes(blocks, r, size * b + 4, codes, bits)


@inline
def store_codes(blocks: np.ndarray, row: int, at: int, codes: np.ndarray, bits: int) -> None:
    """32 codes of 4 or 5 bits: the fifth bits first, as one 32-bit number, then the nibbles."""
    if bits == 5:
        fifth = np.uint32(0)
        for i in range(32):
            fifth |= np.uint32(np.uint32((codes[i] >> np.int32(4)) & np.int32(1)) << np.uint32(i))
        for i in range(4):
            blocks[row, at + i] = np.uint8(fifth >> np.uint32(8 * i))
        at += 4
    for i in range(16):
        blocks[row, at + i] = np.uint8((codes[i] & np.int32(15)) | np.int32((codes[i + 16] & np.int32(15)) << np.int32(4)))


@njit(cache=True, nogil=True)
def dequantize_nibbles(blocks: np.ndarray, out: np.ndarray, bits: int, has_minimum: bool) -> None:
    """q4_0, q4_1, q5_0, q5_1: uint8 [R, block bytes · K/32] -> float32 [R, K]."""
    header = 4 if has_minimum else 2
    size = header + (16 if bits == 4 else 20)
    offset = np.int32(0) if has_minimum else np.int32(1 << (bits - 1))
    for r in range(out.shape[0]):
        for b in range(out.shape[1] // 32):
            at, start = size * b, 32 * b
            scale = load_half(blocks, r, at)
            minimum = load_half(blocks, r, at + 2) if has_minimum else np.float32(0)
            at += header
            fifth = np.uint32(0)
            if bits == 5:
                for i in range(4):
                    fifth |= np.uint32(np.uint32(blocks[r, at + i]) << np.uint32(8 * i))
                at += 4
            for i in range(16):
                byte = np.int32(blocks[r, at + i])
                low = np.int32(byte & np.int32(15)) | np.int32((fifth >> np.uint32(i) & np.uint32(1)) << np.uint32(4))
                high = np.int32(byte >> np.int32(4)) | np.int32(
                    ((fifth >> np.uint32(i + 16)) & np.uint32(1)) << np.uint32(4)
                )
                out[r, start + i] = scale * np.float32(np.int32(low - offset)) + minimum
                out[r, start + 16 + i] = scale * np.float32(np.int32(high - offset)) + minimum


# ---- iq4_nl ---------------------------------------------------------------------------------------------------------


@inline
def iq4_nl_code(x: np.float32) -> np.int32:
    """Index of the nearest table value, ties to the larger."""
    code = np.int32(0)
    for k in range(15):
        code += np.int32(x >= IQ4_NL_MIDPOINTS[k])
    return code


@inline
def iq4_nl_plain(values: np.ndarray, row: int, start: int, codes: np.ndarray) -> np.float32:
    """ggml's reference rule: codes by the largest value, which becomes −127, then the scale of least x²-weighted error."""
    top = largest(values, row, start)
    if abs(top) < IQ4_NL_LEAST:
        codes[:] = 0
        return np.float32(0)
    inverse = np.float32(1) / (top / IQ4_NL[0])
    products, squares = np.float32(0), np.float32(0)
    for i in range(32):
        x = values[row, start + i]
        codes[i] = iq4_nl_code(x * inverse)
        weighted = (x * x) * IQ4_NL[codes[i]]
        products += weighted * x
        squares += weighted * IQ4_NL[codes[i]]
    scale = products / squares if np.float32(0) < squares < np.float32(np.inf) else top / IQ4_NL[0]
    return within_half(scale)


@njit(cache=True, nogil=True)
def quantize_iq4_nl(values: np.ndarray, importance: np.ndarray, blocks: np.ndarray, search: bool, steps: np.ndarray) -> None:
    """float32 [R, K] -> uint8 [R, 18·K/32]. search: whether to search the scale over `steps` (passes of two)."""
    codes, scratch = np.empty(32, np.int32), np.empty((3, LANES), np.float32)
    for r in range(values.shape[0]):
        w = r if importance.shape[0] > 1 else 0
        for b in range(values.shape[1] // 32):
            start = 32 * b
            scale = iq4_nl_plain(values, r, start, codes)
            if search and scale != np.float32(0):
                scale = search_iq4_nl(values, r, importance, w, start, scale, steps, scratch)
                inverse = reciprocal(scale)
                for i in range(32):
                    codes[i] = iq4_nl_code(values[r, start + i] * inverse)
            store_half(blocks, r, 18 * b, scale)
            store_codes(blocks, r, 18 * b + 2, codes, 4)


@njit(nogil=True)
def search_iq4_nl(
    values: np.ndarray,
    row: int,
    importance: np.ndarray,
    weight_row: int,
    start: int,
    scale: np.float32,
    steps: np.ndarray,
    scratch: np.ndarray,
) -> np.float32:
    """As `search_scale`, for the table's codes. The coarse pass is around the scale that makes the largest value −127."""
    scales, inverses, errors = scratch[0], scratch[1], scratch[2]
    centre = within_half(largest(values, row, start) / IQ4_NL[0])
    for p in range(steps.shape[0]):
        for c in range(LANES):
            scales[c] = as_half(centre * steps[p, 0, c])
        if p == 0:
            scales[0] = as_half(scale)
        for c in range(LANES):
            inverses[c] = reciprocal(scales[c])
            errors[c] = np.float32(0)
        for i in range(32):
            x = values[row, start + i]
            weight = importance[weight_row, start + i]
            for c in range(LANES):
                difference = x - iq4_nl_round(x * inverses[c]) * scales[c]
                errors[c] += weight * (difference * difference)
        centre = scales[least(errors)]
    return centre


@inline
def iq4_nl_round(x: np.float32) -> np.float32:
    """The nearest table value, as a sum of the steps below x."""
    value = IQ4_NL[0]
    for k in range(15):
        value += (IQ4_NL[k + 1] - IQ4_NL[k]) if x >= IQ4_NL_MIDPOINTS[k] else np.float32(0)
    return value


@njit(cache=True, nogil=True)
def dequantize_iq4_nl(blocks: np.ndarray, out: np.ndarray) -> None:
    """uint8 [R, 18·K/32] -> float32 [R, K]."""
    for r in range(out.shape[0]):
        for b in range(out.shape[1] // 32):
            scale = load_half(blocks, r, 18 * b)
            for i in range(16):
                byte = blocks[r, 18 * b + 2 + i]
                out[r, 32 * b + i] = scale * IQ4_NL[byte & np.uint8(15)]
                out[r, 32 * b + 16 + i] = scale * IQ4_NL[byte >> np.uint8(4)]
