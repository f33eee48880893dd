"""Elements of the KV cache, bfloat16 (two in a word) or float32, and the rotation of what goes there."""

from __future__ import annotations

from typing import Any

from numba_kernels.cuda.blocks import bf16_pair
from numba_kernels.cuda.intrinsics import bits_as_float, float_as_bits, load_floats, load_pair, load_words, pack_bf16
from numba_kernels.cuda.seam import device


@device
def eight_bf16(cache: Any, at: Any) -> Any:
    """Eight values that begin at word `at`."""
    w = load_words(cache, at)
    return (*bf16_pair(w[0]), *bf16_pair(w[1]), *bf16_pair(w[2]), *bf16_pair(w[3]))


@device
def eight_f32(cache: Any, at: Any) -> Any:
    w, v = load_words(cache, at), load_words(cache, at + 4)
    return (
        bits_as_float(w[0]), bits_as_float(w[1]), bits_as_float(w[2]), bits_as_float(w[3]),
        bits_as_float(v[0]), bits_as_float(v[1]), bits_as_float(v[2]), bits_as_float(v[3]),
    )  # fmt: skip


@device
def four_bf16(cache: Any, at: Any) -> Any:
    w = load_pair(cache, at)
    return (*bf16_pair(w[0]), *bf16_pair(w[1]))


@device
def four_f32(cache: Any, at: Any) -> Any:
    w = load_words(cache, at)
    return bits_as_float(w[0]), bits_as_float(w[1]), bits_as_float(w[2]), bits_as_float(w[3])


@device
def write_bf16(cache: Any, at: Any, i: Any, a: Any, b: Any) -> None:
    """Values 2i and 2i + 1 of what begins at word `at`."""
    cache[at + i] = pack_bf16(a, b)


@device
def write_f32(cache: Any, at: Any, i: Any, a: Any, b: Any) -> None:
    cache[at + 2 * i] = float_as_bits(a)
    cache[at + 2 * i + 1] = float_as_bits(b)


@device
def rotated(row: Any, at: Any, d: Any, half: Any, cos: Any, sin: Any, angle: Any) -> Any:
    """Value d of the head that begins at `at`, rotated; dimension i turns with i + half. `angle` is where the position's cosines
    begin."""
    low = d < half
    other, t = (d + half, d) if low else (d - half, d - half)  # no branches, so that all loads are under way together
    x, y, c, s = row[at + d], row[at + other], cos[angle + t], sin[angle + t]
    return x * c - y * s if low else x * c + y * s


@device
def as_it_is(row: Any, at: Any, d: Any, half: Any, cos: Any, sin: Any, angle: Any) -> Any:
    """Value d of the head that begins at `at`."""
    return row[at + d]


@device
def eight_rotated(row: Any, at: Any, d: Any, half: Any, cos: Any, sin: Any, angle: Any) -> Any:
    """Values d … d + 3 and d + half … of the head that begins at `at`, rotated against each other; all at multiples of 4."""
    x, y = load_floats(row, at + d), load_floats(row, at + half + d)
    c, s = load_floats(cos, angle + d), load_floats(sin, angle + d)
    return (
        x[0] * c[0] - y[0] * s[0], x[1] * c[1] - y[1] * s[1], x[2] * c[2] - y[2] * s[2], x[3] * c[3] - y[3] * s[3],
        y[0] * c[0] + x[0] * s[0], y[1] * c[1] + x[1] * s[1], y[2] * c[2] + x[2] * s[2], y[3] * c[3] + x[3] * s[3],
    )  # fmt: skip


@device
def eight_as_they_are(row: Any, at: Any, d: Any, half: Any, cos: Any, sin: Any, angle: Any) -> Any:
    """Values d … d + 3 and d + half … of the head that begins at `at`."""
    return (*load_floats(row, at + d), *load_floats(row, at + half + d))
