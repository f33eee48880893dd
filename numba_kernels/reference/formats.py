"""Number formats in plain NumPy: what every kernel of `numba_kernels.codec` computes, to the bit.

Here are floats of 16 and 8 bits, integers, and MXFP4 and NVFP4; `ggml` and `k_quants` have ggml's blocks.
Blocks stand on the second-last axis here: values are float32 [N, block], N blocks of any rows, and so are importances.
Searches try the same candidates (`codec.tables`) in the same order and add the errors in the same order.
"""

from __future__ import annotations

import numpy as np

from numba_kernels.codec import tables
from numba_kernels.codec.tables import E2M1, HALF_MAX, HALF_OVERFLOW, SURE

F32 = np.float32
Array = np.ndarray
ignoring_overflow = np.errstate(over="ignore", invalid="ignore")  # of the squares of huge errors

# ---- plain floats ---------------------------------------------------------------------------------------------------


def encode_half(values: Array) -> Array:
    """float32 -> IEEE half-precision bits, uint16; ties to even; finite values beyond the range become the largest."""
    limited = np.where(np.isfinite(values), np.clip(values, -HALF_MAX, HALF_MAX), values)
    return np.where(np.isnan(values), np.copysign(F32(np.nan), values), limited).astype(np.float16).view(np.uint16)


def decode_half(codes: Array) -> Array:
    """IEEE half-precision bits, uint16 -> float32."""
    return codes.view(np.float16).astype(F32)


def encode_bfloat16(values: Array) -> Array:
    """float32 -> bfloat16 bits, uint16; ties to even; finite values beyond the range become the largest."""
    bits = values.astype(F32).view(np.uint32)
    sign, magnitude = bits & 0x80000000, bits & 0x7FFFFFFF
    rounded = np.minimum((magnitude + 0x7FFF + (magnitude >> 16 & 1)) >> 16, 0x7F7F)
    special = np.where(magnitude > 0x7F800000, 0x7FC0, 0x7F80)
    return (np.where(magnitude >= 0x7F800000, special, rounded) | sign >> 16).astype(np.uint16)


def decode_bfloat16(codes: Array) -> Array:
    """bfloat16 bits, uint16 -> float32."""
    return (codes.astype(np.uint32) << 16).view(F32)


def as_half(x: Array) -> Array:
    return decode_half(encode_half(np.asarray(x, F32)))


def within_half(x: Array) -> Array:
    return np.where(np.abs(x) < HALF_OVERFLOW, x, np.copysign(HALF_MAX, x)).astype(F32)


def reciprocal(x: Array) -> Array:
    with np.errstate(all="ignore"):
        inverse = F32(1) / x
    return np.where(np.abs(inverse) <= F32(3.4e38), inverse, F32(0))


def first_largest(values: Array) -> Array:
    """[N, 1]: the first value of largest magnitude."""
    return np.take_along_axis(values, np.abs(values).argmax(1, keepdims=True), 1)


def least(errors: Array) -> Array:
    """[N, candidates] -> [N]: the first of least error, but 0 unless that is surely better. NaN is never better."""
    best = np.where(np.isnan(errors), np.inf, errors).argmin(1)
    return np.where(errors[np.arange(len(best)), best] < errors[:, 0] * errors.dtype.type(SURE), best, 0)


# ---- e2m1, MXFP4, NVFP4 ---------------------------------------------------------------------------------------------


def encode_e2m1(values: Array, ties: str = "even", signed_zero: bool = True) -> Array:
    """float32 -> codes 0…15, uint8; ties: down, even or away."""
    thresholds = {"down": tables.TIES_DOWN, "even": tables.TIES_EVEN, "away": tables.TIES_AWAY}[ties]
    codes = (np.abs(values)[..., None] > thresholds).sum(-1)
    return np.where(np.signbit(values) & ((codes > 0) | signed_zero), codes + 8, codes).astype(np.uint8)


def _round_e2m1(magnitudes: Array) -> Array:
    """To the nearest e2m1 value, ties to even."""
    step = np.where(magnitudes > 4, 2, np.where(magnitudes > 2, 1, 0.5)).astype(F32)
    return np.minimum(np.rint(magnitudes / step) * step, F32(6))


def join_nibbles(codes: Array) -> Array:
    """uint8 [..., K] -> [..., K/2]: values 2i and 2i + 1 in byte i, the former in the lower nibble."""
    return codes[..., 0::2] | codes[..., 1::2] << 4


def split_nibbles(data: Array) -> Array:
    """The inverse of `join_nibbles`."""
    return np.stack([data & 15, data >> 4], -1).reshape(*data.shape[:-1], -1)


@ignoring_overflow
def quantize_mxfp4(values: Array, rule: str, importance: Array | None = None) -> tuple[Array, Array]:
    """float32 [N, 32] -> blocks uint8 [N, 16] and scales uint8 [N]; rule: search, floor, ceil or ocp."""
    top = np.abs(values).max(1)
    mantissa, exponent = np.frexp(top)  # top = mantissa · 2^exponent, mantissa in [1/2, 1)
    with np.errstate(divide="ignore"):
        logarithm = np.log2(top.astype(np.float64)).astype(F32)
    if rule == "ocp":
        power = exponent - 1
    elif rule == "ceil":
        power = exponent - 1 + (mantissa > 0.75)
    else:
        power = np.floor(np.maximum(logarithm, F32(-200))).astype(int)
    scales = np.where(top > 0, np.clip(power - 2 + 127, 0, tables.MXFP4_TOP), 0)
    if rule == "search":
        scales = _search_mxfp4(values, np.ones_like(values) if importance is None else importance, scales)
    units = values * np.ldexp(F32(1), 127 - scales)[:, None].astype(F32)
    ties = {"ceil": "away", "ocp": "even"}.get(rule, "down")
    return join_nibbles(encode_e2m1(units, ties, rule in ("ceil", "ocp"))), scales.astype(np.uint8)


def _search_mxfp4(values: Array, importance: Array, plain: Array) -> Array:
    units = np.abs(values * np.ldexp(F32(1), 127 - plain)[:, None].astype(F32))
    errors = []
    for unit in tables.MXFP4_UNITS:
        difference = units - _round_e2m1(units / unit) * unit
        sums = importance * (difference * difference)
        while sums.shape[1] > 1:
            sums = sums[:, : sums.shape[1] // 2] + sums[:, sums.shape[1] // 2 :]
        errors.append(sums[:, 0])
    best = np.full(len(plain), 2)
    for c in (3, 1, 0):
        possible = (plain + c - 2 >= 0) & (plain + c - 2 <= tables.MXFP4_TOP)
        best = np.where((errors[c] < np.choose(best, errors) * SURE) & possible, c, best)
    return plain + best - 2


def dequantize_mxfp4(blocks: Array, scales: Array) -> Array:
    """blocks uint8 [N, 16] and scales uint8 [N] -> float32 [N, 32]; scale 255 is NaN."""
    powers = np.where(scales < 255, np.ldexp(1.0, scales.astype(int) - 127), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        return (E2M1[split_nibbles(blocks)] * powers[:, None]).astype(F32)


def pack_ggml_mxfp4(blocks: Array, scales: Array) -> Array:
    """uint8 [N, 16] and [N] -> ggml's blocks, uint8 [N, 17]: the scale, then values j and j + 16 in byte j."""
    codes = split_nibbles(blocks)
    return np.concatenate([scales[:, None], codes[:, :16] | codes[:, 16:] << 4], 1)


def unpack_ggml_mxfp4(data: Array) -> tuple[Array, Array]:
    """The inverse of `pack_ggml_mxfp4`."""
    return join_nibbles(np.concatenate([data[:, 1:] & 15, data[:, 1:] >> 4], 1)), data[:, 0]


@ignoring_overflow
def quantize_nvfp4(values: Array, scale: np.float32, rule: str, importance: Array | None = None) -> tuple[Array, Array]:
    """float32 [N, 16] and the tensor's scale -> blocks uint8 [N, 8] and e4m3 scales uint8 [N]; rule: search or plain."""
    codes = encode_e4m3((F32(1) / scale) * (np.abs(values).max(1) / F32(6))).astype(int)
    if rule == "search":
        tried = np.clip(codes[:, None] + tables.NVFP4_STEPS, 1, 126)
        tried[:, 0] = codes
        scales = (decode_e4m3(tried.astype(np.uint8)) * scale)[:, :, None]
        units = np.abs(values)[:, None] * reciprocal(scales)
        difference = np.abs(values)[:, None] - _round_e2m1(units) * scales
        errors = (1 if importance is None else importance[:, None]) * (difference * difference)
        codes = tried[np.arange(len(tried)), least(np.add.accumulate(errors, 2)[..., -1])]
    divisor = (decode_e4m3(codes.astype(np.uint8)) / (F32(1) / scale))[:, None]
    return join_nibbles(encode_e2m1(values / np.where(divisor > 0, divisor, F32(np.inf)))), codes.astype(np.uint8)


def dequantize_nvfp4(blocks: Array, scales: Array, scale: np.float32) -> Array:
    """blocks uint8 [N, 8], scales uint8 [N] and the tensor's scale -> float32 [N, 16]."""
    return E2M1[split_nibbles(blocks)] * (decode_e4m3(scales) * scale)[:, None]


# ---- FP8 ------------------------------------------------------------------------------------------------------------


def decode_e4m3(codes: Array) -> Array:
    """uint8 -> float32; 127 and 255 are NaN."""
    exponent, mantissa = (codes >> 3 & 15).astype(int), (codes & 7).astype(F32)
    magnitude = np.where(exponent > 0, np.ldexp(8 + mantissa, exponent - 10), np.ldexp(mantissa, -9)).astype(F32)
    return np.copysign(np.where(codes & 127 == 127, F32(np.nan), magnitude), np.where(codes & 128, F32(-1), F32(1)))


def encode_e4m3(values: Array) -> Array:
    """float32 -> the nearest code, uint8, ties to even; beyond ±448 the largest."""
    table = decode_e4m3(np.arange(127, dtype=np.uint8)).astype(np.float64)
    midpoints = (table[1:] + table[:-1]) / 2
    magnitude = np.abs(values).astype(np.float64)
    low, high = np.searchsorted(midpoints, magnitude, "left"), np.searchsorted(midpoints, magnitude, "right")
    codes = np.where(low % 2 == 0, low, high)  # they differ on a midpoint, of which one neighbour is even
    return np.where(np.signbit(values), codes | 128, codes).astype(np.uint8)


@ignoring_overflow
def quantize_fp8(values: Array) -> tuple[Array, Array]:
    """float32 [R, K] -> e4m3 codes uint8 [R, K], scales as bfloat16 bits uint16 [R]."""
    scales = encode_bfloat16(np.abs(values).max(1) / F32(448))
    divisor = decode_bfloat16(scales)[:, None]
    limit = np.where(divisor <= tables.FLOAT32_MAX / F32(448), F32(448), F32(416))
    return encode_e4m3(np.clip(values / np.where(divisor > 0, divisor, F32(np.inf)), -limit, limit)), scales


def quantize_fp8_block(values: Array, side: int = 128) -> tuple[Array, Array]:
    """A matrix, float32 [R, K] -> e4m3 codes uint8 [R, K], scales float32 [⌈R / side⌉, ⌈K / side⌉]."""
    rows, columns = values.shape
    padded = np.zeros((-(-rows // side) * side, -(-columns // side) * side), F32)
    padded[:rows, :columns] = values
    blocks = padded.reshape(len(padded) // side, side, -1, side)
    scales = np.abs(blocks).max((1, 3)) / F32(448)
    scales[scales == 0] = 1
    divisor = scales[:, None, :, None]
    limit = np.where(divisor <= tables.FLOAT32_MAX / F32(448), F32(448), F32(416))
    return encode_e4m3(np.clip(blocks / divisor, -limit, limit)).reshape(padded.shape)[:rows, :columns], scales


# ---- int8 -----------------------------------------------------------------------------------------------------------


@ignoring_overflow
def quantize_int8(
    values: Array, rule: str, power_of_two: bool = False, importance: Array | None = None
) -> tuple[Array, Array]:
    """float32 [N, group] -> codes int8 [N, group], scales as bfloat16 bits uint16 [N]; rule: search or plain."""
    top = np.abs(values).max(1)
    scales = decode_bfloat16(encode_bfloat16(top / F32(127)))
    if power_of_two:
        mantissa, exponent = np.frexp(top.astype(np.float64) / 127)
        power = np.maximum(np.where(mantissa == 0.5, exponent - 1, exponent), -133)
        scales = np.where(top > 0, np.ldexp(1.0, power), 0).astype(F32)
    if rule == "search":
        steps = tables.STEPS_INT8_POWER_OF_TWO if power_of_two else tables.STEPS_INT8
        tried = decode_bfloat16(encode_bfloat16(scales[:, None] * steps))
        codes = np.rint(np.clip(values[:, None] * reciprocal(tried)[:, :, None], -127, 127))
        difference = values[:, None] - codes * tried[:, :, None]
        errors = (1 if importance is None else importance[:, None]) * (difference * difference)
        best = least(np.add.accumulate(errors.astype(np.float64), 2)[..., -1])
        scales = tried[np.arange(len(tried)), best]
    divisor = np.where(scales > 0, scales, F32(np.inf))[:, None]
    limit = np.minimum(F32(127), np.floor(tables.FLOAT32_MAX / divisor))
    return np.rint(np.clip(values / divisor, -limit, limit)).astype(np.int8), encode_bfloat16(scales)
