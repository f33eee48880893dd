"""What number formats need of vectors beside arithmetic: stored precisions, rounding, codes, comparisons.

All of it is exact integer arithmetic or single IEEE operations, so every path makes the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I1, I8, I32, I64, Builder, Value
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import LANES, Address, Float, Floats, Int, Void, Words, operation

LARGEST_INVERSE = float(np.float32(3.4e38))
CANDIDATES = 16  # what a search tries side by side: one or two vectors


def _words(value: int) -> Value:
    return emit.same(Words.llvm, value)


def _magnitude(b: Builder, x: Value) -> tuple[Value, Value]:
    """The bits of |x|, and the sign bit."""
    bits = b.bitcast(x, Words.llvm)
    return b.and_(bits, _words(0x7FFFFFFF)), b.and_(bits, _words(0x80000000))


# ---- counts ---------------------------------------------------------------------------------------------------------


@operation(Int, Int, Int)
def quotient(b: Builder, x: Value, y: Value) -> Value:
    """x // y of counts below 2^32: a division of 64 bits takes several times as long, and Python's has a sign to look at."""
    return b.zext(b.udiv(b.trunc(x, I32), b.trunc(y, I32)), I64)


@operation(Int, Int, Int)
def remainder(b: Builder, x: Value, y: Value) -> Value:
    """x % y of counts below 2^32."""
    return b.zext(b.urem(b.trunc(x, I32), b.trunc(y, I32)), I64)


# ---- words ----------------------------------------------------------------------------------------------------------


@operation(Words, Int)
def splat_words(b: Builder, value: Value) -> Value:
    """All lanes set to the low 32 bits of an integer."""
    return emit.splat(b, b.trunc(value, I32), LANES)


@operation(Words, Floats)
def truncate(b: Builder, x: Value) -> Value:
    """The whole parts of lanes within int32."""
    return b.fptosi(x, Words.llvm)


@operation(Words, Floats)
def as_words(b: Builder, x: Value) -> Value:
    """The bits of each lane."""
    return b.bitcast(x, Words.llvm)


@operation(Floats, Words)
def from_words(b: Builder, x: Value) -> Value:
    """The floats of these bits."""
    return b.bitcast(x, Floats.llvm)


@operation(Void, Address, Words)
def store_pairs(b: Builder, address: Value, codes: Value) -> None:
    """Stores 4-bit codes, LANES / 2 bytes: in each two neighbours, the first in the lower nibble."""
    low, high = (emit.shuffle(b, codes, codes, range(first, LANES, 2)) for first in (0, 1))
    both = b.or_(low, b.shl(high, emit.same(low.type, 4)))
    emit.store(b, b.trunc(both, emit.vector(I8, LANES // 2)), address)


@operation(Words, Address)
def load_pairs(b: Builder, address: Value) -> Value:
    """The 4-bit codes that `store_pairs` stored."""
    pairs = emit.load(b, address, emit.vector(I8, LANES // 2))
    twice = b.zext(emit.shuffle(b, pairs, pairs, [i // 2 for i in range(LANES)]), Words.llvm)
    return b.and_(b.lshr(twice, emit.constant(I32, [0, 4] * (LANES // 2))), _words(15))


@operation(Int, Words)
def fifth_bits(b: Builder, x: Value) -> Value:
    """Bit 4 of every lane, that of lane i as bit i."""
    return _bits(b, b.icmp_unsigned("!=", b.and_(x, _words(16)), _words(0)))


def _bits(b: Builder, mask: Value) -> Value:
    return b.zext(b.bitcast(mask, ir.IntType(mask.type.count)), I64)


# ---- the precisions in which scales are stored ----------------------------------------------------------------------


@operation(Floats, Floats)
def as_half(b: Builder, x: Value) -> Value:
    """x rounded to half precision, ties to even. Finite values beyond the range become the largest; NaN and infinity stay."""
    bits, sign = _magnitude(b, x)
    odd = b.and_(b.lshr(bits, _words(13)), _words(1))
    normal = b.and_(b.add(bits, b.add(odd, _words(0xFFF))), _words(0xFFFFE000))
    normal = b.select(b.icmp_signed("<", normal, _words(0x477FE000)), normal, _words(0x477FE000))
    half = emit.same(Floats.llvm, 0.5)  # whose last place is that of half precision's denormals
    small = b.bitcast(b.fsub(b.fadd(b.bitcast(bits, Floats.llvm), half), half), Words.llvm)
    rounded = b.select(b.icmp_signed("<", bits, _words(0x38800000)), small, normal)
    rounded = b.select(b.icmp_signed(">=", bits, _words(0x7F800000)), bits, rounded)
    return b.bitcast(b.or_(rounded, sign), Floats.llvm)


@operation(Floats, Floats)
def as_bfloat16(b: Builder, x: Value) -> Value:
    """x rounded to bfloat16, ties to even. Finite values beyond the range become the largest; NaN and infinity stay."""
    bits, sign = _magnitude(b, x)
    odd = b.and_(b.lshr(bits, _words(16)), _words(1))
    rounded = b.and_(b.add(bits, b.add(odd, _words(0x7FFF))), _words(0xFFFF0000))
    rounded = b.select(b.icmp_signed("<", rounded, _words(0x7F7F0000)), rounded, _words(0x7F7F0000))
    rounded = b.select(b.icmp_signed(">=", bits, _words(0x7F800000)), bits, rounded)
    return b.bitcast(b.or_(rounded, sign), Floats.llvm)


@operation(Floats, Floats)
def reciprocal(b: Builder, x: Value) -> Value:
    """1 / x; 0 where that is infinite."""
    inverse = b.fdiv(emit.same(Floats.llvm, 1.0), x)
    magnitude = emit.call(b, f"llvm.fabs.v{LANES}f32", x.type, [inverse])
    finite = b.fcmp_ordered("<=", magnitude, emit.same(Floats.llvm, LARGEST_INVERSE))
    return b.select(finite, inverse, emit.same(Floats.llvm, 0.0))


# ---- rounding -------------------------------------------------------------------------------------------------------


@operation(Floats, Floats)
def round_even(b: Builder, x: Value) -> Value:
    """The nearest integer, ties to even, for |x| < 2^22."""
    return ACTIVE.round_even(b, x)


@operation(Floats, Floats)
def round_away(b: Builder, x: Value) -> Value:
    """The nearest integer, ties away from zero (C's roundf), for |x| < 2^22; +0 for 0."""
    bits, sign = _magnitude(b, x)
    magnitude = b.bitcast(bits, x.type)
    whole = b.sitofp(b.fptosi(magnitude, Words.llvm), x.type)
    rest = b.fsub(magnitude, whole)
    more = b.sitofp(b.fptosi(b.fadd(rest, rest), Words.llvm), x.type)
    return b.bitcast(b.or_(b.bitcast(b.fadd(whole, more), Words.llvm), sign), x.type)


@operation(Floats, Floats)
def round_e2m1(b: Builder, x: Value) -> Value:
    """The nearest e2m1 value of a magnitude, ties to even; 6 for everything above."""
    six = emit.same(x.type, 6.0)
    x = b.select(b.fcmp_ordered("<", x, six), x, six)
    exponent = b.and_(b.bitcast(x, Words.llvm), _words(0x7F800000))
    one = _words(0x3F800000)  # below 2 the steps are those at 1
    exponent = b.select(b.icmp_signed(">", exponent, one), exponent, one)
    rounder = b.bitcast(b.add(exponent, _words((22 << 23) + 0x400000)), x.type)  # 1.5 · 2^22 · the power of two
    return b.fsub(b.fadd(x, rounder), rounder)


def e2m1_rounding(name: str, ties: str) -> Any:
    """An operation Floats -> Words: the e2m1 codes 0 … 7 of magnitudes; ties go down, to even or away from zero."""

    def body(b: Builder, x: Value) -> Value:
        six = emit.same(x.type, 6.0)
        x = b.select(b.fcmp_ordered("<", x, six), x, six)
        bits = b.bitcast(x, Words.llvm)
        half = _words(0x200000 if ties == "away" else 0x1FFFFF)
        if ties == "even":
            half = b.add(half, b.and_(b.lshr(bits, _words(22)), _words(1)))
        normal = b.sub(b.lshr(b.add(bits, half), _words(22)), _words(252))
        first, second = (">=" if ties == "away" else ">"), (">" if ties == "down" else ">=")
        small = b.zext(b.fcmp_ordered(first, x, emit.same(x.type, 0.25)), Words.llvm)
        small = b.add(small, b.zext(b.fcmp_ordered(second, x, emit.same(x.type, 0.75)), Words.llvm))
        return b.select(b.fcmp_ordered("<", x, emit.same(x.type, 1.0)), small, normal)

    body.__name__, body.__doc__ = name, e2m1_rounding.__doc__
    return operation(Words, Floats)(body)


@operation(Words, Words, Floats)
def with_signs(b: Builder, codes: Value, x: Value) -> Value:
    """e2m1 codes with the signs of x, those of zero too."""
    return b.or_(codes, b.and_(b.lshr(b.bitcast(x, Words.llvm), _words(28)), _words(8)))


@operation(Words, Words, Floats)
def with_signs_unless_zero(b: Builder, codes: Value, x: Value) -> Value:
    """e2m1 codes with the signs of x; a code of zero gets none."""
    signs = b.and_(b.lshr(b.bitcast(x, Words.llvm), _words(28)), _words(8))
    return b.select(b.icmp_signed(">", codes, _words(0)), b.or_(codes, signs), codes)


@operation(Floats, Words)
def e2m1_values(b: Builder, codes: Value) -> Value:
    """The values of e2m1 codes 0 … 15."""
    magnitude = b.shl(b.and_(codes, _words(7)), _words(22))
    one = _words(0x3F800000)
    small = b.fsub(b.bitcast(b.add(magnitude, one), Floats.llvm), emit.same(Floats.llvm, 1.0))
    normal = b.add(magnitude, _words(126 << 23))
    is_small = b.icmp_signed("<", magnitude, _words(2 << 22))
    value = b.select(is_small, b.bitcast(small, Words.llvm), normal)
    return b.bitcast(b.or_(value, b.shl(b.and_(codes, _words(8)), _words(28))), Floats.llvm)


@operation(Float, Floats)
def first_lane(b: Builder, x: Value) -> Value:
    """Lane 0."""
    return b.extract_element(x, I32(0))


@operation(Floats, Floats, Float)
def with_first(b: Builder, x: Value, value: Value) -> Value:
    """x with another first lane."""
    return b.insert_element(x, value, I32(0))


@operation(Words, Words, Words)
def larger_words(b: Builder, x: Value, y: Value) -> Value:
    """The larger int32 of each lane."""
    return b.select(b.icmp_signed(">", x, y), x, y)


@operation(Words, Words, Words)
def smaller_words(b: Builder, x: Value, y: Value) -> Value:
    """The smaller int32 of each lane."""
    return b.select(b.icmp_signed("<", x, y), x, y)


# ---- comparisons ----------------------------------------------------------------------------------------------------


@operation(Float, Floats)
def min_lanes(b: Builder, x: Value) -> Value:
    """The least lane."""
    return emit.reduce(b, x, lambda p, q: b.select(b.fcmp_ordered("<", p, q), p, q))


@operation(Floats, Floats, Floats, Floats, Floats)
def where_more(b: Builder, x: Value, y: Value, first: Value, second: Value) -> Value:
    """`first` in lanes where x > y, else `second`, also where x or y is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), first, second)


@operation(Int, Address, Float)
def least_lane(b: Builder, errors: Value, sure: Value) -> Value:
    """The first of CANDIDATES float32 of least error; 0 unless that is below sure · the first error. NaN is never less."""
    kind = emit.vector(F32, CANDIDATES)
    found = emit.load(b, errors, kind)
    infinite = emit.same(kind, float("inf"))
    found = b.select(b.fcmp_ordered("<", found, infinite), found, infinite)
    least = emit.reduce(b, found, lambda p, q: b.select(b.fcmp_ordered("<", p, q), p, q))
    lane = b.cttz(_bits(b, b.fcmp_ordered("==", found, emit.splat(b, least, CANDIDATES))), I1(0))
    surely = b.fcmp_ordered("<", least, b.fmul(emit.load(b, errors, F32), sure))
    return b.select(surely, lane, I64(0))


# ---- tables ---------------------------------------------------------------------------------------------------------


def table_codes(name: str, midpoints: list[float]) -> Any:
    """An operation Floats -> Words: how many of 15 ascending midpoints each lane reaches."""

    def body(b: Builder, x: Value) -> Value:
        if not ACTIVE.float_tables:
            code = _words(0)
            for midpoint in midpoints:
                code = b.sub(code, b.sext(b.fcmp_ordered(">=", x, emit.same(x.type, midpoint)), Words.llvm))
            return code
        code = _words(0)
        for step in (8, 4, 2, 1):
            place = b.add(code, _words(step - 1))
            reached = b.fcmp_ordered(">=", x, ACTIVE.lookup_floats(b, [*midpoints, 0.0], place))
            code = b.select(reached, b.add(code, _words(step)), code)
        return code

    body.__name__, body.__doc__ = name, table_codes.__doc__
    return operation(Words, Floats)(body)


def table_values(name: str, values: list[float]) -> Any:
    """An operation Words -> Floats: the value of each lane's code, 0 … 15."""

    def body(b: Builder, codes: Value) -> Value:
        if ACTIVE.float_tables:
            return ACTIVE.lookup_floats(b, values, codes)
        level = [emit.same(Floats.llvm, value) for value in values]
        for bit in range(4):
            is_set = b.icmp_unsigned("!=", b.and_(codes, _words(1 << bit)), _words(0))
            level = [b.select(is_set, high, low) for low, high in zip(level[::2], level[1::2], strict=True)]
        return level[0]

    body.__name__, body.__doc__ = name, table_values.__doc__
    return operation(Floats, Words)(body)


@operation(Int, Floats, Floats, Floats)
def count_outside(b: Builder, x: Value, low: Value, high: Value) -> Value:
    """How many lanes are below low or above high."""
    return b.ctpop(_bits(b, _outside(b, x, low, high)))


@operation(Int, Floats, Floats, Floats, Int)
def count_first_outside(b: Builder, x: Value, low: Value, high: Value, count: Value) -> Value:
    """How many of the first `count` lanes are below low or above high."""
    first = b.icmp_signed("<", emit.constant(I32, range(LANES)), emit.splat(b, b.trunc(count, I32), LANES))
    return b.ctpop(_bits(b, b.and_(_outside(b, x, low, high), first)))


def _outside(b: Builder, x: Value, low: Value, high: Value) -> Value:
    return b.or_(b.fcmp_ordered("<", x, low), b.fcmp_ordered(">", x, high))
