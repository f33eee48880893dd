"""The vector types of the kernels as Numba values, and arithmetic on them, as intrinsics.

`Floats`, `Words` (int32), `Halves` (16-bit patterns) and `Bytes` have LANES, LANES, LANES and 4 · LANES elements.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.datamodel.registry import register_default
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I8, I16, I32, I64, Builder, Value
from numba_kernels.simd.path import ACTIVE

LANES = ACTIVE.lanes


class Vector(types.Type):
    """A SIMD vector as a Numba type."""

    def __init__(self, label: str, element: ir.Type, count: int) -> None:
        self.llvm = emit.vector(element, count)
        super().__init__(f"{label}x{count}")


@register_default(Vector)
class VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


Floats, Words = Vector("f32", F32, LANES), Vector("i32", I32, LANES)
Halves, Bytes = Vector("i16", I16, LANES), Vector("i8", I8, 4 * LANES)
Address = types.int64
Void, Float, Int = types.void, types.float32, types.int64


def operation(result: types.Type, *operands: types.Type) -> Callable[[Callable[..., Any]], Any]:
    """Makes an intrinsic of a function (builder, *values) -> value, with the given types."""

    def wrap(body: Callable[..., Any]) -> Any:
        def typing(typing_context: Any, *_: Any) -> Any:
            def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
                value = body(b, *args)
                return context.get_dummy_value() if result is Void else value

            return signature(result, *operands), lower

        names = [f"a{i}" for i in range(len(operands))]
        scope: dict[str, Any] = {"typing": typing}
        arguments = ", ".join(["context", *names])
        exec(f"def {body.__name__}({arguments}): return typing({arguments})", scope)
        made = intrinsic(scope[body.__name__])
        made.__doc__ = body.__doc__
        return made

    return wrap


def binary_operator(symbol: Any, kind: Vector, body: Callable[[Builder, Value, Value], Value]) -> None:
    """Defines a binary operator on a vector type."""

    class Template(ConcreteTemplate):
        cases = [signature(kind, kind, kind)]  # noqa: RUF012

    infer_global(symbol)(Template)
    lower_builtin(symbol, kind, kind)(lambda context, b, sig, args: body(b, *args))


binary_operator(operator.add, Floats, lambda b, x, y: b.fadd(x, y))
binary_operator(operator.sub, Floats, lambda b, x, y: b.fsub(x, y))
binary_operator(operator.mul, Floats, lambda b, x, y: b.fmul(x, y))
binary_operator(operator.truediv, Floats, lambda b, x, y: b.fdiv(x, y))
binary_operator(operator.add, Words, lambda b, x, y: b.add(x, y))
binary_operator(operator.sub, Words, lambda b, x, y: b.sub(x, y))
binary_operator(operator.and_, Words, lambda b, x, y: b.and_(x, y))
binary_operator(operator.or_, Words, lambda b, x, y: b.or_(x, y))
binary_operator(operator.lshift, Words, lambda b, x, y: b.shl(x, y))
binary_operator(operator.rshift, Words, lambda b, x, y: b.lshr(x, y))


@operation(Float, Int)
def bits_to_float(b: Builder, bits: Value) -> Value:
    """The float32 with these 32 bits."""
    return b.bitcast(b.trunc(bits, I32), F32)


@operation(Floats, Float)
def splat(b: Builder, value: Value) -> Value:
    """All lanes set to one number."""
    return emit.splat(b, value, LANES)


@operation(Floats, Floats, Floats, Floats)
def fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    """x · y + z."""
    return ACTIVE.fma(b, x, y, z)


@operation(Floats, Floats, Floats)
def maximum(b: Builder, x: Value, y: Value) -> Value:
    """The larger of each lane; y where x is NaN."""
    return emit.larger(b, x, y)


@operation(Floats, Floats, Floats)
def minimum(b: Builder, x: Value, y: Value) -> Value:
    """The smaller of each lane; y where x is NaN."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


@operation(Floats, Floats)
def absolute(b: Builder, x: Value) -> Value:
    """|x|."""
    return emit.call(b, f"llvm.fabs.v{LANES}f32", x.type, [x])


@operation(Words, Floats)
def round_to_words(b: Builder, x: Value) -> Value:
    """The nearest integers, ties to even; |x| < 2^22."""
    return emit.round_to_words(b, x)


@operation(Floats, Words)
def to_floats(b: Builder, x: Value) -> Value:
    """int32 lanes as float32."""
    return b.sitofp(x, Floats.llvm)


@operation(Floats, Floats)
def exp(b: Builder, x: Value) -> Value:
    """e^x to 2 units in the last place; 0 below −87.3, e^88.3 above 88.3."""
    return ACTIVE.exp(b, x)


@operation(Float, Floats)
def sum_lanes(b: Builder, x: Value) -> Value:
    """The sum of all lanes, pairwise."""
    return emit.reduce(b, x, lambda p, q: b.fadd(p, q))


@operation(Float, Floats)
def max_lanes(b: Builder, x: Value) -> Value:
    """The largest lane."""
    return emit.reduce(b, x, lambda p, q: emit.larger(b, p, q))


@operation(Int, Words)
def sum_words(b: Builder, x: Value) -> Value:
    """The sum of all int32 lanes."""
    return b.sext(emit.reduce(b, x, lambda p, q: b.add(p, q)), I64)


@operation(Words, Words)
def first_pairs(b: Builder, x: Value) -> Value:
    """The first two of every four lanes, 0 in the others."""
    return b.and_(x, emit.constant(I32, [-1, -1, 0, 0] * (LANES // 4)))


@operation(Floats, Int, Int, Int, Floats)
def keep_between(b: Builder, first: Value, low: Value, high: Value, x: Value) -> Value:
    """Lane i of x where low <= first + i < high, −infinity elsewhere."""
    index = b.add(emit.constant(I64, range(LANES)), emit.splat(b, first, LANES))
    above = b.icmp_signed(">=", index, emit.splat(b, low, LANES))
    below = b.icmp_signed("<", index, emit.splat(b, high, LANES))
    return b.select(b.and_(above, below), x, emit.same(Floats.llvm, float("-inf")))


@operation(Floats, Floats, Floats)
def evens(b: Builder, x: Value, y: Value) -> Value:
    """Lanes 0, 2, 4, … of x and then of y."""
    return emit.shuffle(b, x, y, range(0, 2 * LANES, 2))


@operation(Floats, Floats, Floats)
def odds(b: Builder, x: Value, y: Value) -> Value:
    """Lanes 1, 3, 5, … of x and then of y."""
    return emit.shuffle(b, x, y, range(1, 2 * LANES, 2))


def _pairs(b: Builder, x: Value, y: Value, first: int) -> Value:
    return emit.shuffle(b, x, y, [i + LANES * second for i in range(first, first + LANES // 2) for second in (0, 1)])


@operation(Floats, Floats, Floats)
def lower_pairs(b: Builder, x: Value, y: Value) -> Value:
    """x0, y0, x1, y1, … of the lower half of the lanes: with `upper_pairs`, what `evens` and `odds` take apart."""
    return _pairs(b, x, y, 0)


@operation(Floats, Floats, Floats)
def upper_pairs(b: Builder, x: Value, y: Value) -> Value:
    """The same of the upper half."""
    return _pairs(b, x, y, LANES // 2)
