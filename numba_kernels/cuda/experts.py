"""Mixture of experts for one token: the router, and the layers of the experts that it chose, which the device knows alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from numba_kernels.cuda.blocks import Shape
from numba_kernels.cuda.choice import Choice
from numba_kernels.cuda.intrinsics import let_next_begin, wait_for_launch_before
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
from numba_kernels.cuda.vectors import RESERVED

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
ONE = np.float32(1)


# ---- routing --------------------------------------------------------------------------------------------------------


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
    sums = cuda.shared.array(WARPS, types.float32, 16)
    chosen = cuda.shared.array(TOP, types.int32, 16)
    scores = cuda.shared.array(HELD, types.float32, 16)
    merits = cuda.shared.array(HELD, types.float32, 16)
    groups = cuda.shared.array(GROUPS, types.float32, 16)
    last = cuda.shared.array(1, types.int32, 16)
    thread, token = cuda.threadIdx.x, cuda.blockIdx.y
    at, first = token * stride, token * EXPERTS
    row = 2 * (cuda.blockIdx.x * WARPS + thread // WARP)
    if row < EXPERTS:
        ASK_FOR_ROWS(codes, scales, row, min(EXPERTS - row, 2), MOST, thread % WARP)
    ASK_FOR_WEIGHT(weight)
    wait_for_launch_before()
    let_next_begin()
    gain = PREPARE(source, at, weight, epsilon, x, x_scales, sums)
    if cuda.blockIdx.x == 0:
        for i in range(thread, COLUMNS, WARPS * WARP):
            normed[at + i] = source[at + i] * gain * weight[i] if NORM else source[at + i]
    while row < EXPERTS:
        other = min(row + 1, EXPERTS - 1)
        a, b = PAIR(codes, scales, row, other, 0, 0, x, x_scales)
        if thread % WARP == 0:
            logits[first + row] = a * gain + bias[row] if BIAS else a * gain
            logits[first + other] = b * gain + bias[other] if BIAS else b * gain
        row += 2 * cuda.gridDim.x * WARPS
    cuda.threadfence()
    cuda.syncthreads()
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
    rows = row_constants(shape, norm, warps, aligned=aligned)
    scales = rows["S_SIZE"] if shape.quantized else 0
    words = rows["X_SIZE"] + scales + RESERVED + choice.top + 2 * choice.held + choice.groups
    require_shared(4 * words, f"{choice.experts} experts and vectors of {shape.columns} values")
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns, "CHOICE": choice.name}
    constants = {"EXPERTS": choice.experts, "TOP": choice.top, "HELD": choice.held, "GROUPS": choice.groups}
    return route.bind(**names, NORM=int(norm), BIAS=int(bias), **constants, CHOOSE=choice.function(), **rows)


# ---- the experts ----------------------------------------------------------------------------------------------------


@device
def swiglu(gate: Any, up: Any, limit: Any, alpha: Any) -> Any:
    """gpt-oss's clamped gate: gate · σ(alpha · gate) · (up + 1) after gate ≤ limit and −limit ≤ up ≤ limit. NaN stays NaN."""
    gate = limit if gate > limit else gate
    up = limit if up > limit else up
    up = -limit if up < -limit else up
    return gate / (ONE + np.float32(math.exp(-alpha * gate))) * (up + ONE)


@kernel(WORDS, "SCALES", FLOATS, FLOATS, INTS, INT, INT, FLOAT, FLOAT, FLOATS)
def gate_up(codes, scales, bias, source, ids, inner, stride, limit, alpha, out):  # type: ignore[no-untyped-def]
    """out[k · stride + i] = swiglu, or silu, of rows 2i and 2i + 1 of expert ids[k] with source [COLUMNS]; bias [EXPERTS,
    2 · inner]."""
    x = cuda.shared.array(X_SIZE, X_TYPE, 16)
    x_scales = cuda.shared.array(S_SIZE, types.float32, 16)
    lane, pair = cuda.threadIdx.x % WARP, cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP
    wait_for_launch_before()
    let_next_begin()
    if pair < TOP * inner:
        ASK_FOR_ROWS(codes, scales, 2 * (ids[pair // inner] * inner + pair % inner), 2, MOST, lane)
    FILL(source, 0, 0, 1, source, x, x_scales)
    cuda.syncthreads()
    while pair < TOP * inner:
        slot, i = pair // inner, pair % inner
        row = 2 * (ids[slot] * inner + i)
        a, b = PAIR(codes, scales, row, row + 1, 0, 0, x, x_scales)
        if BIAS:
            a += bias[row]
            b += bias[row + 1]
        if lane == 0:
            out[slot * stride + i] = swiglu(a, b, limit, alpha) if GATE == SWIGLU else silu(a, b)
        pair += cuda.gridDim.x * WARPS


@kernel(WORDS, "SCALES", FLOATS, FLOATS, INT, INTS, FLOATS, INT, FLOATS)
def down(codes, scales, bias, source, stride, ids, shares, rows, out):  # type: ignore[no-untyped-def]
    """out[n] += Σ over k of shares[k] · (row n of expert ids[k] · source[k · stride …] + bias); bias [EXPERTS, rows].

    The vectors of SLOTS experts are in shared memory at a time; a warp has a row of each, two by two.
    """
    x = cuda.shared.array(X_SIZE, X_TYPE, 16)
    x_scales = cuda.shared.array(S_SIZE, types.float32, 16)
    lane, first = cuda.threadIdx.x % WARP, cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP
    wait_for_launch_before()
    let_next_begin()
    if first < rows:
        for k in range(TOP):
            ASK_FOR_ROWS(codes, scales, ids[k] * rows + first, 1, MOST, lane)
    for held in range(0, TOP, SLOTS):
        if held > 0:
            cuda.syncthreads()  # the vectors before are done with
        FILL(source, held * stride, stride, min(TOP - held, SLOTS), source, x, x_scales)
        cuda.syncthreads()
        n = first
        while n < rows:
            total = out[n]
            for slot in range(0, SLOTS, 2):
                if held + slot < TOP:
                    k, other = held + slot, min(held + slot + 1, TOP - 1)
                    row, next_row = ids[k] * rows + n, ids[other] * rows + n
                    a, b = PAIR(codes, scales, row, next_row, slot * QUADS, (other - held) * QUADS, x, x_scales)
                    if BIAS:
                        a += bias[row]
                        b += bias[next_row]
                    total += shares[k] * a
                    if other > k:
                        total += shares[other] * b
            if lane == 0:
                out[n] = total
            n += cuda.gridDim.x * WARPS


def gate_up_kernel(shape: Shape, *, top: int, bias: bool, gate: int = SWIGLU, warps: int = 8) -> Kernel:
    """The first projection of the chosen experts: rows of this shape, gate and up in turn."""
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns}
    return gate_up.bind(**names, TOP=top, BIAS=int(bias), GATE=gate, **row_constants(shape, False, warps))


def down_kernel(shape: Shape, *, top: int, bias: bool, warps: int = 8) -> Kernel:
    """The second projection, weighted and added up."""
    slots = top + top % 2 if shape.quantized and shape.quads * top <= 2048 else 2
    names = {"FORMAT": shape.format, "KIND": shape.activations, "COLUMNS": shape.columns}
    constants = {**names, "TOP": top, "BIAS": int(bias), "SLOTS": slots, "QUADS": shape.quads}
    return down.bind(**constants, **row_constants(shape, False, warps, slots))
