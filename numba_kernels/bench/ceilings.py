"""What this machine can do at most, as kernels without anything else: multiply-adds and dot products from registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import types
from numba.extending import intrinsic

from numba_kernels.cpu.blocks import Shorts
from numba_kernels.cpu.matrix_tiles import release_registers
from numba_kernels.cpu.team import take
from numba_kernels.simd import amx
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.memory import load_floats, set_f32
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.tiles import Tile, spill, zero_tile
from numba_kernels.simd.values import LANES, Address, Bytes, Words, sum_lanes

CHAINS, STEPS = 12, 20000  # independent accumulators; steps of a piece of work
REGISTERS = 4  # of sums, where there are matrix registers
# Of 32-bit lanes in a step; each is of four bytes or two bfloat16.
REGISTER_PRODUCTS = REGISTERS * amx.ROWS * amx.ROWS * amx.ROW // 4


def _step(name: str, body: Callable[..., Any]) -> Any:
    """An intrinsic (tile, address) -> tile that applies body(builder, lane vector, address) to each accumulator."""

    def typing(typing_context: Any, tile: Any, address: Any) -> Any:
        def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
            result = args[0]
            for t in range(tile.count):
                result = b.insert_value(result, body(b, b.extract_value(args[0], t), args[1]), t)
            return result

        return (tile(tile, Address), lower) if isinstance(tile, Tile) else None

    typing.__name__ = name
    return intrinsic(typing)


def _dot(b: Any, total: Any, address: Any) -> Any:
    """A dot product of bytes; where the path sums in 16 bits, of the total's own bytes, or all accumulators would share one."""
    codes, x = (emit.load(b, emit.advance(b, address, 4 * LANES * i), Bytes.llvm) for i in range(2))
    if ACTIVE.narrow_sums:
        return b.bitcast(ACTIVE.dot_narrow(b, b.bitcast(total, Shorts), codes, b.bitcast(total, Bytes.llvm)), total.type)
    return b.bitcast(ACTIVE.dot_unsigned(b, b.bitcast(total, Words.llvm), codes, x), total.type)


def _fma(b: Any, total: Any, address: Any) -> Any:
    x, y = (emit.load(b, emit.advance(b, address, 4 * LANES * i), total.type) for i in range(2))
    return ACTIVE.fma(b, x, y, total)


def _pairs(b: Any, total: Any, address: Any) -> Any:
    pairs = emit.load(b, address, Words.llvm)
    x = emit.splat(b, emit.load(b, emit.advance(b, address, 4 * LANES), emit.I32), LANES)
    return ACTIVE.dot_pairs(b, total, pairs, x)


dot_step, fma_step, pairs_step = _step("dot_step", _dot), _step("fma_step", _fma), _step("pairs_step", _pairs)
step: Any = dot_step


def peak(x, pieces, out, team, thread):  # type: ignore[no-untyped-def]
    """CHAINS accumulators in registers, STEPS times in each piece of work."""
    item = take(team)
    while item < pieces:
        tile = zero_tile(CHAINS)
        for k in range(STEPS):
            tile = step(tile, x + k % 8 * 8 * LANES)
        results = spill(tile)
        total = load_floats(results)
        for t in range(1, CHAINS):
            total = total + load_floats(results + t * LANES * 4)
        set_f32(out + 4 * item, sum_lanes(total))
        item = take(team)


@intrinsic(prefer_literal=True)
def begin_registers(typing_context: Any, x: Any) -> Any:
    """Matrix registers for sums, and two with factors from memory."""

    def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
        amx.configure(b, [(amx.ROWS, amx.ROW)] * 8)
        for number in (REGISTERS, REGISTERS + 1):
            amx.load(b, number, args[0], amx.ROW)
        return context.get_dummy_value()

    return types.void(Address), lower


@intrinsic(prefer_literal=True)
def multiply_registers(typing_context: Any, of_bytes: Any) -> Any:
    """A product into each of the sums, of bytes or of bfloat16."""

    def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
        multiply = amx.multiply_bytes if of_bytes.literal_value else amx.multiply_floats
        for number in range(REGISTERS):
            multiply(b, number, REGISTERS, REGISTERS + 1)
        return context.get_dummy_value()

    return types.void(of_bytes), lower


OF_BYTES = 1


def register_peak(x, pieces, out, team, thread):  # type: ignore[no-untyped-def]
    """`peak` of matrix registers: REGISTERS sums, STEPS times in each piece of work."""
    item = take(team)
    while item < pieces:
        begin_registers(x)
        for _ in range(STEPS):
            multiply_registers(OF_BYTES)
        release_registers()
        item = take(team)
