"""What threads need of each other and of the system: atomic operations on int64, waiting, cores; calls of C functions."""

from __future__ import annotations

import sys

from llvmlite import ir
from numba.core import types

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import I32, I64, Builder, Value
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import Address, Int, Void, operation

HAS_CORES = sys.platform == "linux"  # threads can ask for their core, and for another


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
