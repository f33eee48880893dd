"""Products of a block of weights and float32 or bfloat16 activations: chains of multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence

from numba_kernels.cpu.blocks import BLOCK, LAYOUTS, UNIT, code_values, float_weights, pair_of_columns, scales_of
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I32, Builder, Value, same
from numba_kernels.simd.memory import splat_at
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import Floats


def times_float(
    b: Builder, name: str, codes: list[Value], scales: list[Value], block: Value, rows: list[Value], totals: list[Value]
) -> list[Value]:
    """One block of float32 activations against quantized weights: a total for each row and panel, numbered as in `accumulate`.
    The scale meets the sum over the block, where there is one scale and no minimum to be added first."""
    layout = LAYOUTS[name]
    found = [scales_of(b, name, s, block) for s in scales]
    scaled_first = layout.has_minimum or layout.halves
    sums = totals if scaled_first else [same(Floats.llvm, 0.0)] * len(totals)
    for panels in zip(*(code_values(b, layout, c) for c in codes), strict=True):
        column, weights = panels[0][0], [v for _, v in panels]
        if scaled_first:
            half = column // 16 if layout.halves else 0
            pairs = zip(weights, found, strict=True)
            weights = [ACTIVE.fma(b, w, s[half], m[half]) if m else b.fmul(w, s[half]) for w, (s, m) in pairs]
        x = [splat_at(b, emit.advance(b, row, 4 * column), F32) for row in rows]
        sums = add_products(b, weights, x, sums)
    if scaled_first:
        return sums
    pairs = zip(sums, totals, strict=True)
    return [ACTIVE.fma(b, s, found[n % len(found)][0][0], total) for n, (s, total) in enumerate(pairs)]


def add_products(b: Builder, weights: Sequence[Value], x: list[Value], totals: list[Value]) -> list[Value]:
    """totals + weights · x, for each of x and each of the weights. A total is always the same chain of sums, however many others
    there are beside it: a token's result does not depend on the tokens that it is computed with."""
    panels = len(weights)
    return [ACTIVE.fma(b, weights[n % panels], x[n // panels], total) for n, total in enumerate(totals)]


def times_bf16(b: Builder, codes: list[Value], rows: list[Value], totals: list[Value]) -> list[Value]:
    """UNIT columns of bf16 weights and bf16 activations, totals as in `times_float`."""
    for k in range(UNIT // 2):
        weights = [pair_of_columns(b, c, k) for c in codes]
        x = [splat_at(b, emit.advance(b, row, 4 * k), I32) for row in rows]
        totals = [ACTIVE.dot_pairs(b, total, weights[n % len(codes)], x[n // len(codes)]) for n, total in enumerate(totals)]
    return totals


def times_block(b: Builder, codes: list[Value], rows: list[Value], totals: list[Value]) -> list[Value]:
    """A block of bf16 weights and bf16 activations as matrix registers multiply it: chains of even and of odd columns that begin
    at zero, whose sum is added to the totals. See `matrix_floats`."""
    chains = []
    for odd in (0, 1):
        sums = [same(Floats.llvm, 0.0)] * len(totals)
        for k in range(BLOCK // 2):
            weights = [emit.bf16_halves(b, pair_of_columns(b, c, k))[odd] for c in codes]
            x = [emit.bf16_halves(b, splat_at(b, emit.advance(b, row, 4 * k), I32))[odd] for row in rows]
            sums = add_products(b, weights, x, sums)
        chains.append(sums)
    return [b.fadd(total, b.fadd(even, odd)) for total, even, odd in zip(totals, *chains, strict=True)]


def times_unit(b: Builder, name: str, codes: list[Value], rows: list[Value], totals: list[Value]) -> list[Value]:
    """UNIT columns of float weights and float32 activations, totals as in `times_float`."""
    for k, weights in enumerate(zip(*(float_weights(b, name, c) for c in codes), strict=True)):
        x = [splat_at(b, emit.advance(b, row, 4 * k), F32) for row in rows]
        totals = add_products(b, weights, x, totals)
    return totals
