"""Mixture of experts for one token: the router, and the layers of the experts that it chose, which the device knows alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import GROUP, Shape, bf16_pair, f16_pair
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.intrinsics import (
    bits_as_float,
    early_words,
    let_next_begin,
    load_floats,
    load_words,
    store_floats,
    store_words,
    wait_for_launch_before,
    warp_sum,
)  # fmt: skip
from numba_kernels.cuda.matvec import row_constants, silu
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
from numba_kernels.cuda.vectors import RESERVED, ask_for_weight, code_group, four_at

WARPS = 8
FORMAT = KIND = ""  # in the kernel's name
COLUMNS = 0
X_SIZE = S_SIZE = QUADS = 1
X_TYPE: Any = None
SCALES: Any = None
FILL: Any = None
PREPARE: Any = None
ASK_FOR_WEIGHT: Any = None
ASK_FOR_ROWS: Any = None
ASK_FOR_TWO: Any = None
PAIR: Any = None
CHOOSE: Any = None
CHOICE = ""  # in the kernel's name
HELD = GROUPS = 1  # of the shared arrays that the choice needs
NORM = BIAS = GATE = ALIGNED = 0
MOST = 4096  # bytes of its first rows that a warp asks for
TOP = 1
EXPERTS = 1
SLOTS = 1  # vectors in shared memory at once
SILU, SWIGLU = 0, 1
FOUR: Any = None
VALUES: Any = None
CHUNKS_OF: Any = None
ROUTER_CHUNKS: Any = None
SLOT_OF: Any = None
EIGHT_OF: Any = None
MEET_EIGHT: Any = None
STORE_EIGHT: Any = None
LOGITS: Any = None
CHUNKS = WORDS_PER_ROW = EACH = 1
RESIDENT = 3  # blocks of a multiprocessor
SUMS = 1  # 3 · WARPS
CODED = 0  # whether vectors come as codes
TWO_GROUPS = 2 * GROUP
OUT_QUADS = 1
SOURCE: Any = None
BRING: Any = None
CODE_GROUP: Any = None
SPREAD = 0  # whether a block has two rows of the router, rather than a warp
ZERO, ONE = np.float32(0), np.float32(1)


# ---- routing --------------------------------------------------------------------------------------------------------


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
    cuda.threadfence()
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
    if thread == 0:
        cuda.threadfence()
        last[0] = cuda.atomic.add(counter, token, 1)
        for k in range(TOP):
            chosen[k] = -1
    cuda.syncthreads()
    if last[0] == cuda.gridDim.x - 1 and thread < WARP:
        cuda.threadfence()
        CHOOSE(
            logits, first, correction, scores, merits, groups, chosen, share_scale, share_epsilon, ids, shares, token * TOP
        )
        if thread == 0:
            counter[token] = 0


def route_kernel(shape: Shape, choice: Choice, *, norm: bool, bias: bool, warps: int = 8, aligned: bool = True) -> Kernel:
    """The kernel for a router of this shape [experts, columns]; aligned: whether vectors begin at multiples of four values.
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
    constants = {"TOP": choice.top, "HELD": choice.held, "GROUPS": choice.groups, "SUMS": 3 * warps, "SPREAD": spread}
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


# ---- the experts ----------------------------------------------------------------------------------------------------


@device
def swiglu(gate: Any, up: Any, limit: Any, alpha: Any) -> Any:
    """gpt-oss's clamped gate: gate · σ(alpha · gate) · (up + 1) after gate ≤ limit and −limit ≤ up ≤ limit. NaN stays NaN."""
    gate = limit if gate > limit else gate
    up = limit if up > limit else up
    up = -limit if up < -limit else up
    return gate / (ONE + np.float32(math.exp(-alpha * gate))) * (up + ONE)


def slot_of(pair, inner):  # type: ignore[no-untyped-def]
    """pair // inner, which is below TOP, without a division."""
    slot = 0
    for k in range(1, TOP):
        slot += 1 if pair >= k * inner else 0
    return slot


@kernel(WORDS, "SCALES", FLOATS, FLOATS, INTS, INT, INT, FLOAT, FLOAT, FLOATS)
def gate_up(codes, scales, bias, source, ids, inner, stride, limit, alpha, out):  # type: ignore[no-untyped-def]
    """out[k · stride + i] = swiglu, or silu, of rows 2i and 2i + 1 of expert ids[k] with source [COLUMNS]; bias [EXPERTS,
    2 · inner]."""
    x = cuda.shared.array(X_SIZE, X_TYPE, 16)
    x_scales = cuda.shared.array(S_SIZE, types.float32, 16)
    lane, pair = cuda.threadIdx.x % WARP, cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP
    wait_for_launch_before()
    let_next_begin()
    some = min(pair, TOP * inner - 1)
    slot = SLOT_OF(some, inner)
    i = some - slot * inner
    row = 2 * (ids[slot] * inner + i)
    a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, row + 1, 0)
    FILL(source, 0, 0, 1, x, x_scales)
    cuda.syncthreads()
    while pair < TOP * inner:
        at = slot * stride + i
        first = second = np.float32(0)
        if BIAS:
            first += bias[row]
            second += bias[row + 1]
        a, b = PAIR(codes, scales, row, row + 1, a_first, b_first, 0, 0, x, x_scales)
        pair += cuda.gridDim.x * WARPS
        a, b = warp_sum(a) + first, warp_sum(b) + second
        if lane == 0:
            out[at] = swiglu(a, b, limit, alpha) if GATE == SWIGLU else silu(a, b)
        if pair < TOP * inner:
            slot = SLOT_OF(pair, inner)
            i = pair - slot * inner
            row = 2 * (ids[slot] * inner + i)
            a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, row + 1, 0)


@kernel(WORDS, "SCALES", FLOATS, FLOATS, INTS, INT, FLOAT, FLOAT, WORDS, FLOATS)
def gate_up_coded(codes, scales, bias, source, ids, inner, limit, alpha, out, out_scales):  # type: ignore[no-untyped-def]
    """The same, whose values are left as the second projection takes them: as codes, out [TOP, 4 · OUT_QUADS], with a scale for
    each 16, out_scales [TOP, OUT_QUADS]. inner is a multiple of 16, and so many values at a time are a block's."""
    x = cuda.shared.array(X_SIZE, X_TYPE, 16)
    x_scales = cuda.shared.array(S_SIZE, types.float32, 16)
    values = cuda.shared.array(
        TWO_GROUPS, types.float32, 16
    )  # of two groups in turn: one is read while the other is written
    lane, warp = cuda.threadIdx.x % WARP, cuda.threadIdx.x // WARP
    groups, group, half, turn = TOP * inner // GROUP, cuda.blockIdx.x, 0, 0
    wait_for_launch_before()
    let_next_begin()
    pair = min(group, groups - 1) * GROUP + warp
    slot = SLOT_OF(pair, inner)
    row = 2 * (ids[slot] * inner + pair - slot * inner)
    a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, row + 1, 0)
    FILL(source, 0, 0, 1, x, x_scales)
    cuda.syncthreads()
    while group < groups:
        first = second = np.float32(0)
        if BIAS:
            first += bias[row]
            second += bias[row + 1]
        a, b = PAIR(codes, scales, row, row + 1, a_first, b_first, 0, 0, x, x_scales)
        a, b = warp_sum(a) + first, warp_sum(b) + second
        if lane == 0:
            values[turn + half * WARPS + warp] = swiglu(a, b, limit, alpha) if GATE == SWIGLU else silu(a, b)
        this, this_slot = group, slot
        half += 1
        if half == GROUP // WARPS:
            half = 0
            group += cuda.gridDim.x
        if group < groups:
            pair = group * GROUP + half * WARPS + warp
            slot = SLOT_OF(pair, inner)
            row = 2 * (ids[slot] * inner + pair - slot * inner)
            a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, row + 1, 0)
        if half == 0:
            cuda.syncthreads()
            if warp == 0:
                CODE_GROUP(values, turn, this - this_slot * (inner // GROUP), this_slot * OUT_QUADS, out, out_scales)
            turn = GROUP - turn


def bring_floats(source, source_scales, held, count, stride, x, x_scales):  # type: ignore[no-untyped-def]
    """Puts the vectors of `count` experts from `held` on into shared memory."""
    FILL(source, held * stride, stride, count, x, x_scales)


def bring_codes(source, source_scales, held, count, stride, x, x_scales):  # type: ignore[no-untyped-def]
    """The same of vectors that are codes already."""
    for i in range(cuda.threadIdx.x, count * QUADS, WARPS * WARP):
        a, b, c, d = load_words(source, 4 * (held * QUADS + i))
        store_words(x, 4 * i, a, b, c, d)
    for i in range(cuda.threadIdx.x, count * QUADS // 4, WARPS * WARP):
        e, f, g, h = load_floats(source_scales, held * QUADS + 4 * i)
        store_floats(x_scales, 4 * i, e, f, g, h)


@kernel(WORDS, "SCALES", FLOATS, "SOURCE", FLOATS, INT, INTS, FLOATS, INT, FLOATS)
def down(codes, scales, bias, source, source_scales, stride, ids, shares, rows, out):  # type: ignore[no-untyped-def]
    """out[n] += Σ over k of shares[k] · (row n of expert ids[k] · source[k · stride …] + bias); bias [EXPERTS, rows]. With CODED,
    source and source_scales are what `gate_up_coded` leaves.

    The vectors of SLOTS experts are in shared memory at a time; a warp has a row of each, two by two.
    """
    x = cuda.shared.array(X_SIZE, X_TYPE, 16)
    x_scales = cuda.shared.array(S_SIZE, types.float32, 16)
    lane, first = cuda.threadIdx.x % WARP, cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP
    wait_for_launch_before()
    let_next_begin()
    for held in range(0, TOP, SLOTS):
        n, k, other = min(first, rows - 1), held, min(held + 1, TOP - 1)
        row, next_row = ids[k] * rows + n, ids[other] * rows + n
        a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, next_row, 0)
        if SLOTS > 2 and held + 2 < TOP:  # the next two are asked for
            ASK_FOR_TWO(codes, ids[held + 2] * rows + n, ids[min(held + 3, TOP - 1)] * rows + n, lane)
        if held > 0:
            cuda.syncthreads()  # the vectors before are done with
        BRING(source, source_scales, held, min(TOP - held, SLOTS), stride, x, x_scales)
        cuda.syncthreads()
        n = first
        while n < rows:
            total = out[n]
            for slot in range(0, SLOTS, 2):
                if held + slot < TOP:
                    k, other = held + slot, min(held + slot + 1, TOP - 1)
                    share, other_share = shares[k], shares[other]
                    if other == k:
                        other_share = np.float32(0)
                    if BIAS:
                        total += share * bias[row] + other_share * bias[next_row]
                    a, b = PAIR(
                        codes, scales, row, next_row, a_first, b_first, slot * QUADS, (other - held) * QUADS, x, x_scales
                    )
                    total += share * warp_sum(a) + other_share * warp_sum(b)
                    m, k, other = n, held + slot + 2, min(held + slot + 3, TOP - 1)
                    if slot + 2 >= SLOTS or k >= TOP:  # on to the next row
                        m, k, other = n + cuda.gridDim.x * WARPS, held, min(held + 1, TOP - 1)
                    if m < rows:
                        row, next_row = ids[k] * rows + m, ids[other] * rows + m
                        a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, next_row, 0)
            if lane == 0:
                out[n] = total
            n += cuda.gridDim.x * WARPS


def gate_up_kernel(shape: Shape, *, top: int, bias: bool, gate: int = SWIGLU, warps: int = 8) -> Kernel:
    """The first projection of the chosen experts: rows of this shape, gate and up in turn."""
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns}
    choice = {"TOP": top, "SLOT_OF": device(slot_of, TOP=top)}
    return gate_up.bind(**names, **choice, BIAS=int(bias), GATE=gate, **row_constants(shape, False, warps))


def gate_up_coded_kernel(shape: Shape, second: Shape, *, top: int, bias: bool, gate: int = SWIGLU, warps: int = 8) -> Kernel:
    """The same, for a second projection of rows of the shape `second`, see `takes_codes`."""
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns}
    out = {"OUT_QUADS": second.quads}
    choice = {"TOP": top, "SLOT_OF": device(slot_of, TOP=top), **out}
    code = device(code_group, PADDED=second.steps * WARP, PARTS=second.parts)
    rows = row_constants(shape, False, warps)
    return gate_up_coded.bind(**names, **choice, BIAS=int(bias), GATE=gate, CODE_GROUP=code, **rows)


def takes_codes(second: Shape, warps: int = 8) -> bool:
    """Whether the first projection may leave codes for a second one of this shape."""
    return second.quantized and second.columns % GROUP == 0 and GROUP % warps == 0


def down_kernel(shape: Shape, *, top: int, bias: bool, coded: bool = False, warps: int = 8) -> Kernel:
    """The second projection, weighted and added up."""
    slots = top + top % 2 if shape.quantized and shape.quads * top <= 2048 else 2
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns}
    constants = {**names, "TOP": top, "BIAS": int(bias), "SLOTS": slots, "QUADS": shape.quads, "CODED": int(coded)}
    rows = row_constants(shape, False, warps, slots)
    filled = rows.pop("FILL")
    bring = device(bring_codes, QUADS=shape.quads, WARPS=warps) if coded else device(bring_floats, FILL=filled)
    if not shape.quantized:
        rows["RESIDENT"] = 2
    return down.bind(**constants, SOURCE=WORDS if coded else FLOATS, BRING=bring, **rows)
