"""Products of a block of packed weights and int8 records of activations: sums of integers, scaled once per block."""

from __future__ import annotations

from collections.abc import Iterable

from numba_kernels.cpu.blocks import BLOCK, LAYOUTS, Layout, Shorts, has_signed_codes, is_narrow, raised_by, scales_of
from numba_kernels.cpu.records import OFFSETS
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I32, Builder, Value, same
from numba_kernels.simd.memory import splat_at
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import Bytes, Floats, Words


def four_bytes(b: Builder, address: Value) -> Value:
    """Four activation codes in every lane."""
    return b.bitcast(splat_at(b, address, I32), Bytes.llvm)


def times_int8(
    b: Builder, name: str, kind: str, codes: Value, scales: Value, block: Value, rows: list[Value], totals: list[Value]
) -> list[Value]:
    """One block of int8 activations: totals + scale · x_scale · Σ code · x, for each half by itself where the weights or the
    activations have scales for halves."""
    layout = LAYOUTS[name]
    assert layout.decode is not None
    scale, added = scales_of(b, name, scales, block)
    halves = 2 if layout.halves or kind == "int8_g16" else 1
    groups = _together(len(rows), halves)
    decoded = layout.decode(b, codes, raised_by(name))
    weights = decoded if halves == 1 and len(groups) == 1 else list(decoded)
    result = list(totals)
    for group in groups:
        starts = {t: starts_of(b, name, kind, rows[t]) for t in group}
        for h in range(halves):
            part = ((column, w) for column, w in weights if halves == 1 or column // 16 == h)
            begin = [starts[t][h] if raised_by(name) else None for t in group]
            products = _sums(b, name, part, [rows[t] for t in group], begin, 2 if len(rows) == 1 and halves == 1 else 1)
            for t, sums in zip(group, products, strict=True):
                result[t] = add_scaled(b, name, kind, rows[t], h, sums, scale, added, starts[t], result[t])
    return result


def _together(rows: int, halves: int) -> list[range]:
    """The rows in groups. Those of a group meet a vector of weights one after the other, before the next vector: a chain of dot
    products waits for itself, and the processor sees too few of them at once where one stands behind the other."""
    most = ACTIVE.together
    if halves == 2:  # a block's codes are all held until its second half
        most = max(2 * most // 3, 1)
    each = -(-rows // -(-rows // most))
    return [range(t, min(t + each, rows)) for t in range(0, rows, each)]


def _sums(
    b: Builder, name: str, weights: Iterable[tuple[int, Value]], rows: list[Value], starts: list[Value | None], chains: int
) -> list[Value]:
    """start + Σ code · x, Words, of each row, for codes and their columns. A row may have two chains of sums."""
    if is_narrow(name):
        pairs = list(weights)
        return [_narrow_sum(b, LAYOUTS[name], pairs, row, start) for row, start in zip(rows, starts, strict=True)]
    dot = ACTIVE.dot_signed if has_signed_codes(name) else ACTIVE.dot_unsigned
    zero = same(Words.llvm, 0)
    sums = [[zero if start is None else start, zero][:chains] for start in starts]
    for i, (column, w) in enumerate(weights):
        for its, row in zip(sums, rows, strict=True):
            its[i % chains] = dot(b, its[i % chains], w, four_bytes(b, emit.advance(b, row, column)))
    return [b.add(*its) if chains == 2 else its[0] for its in sums]


def _narrow_sum(b: Builder, layout: Layout, pairs: list[tuple[int, Value]], row: Value, start: Value | None) -> Value:
    """The same by way of 16-bit sums, which hold 16 columns each, or all 32 if codes are small. They may wrap: what fits is the
    sum of all products, start included."""
    each = len(pairs) if layout.reach <= 16 else 4
    total = None
    for first in range(0, len(pairs), each):
        sums = same(Shorts, 0) if start is None else start
        for column, w in pairs[first : first + each]:
            sums = ACTIVE.dot_narrow(b, sums, w, four_bytes(b, emit.advance(b, row, column)))
        total = widened(b, sums) if total is None else b.add(total, widened(b, sums))
    return total


def widened(b: Builder, sums: Value) -> Value:
    """16-bit sums, Shorts, added in pairs: Words."""
    return ACTIVE.dot_words(b, same(Words.llvm, 0), sums, same(Shorts, 1))


def add_scaled(
    b: Builder, name: str, kind: str, row: Value, half: int, products: Value, scale: list[Value], added: list[Value],
    starts: list[Value], total: Value, record: tuple[int, ...] = (),
) -> Value:  # fmt: skip
    """total + scale · x_scale · products of one half, or of the whole, and what the rows' minima add.

    `record`: where a row's scales, starts and sum are, if not as in OFFSETS.
    """
    layout = LAYOUTS[name]
    scale_at, _, sum_at = record or OFFSETS[kind]
    x_scale = splat_at(b, emit.advance(b, row, scale_at + (4 * half if kind == "int8_g16" else 0)), F32)
    total = ACTIVE.fma(b, b.sitofp(products, Floats.llvm), b.fmul(scale[half % len(scale)], x_scale), total)
    if added and layout.halves:  # Σ codes of the half, times −offset, is what it would start at
        start = widened(b, starts[half]) if ACTIVE.narrow_sums else starts[half]
        each = b.fmul(b.fmul(added[half], x_scale), same(Floats.llvm, -1.0 / ACTIVE.offset))
        return ACTIVE.fma(b, b.sitofp(start, Floats.llvm), each, total)
    if added and (half == 1 or kind != "int8_g16"):
        total = ACTIVE.fma(b, added[0], splat_at(b, emit.advance(b, row, sum_at), F32), total)
    return total


def starts_of(b: Builder, name: str, kind: str, row: Value) -> list[Value]:
    """What the sums of a block, or of each half, start with, −raised_by · Σ codes: Words, or Shorts where sums are narrow.
    A record that has only the whole sum leaves the first half's to be computed. Empty where nothing starts."""
    layout = LAYOUTS[name]
    if not (raised_by(name) or (layout.has_minimum and layout.halves)):
        return []
    start_at = OFFSETS[kind][1]
    narrow = ACTIVE.narrow_sums
    halves = 2 if layout.halves or kind == "int8_g16" else 1
    if halves == 1 or kind == "int8_g16":
        found = [splat_at(b, emit.advance(b, row, start_at + 4 * h), I32) for h in range(halves)]
        found = [b.bitcast(v, Shorts) for v in found] if narrow else found
    else:
        kind_of = Shorts if narrow else Words.llvm
        ones, first = same(Bytes.llvm, 1), same(kind_of, 0)
        for column in range(0, BLOCK // 2, 4):
            x = four_bytes(b, emit.advance(b, row, column))
            first = (ACTIVE.dot_narrow if narrow else ACTIVE.dot_unsigned)(b, first, ones, x)
        first = b.sub(same(kind_of, 0), b.mul(first, same(kind_of, ACTIVE.offset)))
        found = [first, b.sub(b.bitcast(splat_at(b, emit.advance(b, row, start_at), I32), kind_of), first)]
    twice = raised_by(name) == 2 * ACTIVE.offset
    return [b.add(v, v) for v in found] if twice else found
