"""The router of a mixture of experts: its logits for one token or many, and the choice among them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import Shape, bf16_pair, f16_pair
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.intrinsics import (
    bits_as_float,
    count_up,
    early_words,
    let_next_begin,
    store_floats,
    wait_for_launch_before,
    warp_sum,
)  # fmt: skip
from numba_kernels.cuda.matvec import row_constants
from numba_kernels.cuda.seam import (
    FLOAT,
    FLOATS,
    INT,
    INTS,
    WARP,
    WORDS,
    Kernel,
    cuda,
    device,
    kernel,
    require_shared,
    types,
)
from numba_kernels.cuda.vectors import RESERVED, ask_for_weight, four_at

WARPS = 8
FORMAT = KIND = ""  # in the kernel's name
COLUMNS = 0
X_SIZE = S_SIZE = 1
X_TYPE: Any = None
SCALES: Any = None
PREPARE: Any = None
ASK_FOR_WEIGHT: Any = None
ASK_FOR_ROWS: Any = None
PAIR: Any = None
CHOOSE: Any = None
CHOICE = ""  # in the kernel's name
HELD = GROUPS = 1  # of the shared arrays that the choice needs
NORM = BIAS = ALIGNED = 0
MOST = 4096  # bytes of its first rows that a warp asks for
TOP = 1
EXPERTS = 1
FOUR: Any = None
VALUES: Any = None
CHUNKS_OF: Any = None
ROUTER_CHUNKS: Any = None
EIGHT_OF: Any = None
MEET_EIGHT: Any = None
STORE_EIGHT: Any = None
LOGITS: Any = None
CHUNKS = WORDS_PER_ROW = EACH = 1
RESIDENT = 3  # blocks of a multiprocessor
SUMS = 1  # 3 · WARPS
CHOOSES = 1  # whether the last block chooses; else whoever comes after
SPREAD = 0  # whether a block has two rows of the router, rather than a warp
ZERO, ONE = np.float32(0), np.float32(1)


def logits_by_warps(  # type: ignore[no-untyped-def]
    codes, scales, bias, source, at, weight, epsilon, logits, first, normed, x, x_scales, sums
):
    """The token's logits, from `first` on, and its normalized vector; a warp has two rows of the router."""
    thread = cuda.threadIdx.x
    row = 2 * (cuda.blockIdx.x * WARPS + thread // WARP)
    if row < EXPERTS:
        ASK_FOR_ROWS(codes, scales, row, min(EXPERTS - row, 2), MOST, thread % WARP)
    other = min(row + 1, EXPERTS - 1)
    a_first, b_first = CHUNKS_OF(codes, scales, min(row, EXPERTS - 1), 0), CHUNKS_OF(codes, scales, other, 0)
    gain = PREPARE(source, at, weight, epsilon, x, x_scales, sums)
    if cuda.blockIdx.x == 0:
        for i in range(thread, COLUMNS, WARPS * WARP):
            normed[at + i] = source[at + i] * gain * weight[i] if NORM else source[at + i]
    while row < EXPERTS:
        a, b = PAIR(codes, scales, row, other, a_first, b_first, 0, 0, x, x_scales)
        a, b = warp_sum(a), warp_sum(b)
        if thread % WARP == 0:
            logits[first + row] = a * gain + bias[row] if BIAS else a * gain
            logits[first + other] = b * gain + bias[other] if BIAS else b * gain
        row += 2 * cuda.gridDim.x * WARPS
        other = min(row + 1, EXPERTS - 1)
        if row < EXPERTS:
            a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, other, 0)
    cuda.syncthreads()


def router_chunks(codes, row):  # type: ignore[no-untyped-def]
    """A thread's EACH chunks of a row. Beyond the last one that is read again, and the vector is zero."""
    thread, size, at = cuda.threadIdx.x, WARPS * WARP, row * WORDS_PER_ROW
    a = early_words(codes, at + 4 * min(thread, CHUNKS - 1))
    b, c, d = a, a, a
    if EACH > 1:
        b = early_words(codes, at + 4 * min(thread + size, CHUNKS - 1))
    if EACH > 2:
        c = early_words(codes, at + 4 * min(thread + 2 * size, CHUNKS - 1))
    if EACH > 3:
        d = early_words(codes, at + 4 * min(thread + 3 * size, CHUNKS - 1))
    return a, b, c, d


def eight_of(source, at, weight, c):  # type: ignore[no-untyped-def]
    """The values that chunk c meets, with NORM times the norm's weight, and the sum of their squares."""
    v, w = FOUR(source, at, 8 * c), FOUR(source, at, 8 * c + 4)
    if NORM:
        m, n = FOUR(weight, 0, 8 * c), FOUR(weight, 0, 8 * c + 4)
        total = v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3]
        total += w[0] * w[0] + w[1] * w[1] + w[2] * w[2] + w[3] * w[3]
        first = (v[0] * m[0], v[1] * m[1], v[2] * m[2], v[3] * m[3])
        return first, (w[0] * n[0], w[1] * n[1], w[2] * n[2], w[3] * n[3]), total
    return v, w, ZERO


def meet_eight(chunk, v, w):  # type: ignore[no-untyped-def]
    """Eight products, added."""
    (a, b), (d, e) = VALUES(chunk[0]), VALUES(chunk[1])
    (f, g), (h, i) = VALUES(chunk[2]), VALUES(chunk[3])
    return a * v[0] + b * v[1] + d * v[2] + e * v[3] + (f * w[0] + g * w[1] + h * w[2] + i * w[3])


def four_of(source, at, weight, c):  # type: ignore[no-untyped-def]
    """As `eight_of`, for chunks of float32, which meet four."""
    v = FOUR(source, at, 4 * c)
    if NORM:
        m = FOUR(weight, 0, 4 * c)
        total = v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3]
        return (v[0] * m[0], v[1] * m[1], v[2] * m[2], v[3] * m[3]), (ZERO, ZERO, ZERO, ZERO), total
    return v, (ZERO, ZERO, ZERO, ZERO), ZERO


def meet_four(chunk, v, w):  # type: ignore[no-untyped-def]
    """Four products, added."""
    a, b = bits_as_float(chunk[0]) * v[0], bits_as_float(chunk[1]) * v[1]
    return a + b + (bits_as_float(chunk[2]) * v[2] + bits_as_float(chunk[3]) * v[3])


def store_four(out, at, c, gain, v, w):  # type: ignore[no-untyped-def]
    if 4 * c < COLUMNS:
        store_floats(out, at + 4 * c, v[0] * gain, v[1] * gain, v[2] * gain, v[3] * gain)


def store_eight(out, at, c, gain, v, w):  # type: ignore[no-untyped-def]
    if 8 * c < COLUMNS:
        store_floats(out, at + 8 * c, v[0] * gain, v[1] * gain, v[2] * gain, v[3] * gain)
    if 8 * c + 4 < COLUMNS:
        store_floats(out, at + 8 * c + 4, w[0] * gain, w[1] * gain, w[2] * gain, w[3] * gain)


def logits_by_blocks(  # type: ignore[no-untyped-def]
    codes, scales, bias, source, at, weight, epsilon, logits, first, normed, x, x_scales, sums
):
    """The same by blocks that have two rows, of floats, at a time: a thread has the same EACH chunks of both, asked for before
    the launch before has ended. Nothing is put into shared memory but sums [3 · WARPS]. logits are thread 0's work."""
    thread, size = cuda.threadIdx.x, WARPS * WARP
    c0, c1, c2, c3 = thread, thread + size, thread + 2 * size, thread + 3 * size
    row = min(2 * cuda.blockIdx.x, EXPERTS - 1)  # a block too many does what another does
    (a0, a1, a2, a3), (b0, b1, b2, b3) = ROUTER_CHUNKS(codes, row), ROUTER_CHUNKS(codes, min(row + 1, EXPERTS - 1))
    ASK_FOR_WEIGHT(weight)
    wait_for_launch_before()
    let_next_begin()
    while row < EXPERTS:
        other = min(row + 1, EXPERTS - 1)
        v0, w0, total = EIGHT_OF(source, at, weight, c0)
        v1, v2, v3, w1, w2, w3 = v0, v0, v0, w0, w0, w0
        if EACH > 1:
            v1, w1, more = EIGHT_OF(source, at, weight, c1)
            total += more
        if EACH > 2:
            v2, w2, more = EIGHT_OF(source, at, weight, c2)
            total += more
        if EACH > 3:
            v3, w3, more = EIGHT_OF(source, at, weight, c3)
            total += more
        a, b = MEET_EIGHT(a0, v0, w0), MEET_EIGHT(b0, v0, w0)
        if EACH > 1:
            a += MEET_EIGHT(a1, v1, w1)
            b += MEET_EIGHT(b1, v1, w1)
        if EACH > 2:
            a += MEET_EIGHT(a2, v2, w2)
            b += MEET_EIGHT(b2, v2, w2)
        if EACH > 3:
            a += MEET_EIGHT(a3, v3, w3)
            b += MEET_EIGHT(b3, v3, w3)
        a, b, total = warp_sum(a), warp_sum(b), warp_sum(total)
        if thread % WARP == 0:
            sums[thread // WARP] = a
            sums[WARPS + thread // WARP] = b
            sums[2 * WARPS + thread // WARP] = total
        cuda.syncthreads()
        a = b = total = ZERO
        for i in range(WARPS):
            a += sums[i]
            b += sums[WARPS + i]
            total += sums[2 * WARPS + i]
        gain = ONE
        if NORM:
            gain = ONE / np.float32(math.sqrt(total / np.float32(COLUMNS) + epsilon))
        if thread == 0:
            logits[first + row] = a * gain + bias[row] if BIAS else a * gain
            logits[first + other] = b * gain + bias[other] if BIAS else b * gain
        if row == 0:
            STORE_EIGHT(normed, at, c0, gain, v0, w0)
            if EACH > 1:
                STORE_EIGHT(normed, at, c1, gain, v1, w1)
            if EACH > 2:
                STORE_EIGHT(normed, at, c2, gain, v2, w2)
            if EACH > 3:
                STORE_EIGHT(normed, at, c3, gain, v3, w3)
        row += 2 * cuda.gridDim.x
        if row < EXPERTS:
            (a0, a1, a2, a3), (b0, b1, b2, b3) = ROUTER_CHUNKS(codes, row), ROUTER_CHUNKS(codes, min(row + 1, EXPERTS - 1))
            cuda.syncthreads()  # sums may be used again


@kernel(WORDS, "SCALES", FLOATS, FLOATS, INT, FLOATS, FLOAT, FLOATS, INTS, FLOATS, INTS, FLOATS, FLOATS, FLOAT, FLOAT)
def route(  # type: ignore[no-untyped-def]
    codes, scales, bias, source, stride, weight, epsilon, logits, counter, normed, ids, shares, correction, share_scale,
    share_epsilon,
):  # fmt: skip
    """The TOP experts of each token, ids [tokens, TOP], and their weights, shares [tokens, TOP]: see `Choice`.

    A grid of (blocks, tokens); the last block of a token to finish picks its experts. source [tokens, stride]; normed, alike,
    receives the normalized vectors, which the experts meet as well; logits [tokens, EXPERTS]. counter [tokens] is 0 before and
    after. correction [EXPERTS], share_scale and share_epsilon are the choice's.
    """
    x = cuda.shared.array(X_SIZE, X_TYPE, 16)
    x_scales = cuda.shared.array(S_SIZE, types.float32, 16)
    sums = cuda.shared.array(SUMS, types.float32, 16)
    chosen = cuda.shared.array(TOP, types.int32, 16)
    scores = cuda.shared.array(HELD, types.float32, 16)
    merits = cuda.shared.array(HELD, types.float32, 16)
    groups = cuda.shared.array(GROUPS, types.float32, 16)
    last = cuda.shared.array(1, types.int32, 16)
    thread, token = cuda.threadIdx.x, cuda.blockIdx.y
    at, first = token * stride, token * EXPERTS
    LOGITS(codes, scales, bias, source, at, weight, epsilon, logits, first, normed, x, x_scales, sums)
    if not CHOOSES:
        return
    if thread == 0:
        last[0] = count_up(counter, token)
        for k in range(TOP):
            chosen[k] = -1
    cuda.syncthreads()
    if last[0] == cuda.gridDim.x - 1 and thread < WARP:
        CHOOSE(
            logits, first, correction, scores, merits, groups, chosen, share_scale, share_epsilon, ids, shares, token * TOP
        )
        if thread == 0:
            counter[token] = 0


def route_kernel(
    shape: Shape, choice: Choice, *, norm: bool, bias: bool, warps: int = 8, aligned: bool = True, chooses: bool = True
) -> Kernel:
    """The kernel for a router of this shape [experts, columns]; aligned: whether vectors begin at multiples of four values;
    chooses: whether it chooses, or leaves logits alone.
    Raises NoKernel if so many experts do not fit into shared memory beside the vector."""
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns, "CHOICE": choice.name}
    numbers = {"NORM": int(norm), "BIAS": int(bias), "EXPERTS": choice.experts}
    rows = row_constants(shape, norm, warps, aligned=aligned)
    if by_blocks(shape, warps) and rows["ALIGNED"]:
        four = device(four_at, COLUMNS=shape.columns, ALIGNED=1)
        sizes = {"COLUMNS": shape.columns, "NORM": int(norm), "FOUR": four}
        row = {"CHUNKS": shape.chunks, "EACH": each(shape, warps), "WORDS_PER_ROW": shape.layout.row_words(shape.columns)}
        functions = {
            "ROUTER_CHUNKS": device(router_chunks, **row, WARPS=warps),
            "EIGHT_OF": device(four_of if shape.format == "f32" else eight_of, **sizes),
            "MEET_EIGHT": _meeting(shape.format),
            "STORE_EIGHT": device(store_four if shape.format == "f32" else store_eight, COLUMNS=shape.columns),
            "ASK_FOR_WEIGHT": device(ask_for_weight, COLUMNS=shape.columns, NORM=int(norm)),
        }
        numbers_of = {"WARPS": warps, "COLUMNS": shape.columns, "EACH": each(shape, warps)}
        logits = device(logits_by_blocks, **numbers, **numbers_of, **functions)
        rows = {
            "WARPS": warps,
            "SCALES": rows["SCALES"],
            "ALIGNED": 1,
            "X_TYPE": types.float32,
            "X_SIZE": 4,
            "S_SIZE": 4,
            "RESIDENT": 3 if each(shape, warps) <= 2 else 2,
        }
        spread = 1
    else:
        functions = {name: rows.pop(name) for name in ("PAIR", "CHUNKS_OF", "PREPARE", "ASK_FOR_ROWS", "WARPS")}
        rows.pop("FILL")
        rows.pop("ASK_FOR_TWO")
        logits = device(logits_by_warps, **numbers, **functions, COLUMNS=shape.columns)
        rows["WARPS"] = warps
        spread = 0
    words = rows["X_SIZE"] + (rows["S_SIZE"] if shape.quantized else 0)
    words += RESERVED + choice.top + 2 * choice.held + choice.groups
    require_shared(4 * words, f"{choice.experts} experts and vectors of {shape.columns} values")
    constants = {
        "TOP": choice.top,
        "HELD": choice.held,
        "GROUPS": choice.groups,
        "SUMS": 3 * warps,
        "SPREAD": spread,
        "CHOOSES": int(chooses),
    }
    return route.bind(**names, **numbers, **constants, CHOOSE=choice.function(), LOGITS=logits, **rows)


def _meeting(format: str) -> Any:
    if format == "f32":
        return device(meet_four)
    return device(meet_eight, VALUES=bf16_pair if format == "bf16" else f16_pair)


def each(shape: Shape, warps: int) -> int:
    """Chunks of a row for each thread of a block."""
    return -(-shape.chunks // (warps * WARP))


def by_blocks(shape: Shape, warps: int) -> bool:
    """Whether a block takes two rows of a router together."""
    return shape.layout.is_float and each(shape, warps) <= 4


def route_blocks(kernel: Kernel, warps: int = 8) -> int:
    """Warps of work that the kernel has for a token: its rows, two by two."""
    return -(-kernel.constants["EXPERTS"] // 2) * (warps if kernel.constants["SPREAD"] else 1)
