"""How q3_k and q6_k find the scale, of either sign, of each group of 16 values, and then of the block of 256 that the groups
share; see `k_search`."""

from __future__ import annotations

import numpy as np

from numba_kernels.codec.k_search import HUGE, copy_groups, stored_half, whole_numbers
from numba_kernels.codec.search import VECTORS, scale_errors
from numba_kernels.codec.tables import K_REFINED, SURE
from numba_kernels.cpu.op import inner
from numba_kernels.simd.kinds import Address, Float, Floats, Int
from numba_kernels.simd.memory import get_f32, load_floats, set_f32, stack, store_floats
from numba_kernels.simd.numbers import least_lane, reciprocal, round_even, where_more
from numba_kernels.simd.values import LANES, absolute, max_lanes, maximum, minimum, splat


@inner
def largest_of(x: Address, size: Int) -> Float:
    """The first of a group's values whose magnitude is largest."""
    top = absolute(load_floats(x))
    for i in range(LANES, size, LANES):
        top = maximum(top, absolute(load_floats(x + 4 * i)))
    most, at = max_lanes(top), 0
    while at < 4 * size - 4 and abs(get_f32(x + at)) != most:
        at += 4
    return get_f32(x + at)


@inner
def fit_scale(x: Address, weights: Address, scale: Floats, low: Float, high: Float, size: Int) -> Floats:
    """The scale of least error for the codes that a scale gives; that scale where there is none."""
    bottom, top, inverse = splat(low), splat(high), reciprocal(scale)
    wqq, wqx = splat(np.float32(0)), splat(np.float32(0))
    for i in range(0, 4 * size, 16):
        x0, x1 = splat(get_f32(x + i)), splat(get_f32(x + i + 4))
        x2, x3 = splat(get_f32(x + i + 8)), splat(get_f32(x + i + 12))
        q0 = round_even(minimum(maximum(x0 * inverse, bottom), top))
        q1 = round_even(minimum(maximum(x1 * inverse, bottom), top))
        q2 = round_even(minimum(maximum(x2 * inverse, bottom), top))
        q3 = round_even(minimum(maximum(x3 * inverse, bottom), top))
        p0, p1 = splat(get_f32(weights + i)) * q0, splat(get_f32(weights + i + 4)) * q1
        p2, p3 = splat(get_f32(weights + i + 8)) * q2, splat(get_f32(weights + i + 12)) * q3
        wqq = wqq + ((p0 * q0 + p1 * q1) + (p2 * q2 + p3 * q3))
        wqx = wqx + ((p0 * x0 + p1 * x1) + (p2 * x2 + p3 * x3))
    fitted = wqx / wqq
    return where_more(splat(HUGE), absolute(fitted), fitted, scale)


@inner
def search_signed(
    x: Address, weights: Address, scales: Address, group: Int, factors: Address, low: Float, high: Float, size: Int
) -> None:
    """Replaces a group's scale by the best of those that are fitted from scale · factors, float32 [CANDIDATES]."""
    tried, errors = stack(64), stack(64)
    at, its_weights = x + 4 * size * group, weights + 4 * size * group
    start = splat(get_f32(scales + 4 * group))
    for v in range(VECTORS):
        scale = fit_scale(at, its_weights, start * load_floats(factors + 4 * LANES * v), low, high, size)
        store_floats(tried + 4 * LANES * v, scale)
        store_floats(errors + 4 * LANES * v, scale_errors(at, its_weights, scale, reciprocal(scale), low, high, size))
    set_f32(scales + 4 * group, get_f32(tried + 4 * least_lane(errors, SURE)))


@inner
def search_nearby_scales(
    x: Address, weights: Address, d: Float, scales: Address, nearby: Address, least: Float, low: Float, high: Float,
    size: Int,
) -> Float:  # fmt: skip
    """Replaces the groups' whole numbers in [least, −least − 1] by better ones near by; returns the block's error with them."""
    tried, errors = stack(64), stack(64)
    total = np.float32(0)
    for g in range(256 // size):
        at, its_weights = x + 4 * size * g, weights + 4 * size * g
        for v in range(VECTORS):
            lane = 4 * LANES * v
            number = splat(get_f32(scales + 4 * g)) + load_floats(nearby + lane)
            number = minimum(maximum(number, splat(least)), splat(-least - np.float32(1)))
            scale = splat(d) * number
            store_floats(tried + lane, number)
            store_floats(errors + lane, scale_errors(at, its_weights, scale, reciprocal(scale), low, high, size))
        best = 4 * least_lane(errors, SURE)
        set_f32(scales + 4 * g, get_f32(tried + best))
        total += get_f32(errors + best)
    return total


@inner
def fit_block_scale(x: Address, weights: Address, d: Float, scales: Address, low: Float, high: Float, size: Int) -> Float:
    """The block's scale of least error for its codes and groups' numbers, in half precision."""
    codes = stack(128)
    saa, sxa = np.float64(0), np.float64(0)
    for g in range(256 // size):
        at, its_weights, number = x + 4 * size * g, weights + 4 * size * g, get_f32(scales + 4 * g)
        inverse = reciprocal(splat(d * number))
        for i in range(0, size, LANES):
            code = minimum(maximum(load_floats(at + 4 * i) * inverse, splat(low)), splat(high))
            store_floats(codes + 4 * i, round_even(code))
        for i in range(0, 4 * size, 4):
            w, a = np.float64(get_f32(its_weights + i)), np.float64(number * get_f32(codes + i))
            saa += w * a * a
            sxa += w * np.float64(get_f32(at + i)) * a
    return stored_half(np.float32(sxa / saa)) if saa > 0 else d


@inner
def search_scales_of_either_sign(
    x: Address, weights: Address, scales: Address, factors: Address, nearby: Address, least: Float, low: Float, high: Float,
    size: Int,
) -> Float:  # fmt: skip
    """The block's scale; fills the groups' whole numbers, float32 [16]."""
    numbers, found = stack(64), stack(64)
    d = plain_scales(x, found, scales, least, low, size)
    fewest = search_nearby_scales(x, weights, d, scales, nearby, least, low, high, size)
    for g in range(256 // size):
        search_signed(x, weights, found, g, factors, low, high, size)
    now = scales_of(found, numbers, least, size)
    for stage in range(K_REFINED + 1):
        if stage > 0:
            now = fit_block_scale(x, weights, now, numbers, low, high, size)
        error = search_nearby_scales(x, weights, now, numbers, nearby, least, low, high, size)
        if error < fewest * SURE:
            fewest, d = error, now
            copy_groups(numbers, scales)
    return d


@inner
def plain_scales(x: Address, found: Address, scales: Address, least: Float, low: Float, size: Int) -> Float:
    """The plain rule: every group's value of largest magnitude is the code `low`."""
    for g in range(256 // size):
        set_f32(found + 4 * g, largest_of(x + 4 * size * g, size) / low)
    return scales_of(found, scales, least, size)


@inner
def scales_of(found: Address, scales: Address, least: Float, size: Int) -> Float:
    """The block's scale for which the group's of largest magnitude is `least`, and the groups' as whole numbers of it."""
    most = get_f32(found)
    for g in range(1, 256 // size):
        if abs(get_f32(found + 4 * g)) > abs(most):
            most = get_f32(found + 4 * g)
    d = stored_half(most / least)
    whole_numbers(found, d, least, -least - np.float32(1), scales)
    return d
