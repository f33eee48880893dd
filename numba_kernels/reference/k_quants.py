"""ggml's k-quants in plain NumPy: what `numba_kernels.codec.k_quants_write` computes, to the bit.

Values and weights are float32 [N, 256], N blocks of any rows. Inside, groups stand on an axis of their own, [N, G, size], and
candidates of a group behind them, [N, G, C].
"""

from __future__ import annotations

import numpy as np

from numba_kernels.codec import tables
from numba_kernels.codec.tables import FLOAT32_MAX, SURE
from numba_kernels.reference.formats import F32, Array, as_half, encode_half, first_largest, reciprocal, within_half

SIZES = {2: 16, 3: 16, 4: 32, 5: 32, 6: 16}  # values of a group, by bits of a code
MOST = {2: 15, 3: -32, 4: 63, 5: 63, 6: -128}  # of a group's whole number, whose magnitude is the largest
HUGE = F32(3e38)
quiet = np.errstate(all="ignore")


@quiet
def quantize_k(values: Array, bits: int, rule: str, importance: Array | None = None) -> Array:
    """q2_k, q3_k, q4_k, q5_k, q6_k: float32 [N, 256] -> uint8 [N, block bytes]; rule: search or plain."""
    x = values.reshape(len(values), -1, SIZES[bits])
    w = np.ones_like(x) if importance is None else importance.reshape(x.shape).astype(F32)
    if bits in (3, 6):
        low = F32(-(1 << bits - 1))
        found = (first_largest(x.reshape(-1, x.shape[2])).reshape(x.shape[:2]) / low).astype(F32)
        d, numbers = _search_signed(x, w, found, bits) if rule == "search" else _whole_signed(found, F32(MOST[bits]))
        codes = _codes(x, d[:, None] * numbers, None, low, -low - F32(1)) - low
        return _signed_block(codes.reshape(len(x), 256).astype(np.uint8), d, numbers.astype(int), bits)
    high, most = F32((1 << bits) - 1), F32(MOST[bits])
    base = np.minimum(x.min(2), F32(0))
    found = np.minimum(x.max(2) - base, FLOAT32_MAX) / high
    d, dmin, numbers, lowers = (
        _search_pairs(x, w, found, base, bits) if rule == "search" else _whole_pairs(found, base, most)
    )
    codes = _codes(x, d[:, None] * numbers, F32(0) - dmin[:, None] * lowers, F32(0), high)
    return _pair_block(codes.reshape(len(x), 256).astype(np.uint8), d, dmin, numbers.astype(int), lowers.astype(int), bits)


def _codes(x: Array, scale: Array, lowest: Array | None, low: F32, high: F32) -> Array:
    """Codes of x [N, G, size] for scales [N, G] or [N, G, C]: float32 [N, G, size] or [N, G, C, size]."""
    if scale.ndim == 3:
        x = x[:, :, None]
    moved = x if lowest is None else x - lowest[..., None]
    return np.rint(np.clip(moved * reciprocal(scale)[..., None], low, high)).astype(F32)


def _sum(terms: Array) -> Array:
    """Over the last axis, four at a time, as the kernel adds them."""
    total = np.zeros(terms.shape[:-1], F32)
    for i in range(0, terms.shape[-1], 4):
        total += (terms[..., i] + terms[..., i + 1]) + (terms[..., i + 2] + terms[..., i + 3])
    return total


def _errors(x: Array, w: Array, scale: Array, lowest: Array | None, low: F32, high: F32) -> Array:
    """[N, G, C]: of each candidate."""
    stored = scale[..., None] * _codes(x, scale, lowest, low, high)
    difference = x[:, :, None] - (stored if lowest is None else stored + lowest[..., None])
    return _sum(w[:, :, None] * (difference * difference))


def _best(errors: Array, *candidates: Array) -> list[Array]:
    """Of the candidates [N, G, C] those of least error, [N, G] each."""
    infinite = np.where(np.isnan(errors), np.inf, errors)
    best = infinite.argmin(2)[..., None]
    surely = np.take_along_axis(infinite, best, 2) < errors[..., :1] * SURE
    best = np.where(surely, best, 0)
    return [np.take_along_axis(c, best, 2)[..., 0] for c in candidates]


def _total(errors: Array) -> Array:
    """Over the groups, one after another: [N]."""
    return np.add.accumulate(errors, 1)[:, -1]


def _doubles(terms: Array) -> Array:
    """Sums over a block's values, one after another, in float64: [N]."""
    return np.add.accumulate(terms.reshape(len(terms), -1), 1)[:, -1]


def _whole(figures: Array, unit: Array, low: F32, high: F32) -> Array:
    return np.rint(np.clip(figures * reciprocal(unit)[:, None], low, high)).astype(F32)


# ---- scale and minimum ----------------------------------------------------------------------------------------------


def _whole_pairs(found: Array, base: Array, most: F32) -> tuple[Array, Array, Array, Array]:
    d, dmin = (as_half(within_half(np.maximum(f.max(1), 0) / most)) for f in (found, -base))
    return d, dmin, _whole(found, d, F32(0), most), _whole(F32(0) - base, dmin, F32(0), most)


def _search_pairs(x: Array, w: Array, found: Array, base: Array, bits: int) -> tuple[Array, Array, Array, Array]:
    high, most, zero = F32((1 << bits) - 1), F32(MOST[bits]), F32(0)

    def nearby(d: Array, dmin: Array, numbers: Array, lowers: Array) -> tuple[Array, Array, Array]:
        numbers = np.clip(numbers[..., None] + tables.K_NEARBY[0], zero, most)
        lowers = np.clip(lowers[..., None] + tables.K_NEARBY[1], zero, most)
        scale, lowest = d[:, None, None] * numbers, zero - dmin[:, None, None] * lowers
        errors = _errors(x, w, scale, lowest, zero, high)
        numbers, lowers, errors = _best(errors, numbers, lowers, errors)
        return numbers, lowers, _total(errors)

    d, dmin, numbers, lowers = _whole_pairs(found, base, most)
    numbers, lowers, least = nearby(d, dmin, numbers, lowers)
    for factors, shifts in tables.K_RANGES[bits]:
        scale = found[..., None] * factors
        lowest = np.minimum(base[..., None] + found[..., None] * shifts, zero)
        scale, lowest = _fit_range(x, w, scale, lowest, high)
        found, base = _best(_errors(x, w, scale, lowest, zero, high), scale, lowest)
    now, now_min, tried, moved = _whole_pairs(found, base, most)
    for stage in range(tables.K_REFINED + 1):
        if stage > 0:
            now, now_min = _fit_pair(x, w, now, now_min, tried, moved, high)
        tried, moved, error = nearby(now, now_min, tried, moved)
        better = error < least * SURE
        least, d, dmin = np.where(better, error, least), np.where(better, now, d), np.where(better, now_min, dmin)
        numbers, lowers = (np.where(better[:, None], a, b) for a, b in ((tried, numbers), (moved, lowers)))
    return d, dmin, numbers, lowers


def _fit_range(x: Array, w: Array, scale: Array, lowest: Array, high: F32) -> tuple[Array, Array]:
    q = _codes(x, scale, lowest, F32(0), high)
    x, w = x[:, :, None], w[:, :, None]
    p = w * q
    sw, swx, swq, swqq, swqx = _sum(w), _sum(w * x), _sum(p), _sum(p * q), _sum(p * x)
    determinant = sw * swqq - swq * swq
    fitted, base = (sw * swqx - swq * swx) / determinant, (swqq * swx - swq * swqx) / determinant
    below = base < 0
    fitted, base = np.where(below, fitted, swqx / swqq), np.where(below, base, F32(0))
    fits = (base > -HUGE) & (fitted < HUGE) & (fitted > 0)
    return np.where(fits, fitted, scale), np.where(fits, base, lowest)


def _fit_pair(x: Array, w: Array, d: Array, dmin: Array, numbers: Array, lowers: Array, high: F32) -> tuple[Array, Array]:
    q = _codes(x, d[:, None] * numbers, F32(0) - dmin[:, None] * lowers, F32(0), high)
    a = (numbers[..., None] * q).astype(float)
    b = np.broadcast_to(lowers[..., None], x.shape).astype(float)
    x, w = x.astype(float), w.astype(float)
    saa, sab, sbb = _doubles(w * a * a), _doubles(w * a * b), _doubles(w * b * b)
    sxa, sxb = _doubles(w * x * a), _doubles(w * x * b)
    determinant = saa * sbb - sab * sab
    fitted, base = (sxa * sbb - sxb * sab) / determinant, (sxa * sab - sxb * saa) / determinant
    fits = (determinant > 0) & (fitted > 0) & (base >= 0)
    fitted, base = (as_half(within_half(f.astype(F32))) for f in (fitted, base))
    return np.where(fits, fitted, d), np.where(fits, base, dmin)


# ---- scale of either sign -------------------------------------------------------------------------------------------


def _whole_signed(found: Array, least: F32) -> tuple[Array, Array]:
    d = as_half(within_half(first_largest(found)[:, 0] / least))
    return d, _whole(found, d, least, -least - F32(1))


def _search_signed(x: Array, w: Array, found: Array, bits: int) -> tuple[Array, Array]:
    low, least = F32(-(1 << bits - 1)), F32(MOST[bits])
    high = -low - F32(1)

    def nearby(d: Array, numbers: Array) -> tuple[Array, Array]:
        numbers = np.clip(numbers[..., None] + tables.K_NEARBY_SCALES, least, -least - F32(1))
        errors = _errors(x, w, d[:, None, None] * numbers, None, low, high)
        numbers, errors = _best(errors, numbers, errors)
        return numbers, _total(errors)

    d, numbers = _whole_signed(found, least)
    numbers, fewest = nearby(d, numbers)
    scale = found[..., None] * tables.K_FACTORS[bits]
    q = _codes(x, scale, None, low, high)
    p = w[:, :, None] * q
    fitted = _sum(p * x[:, :, None]) / _sum(p * q)
    scale = np.where(np.abs(fitted) < HUGE, fitted, scale)
    (found,) = _best(_errors(x, w, scale, None, low, high), scale)
    now, tried = _whole_signed(found, least)
    for stage in range(tables.K_REFINED + 1):
        if stage > 0:
            a = (tried[..., None] * _codes(x, now[:, None] * tried, None, low, high)).astype(float)
            saa, sxa = _doubles(w * a * a), _doubles(w.astype(float) * x * a)
            now = np.where(saa > 0, as_half(within_half((sxa / saa).astype(F32))), now)
        tried, error = nearby(now, tried)
        better = error < fewest * SURE
        fewest, d = np.where(better, error, fewest), np.where(better, now, d)
        numbers = np.where(better[:, None], tried, numbers)
    return d, numbers


# ---- bytes ----------------------------------------------------------------------------------------------------------


def _bits(codes: Array, apart: int, bits: int, shift: int = 0) -> Array:
    """Some bits of codes [N, n], `bits` each: byte j of every run holds those of codes j, j + apart, …, lowest first."""
    runs = (codes >> shift & (1 << bits) - 1).reshape(len(codes), -1, 8 // bits, apart)
    places = np.arange(0, 8, bits)[:, None]
    return (runs << places).sum(2).reshape(len(codes), -1).astype(np.uint8)


def _halves(*numbers: Array) -> Array:
    """[N] each -> their half-precision bytes, [N, 2 · count]."""
    return encode_half(np.stack(numbers, 1)).view(np.uint8)


def _pair_block(codes: Array, d: Array, dmin: Array, numbers: Array, lowers: Array, bits: int) -> Array:
    if bits == 2:
        return np.concatenate([numbers | lowers << 4, _bits(codes, 32, 2), _halves(d, dmin)], 1).astype(np.uint8)
    s, t, m, n = numbers[:, :4], numbers[:, 4:], lowers[:, :4], lowers[:, 4:]
    six = np.concatenate([s | t >> 4 << 6, m | n >> 4 << 6, t & 15 | (n & 15) << 4], 1)
    fifth = [_bits(codes, 32, 1, 4)] if bits == 5 else []
    return np.concatenate([_halves(d, dmin), six, *fifth, _bits(codes, 32, 4)], 1).astype(np.uint8)


def _signed_block(codes: Array, d: Array, numbers: Array, bits: int) -> Array:
    if bits == 6:
        return np.concatenate([_bits(codes, 64, 4), _bits(codes, 32, 2, 4), numbers & 255, _halves(d)], 1).astype(np.uint8)
    raised = numbers + 32
    low, high = raised[:, :8] & 15 | (raised[:, 8:] & 15) << 4, _bits(raised, 4, 2, 4)
    return np.concatenate([_bits(codes, 32, 1, 2), _bits(codes, 32, 2), low, high, _halves(d)], 1).astype(np.uint8)
