"""What concerns one row of activations: the embedding, root mean square norms, the choice of the next token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import LAYOUTS, bf16, bf16_pair, e8m0, f16_pair, fp4_bytes
from numba_kernels.cuda.intrinsics import (
    as_int,
    bits_as_float,
    count_up,
    half_as_float,
    let_next_begin,
    load_fresh,
    shuffle_xor,
    wait_for_launch_before,
    warp_sum,
)
from numba_kernels.cuda.seam import BYTES, FLOAT, FLOATS, HALVES, INT, INTS, WARP, WORDS, Kernel, cuda, device, kernel, types

WARPS = 8
FORMAT = ""  # in the kernel's name
COLUMNS = WORDS_PER_ROW = SCALES_PER_ROW = 0
ADD = GATED = 0
SCALES: Any = None
ELEMENT: Any = None
SCALE: Any = None
PAIR_OF: Any = None
GROUP = 32
HALF = np.float32(0.5)
ONE = np.float32(1)
FOUR, FIFTEEN, THIRTY_ONE = np.uint32(4), np.uint32(15), np.uint32(31)


# ---- embedding ------------------------------------------------------------------------------------------------------


def mxfp4_element(codes, scales, words, first_scale, column):  # type: ignore[no-untyped-def]
    code = np.uint32(codes[words + column // 8] >> np.uint32(4 * (column % 8)) & FIFTEEN)
    return (
        np.float32(as_int(np.uint32(fp4_bytes(code) << np.uint32(24))) >> 24)
        * HALF
        * e8m0(scales[first_scale + column // 32])
    )


def q4_0_element(codes, scales, words, first_scale, column):  # type: ignore[no-untyped-def]
    block, place = column // 32, column % 32
    byte = np.uint32(codes[words + 4 * block + place % 16 // 4] >> np.uint32(8 * (place % 4) + 4 * (place // 16)))
    return (np.float32(byte & FIFTEEN) - np.float32(8)) * half_as_float(scales[first_scale + block])


def byte_element(codes, scales, words, first_scale, column):  # type: ignore[no-untyped-def]
    byte = as_int(np.uint32(codes[words + column // 4] << np.uint32(24 - 8 * (column % 4)))) >> 24
    return np.float32(byte) * SCALE(scales[first_scale + column // GROUP])


def half_element(codes, scales, words, first_scale, column):  # type: ignore[no-untyped-def]
    low, high = PAIR_OF(codes[words + column // 2])
    return high if column % 2 else low


def float_element(codes, scales, words, first_scale, column):  # type: ignore[no-untyped-def]
    return bits_as_float(codes[words + column])


@kernel(WORDS, "SCALES", INTS, INT, INT, FLOATS)
def embed(codes, scales, tokens, vocabulary, stride, out):  # type: ignore[no-untyped-def]
    """out[t · stride …] = the row of token t, or added to out (ADD); a grid of (parts of a row, tokens). A token that does not
    exist is the last."""
    wait_for_launch_before()
    let_next_begin()
    column = cuda.blockIdx.x * WARPS * WARP + cuda.threadIdx.x
    token = min(max(tokens[cuda.blockIdx.y], 0), vocabulary - 1)
    if column < COLUMNS:
        value = ELEMENT(codes, scales, token * WORDS_PER_ROW, token * SCALES_PER_ROW, column)
        at = cuda.blockIdx.y * stride + column
        out[at] = out[at] + value if ADD else value


def embed_kernel(format: str, columns: int, warps: int = 4, *, add: bool = False) -> Kernel:
    """The kernel for a table in a format."""
    layout = LAYOUTS[format]
    if layout.bits == 4:
        element = device(mxfp4_element if format == "mxfp4" else q4_0_element)
    elif layout.bits == 8:
        scale = half_as_float if layout.scale == "f16" else bf16
        element = device(byte_element, GROUP=layout.group or columns, SCALE=scale)
    elif layout.bits == 16:
        element = device(half_element, PAIR_OF=bf16_pair if format == "bf16" else f16_pair)
    else:
        element = device(float_element)
    return embed.bind(
        FORMAT=format, COLUMNS=columns, WARPS=warps, ELEMENT=element, WORDS_PER_ROW=layout.row_words(columns),
        SCALES_PER_ROW=layout.row_scales(columns), SCALES=BYTES if layout.scale == "e8m0" else HALVES, ADD=int(add),
    )  # fmt: skip


# ---- sums and norms of rows -----------------------------------------------------------------------------------------


@kernel(FLOATS, INT, FLOATS, FLOATS, INT)
def add_rows(source, stride, gates, out, out_stride):  # type: ignore[no-untyped-def]
    """out[t · out_stride …] = source[t · stride …], times σ(gates[t]) with GATED, or added to out (ADD); a grid of (parts of a
    row, tokens)."""
    wait_for_launch_before()
    let_next_begin()
    column, token = cuda.blockIdx.x * WARPS * WARP + cuda.threadIdx.x, cuda.blockIdx.y
    if column < COLUMNS:
        value = source[token * stride + column]
        if GATED:
            value = value / (ONE + np.float32(math.exp(-gates[token])))
        at = token * out_stride + column
        out[at] = out[at] + value if ADD else value


def add_rows_kernel(columns: int, *, gated: bool, add: bool, warps: int = 4) -> Kernel:
    """The kernel for rows of so many columns."""
    return add_rows.bind(WARPS=warps, COLUMNS=columns, GATED=int(gated), ADD=int(add))


def sum_of_block(value, sums):  # type: ignore[no-untyped-def]
    """The sum of all threads' values, in every thread; sums is shared, [WARPS]."""
    value = warp_sum(value)
    if cuda.threadIdx.x % WARP == 0:
        sums[cuda.threadIdx.x // WARP] = value
    cuda.syncthreads()
    total = np.float32(0)
    for i in range(WARPS):
        total += sums[i]
    cuda.syncthreads()  # sums may be used again
    return total


SUM_OF_BLOCK: Any = None


@kernel(FLOATS, INT, FLOATS, FLOATS, FLOAT, FLOATS, INT)
def layer_norm(source, stride, weight, bias, epsilon, out, out_stride):  # type: ignore[no-untyped-def]
    """out[t · out_stride …] = (x − mean) / √(variance + epsilon) · weight + bias for x = source[t · stride …]; a block has a
    row."""
    sums = cuda.shared.array(WARPS, types.float32, 16)
    wait_for_launch_before()
    let_next_begin()
    at, to = cuda.blockIdx.x * stride, cuda.blockIdx.x * out_stride
    total = np.float32(0)
    for i in range(cuda.threadIdx.x, COLUMNS, WARPS * WARP):
        total += source[at + i]
    mean = SUM_OF_BLOCK(total, sums) / np.float32(COLUMNS)
    total = np.float32(0)
    for i in range(cuda.threadIdx.x, COLUMNS, WARPS * WARP):
        off = source[at + i] - mean
        total += off * off
    gain = ONE / np.float32(math.sqrt(SUM_OF_BLOCK(total, sums) / np.float32(COLUMNS) + epsilon))
    for i in range(cuda.threadIdx.x, COLUMNS, WARPS * WARP):
        out[to + i] = (source[at + i] - mean) * gain * weight[i] + bias[i]


def layer_norm_kernel(columns: int, warps: int = 4) -> Kernel:
    """The kernel for rows of so many columns."""
    return layer_norm.bind(WARPS=warps, COLUMNS=columns, SUM_OF_BLOCK=device(sum_of_block, WARPS=warps))


# ---- the choice of a token ------------------------------------------------------------------------------------------

MIX_A, MIX_B = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)  # https://nullprogram.com/blog/2018/07/31/
HASH_UNIT = np.float32(2.0**-24)


@device
def mix(word: Any) -> Any:
    """A uint32 whose bits depend on all of the word's."""
    word = np.uint32(word ^ (word >> np.uint32(16)))
    word = np.uint32(word * MIX_A)
    word = np.uint32(word ^ (word >> np.uint32(15)))
    word = np.uint32(word * MIX_B)
    return np.uint32(word ^ (word >> np.uint32(16)))


@device
def gumbel(seed: Any, position: Any, token: Any) -> Any:
    """A number of the standard Gumbel distribution: the largest of logit + such numbers is a draw from their softmax."""
    word = mix(np.uint32(mix(np.uint32(mix(np.uint32(seed)) + np.uint32(position))) + np.uint32(token)))
    uniform = (np.float32(word >> np.uint32(8)) + HALF) * HASH_UNIT
    return -np.float32(math.log(-np.float32(math.log(uniform))))


@device
def better(value: Any, number: Any, other: Any, other_number: Any) -> Any:
    """Whether the other candidate goes first: larger, or equal and of a lower number. −1 is no candidate."""
    return other_number >= 0 and (number < 0 or other > value or (other == value and other_number < number))


def best_of_block(value, number, values, indices):  # type: ignore[no-untyped-def]
    """The best candidate of all threads, in every thread; values and indices are shared, [WARPS]."""
    for mask in (16, 8, 4, 2, 1):
        other, other_number = shuffle_xor(value, mask), shuffle_xor(number, mask)
        if better(value, number, other, other_number):
            value, number = other, other_number
    if cuda.threadIdx.x % WARP == 0:
        values[cuda.threadIdx.x // WARP] = value
        indices[cuda.threadIdx.x // WARP] = number
    cuda.syncthreads()
    value, number = values[0], np.int64(indices[0])
    for i in range(1, WARPS):
        if better(value, number, values[i], indices[i]):
            value, number = values[i], np.int64(indices[i])
    cuda.syncthreads()
    return value, number


BEST_OF_BLOCK: Any = device(best_of_block, WARPS=WARPS)


@kernel(FLOATS, INT, INTS, FLOATS, FLOATS, INTS, INTS, INTS, INTS)
def choose(logits, count, state, settings, best, numbers, counter, tokens, history):  # type: ignore[no-untyped-def]
    """The next token, from logits [count]: the largest, or with settings[0] = 1 / temperature > 0 a draw.

    state [2] is the token's position and the seed. The last block to finish writes the token to tokens[0] and to
    history[position], and moves the position on. best and numbers [blocks] are its scratch; counter [1] is 0 before and after.
    """
    values = cuda.shared.array(WARPS, types.float32, 16)
    indices = cuda.shared.array(WARPS, types.int32, 16)
    last = cuda.shared.array(1, types.int32, 16)
    thread = cuda.threadIdx.x
    wait_for_launch_before()
    let_next_begin()
    inverse = settings[0]
    value, number = np.float32(-math.inf), -1
    for i in range(cuda.blockIdx.x * WARPS * WARP + thread, count, cuda.gridDim.x * WARPS * WARP):
        candidate = logits[i]
        if inverse > np.float32(0):
            candidate = candidate * inverse + gumbel(state[1], state[0], i)
        if better(value, number, candidate, i):
            value, number = candidate, i
    value, number = BEST_OF_BLOCK(value, number, values, indices)
    if thread == 0:
        best[cuda.blockIdx.x] = value
        numbers[cuda.blockIdx.x] = number
    cuda.syncthreads()
    if thread == 0:
        last[0] = count_up(counter, 0)
    cuda.syncthreads()
    if last[0] == cuda.gridDim.x - 1:
        value, number = np.float32(-math.inf), -1
        for i in range(thread, cuda.gridDim.x, WARPS * WARP):
            candidate, index = load_fresh(best, i), load_fresh(numbers, i)
            if better(value, number, candidate, index):
                value, number = candidate, index
        value, number = BEST_OF_BLOCK(value, number, values, indices)
        if thread == 0:
            tokens[0] = max(number, 0)
            history[state[0] % history.size] = max(number, 0)
            state[0] += 1
            counter[0] = 0


def choose_kernel(warps: int = WARPS) -> Kernel:
    """The kernel with so many warps in a block."""
    return choose.bind(WARPS=warps, BEST_OF_BLOCK=device(best_of_block, WARPS=warps))
