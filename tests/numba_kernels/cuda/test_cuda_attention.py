"""Attention of one token on CUDA against the plain definition, wherever `carry_out` runs it."""

from __future__ import annotations

import numpy as np
import pytest
from carry_out import poison, run, where
from cuda_problems import assert_near, bf16, floats, rest_slow

from numba_kernels.cuda.attend import attend_kernel
from numba_kernels.cuda.attention import Attention, partial_size
from numba_kernels.cuda.attention_ahead import attend_ahead_kernel, reads_ahead
from numba_kernels.cuda.attention_tiles import attend_tiles_kernel, fits_tiles
from numba_kernels.reference import formats as reference
from numba_kernels.reference import ops

SLOW = where() == "simulator"


def cache_words(x: np.ndarray, element: str) -> np.ndarray:
    x = np.ascontiguousarray(x)
    return reference.encode_bfloat16(x).view(np.uint32) if element == "bf16" else x.view(np.uint32)


CASES = [
    (8, 2, 32, None, "bf16", True),
    (3, 1, 16, None, "f32", False),
    (8, 1, 64, 20, "bf16", True),
    (4, 4, 48, 70, "f32", True),
    (5, 1, 80, None, "bf16", True),
    (13, 1, 112, 7, "f32", False),
    (10, 2, 64, None, "bf16", False),
]


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in (CASES[0], CASES[2]) else pytest.mark.slow, id=str(c)) for c in CASES]
)
@pytest.mark.parametrize("position", [5, 64] if SLOW else rest_slow([0, 5, 63, 64, 200, 333], 0, 64, 200))
@pytest.mark.parametrize("how", ["", "ahead", "tiles"])
def test_attend(case: tuple, position: int, how: str, rng: np.random.Generator) -> None:
    """Around pages' ends, with windows that begin within a page, over pages that lie anywhere and held NaN before."""
    queries, kv, size, window, element, sinks = case
    context, splits = 400, 3
    ring = -(-context // 64) if window is None else 3
    shape = Attention(queries, kv, size, window, ring, element, sinks)
    if (how == "ahead" and not reads_ahead(shape)) or (how == "tiles" and not fits_tiles(shape)):
        pytest.skip("not for such heads")
    q, keys, values = floats(rng, queries, size), *(floats(rng, position + 1, kv, size) for _ in range(2))
    cos, sin = ops.rope_table(ops.rope_frequencies(size, 1e4), context, 1.1)
    held = [ops.apply_rope(keys, cos[: position + 1], sin[: position + 1]), values]
    if element == "bf16":
        held = [bf16(x) for x in held]
    cache = np.full((ring + 2) * shape.page_words, 0x7FC07FC0, np.uint32)
    table = rng.permutation(ring + 2)[:ring].astype(np.int32)
    places = cache.reshape(ring + 2, 2, kv, 64, shape.value_words)
    for p in range(max(0, position - (ring - 1) * 64), position):
        for half in range(2):
            places[table[p // 64 % ring], half, :, p % 64] = cache_words(held[half][p], element)
    logits = floats(rng, queries)
    out, partial, counters = poison(queries * size), poison(partial_size(shape, splits)), np.zeros(kv, np.int32)
    qkv = np.concatenate([q.reshape(-1), keys[position].reshape(-1), values[position].reshape(-1)])
    state, scale = np.array([position, 0], np.int32), np.float32(size**-0.5)
    kernel = {"": attend_kernel, "ahead": attend_ahead_kernel, "tiles": attend_tiles_kernel}[how](shape, splits)
    run(
        kernel, (kv, splits), qkv, cos.reshape(-1), sin.reshape(-1), scale, logits, cache, table, state, partial, counters, out
    )  # fmt: skip
    wanted = ops.attention(
        ops.apply_rope(q[None], cos[position][None], sin[position][None]), *held, position, scale=float(scale),
        window=window or 0, sinks=logits if sinks else None,
    )  # fmt: skip
    assert_near(out, wanted.reshape(-1), 1e-5)
    assert (counters == 0).all()
    place = places[table[position // 64 % ring], :, :, position % 64]
    np.testing.assert_allclose(  # what was appended; the kernel fuses multiply and add
        place.view(np.uint16).astype(np.int64),
        np.stack([cache_words(x[position], element) for x in held]).view(np.uint16),
        atol=1,
    ) if element == "bf16" else assert_near(place.view(np.float32), np.stack([x[position] for x in held]))
