"""Weights in bfloat16 × many tokens in bfloat16 with matrix registers: as `matrix_tiles`, without scales.

A panel's block of 32 columns lies in memory as a matrix register wants it, and so does a block of TOKENS gathered records:
nothing is decoded. Four registers hold the sums of two panels and twice TOKENS tokens over CHUNK blocks.

`tdpbf16ps` adds a block's products of even columns, and those of odd ones, in a chain of float32 each, then both to the sum.
`float_products.times_block` has the same chains for few tokens: a token's result does not depend on its company,
unless numbers below 1.2e-38 are met, which `tdpbf16ps` takes for zero.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from numba_kernels.cpu.blocked import finish
from numba_kernels.cpu.matrix_tiles import ROWS, RUN, SLOT, SUMS, TOKENS, VECTOR, gather_record, release_registers
from numba_kernels.cpu.op import inner, specialize
from numba_kernels.simd import amx
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import Builder, Value
from numba_kernels.simd.memory import get_i32, stack
from numba_kernels.simd.values import Address, Int

FROM = 5  # tokens from which on a register is faster than vectors
CHUNK = 12  # blocks: two panels' codes of so many fit 32 KiB
BLOCK_BYTES = amx.ROWS * amx.ROW  # of a panel's block, and of a block of TOKENS gathered records
PANELS = 2  # that meet tokens at a time
GATHERED, TOTALS = ROWS * CHUNK * SLOT, ROWS * RUN * VECTOR
GROUPS = 2


@intrinsic
def configure_registers(typing_context: Any) -> Any:
    """Registers 0 to 3 for sums, 4 and 5 for activations, 6 and 7 for weights, all of 16 rows of 64 bytes."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        amx.configure(b, [(amx.ROWS, amx.ROW)] * 8)
        return context.get_dummy_value()

    return types.void(), lower


@intrinsic(prefer_literal=True)
def begin_sums(typing_context: Any, groups: Any, first: Any, sums: Any, step: Any) -> Any:
    """Sums of `groups` times TOKENS tokens and PANELS panels, `step` bytes from panel to panel: zero where `first` is, else those
    at the address `sums`."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, first, sums, step = args
        with b.if_else(b.icmp_unsigned("==", first, first.type(0))) as (at_first, later):
            with at_first:
                for number in range(groups.literal_value * PANELS):
                    amx.zero(b, number)
            with later:
                for number, place in _places(b, groups.literal_value, sums, step):
                    amx.load(b, number, place, VECTOR)
        return context.get_dummy_value()

    return types.void(groups, Int, Address, Int), lower


@intrinsic(prefer_literal=True)
def add_block(typing_context: Any, groups: Any, records: Any, step: Any, panel: Any, other: Any) -> Any:
    """The sums plus the products of a block of `groups` times TOKENS gathered records, `step` bytes apart, and of two panels."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, records, step, *panels = args
        for group in range(groups.literal_value):
            amx.load(b, 4 + group, b.add(records, b.mul(step, step.type(group))), SLOT)
        for number, place in enumerate(panels):
            amx.load(b, 6 + number, place, amx.ROW)
            for group in range(groups.literal_value):
                amx.multiply_floats(b, PANELS * group + number, 4 + group, 6 + number)
        return context.get_dummy_value()

    return types.void(groups, Address, Int, Address, Address), lower


@intrinsic(prefer_literal=True)
def end_sums(typing_context: Any, groups: Any, sums: Any, step: Any) -> Any:
    """Stores the sums where `begin_sums` finds them."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for number, place in _places(b, groups.literal_value, *args[1:]):
            amx.store(b, number, place)
        return context.get_dummy_value()

    return types.void(groups, Address, Int), lower


def _places(b: Builder, groups: int, sums: Value, step: Value) -> list[tuple[int, Value]]:
    """Number of each register of sums, and its address."""
    return [
        (PANELS * group + panel, emit.advance(b, b.add(sums, b.mul(step, step.type(panel))), SUMS * group))
        for group in range(groups)
        for panel in range(PANELS)
    ]


def meet_tokens(panel, other, count, begin, sums, records):  # type: ignore[no-untyped-def]
    """`count` blocks of two panels, from number `begin` on, times GROUPS times TOKENS gathered tokens."""
    begin_sums(GROUPS, begin, sums, ROWS * VECTOR)
    for k in range(count):
        at = (begin + k) * BLOCK_BYTES
        add_block(GROUPS, records + k * BLOCK_BYTES, CHUNK * BLOCK_BYTES, panel + at, other + at)
    end_sums(GROUPS, sums, ROWS * VECTOR)


meet_one: Any = meet_tokens
meet_two: Any = meet_tokens


def multiply_block(  # type: ignore[no-untyped-def]
    matrix, panel_bytes, scales_at, blocks, shift, height, low, high,
    index, first, last, x, x_stride, bias, residual, out, out_stride,
):  # fmt: skip
    """Panels [low, high) of a matrix times the activation rows index[first … last], at most ROWS of them."""
    gathered = stack(GATHERED)
    totals = stack(TOTALS)
    configure_registers()
    for base in range(low, high, RUN):
        top = min(base + RUN, high)
        for begin in range(0, blocks, CHUNK):
            count = min(CHUNK, blocks - begin)
            for row in range(first, last + 1):
                record = x + get_i32(index + 4 * row) * x_stride + begin * SLOT
                number = row - first
                slot = gathered + (number // TOKENS * TOKENS * CHUNK + number % TOKENS) * SLOT
                for k in range(count):
                    gather_record("bf16", record + k * SLOT, slot + k * BLOCK_BYTES)
            for p in range(base, top, PANELS):
                panel = matrix + p * panel_bytes
                other = panel + panel_bytes if p + 1 < top else panel
                row = 0
                while row <= last - first:
                    sums = totals + ((p - base) * ROWS + row) * VECTOR
                    records = gathered + row * CHUNK * SLOT
                    if last - first - row >= TOKENS:
                        meet_two(panel, other, count, begin, sums, records)
                    else:
                        meet_one(panel, other, count, begin, sums, records)
                    row += 2 * TOKENS
        for p in range(base, top):
            finish(totals + (p - base) * ROWS * VECTOR, VECTOR, p, first, last, height, bias, residual, out, out_stride)
    release_registers()


def block_function() -> Any:
    """`multiply_block` for weights and activations in bf16."""
    meet = {
        f"meet_{word}": inner(specialize(meet_tokens, f"meet_{word}_bf16", GROUPS=n)) for n, word in ((1, "one"), (2, "two"))
    }
    return inner(specialize(multiply_block, "multiply_tokens_bf16", **meet))
