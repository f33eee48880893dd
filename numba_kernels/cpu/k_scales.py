"""The scales of k-quants in registers: from the head of 256 columns, as `k_panels` lays it, to those of one 32 columns' groups.

A head holds the rows' half-precision d (and dmin, in those with minima), then the groups' whole numbers in ggml's own packing,
byte after byte for all rows. Which 32 columns are meant is known only when the code runs: shifts and masks follow from it.
"""

from __future__ import annotations

from llvmlite import ir

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import I8, I32, I64, Builder, Value, same
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import LANES, Floats, Words


def _half(b: Builder, address: Value) -> Value:
    return ACTIVE.half_to_float(b, emit.load(b, address, emit.vector(ir.IntType(16), LANES)))


def _bytes(b: Builder, start: Value, number: Value) -> Value:
    """A byte of every row, by its number from `start` on, as Words."""
    at = b.add(start, b.mul(number, I64(LANES)))
    return b.zext(emit.load(b, at, emit.vector(I8, LANES)), Words.llvm)


def _splat(b: Builder, value: Value) -> Value:
    return emit.splat(b, b.trunc(value, I32), LANES)


def _floats(b: Builder, words: Value) -> Value:
    return b.sitofp(words, Floats.llvm)


def group_scales(b: Builder, name: str, head: Value, block: Value) -> tuple[list[Value], list[Value]]:
    """The scales of the groups of one 32 columns, number `block` of the row, and what is added to their values, Floats each: one
    group or two, the second list empty where nothing is added."""
    number = b.and_(block, I64(7))
    if name in ("q4_k", "q5_k"):
        return _six_bit_pairs(b, head, number)
    first = b.shl(number, I64(1))
    d, start = _half(b, head), emit.advance(b, head, 2 * LANES)
    scales, added = [], []
    for group in (first, b.add(first, I64(1))):
        if name == "q6_k":
            signed = emit.load(b, b.add(start, b.mul(group, I64(LANES))), emit.vector(I8, LANES))
            scales.append(b.fmul(d, _floats(b, b.sext(signed, Words.llvm))))
        elif name == "q3_k":
            low = b.lshr(_bytes(b, start, b.and_(group, I64(7))), _splat(b, b.shl(b.lshr(group, I64(3)), I64(2))))
            upper = b.add(b.and_(group, I64(3)), I64(8))
            high = b.lshr(_bytes(b, start, upper), _splat(b, b.shl(b.lshr(group, I64(2)), I64(1))))
            six = b.or_(b.and_(low, same(low.type, 15)), b.shl(b.and_(high, same(high.type, 3)), same(high.type, 4)))
            scales.append(b.fmul(d, _floats(b, b.sub(six, same(six.type, 32)))))
        else:
            both = _bytes(b, emit.advance(b, start, 2 * LANES), group)
            dmin = b.fmul(_half(b, start), same(Floats.llvm, -1.0))
            scales.append(b.fmul(d, _floats(b, b.and_(both, same(both.type, 15)))))
            added.append(b.fmul(dmin, _floats(b, b.lshr(both, same(both.type, 4)))))
    return scales, added


def _six_bit_pairs(b: Builder, head: Value, number: Value) -> tuple[list[Value], list[Value]]:
    """q4_k and q5_k: of the first four blocks scales and minima are the lower six bits of bytes 0 to 3 and 4 to 7; of the others
    the nibbles of bytes 8 to 11, below the upper two bits of those before."""
    d, dmin = _half(b, head), b.fmul(_half(b, emit.advance(b, head, 2 * LANES)), same(Floats.llvm, -1.0))
    start, place = emit.advance(b, head, 4 * LANES), b.and_(number, I64(3))
    is_low = b.icmp_unsigned("<", number, I64(4))
    other = b.add(place, I64(8))
    mask = _splat(b, b.select(is_low, I64(63), I64(15)))
    upper = _splat(b, b.select(is_low, I64(0), I64(0x30)))
    shift = _splat(b, b.select(is_low, I64(0), I64(4)))
    results = []
    for first, down in ((place, None), (b.add(place, I64(4)), shift)):
        low = _bytes(b, start, b.select(is_low, first, other))
        low = b.and_(low if down is None else b.lshr(low, down), mask)
        high = b.lshr(_bytes(b, start, first), same(Words.llvm, 2))
        results.append(_floats(b, b.or_(low, b.and_(high, upper))))
    return [b.fmul(d, results[0])], [b.fmul(dmin, results[1])]
