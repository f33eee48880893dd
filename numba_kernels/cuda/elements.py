"""Elements of the KV cache, bfloat16 (two in a word) or float32, and the rotation of what goes there."""

from __future__ import annotations

from typing import Any

from numba_kernels.cuda.blocks import bf16_pair
from numba_kernels.cuda.intrinsics import bits_as_float, float_as_bits, load_pair, load_words, pack_bf16
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
    if d < half:
        return row[at + d] * cos[angle + d] - row[at + d + half] * sin[angle + d]
    return row[at + d] * cos[angle + d - half] + row[at + d - half] * sin[angle + d - half]


@device
def as_it_is(row: Any, at: Any, d: Any, half: Any, cos: Any, sin: Any, angle: Any) -> Any:
    """Value d of the head that begins at `at`."""
    return row[at + d]
