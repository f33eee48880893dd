"""Memory as kernels see it: numbers and vectors at addresses, and room on the stack.

Memory is addressed by integers (bytes), so that one compiled kernel serves every array and can be called from a recorded
program.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I8, I16, I32, I64, Builder, Value
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import LANES, Address, Float, Floats, Halves, Int, Void, Words, operation

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


@operation(Void, Address)
def prefetch_far(b: Builder, address: Value) -> None:
    """The same into the second cache only: more lines can be under way to it at a time."""
    emit.call(b, "llvm.prefetch.p0", ir.VoidType(), [emit.pointer(b, address, I8), I32(0), I32(2), I32(1)])


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


def reserve(b: Builder, kind: ir.Type) -> Value:
    """Space on the stack for as long as the function runs; not cleared, as Numba's own helper would."""
    with b.goto_entry_block():
        return b.alloca(kind)


@intrinsic(prefer_literal=True)
def stack(typing_context: Any, size: Any) -> Any:
    """The address of `size` (a compile-time constant) bytes of the function's stack, on a 64-byte boundary."""
    count = size.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        place = reserve(b, ir.ArrayType(I8, count))
        place.align = 64
        return b.ptrtoint(place, I64)

    return Address(size), lower


def splat_at(b: Builder, address: Value, kind: ir.Type) -> Value:
    """All lanes set to a number in memory, for other intrinsics."""
    return emit.splat(b, emit.load(b, address, kind, 4), LANES)
