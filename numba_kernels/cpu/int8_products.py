"""Products of a block of packed weights and int8 records of activations: sums of integers, scaled once per block."""

from __future__ import annotations

from typing import Any

from numba_kernels.cpu.blocks import BLOCK, LAYOUTS, Layout, Shorts, has_signed_codes, is_narrow, raised_by, scales_of
from numba_kernels.cpu.records import OFFSETS
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I32, I64, Builder, Value, same
from numba_kernels.simd.memory import splat_at
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import Bytes, Floats, Words


def four_bytes(b: Builder, address: Value) -> Value:
    """Four activation codes in every lane."""
    return b.bitcast(splat_at(b, address, I32), Bytes.llvm)


class Leaving:
    """Code for up to so many rows, one after the other, that is left before the first row that there is not.

    Rows that a tile lacks then cost nothing, and one tile serves any number of rows: the processor foresees where it leaves.
    """

    def __init__(self, b: Builder, count: Value, least: int) -> None:
        """count: how many rows there are; at least `least`."""
        self._b, self._count, self._least = b, count, least
        self._done: Any = None
        self._left: list[tuple[Any, int]] = []  # from which blocks, with how many rows done

    def before(self, row: int) -> None:
        """To be called before the code of each row."""
        if row < self._least:
            return
        self._done = self._done or self._b.append_basic_block("done")
        self._left.append((self._b.block, row))
        further = self._b.append_basic_block(f"row{row}")
        self._b.cbranch(self._b.icmp_signed(">", self._count, I64(row)), further, self._done)
        self._b.position_at_end(further)

    def join(self, results: list[Value], unchanged: list[Value]) -> list[Value]:
        """The results of rows that there are, and what the others had."""
        if not self._left:
            return results
        last = self._b.block
        self._b.branch(self._done)
        self._b.position_at_end(self._done)
        joined = []
        for t, (result, old) in enumerate(zip(results, unchanged, strict=True)):
            if t < self._least:
                joined.append(result)
                continue
            phi = self._b.phi(result.type)
            for block, done in self._left:
                phi.add_incoming(result if t < done else old, block)
            phi.add_incoming(result, last)
            joined.append(phi)
        return joined


def times_int8(
    b: Builder, name: str, kind: str, codes: Value, scales: Value, block: Value, rows: list[Value], totals: list[Value],
    leaving: Leaving | None = None,
) -> list[Value]:  # fmt: skip
    """One block of int8 activations: totals + scale · x_scale · Σ code · x, for each half by itself where the weights or the
    activations have scales for halves."""
    layout = LAYOUTS[name]
    assert layout.decode is not None
    weights = list(layout.decode(b, codes, raised_by(name)))
    scale, added = scales_of(b, name, scales, block)
    halves = 2 if layout.halves or kind == "int8_g16" else 1
    result: list[Value] = []
    for row, total in zip(rows, totals, strict=True):
        if leaving:
            leaving.before(len(result))
        starts = starts_of(b, name, kind, row)
        for h in range(halves):
            part = [(w, emit.advance(b, row, column)) for column, w in weights if halves == 1 or column // 16 == h]
            start = starts[h] if raised_by(name) else None
            if is_narrow(name):
                products = _narrow_sum(b, layout, part, start)
            else:
                products = _sum(b, name, part, start, 2 if len(rows) == 1 and halves == 1 else 1)
            total = add_scaled(b, name, kind, row, h, products, scale, added, starts, total)
        result.append(total)
    return leaving.join(result, totals) if leaving else result


def _sum(b: Builder, name: str, pairs: list[tuple[Value, Value]], start: Value | None, chains: int) -> Value:
    """start + Σ code · x, Words, for pairs of codes and the addresses of x. There may be two sums, as one waits for itself."""
    dot = ACTIVE.dot_signed if has_signed_codes(name) else ACTIVE.dot_unsigned
    zero = same(Words.llvm, 0)
    sums = [zero if start is None else start, zero][:chains]
    for i, (w, x) in enumerate(pairs):
        sums[i % chains] = dot(b, sums[i % chains], w, four_bytes(b, x))
    return b.add(*sums) if chains == 2 else sums[0]


def _narrow_sum(b: Builder, layout: Layout, pairs: list[tuple[Value, Value]], start: Value | None) -> Value:
    """The same by way of 16-bit sums, which hold 16 columns each, or all 32 if codes are small. They may wrap: what fits is the
    sum of all products, start included."""
    each = len(pairs) if layout.reach <= 16 else 4
    total = None
    for first in range(0, len(pairs), each):
        sums = same(Shorts, 0) if start is None else start
        for w, x in pairs[first : first + each]:
            sums = ACTIVE.dot_narrow(b, sums, w, four_bytes(b, x))
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
