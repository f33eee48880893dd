"""Matrix × vector with the vector left in the device's memory: each head's own matrix of latent attention, and rows that are too
long for a vector of floats in shared memory. A warp has a row; weights are in a float format."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import LAYOUTS, bf16_pair, f16_pair
from numba_kernels.cuda.intrinsics import (
    bits_as_float,
    let_next_begin,
    load_floats,
    prefetch_span,
    stream_words,
    wait_for_launch_before,
    warp_sum,
)
from numba_kernels.cuda.seam import FLOATS, INT, WARP, WORDS, Kernel, cuda, device, kernel

WARPS = 8
FORMAT = ""  # in the kernel's name
HEADS = ROWS = COLUMNS = CHUNKS = WORDS_PER_ROW = 1
BIAS = ADD = ALIGNED = 0
PAIR_OF: Any = None
PART: Any = None
ZERO = np.float32(0)


def part_of_halves(codes, at, chunk, source, x):  # type: ignore[no-untyped-def]
    """Eight products. Columns beyond the last are zeros in the matrix, and no memory is read for them."""
    w = stream_words(codes, at + 4 * chunk)
    a, b, c, d = PAIR_OF(w[0]), PAIR_OF(w[1]), PAIR_OF(w[2]), PAIR_OF(w[3])
    first = 8 * chunk
    if ALIGNED:
        y, z = load_floats(source, x + first), load_floats(source, x + first + 4)
        low = a[0] * y[0] + a[1] * y[1] + b[0] * y[2] + b[1] * y[3]
        return low + c[0] * z[0] + c[1] * z[1] + d[0] * z[2] + d[1] * z[3]
    total, values = ZERO, (*a, *b, *c, *d)
    for i in range(8):
        if first + i < COLUMNS:
            total += values[i] * source[x + first + i]
    return total


def part_of_floats(codes, at, chunk, source, x):  # type: ignore[no-untyped-def]
    """Four products."""
    w = stream_words(codes, at + 4 * chunk)
    first = 4 * chunk
    if ALIGNED:
        y = load_floats(source, x + first)
        low = bits_as_float(w[0]) * y[0] + bits_as_float(w[1]) * y[1]
        return low + bits_as_float(w[2]) * y[2] + bits_as_float(w[3]) * y[3]
    total = ZERO
    for i in range(4):
        if first + i < COLUMNS:
            total += bits_as_float(w[i]) * source[x + first + i]
    return total


@kernel(WORDS, FLOATS, FLOATS, INT, INT, FLOATS, INT, INT)
def products(codes, bias, source, stride, step, out, out_stride, out_step):  # type: ignore[no-untyped-def]
    """out[t, h, r] = row r of matrix h · source[t, h] + bias[h, r], or added to out (ADD). A grid of (parts of HEADS · ROWS,
    tokens).

    stride and step are from a token, and from a head, to the next: with ALIGNED, multiples of 4.
    """
    number, token = cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP, cuda.blockIdx.y
    if number >= HEADS * ROWS:
        return
    if cuda.threadIdx.x % WARP == 0:
        prefetch_span(codes, number * WORDS_PER_ROW, np.uint32(4 * WORDS_PER_ROW))
    wait_for_launch_before()
    let_next_begin()
    head, x = number // ROWS, token * stride + number // ROWS * step
    total = ZERO
    for chunk in range(cuda.threadIdx.x % WARP, CHUNKS, WARP):
        total += PART(codes, number * WORDS_PER_ROW, chunk, source, x)
    total = warp_sum(total)
    if cuda.threadIdx.x % WARP == 0:
        if BIAS:
            total += bias[number]
        at = token * out_stride + head * out_step + number % ROWS
        out[at] = out[at] + total if ADD else total


def products_kernel(
    format: str, heads: int, rows: int, columns: int, *, aligned: bool, bias: bool = False, add: bool = False, warps: int = 8
) -> Kernel:
    """The kernel for matrices [heads, rows, columns] in bf16, f16 or f32; aligned: whether all vectors begin at multiples of four
    values."""
    layout = LAYOUTS[format]
    words, aligned = layout.row_words(columns), aligned and columns % layout.per_chunk == 0
    constants = {"COLUMNS": columns, "ALIGNED": int(aligned)}
    if format == "f32":
        part = device(part_of_floats, **constants)
    else:
        part = device(part_of_halves, **constants, PAIR_OF=bf16_pair if format == "bf16" else f16_pair)
    return products.bind(
        FORMAT=format, WARPS=warps, HEADS=heads, ROWS=rows, **constants, WORDS_PER_ROW=words, CHUNKS=words // 4, BIAS=int(bias),
        ADD=int(add), PART=part,
    )  # fmt: skip
