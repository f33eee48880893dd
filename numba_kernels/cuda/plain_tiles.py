"""The plain forms of `tile_instructions`: what each computes, and what the simulator runs.

A tile is 16 rows by 8 · n columns of float32 over a warp, a tuple of 4 · n numbers in each thread. With lane = 4 · g + t, numbers
4i and 4i + 1 are row g at columns 8i + 2t and 8i + 2t + 1, numbers 4i + 2 and 4i + 3 row g + 8 alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from numba_kernels.cuda.plain import load_pair, load_words, multiply_tiles, pack_bf16, store_words

F32 = np.float32


def zero_tile(count: int) -> Callable[[], tuple[Any, ...]]:
    """() -> a tile of zeros of `count` numbers."""
    return lambda: (F32(0),) * count


def multiply_rows(low: Any, high: Any, x: Any, at: Any, stride: Any, tile: Any) -> tuple[Any, ...]:
    """tile + A · Bᵀ, bfloat16. `low` and `high` are rows g and g + 8 of A, two words for each step of 16 columns; row n of B
    begins at word n · stride, and `at` points to this thread's words of row g: 8 words further begins the next step."""
    out = list(tile)
    for step in range(len(low) // 2):
        a = (low[2 * step], high[2 * step], low[2 * step + 1], high[2 * step + 1])
        for n in range(len(tile) // 4):
            b = load_pair(x, at + 8 * step + 8 * n * stride)
            out[4 * n : 4 * n + 4] = multiply_tiles(*a, *b, *out[4 * n : 4 * n + 4])
    return tuple(out)


def multiply_unit(stride: int) -> Callable[..., tuple[Any, ...]]:
    """(four rows of A, x, at, tile) -> tile + A · Bᵀ over 8 columns of every one of the four threads, bfloat16.

    A thread's rows are 4g … 4g + 3 of 32, four words of each. Row n of B begins at word n · stride; `at` points to this thread's
    four words of row g. The tile is [32, 8 · n]: numbers 8n … 8n + 7 are rows 4g, 4g + 1, 4g + 2, 4g + 3, of each columns
    8n + 2t and 8n + 2t + 1.
    """

    def multiply(a: Any, b: Any, c: Any, d: Any, x: Any, at: Any, tile: Any) -> tuple[Any, ...]:
        out = list(tile)
        for n in range(len(tile) // 8):
            words = load_words(x, at + 8 * n * stride)
            for i, (low, high) in enumerate(((a, b), (c, d))):
                to = 8 * n + 4 * i
                for s in (0, 2):
                    given = low[s], high[s], low[s + 1], high[s + 1]
                    out[to : to + 4] = multiply_tiles(*given, *words[s : s + 2], *out[to : to + 4])
        return tuple(out)

    return multiply


def multiply_far(
    a: Any, b: Any, c: Any, d: Any, x: Any, starts: Any, starts_at: Any, word: Any, wanted: Any, tile: Any
) -> tuple[Any, ...]:
    """As `multiply_unit`, with row g + 8n of B at word starts[starts_at + 8n] + `word` of x; zeros where it is not wanted."""
    out = list(tile)
    for n in range(len(tile) // 8):
        words = load_words(x, int(starts[starts_at + 8 * n]) + word) if wanted else (np.uint32(0),) * 4
        for i, (low, high) in enumerate(((a, b), (c, d))):
            to = 8 * n + 4 * i
            for s in (0, 2):
                given = low[s], high[s], low[s + 1], high[s + 1]
                out[to : to + 4] = multiply_tiles(*given, *words[s : s + 2], *out[to : to + 4])
    return tuple(out)


def store_part(first: int, count: int) -> Callable[..., None]:
    """(tile as above, array, at, stride): puts columns 8 · first … 8 · (first + count) into an array as words: four rows
    next to each other, a column every `stride`; `at` is where row 4g of column 2t, counted from the first, goes."""

    def store(tile: Any, array: Any, at: Any, stride: Any) -> None:
        for n in range(count):
            for odd in (0, 1):
                numbers = np.array([tile[8 * (first + n) + 2 * i + odd] for i in range(4)], np.float32)
                array[at + (8 * n + odd) * stride :][:4] = numbers.view(array.dtype)

    return store


def load_row(steps: int) -> Callable[[Any, Any], tuple[Any, ...]]:
    """(array, at) -> two words for each of `steps` steps of 16 columns, 8 words apart."""
    return lambda array, at: tuple(word for step in range(steps) for word in load_pair(array, at + 8 * step))


def multiply_columns(weights: Any, values: Any, at: Any, stride: Any, tile: Any) -> tuple[Any, ...]:
    """tile + W · V: a tile of weights [16, keys] and V [keys, columns] in bfloat16, whose row n begins at word n · stride; `at`
    points to row 2t at word g.

    Of the result's tiles 2p and 2p + 1, the first has the even and the second the odd ones of columns 16p … 16p + 15: a thread's
    numbers are columns 16p + 4t … 16p + 4t + 3, the first of tile 2p, the first of tile 2p + 1, the second of 2p, of 2p + 1.
    """
    out = list(tile)
    for step in range(len(weights) // 8):
        w = weights[8 * step : 8 * step + 8]
        a = (pack_bf16(w[0], w[1]), pack_bf16(w[2], w[3]), pack_bf16(w[4], w[5]), pack_bf16(w[6], w[7]))
        for p in range(len(tile) // 8):
            words = [int(values[at + (16 * step + key) * stride + 8 * p]) for key in (0, 1, 8, 9)]
            for odd in (0, 1):
                b0, b1 = (
                    np.uint32((x >> 16 * odd & 0xFFFF) | (y >> 16 * odd & 0xFFFF) << 16) for x, y in (words[:2], words[2:])
                )
                n = 4 * (2 * p + odd)
                out[n : n + 4] = multiply_tiles(*a, b0, b1, *out[n : n + 4])
    return tuple(out)


def masked_tile(tile: Any, column: Any, low: Any, high: Any, low_other: Any, high_other: Any) -> tuple[Any, ...]:
    """−∞ outside of columns [low, high) in row g and [low_other, high_other) in row g + 8; `column` is the thread's first."""
    out = []
    for i, value in enumerate(tile):
        at = column + 8 * (i // 4) + i % 2
        seen = low <= at < high if i % 4 < 2 else low_other <= at < high_other
        out.append(value if seen else F32(-np.inf))
    return tuple(out)


def row_maxima(tile: Any) -> tuple[Any, Any]:
    """The largest of the thread's own numbers in row g, and in row g + 8."""
    return max(v for i, v in enumerate(tile) if i % 4 < 2), max(v for i, v in enumerate(tile) if i % 4 > 1)


def row_sums(tile: Any) -> tuple[Any, Any]:
    """Sums likewise."""
    first, second = F32(0), F32(0)
    for i, value in enumerate(tile):
        if i % 4 < 2:
            first = F32(first + value)
        else:
            second = F32(second + value)
    return first, second


def powers_of_two(tile: Any, top: Any, other_top: Any) -> tuple[Any, ...]:
    """2^(x − top) for row g, 2^(x − other_top) for row g + 8."""
    return tuple(F32(np.exp2(F32(v - (top if i % 4 < 2 else other_top)))) for i, v in enumerate(tile))


def scaled_tile(tile: Any, factor: Any, other_factor: Any) -> tuple[Any, ...]:
    """Row g times `factor`, row g + 8 times `other_factor`."""
    return tuple(F32(v * (factor if i % 4 < 2 else other_factor)) for i, v in enumerate(tile))


def store_rows(tile: Any, array: Any, at: Any, other: Any, valid: Any, other_valid: Any) -> None:
    """What `multiply_columns` made, as bfloat16: of row g, where it is valid, two words at `at`, 8 words further those of
    the next 16 columns; of row g + 8 likewise at `other`."""
    for p in range(len(tile) // 8):
        for row, (place, wanted) in enumerate(((at, valid), (other, other_valid))):
            if wanted:
                a, b, c, d = (tile[8 * p + 2 * row + i] for i in (0, 4, 1, 5))
                array[place + 8 * p] = pack_bf16(a, b)
                array[place + 8 * p + 1] = pack_bf16(c, d)


def copy_words(array: Any, at: Any, source: Any, source_at: Any, wanted: Any) -> None:
    """Begins to copy four words of global memory into shared memory; zeros, where they are not wanted. They are there when the
    thread has committed and waited; for others, after a barrier."""
    store_words(array, at, *(load_words(source, source_at) if wanted else (0, 0, 0, 0)))


def commit_copies() -> None:
    """Ends a group of copies."""


def wait_for_copies() -> None:
    """Waits until all of the thread's groups are there."""


def anew(number: Any) -> Any:
    """The same number. The compiler does not know that, so that what follows from it is computed here, and takes no registers of
    loops before."""
    return number
