"""Register tiles: accumulators that stay in registers while a kernel goes through memory, and the addresses that they meet."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.datamodel.registry import register_default
from numba.extending import intrinsic

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I32, I64, Builder, Value
from numba_kernels.simd.memory import reserve
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import LANES, Address, Floats, Int, Void

TILES = ACTIVE.tiles


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


@intrinsic(prefer_literal=True)
def zero_tile(typing_context: Any, count: Any) -> Any:
    """A tile of `count` (a compile-time constant) accumulators, all zero."""
    tile = Tile(count.literal_value)
    return tile(count), lambda context, b, sig, args: ir.Constant(tile.llvm, None)


@intrinsic
def spill(typing_context: Any, tile: Any) -> Any:
    """Writes a tile to the stack: the address of float32 [count, LANES], good until the next spill at this place."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        place = reserve(b, tile.llvm)
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


def tile_of(b: Builder, tile: Tile, values: list[Value]) -> Value:
    """A tile of its accumulators, for other intrinsics."""
    result = ir.Constant(tile.llvm, ir.Undefined)
    for t, value in enumerate(values):
        result = b.insert_value(result, value, t)
    return result
