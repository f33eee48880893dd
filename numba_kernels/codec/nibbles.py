"""32 nibbles in 16 bytes, from one order into the other: one load, a few vector instructions, one store.

Written in LLVM's generic vectors, which compile to the machine's own on every processor.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np import arrayobj

BYTES = ir.VectorType(ir.IntType(8), 16)
FIRST_HALF = [i // 2 + 16 * (i % 2) for i in range(16)]  # values 0…15 of (lower nibbles, higher nibbles) in pair order
SECOND_HALF = [i + 8 for i in FIRST_HALF]
EVEN = list(range(0, 32, 2))  # values 0, 2, … of (lower nibbles, higher nibbles) in split order
ODD = list(range(1, 32, 2))


def _splat(value: int) -> ir.Constant:
    return ir.Constant(BYTES, [value] * 16)


def _reorder(lower: list[int], higher: list[int]) -> Any:
    """An intrinsic (source, at, target, to): moves 16 bytes, giving each the two nibbles at these places of the source."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Constant:
        source, at, target, to = args
        pointers = []
        for array_type, array, offset in ((signature.args[0], source, at), (signature.args[2], target, to)):
            data = arrayobj.make_array(array_type)(context, builder, value=array).data
            pointers.append(builder.bitcast(builder.gep(data, [offset]), BYTES.as_pointer()))
        both = builder.load(pointers[0], align=1)
        low, high = builder.and_(both, _splat(15)), builder.lshr(both, _splat(4))
        places = [ir.Constant(ir.VectorType(ir.IntType(32), 16), order) for order in (lower, higher)]
        first, second = (builder.shuffle_vector(low, high, mask) for mask in places)
        builder.store(builder.or_(first, builder.shl(second, _splat(4))), pointers[1], align=1)
        return context.get_dummy_value()

    def typer(typing_context: Any, source: Any, at: Any, target: Any, to: Any) -> Any:
        if not all(isinstance(a, types.Array) and a.ndim == 1 and a.layout == "C" for a in (source, target)):
            return None
        return types.void(source, types.intp, target, types.intp), codegen

    return intrinsic(typer)


split_halves = _reorder(FIRST_HALF, SECOND_HALF)
split_halves.__doc__ = "Byte i holds values 2i and 2i + 1 -> byte j holds values j and j + 16."
join_halves = _reorder(EVEN, ODD)
join_halves.__doc__ = "Byte j holds values j and j + 16 -> byte i holds values 2i and 2i + 1."
