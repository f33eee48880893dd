"""The vector types and operations that kernels use, as Numba values and intrinsics.

Memory is addressed by integers (bytes), so that one compiled kernel serves every array and can be called from a recorded
program. `Floats`, `Words` (int32), `Halves` (16-bit patterns) and `Bytes` have LANES, LANES, LANES and 4 · LANES elements.
"""

from __future__ import annotations

import operator
import sys
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
TILES = ACTIVE.tiles
HAS_CORES = sys.platform == "linux"  # threads can ask for their core, and for another


class Vector(types.Type):
    """A SIMD vector as a Numba type."""

    def __init__(self, label: str, element: ir.Type, count: int) -> None:
        self.llvm = emit.vector(element, count)
        super().__init__(f"{label}x{count}")


@register_default(Vector)
class VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, fe_type.llvm)


class Tile(types.Type):
    """A register tile: `count` Floats accumulators, one for each token (and panel of weights)."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.llvm = ir.ArrayType(emit.vector(F32, LANES), count)
        super().__init__(f"tile{count}")


class Places(types.Type):
    """`count` addresses, of rows of activations or of panels."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.llvm = ir.ArrayType(I64, count)
        super().__init__(f"places{count}")


@register_default(Tile)
@register_default(Places)
class AggregateModel(PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Tile | Places) -> None:
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


def _operator(symbol: Any, kind: Vector, body: Callable[[Builder, Value, Value], Value]) -> None:
    """Defines a binary operator on a vector type."""

    class Template(ConcreteTemplate):
        cases = [signature(kind, kind, kind)]  # noqa: RUF012

    infer_global(symbol)(Template)
    lower_builtin(symbol, kind, kind)(lambda context, b, sig, args: body(b, *args))


_operator(operator.add, Floats, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, Floats, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, Floats, lambda b, x, y: b.fmul(x, y))
_operator(operator.truediv, Floats, lambda b, x, y: b.fdiv(x, y))
_operator(operator.add, Words, lambda b, x, y: b.add(x, y))
_operator(operator.sub, Words, lambda b, x, y: b.sub(x, y))


# ---- scalars in memory ----------------------------------------------------------------------------------------------


@operation(Float, Address)
def get_f32(b: Builder, address: Value) -> Value:
    """The float32 at an address."""
    return emit.load(b, address, F32)


@operation(Int, Address)
def get_i32(b: Builder, address: Value) -> Value:
    """The int32 at an address."""
    return b.sext(emit.load(b, address, I32), I64)


@operation(Int, Address)
def get_i64(b: Builder, address: Value) -> Value:
    """The int64 at an address."""
    return emit.load(b, address, I64)


@operation(Int, Address)
def get_u8(b: Builder, address: Value) -> Value:
    """The byte at an address."""
    return b.zext(emit.load(b, address, I8), I64)


@operation(Int, Address)
def get_u16(b: Builder, address: Value) -> Value:
    """The 16-bit pattern at an address."""
    return b.zext(emit.load(b, address, I16), I64)


@operation(Int, Address)
def get_u32(b: Builder, address: Value) -> Value:
    """The 32-bit pattern at an address."""
    return b.zext(emit.load(b, address, I32), I64)


@operation(Void, Address, Float)
def set_f32(b: Builder, address: Value, value: Value) -> None:
    """Stores a float32."""
    emit.store(b, value, address)


@operation(Void, Address, Int)
def set_i32(b: Builder, address: Value, value: Value) -> None:
    """Stores the low 32 bits."""
    emit.store(b, b.trunc(value, I32), address)


@operation(Void, Address, Int)
def set_i64(b: Builder, address: Value, value: Value) -> None:
    """Stores 64 bits."""
    emit.store(b, value, address)


@operation(Void, Address, Int)
def set_u8(b: Builder, address: Value, value: Value) -> None:
    """Stores the low 8 bits."""
    emit.store(b, b.trunc(value, I8), address)


@operation(Void, Address, Int)
def set_u16(b: Builder, address: Value, value: Value) -> None:
    """Stores the low 16 bits."""
    emit.store(b, b.trunc(value, I16), address)


@operation(Float, Int)
def bits_to_float(b: Builder, bits: Value) -> Value:
    """The float32 with these 32 bits."""
    return b.bitcast(b.trunc(bits, I32), F32)


# ---- vectors in memory ----------------------------------------------------------------------------------------------


@operation(Floats, Address)
def load_floats(b: Builder, address: Value) -> Value:
    """LANES float32."""
    return emit.load(b, address, Floats.llvm)


@operation(Void, Address, Floats)
def store_floats(b: Builder, address: Value, value: Value) -> None:
    """Stores LANES float32."""
    emit.store(b, value, address)


def _first(b: Builder, count: Value) -> Value:
    return b.icmp_signed("<", emit.constant(I32, range(LANES)), emit.splat(b, b.trunc(count, I32), LANES))


@operation(Floats, Address, Int)
def load_first(b: Builder, address: Value, count: Value) -> Value:
    """The first `count` lanes, 0 in the others, whose memory is not touched."""
    place = emit.pointer(b, address, Floats.llvm)
    zero = emit.same(Floats.llvm, 0.0)
    return emit.call(b, f"llvm.masked.load.v{LANES}f32.p0", Floats.llvm, [place, I32(4), _first(b, count), zero])


@operation(Void, Address, Floats, Int)
def store_first(b: Builder, address: Value, value: Value, count: Value) -> None:
    """Stores the first `count` lanes."""
    place = emit.pointer(b, address, Floats.llvm)
    emit.call(b, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), [value, place, I32(4), _first(b, count)])


@operation(Void, Address)
def prefetch(b: Builder, address: Value) -> None:
    """Has the cache line at an address fetched, which need not be memory of this process."""
    emit.call(b, "llvm.prefetch.p0", ir.VoidType(), [emit.pointer(b, address, I8), I32(0), I32(3), I32(1)])


@operation(Floats, Address)
def load_bf16(b: Builder, address: Value) -> Value:
    """LANES bfloat16, as float32."""
    return emit.bf16_to_float(b, emit.load(b, address, Halves.llvm))


@operation(Floats, Address)
def load_f16(b: Builder, address: Value) -> Value:
    """LANES IEEE half-precision values, as float32."""
    return ACTIVE.half_to_float(b, emit.load(b, address, Halves.llvm))


@operation(Void, Address, Floats)
def store_bf16(b: Builder, address: Value, value: Value) -> None:
    """Stores LANES values as bfloat16, rounded to nearest even."""
    bits = b.bitcast(value, Words.llvm)
    odd = b.and_(b.lshr(bits, emit.same(Words.llvm, 16)), emit.same(Words.llvm, 1))
    rounded = b.lshr(b.add(bits, b.add(odd, emit.same(Words.llvm, 0x7FFF))), emit.same(Words.llvm, 16))
    rounded = b.select(b.fcmp_unordered("uno", value, value), emit.same(Words.llvm, 0x7FC0), rounded)
    emit.store(b, b.trunc(rounded, Halves.llvm), address)


@operation(Void, Address, Words)
def store_as_bytes(b: Builder, address: Value, value: Value) -> None:
    """Stores the low byte of each lane: LANES bytes."""
    emit.store(b, b.trunc(value, emit.vector(I8, LANES)), address)


@operation(Void, Address, Words)
def store_as_shorts(b: Builder, address: Value, value: Value) -> None:
    """Stores the low 16 bits of each lane: 2 · LANES bytes."""
    emit.store(b, b.trunc(value, Halves.llvm), address)


# ---- arithmetic -----------------------------------------------------------------------------------------------------


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
    return emit.exp(b, ACTIVE, x)


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


def _reserve(b: Builder, kind: ir.Type) -> Value:
    """Space on the stack for as long as the function runs; not cleared, as Numba's own helper would."""
    with b.goto_entry_block():
        return b.alloca(kind)


@intrinsic(prefer_literal=True)
def stack(typing_context: Any, size: Any) -> Any:
    """The address of `size` (a compile-time constant) bytes of the function's stack, on a 64-byte boundary."""
    count = size.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        place = _reserve(b, ir.ArrayType(I8, count))
        place.align = 64
        return b.ptrtoint(place, I64)

    return Address(size), lower


# ---- register tiles -------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def zero_tile(typing_context: Any, count: Any) -> Any:
    """A tile of `count` (a compile-time constant) accumulators, all zero."""
    tile = Tile(count.literal_value)
    return tile(count), lambda context, b, sig, args: ir.Constant(tile.llvm, None)


@intrinsic
def spill(typing_context: Any, tile: Any) -> Any:
    """Writes a tile to the stack: the address of float32 [count, LANES], good until the next spill at this place."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        place = _reserve(b, tile.llvm)
        b.store(args[0], place)
        return b.ptrtoint(place, I64)

    return Address(tile), lower


@intrinsic(prefer_literal=True)
def load_tile(typing_context: Any, count: Any, address: Any, stride: Any) -> Any:
    """A tile of `count` (a compile-time constant) accumulators from memory, `stride` bytes apart."""
    tile = Tile(count.literal_value)

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        result = ir.Constant(tile.llvm, ir.Undefined)
        for t in range(tile.count):
            at = b.add(args[1], b.mul(args[2], I64(t)))
            result = b.insert_value(result, emit.load(b, at, Floats.llvm), t)
        return result

    return tile(count, Address, Int), lower


@intrinsic
def store_tile(typing_context: Any, address: Any, stride: Any, tile: Any) -> Any:
    """Stores a tile's accumulators, `stride` bytes apart."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for t in range(tile.count):
            emit.store(b, b.extract_value(args[2], t), b.add(args[0], b.mul(args[1], I64(t))))
        return context.get_dummy_value()

    return Void(Address, Int, tile), lower


@intrinsic
def store_sums(typing_context: Any, address: Any, stride: Any, first: Any, second: Any) -> Any:
    """Stores the sums of the lanes, pairwise as `sum_lanes` adds them, of first[t] and second[t] beside each other, those of the
    next t `stride` bytes further. All are summed together: a third of the instructions that one after the other takes."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        address, stride, *tiles = args
        vectors = [b.extract_value(tile, t) for t in range(first.count) for tile in tiles]
        for at in range(0, len(vectors), LANES):
            part = vectors[at : at + LANES]
            sums = emit.sums_of_lanes(b, part)
            for i in range(0, len(part), 2):
                place = b.add(address, b.mul(stride, I64((at + i) // 2)))
                emit.store(b, emit.shuffle(b, sums, sums, (i, i + 1)), place)
        return context.get_dummy_value()

    return Void(Address, Int, first, second), lower


@intrinsic
def add_outer(typing_context: Any, tile: Any, value: Any, numbers: Any, stride: Any) -> Any:
    """tile[t] + value · number[t], the float32 numbers `stride` bytes apart."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        result, value, numbers, stride = args
        for t in range(tile.count):
            number = emit.load(b, b.add(numbers, b.mul(stride, I64(t))), F32)
            total = ACTIVE.fma(b, value, emit.splat(b, number, LANES), b.extract_value(result, t))
            result = b.insert_value(result, total, t)
        return result

    return tile(tile, Floats, Address, Int), lower


@intrinsic(prefer_literal=True)
def row_addresses(typing_context: Any, count: Any, indices: Any, first: Any, last: Any, base: Any, stride: Any) -> Any:
    """base + stride · index for `count` (a compile-time constant) int32 indices[first …]; those beyond `last` repeat the row of
    `last`."""
    rows = Places(count.literal_value)

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, indices, first, last, base, stride = args
        result = ir.Constant(rows.llvm, ir.Undefined)
        for t in range(rows.count):
            at = _at_most(b, b.add(first, I64(t)), last)
            index = b.sext(emit.load(b, b.add(indices, b.shl(at, I64(2))), I32), I64)
            result = b.insert_value(result, b.add(base, b.mul(index, stride)), t)
        return result

    return rows(count, Address, Int, Int, Address, Int), lower


@intrinsic
def add_products(typing_context: Any, tile: Any, value: Any, rows: Any, offset: Any) -> Any:
    """tile[t] + value · (the vector `offset` bytes behind the address rows[t])."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        result, value, rows, offset = args
        for t in range(tile.count):
            other = emit.load(b, b.add(b.extract_value(rows, t), offset), Floats.llvm)
            result = b.insert_value(result, ACTIVE.fma(b, value, other, b.extract_value(result, t)), t)
        return result

    return tile(tile, Floats, rows, Int), lower


@intrinsic(prefer_literal=True)
def panel_addresses(typing_context: Any, count: Any, base: Any, stride: Any, last: Any) -> Any:
    """base + i · stride for i below `count` (a compile-time constant); those beyond `last` repeat it."""
    panels = Places(count.literal_value)

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, base, stride, last = args
        result = ir.Constant(panels.llvm, ir.Undefined)
        for i in range(panels.count):
            offset = b.mul(_at_most(b, I64(i), last), stride) if i else I64(0)
            result = b.insert_value(result, b.add(base, offset), i)
        return result

    return panels(count, Address, Int, Int), lower


def _at_most(b: Builder, x: Value, limit: Value) -> Value:
    return b.select(b.icmp_signed("<", x, limit), x, limit)


# ---- between threads ------------------------------------------------------------------------------------------------


@operation(Int, Address, Int)
def atomic_add(b: Builder, address: Value, amount: Value) -> Value:
    """Adds to the int64 at an address; returns what it was."""
    return b.atomic_rmw("add", emit.pointer(b, address, I64), amount, "seq_cst")


@operation(Int, Address)
def atomic_load(b: Builder, address: Value) -> Value:
    """The int64 at an address, and all that was written before it."""
    return b.load_atomic(emit.pointer(b, address, I64), "acquire", 8)


@operation(Void, Address, Int)
def atomic_store(b: Builder, address: Value, value: Value) -> None:
    """Stores an int64 after all that was written before."""
    b.store_atomic(value, emit.pointer(b, address, I64), "seq_cst", 8)


@operation(types.boolean, Address, Int, Int)
def compare_exchange(b: Builder, address: Value, expected: Value, value: Value) -> Value:
    """Replaces the int64 if it is `expected`; whether it was."""
    result = b.cmpxchg(emit.pointer(b, address, I64), expected, value, "seq_cst", "seq_cst")
    return b.extract_value(result, 1)


@operation(Void)
def pause(b: Builder) -> None:
    """A spinning wait's breath."""
    ACTIVE.pause(b)


@operation(Void)
def yield_core(b: Builder) -> None:
    """Lets another thread of this machine have the core."""
    emit.call(b, "sched_yield", I32, [])


@operation(Int)
def current_core(b: Builder) -> Value:
    """The number of the core that the calling thread runs on; −1 where the system does not say."""
    return b.sext(emit.call(b, "sched_getcpu", I32, []), I64) if HAS_CORES else I64(-1)


@operation(Void, Address, Address, Address, Int)
def call_address(b: Builder, function: Value, arguments: Value, team: Value, thread: Value) -> None:
    """Calls the C function void (int64, int64, int64) at an address."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
    b.call(emit.pointer(b, function, kind), [arguments, team, thread])
