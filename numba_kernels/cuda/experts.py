"""The layers of the experts that a router chose, for one token, whose numbers the device knows alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_kernels.cuda.activations import silu, swiglu
from numba_kernels.cuda.blocks import GROUP, Shape
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.intrinsics import (
    let_next_begin,
    load_floats,
    load_words,
    store_floats,
    store_words,
    wait_for_launch_before,
    warp_sum,
)  # fmt: skip
from numba_kernels.cuda.matvec import row_constants
from numba_kernels.cuda.seam import FLOAT, FLOATS, INT, INTS, SHARED, WARP, WORDS, Kernel, cuda, device, kernel, types
from numba_kernels.cuda.vectors import RESERVED, code_group, prepare_early

WARPS = 8
FORMAT = KIND = ""  # in the kernel's name
COLUMNS = 0
X_SIZE = S_SIZE = QUADS = 1
X_TYPE: Any = None
SCALES: Any = None
FILL: Any = None
PREPARE: Any = None
ASK_FOR_ROWS: Any = None
ASK_FOR_TWO: Any = None
PAIR: Any = None
CHUNKS_OF: Any = None
SLOT_OF: Any = None
BIAS = GATE = ALIGNED = 0
TOP = 1
SLOTS = 1  # vectors in shared memory at once
SILU, SWIGLU = 0, 1
RESIDENT = 3  # blocks of a multiprocessor
CHOOSES = 0  # whether the experts are chosen by each block, from the logits
KEYS = 1
BEST: Any = None
PREPARE_EARLY: Any = None
CODED = 0  # whether vectors come as codes
TWO_GROUPS = 2 * GROUP
OUT_QUADS = 1
SOURCE: Any = None
BRING: Any = None
CODE_GROUP: Any = None
ONE = np.float32(1)


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


@kernel(WORDS, "SCALES", FLOATS, FLOATS, FLOATS, FLOAT, FLOATS, INTS, INT, FLOAT, FLOAT, WORDS, FLOATS)
def gate_up_coded(  # type: ignore[no-untyped-def]
    codes, scales, bias, source, weight, epsilon, logits, ids, inner, limit, alpha, out, out_scales
):  # fmt: skip
    """The same, whose values are left as the second projection takes them: as codes, out [TOP, 4 · OUT_QUADS], with a scale for
    each 16, out_scales [TOP, OUT_QUADS]. inner is a multiple of 16, and so many values at a time are a block's.

    With CHOOSES the experts are those of the largest `logits`, and x is source normalized, with `weight`, while the launch
    before, the router's, still runs: source was there before it.
    """
    x = cuda.shared.array(X_SIZE, X_TYPE, 16)
    x_scales = cuda.shared.array(S_SIZE, types.float32, 16)
    values = cuda.shared.array(
        TWO_GROUPS, types.float32, 16
    )  # of two groups in turn: one is read while the other is written
    sums = cuda.shared.array(WARPS, types.float32, 16)
    keys = cuda.shared.array(KEYS, types.uint32, 16)
    chosen = cuda.shared.array(TOP, types.int32, 16)
    parts = cuda.shared.array(TOP, types.float32, 16)
    lane, warp = cuda.threadIdx.x % WARP, cuda.threadIdx.x // WARP
    groups, group, half, turn = TOP * inner // GROUP, cuda.blockIdx.x, 0, 0
    gain = ONE
    if CHOOSES:
        gain = PREPARE_EARLY(source, 0, weight, epsilon, x, x_scales, sums)
    wait_for_launch_before()
    let_next_begin()
    if CHOOSES:
        if warp == 0:
            BEST(logits, keys, chosen, parts, ONE)
        cuda.syncthreads()
    pair = min(group, groups - 1) * GROUP + warp
    slot = SLOT_OF(pair, inner)
    row = 2 * ((chosen[slot] if CHOOSES else ids[slot]) * inner + pair - slot * inner)
    a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, row + 1, 0)
    if not CHOOSES:
        FILL(source, 0, 0, 1, x, x_scales)
        cuda.syncthreads()
    while group < groups:
        first = second = np.float32(0)
        if BIAS:
            first += bias[row]
            second += bias[row + 1]
        a, b = PAIR(codes, scales, row, row + 1, a_first, b_first, 0, 0, x, x_scales)
        a, b = warp_sum(a) * gain + first, warp_sum(b) * gain + second
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
            row = 2 * ((chosen[slot] if CHOOSES else ids[slot]) * inner + pair - slot * inner)
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


@kernel(WORDS, "SCALES", FLOATS, "SOURCE", FLOATS, INT, FLOATS, FLOAT, INTS, FLOATS, INT, FLOATS)
def down(  # type: ignore[no-untyped-def]
    codes, scales, bias, source, source_scales, stride, logits, share_scale, ids, shares, rows, out
):  # fmt: skip
    """out[n] += Σ over k of shares[k] · (row n of expert ids[k] · source[k · stride …] + bias); bias [EXPERTS, rows]. With CODED,
    source and source_scales are what `gate_up_coded` leaves.

    With CHOOSES the experts are chosen from `logits`, while the launch before, that of `gate_up_coded`, still runs: the
    logits were there before it.
    The vectors of SLOTS experts are in shared memory at a time; a warp has a row of each, two by two.
    """
    x = cuda.shared.array(X_SIZE, X_TYPE, 16)
    x_scales = cuda.shared.array(S_SIZE, types.float32, 16)
    keys = cuda.shared.array(KEYS, types.uint32, 16)
    chosen = cuda.shared.array(TOP, types.int32, 16)
    parts = cuda.shared.array(TOP, types.float32, 16)
    lane, first = cuda.threadIdx.x % WARP, cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP
    if CHOOSES:
        if cuda.threadIdx.x < WARP:
            BEST(logits, keys, chosen, parts, share_scale)
    else:
        wait_for_launch_before()
        let_next_begin()
        if cuda.threadIdx.x < TOP:
            chosen[cuda.threadIdx.x], parts[cuda.threadIdx.x] = ids[cuda.threadIdx.x], shares[cuda.threadIdx.x]
    cuda.syncthreads()
    for held in range(0, TOP, SLOTS):
        n, k, other = min(first, rows - 1), held, min(held + 1, TOP - 1)
        row, next_row = chosen[k] * rows + n, chosen[other] * rows + n
        a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, next_row, 0)
        if SLOTS > 2 and held + 2 < TOP:  # the next two are asked for
            ASK_FOR_TWO(codes, chosen[held + 2] * rows + n, chosen[min(held + 3, TOP - 1)] * rows + n, lane)
        if held > 0:
            cuda.syncthreads()  # the vectors before are done with
        if CHOOSES:
            wait_for_launch_before()
            let_next_begin()
        BRING(source, source_scales, held, min(TOP - held, SLOTS), stride, x, x_scales)
        cuda.syncthreads()
        n = first
        while n < rows:
            total = out[n]
            for slot in range(0, SLOTS, 2):
                if held + slot < TOP:
                    k, other = held + slot, min(held + slot + 1, TOP - 1)
                    share, other_share = parts[k], parts[other]
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
                        row, next_row = chosen[k] * rows + m, chosen[other] * rows + m
                        a_first, b_first = CHUNKS_OF(codes, scales, row, 0), CHUNKS_OF(codes, scales, next_row, 0)
            if lane == 0:
                out[n] = total
            n += cuda.gridDim.x * WARPS


def gate_up_kernel(shape: Shape, *, top: int, bias: bool, gate: int = SWIGLU, warps: int = 8) -> Kernel:
    """The first projection of the chosen experts: rows of this shape, gate and up in turn."""
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns}
    choice = {"TOP": top, "SLOT_OF": device(slot_of, TOP=top)}
    return gate_up.bind(**names, **choice, BIAS=int(bias), GATE=gate, **row_constants(shape, False, warps))


def gate_up_coded_kernel(
    shape: Shape, second: Shape, *, top: int, bias: bool, gate: int = SWIGLU, warps: int = 8, choice: Choice | None = None
) -> Kernel:
    """The same, for a second projection of rows of the shape `second`, see `takes_codes`; with a choice, each block makes it."""
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns}
    out = {"OUT_QUADS": second.quads}
    slots = {"TOP": top, "SLOT_OF": device(slot_of, TOP=top), **out}
    code = device(code_group, PADDED=second.steps * WARP, PARTS=second.parts, PART_BITS=second.parts.bit_length() - 1)
    rows = row_constants(shape, False, warps) | _choosing(choice, False)
    if choice:
        rows["PREPARE_EARLY"] = prepare_early(shape, warps)
    return gate_up_coded.bind(**names, **slots, BIAS=int(bias), GATE=gate, CODE_GROUP=code, **rows)


def _choosing(choice: Choice | None, shares: bool) -> dict[str, Any]:
    """What kernels need that choose."""
    return {"CHOOSES": 1, "KEYS": choice.experts, "BEST": choice.best(shares)} if choice else {}


def may_choose(choice: Choice, first: Shape, second: Shape, warps: int = 8) -> bool:
    """Whether blocks of both projections can choose the experts by themselves, so that the router need not."""
    slots = choice.top + choice.top % 2
    fits = 4 * (5 * max(first.quads, second.quads * slots) + choice.experts + RESERVED) <= SHARED
    return (
        choice.is_plain
        and choice.top <= WARP
        and takes_codes(second, warps)
        and first.columns % 4 == 0
        and _slots(second, choice.top) >= choice.top
        and fits
    )


def takes_codes(second: Shape, warps: int = 8) -> bool:
    """Whether the first projection may leave codes for a second one of this shape."""
    return second.quantized and second.columns % GROUP == 0 and GROUP % warps == 0


def _slots(shape: Shape, top: int) -> int:
    """How many vectors of the second projection are in shared memory at once."""
    return top + top % 2 if shape.quantized and shape.quads * top <= 2048 else 2


def down_kernel(
    shape: Shape, *, top: int, bias: bool, coded: bool = False, warps: int = 8, choice: Choice | None = None
) -> Kernel:
    """The second projection, weighted and added up; with a choice, each block makes it."""
    slots = _slots(shape, top)
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns}
    constants = {
        **names,
        "TOP": top,
        "BIAS": int(bias),
        "SLOTS": slots,
        "QUADS": shape.quads,
        "CODED": int(coded),
    } | _choosing(choice, True)
    rows = row_constants(shape, False, warps, slots)
    filled = rows.pop("FILL")
    bring = device(bring_codes, QUADS=shape.quads, WARPS=warps) if coded else device(bring_floats, FILL=filled)
    if not shape.quantized:
        rows["RESIDENT"] = 2
    return down.bind(**constants, SOURCE=WORDS if coded else FLOATS, BRING=bring, **rows)
