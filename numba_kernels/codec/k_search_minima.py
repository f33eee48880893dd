"""How q2_k, q4_k and q5_k find the scale and the minimum of each group of 16 or 32 values, and then of the block of 256 that the
groups share; see `k_search`."""

from __future__ import annotations

import numpy as np

from numba_kernels.codec.k_search import HUGE, copy_groups, stored_half, whole_numbers
from numba_kernels.codec.search import VECTORS, minimum_errors
from numba_kernels.codec.tables import FLOAT32_MAX, K_REFINED, SURE
from numba_kernels.cpu.op import inner
from numba_kernels.simd.kinds import Address, Float, Floats, Int
from numba_kernels.simd.memory import get_f32, load_floats, set_f32, stack, store_floats
from numba_kernels.simd.numbers import least_lane, min_lanes, reciprocal, round_even, where_more
from numba_kernels.simd.values import LANES, max_lanes, maximum, minimum, splat


@inner
def range_of(x: Address, size: Int) -> tuple[Float, Float]:
    """The least of a group's values and 0, and the largest value."""
    low = high = load_floats(x)
    for i in range(LANES, size, LANES):
        value = load_floats(x + 4 * i)
        low, high = minimum(low, value), maximum(high, value)
    least = min_lanes(low)
    return min(least, np.float32(0)), max_lanes(high)


@inner
def fit_range(x: Address, weights: Address, scale: Floats, lowest: Floats, high: Float, size: Int) -> tuple[Floats, Floats]:
    """The scale and minimum, not above 0, of least error for the codes that a scale and minimum give; else these."""
    bottom, top, zero = splat(np.float32(0)), splat(high), splat(np.float32(0))
    inverse = reciprocal(scale)
    w, wx, wq, wqq, wqx = zero, zero, zero, zero, zero
    for i in range(0, 4 * size, 16):
        x0, x1 = splat(get_f32(x + i)), splat(get_f32(x + i + 4))
        x2, x3 = splat(get_f32(x + i + 8)), splat(get_f32(x + i + 12))
        w0, w1 = splat(get_f32(weights + i)), splat(get_f32(weights + i + 4))
        w2, w3 = splat(get_f32(weights + i + 8)), splat(get_f32(weights + i + 12))
        q0 = round_even(minimum(maximum((x0 - lowest) * inverse, bottom), top))
        q1 = round_even(minimum(maximum((x1 - lowest) * inverse, bottom), top))
        q2 = round_even(minimum(maximum((x2 - lowest) * inverse, bottom), top))
        q3 = round_even(minimum(maximum((x3 - lowest) * inverse, bottom), top))
        p0, p1, p2, p3 = w0 * q0, w1 * q1, w2 * q2, w3 * q3
        w = w + ((w0 + w1) + (w2 + w3))
        wx = wx + ((w0 * x0 + w1 * x1) + (w2 * x2 + w3 * x3))
        wq = wq + ((p0 + p1) + (p2 + p3))
        wqq = wqq + ((p0 * q0 + p1 * q1) + (p2 * q2 + p3 * q3))
        wqx = wqx + ((p0 * x0 + p1 * x1) + (p2 * x2 + p3 * x3))
    determinant = w * wqq - wq * wq
    fitted, base = (w * wqx - wq * wx) / determinant, (wqq * wx - wq * wqx) / determinant
    fitted = where_more(zero, base, fitted, wqx / wqq)
    base = where_more(zero, base, base, zero)
    fitted = where_more(base, splat(-HUGE), where_more(splat(HUGE), fitted, fitted, zero), zero)  # 0 stands for none
    return where_more(fitted, zero, fitted, scale), where_more(fitted, zero, base, lowest)


@inner
def search_range(
    x: Address, weights: Address, scales: Address, minima: Address, group: Int, steps: Address, high: Float, size: Int
) -> None:
    """Replaces a group's scale and minimum by fitted ones; two passes of steps, float32 [2, 2, CANDIDATES], around the best."""
    tried, moved, errors = stack(64), stack(64), stack(64)
    at, its_weights = x + 4 * size * group, weights + 4 * size * group
    for p in range(2):
        start, base = splat(get_f32(scales + 4 * group)), splat(get_f32(minima + 4 * group))
        for v in range(VECTORS):
            lane = 4 * LANES * v
            scale = start * load_floats(steps + 128 * p + lane)
            lowest = minimum(base + start * load_floats(steps + 128 * p + 64 + lane), splat(np.float32(0)))
            scale, lowest = fit_range(at, its_weights, scale, lowest, high, size)
            store_floats(tried + lane, scale)
            store_floats(moved + lane, lowest)
            store_floats(errors + lane, minimum_errors(at, its_weights, scale, lowest, reciprocal(scale), high, size))
        best = 4 * least_lane(errors, SURE)
        set_f32(scales + 4 * group, get_f32(tried + best))
        set_f32(minima + 4 * group, get_f32(moved + best))


@inner
def search_nearby_pairs(
    x: Address, weights: Address, d: Float, dmin: Float, scales: Address, minima: Address, nearby: Address,
    most: Float, high: Float, size: Int,
) -> Float:  # fmt: skip
    """Replaces the groups' whole numbers in [0, most] by better ones near by; returns the block's error with them."""
    tried, moved, errors = stack(64), stack(64), stack(64)
    zero, top, total = splat(np.float32(0)), splat(most), np.float32(0)
    for g in range(256 // size):
        at, its_weights = x + 4 * size * g, weights + 4 * size * g
        for v in range(VECTORS):
            lane = 4 * LANES * v
            number = minimum(maximum(splat(get_f32(scales + 4 * g)) + load_floats(nearby + lane), zero), top)
            lower = minimum(maximum(splat(get_f32(minima + 4 * g)) + load_floats(nearby + 64 + lane), zero), top)
            scale, lowest = splat(d) * number, zero - splat(dmin) * lower
            store_floats(tried + lane, number)
            store_floats(moved + lane, lower)
            store_floats(errors + lane, minimum_errors(at, its_weights, scale, lowest, reciprocal(scale), high, size))
        best = 4 * least_lane(errors, SURE)
        set_f32(scales + 4 * g, get_f32(tried + best))
        set_f32(minima + 4 * g, get_f32(moved + best))
        total += get_f32(errors + best)
    return total


@inner
def fit_pair(
    x: Address, weights: Address, d: Float, dmin: Float, scales: Address, minima: Address, high: Float, size: Int
) -> tuple[Float, Float]:
    """The block's scale and minimum's scale of least error for its codes and groups' numbers, in half precision."""
    codes = stack(128)
    saa, sab, sbb, sxa, sxb = np.float64(0), np.float64(0), np.float64(0), np.float64(0), np.float64(0)
    for g in range(256 // size):
        at, its_weights = x + 4 * size * g, weights + 4 * size * g
        number, lower = get_f32(scales + 4 * g), get_f32(minima + 4 * g)
        scale, lowest = splat(d * number), splat(np.float32(0) - dmin * lower)
        inverse = reciprocal(scale)
        for i in range(0, size, LANES):
            code = (load_floats(at + 4 * i) - lowest) * inverse
            store_floats(codes + 4 * i, round_even(minimum(maximum(code, splat(np.float32(0))), splat(high))))
        for i in range(0, 4 * size, 4):
            w, value = np.float64(get_f32(its_weights + i)), np.float64(get_f32(at + i))
            a, b = np.float64(number * get_f32(codes + i)), np.float64(lower)
            saa += w * a * a
            sab += w * a * b
            sbb += w * b * b
            sxa += w * value * a
            sxb += w * value * b
    determinant = saa * sbb - sab * sab
    fitted, base = (sxa * sbb - sxb * sab) / determinant, (sxa * sab - sxb * saa) / determinant
    if determinant > 0 and fitted > 0 and base >= 0:
        return stored_half(np.float32(fitted)), stored_half(np.float32(base))
    return d, dmin


@inner
def search_pairs(
    x: Address, weights: Address, scales: Address, minima: Address, steps: Address, nearby: Address, most: Float,
    high: Float, size: Int,
) -> tuple[Float, Float]:  # fmt: skip
    """The block's scale and minimum's scale; fills the groups' whole numbers, float32 [16] each."""
    numbers, lowers, found, bases = stack(64), stack(64), stack(64), stack(64)
    zeros = splat(np.float32(0))
    for v in range(VECTORS):
        store_floats(found + 4 * LANES * v, zeros)
        store_floats(bases + 4 * LANES * v, zeros)
    d, dmin = plain_pairs(x, found, bases, scales, minima, most, high, size)
    least = search_nearby_pairs(x, weights, d, dmin, scales, minima, nearby, most, high, size)
    for g in range(256 // size):
        search_range(x, weights, found, bases, g, steps, high, size)
    now, now_min = pairs_of(found, bases, numbers, lowers, most, size)
    for stage in range(K_REFINED + 1):
        if stage > 0:
            now, now_min = fit_pair(x, weights, now, now_min, numbers, lowers, high, size)
        error = search_nearby_pairs(x, weights, now, now_min, numbers, lowers, nearby, most, high, size)
        if error < least * SURE:
            least, d, dmin = error, now, now_min
            copy_groups(numbers, scales)
            copy_groups(lowers, minima)
    return d, dmin


@inner
def plain_pairs(
    x: Address, found: Address, bases: Address, scales: Address, minima: Address, most: Float, high: Float, size: Int
) -> tuple[Float, Float]:
    """The plain rule: every group's scale and minimum are those of its range."""
    for g in range(256 // size):
        low, top = range_of(x + 4 * size * g, size)
        set_f32(found + 4 * g, min(top - low, FLOAT32_MAX) / high)
        set_f32(bases + 4 * g, low)
    return pairs_of(found, bases, scales, minima, most, size)


@inner
def pairs_of(
    found: Address, bases: Address, scales: Address, minima: Address, most: Float, size: Int
) -> tuple[Float, Float]:
    """The block's scales for which the groups' largest are `most`, and the groups' as whole numbers of them."""
    lowered = stack(64)
    scale, lower = np.float32(0), np.float32(0)
    for g in range(256 // size):
        scale, lower = max(scale, get_f32(found + 4 * g)), max(lower, -get_f32(bases + 4 * g))
    d, dmin = stored_half(scale / most), stored_half(lower / most)
    for v in range(VECTORS):
        store_floats(lowered + 4 * LANES * v, splat(np.float32(0)) - load_floats(bases + 4 * LANES * v))
    whole_numbers(found, d, np.float32(0), most, scales)
    whole_numbers(lowered, dmin, np.float32(0), most, minima)
    return d, dmin
