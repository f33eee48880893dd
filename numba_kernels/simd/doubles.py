"""Sums and maxima in float64, eight lanes in one order, so every path makes the same bits."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F64, Builder, Value
from numba_kernels.simd.values import LANES, Address, Floats, Vector, Void, operation

Doubles = Vector("f64", F64, 8)


def _halves(b: Builder, x: Value) -> list[Value]:
    """Eight lanes after another, as float64."""
    return [b.fpext(emit.shuffle(b, x, x, range(at, at + 8)), Doubles.llvm) for at in range(0, LANES, 8)]


@operation(Doubles)
def no_doubles(b: Builder) -> Value:
    """Eight zeros."""
    return ir.Constant(Doubles.llvm, None)


@operation(Doubles, Doubles, Floats)
def add_first(b: Builder, sums: Value, x: Value) -> Value:
    """sums + lanes 0 … 7."""
    return b.fadd(sums, _halves(b, x)[0])


@operation(Doubles, Doubles, Floats)
def add_last(b: Builder, sums: Value, x: Value) -> Value:
    """sums + the last eight lanes."""
    return b.fadd(sums, _halves(b, x)[-1])


@operation(Void, Address, Doubles)
def store_doubles(b: Builder, address: Value, x: Value) -> None:
    """Stores eight float64."""
    emit.store(b, x, address)


@operation(Doubles, Doubles, Floats)
def add_squares(b: Builder, sums: Value, x: Value) -> Value:
    """sums + x², eight lanes after another."""
    for part in _halves(b, x):
        sums = b.fadd(sums, b.fmul(part, part))
    return sums


@operation(Doubles, Doubles, Floats, Floats)
def add_squared_errors(b: Builder, sums: Value, x: Value, y: Value) -> Value:
    """sums + (x − y)², eight lanes after another."""
    for p, q in zip(_halves(b, x), _halves(b, y), strict=True):
        difference = b.fsub(p, q)
        sums = b.fadd(sums, b.fmul(difference, difference))
    return sums


@operation(Doubles, Doubles, Floats, Floats)
def larger_error(b: Builder, most: Value, x: Value, y: Value) -> Value:
    """The larger of most and |x − y|; most where that is NaN."""
    for p, q in zip(_halves(b, x), _halves(b, y), strict=True):
        difference = emit.call(b, "llvm.fabs.v8f64", Doubles.llvm, [b.fsub(p, q)])
        most = b.select(b.fcmp_ordered(">", difference, most), difference, most)
    return most


@operation(types.float64, Doubles)
def sum_doubles(b: Builder, x: Value) -> Value:
    """The sum of all lanes, pairwise."""
    return emit.reduce(b, x, lambda p, q: b.fadd(p, q))


@operation(types.float64, Doubles)
def max_doubles(b: Builder, x: Value) -> Value:
    """The largest lane."""
    return emit.reduce(b, x, lambda p, q: emit.larger(b, p, q))


@operation(Void, Address, types.float64)
def set_f64(b: Builder, address: Value, value: Value) -> None:
    """Stores a float64."""
    emit.store(b, value, address)
