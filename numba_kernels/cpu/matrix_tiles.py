"""Matrix × many tokens with matrix registers (`simd/amx.py`): as `linear.multiply_panels`, for records of int8.

A piece of work goes through its tokens ROWS at a time and through CHUNK blocks of columns at a time. The tokens' records are
gathered once for all panels, TOKENS of them side by side, and a panel's codes are decoded once for all tokens, as signed bytes;
both stay in the nearest caches. A matrix register then gets the sums of TOKENS tokens and a panel over one block, or one half
of it where halves have scales of their own. They are scaled as vectors, in the same chain of additions as in `blocks.accumulate`:
results have the bits of the other kernels.

Three blocks are under way at a time: while the sums of one are scaled, those of the next are stored, and those of the next but
one are computed.
"""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from numba_kernels.cpu.blocked import finish
from numba_kernels.cpu.blocks import BLOCK, LAYOUTS, scales_of
from numba_kernels.cpu.int8_products import add_scaled, starts_of
from numba_kernels.cpu.op import inner, specialize
from numba_kernels.cpu.records import RECORDS
from numba_kernels.simd import amx
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import Builder, Value
from numba_kernels.simd.memory import get_i32, stack
from numba_kernels.simd.tiles import load_tile, store_tile, tile_of, zero_tile
from numba_kernels.simd.values import LANES, Address, Floats, Int, Words

FORMAT, ACTIVATIONS = "mxfp4", "int8"
TOKENS = amx.ROWS
ROWS, RUN = 128, 16  # tokens and panels that share gathered records; a multiple of TOKENS
NEAR = 1 << 20  # bytes of weights that stay in a core's second cache from ROWS tokens to the next
CHUNK = 24  # blocks: with their records and codes they fit 48 KiB
SLOT = 64  # bytes of a gathered record
VECTOR = 4 * LANES
SUMS = TOKENS * VECTOR  # bytes of what a register holds
GATHERED, TOTALS = ROWS * CHUNK * SLOT, ROWS * RUN * VECTOR
CODES, SCALES, STEP, DECODED, SCRATCH, STORED = 1, 1, 1, 1, 1, 1  # bytes from block to block; of a chunk; of a block's sums


def _halves(name: str, kind: str) -> int:
    return 2 if LAYOUTS[name].halves or kind == "int8_g16" else 1


def fewest(name: str) -> int:
    """Tokens from which on registers, which compute TOKENS in any case, are faster than tiles of vectors, as measured. Vectors
    store no decoded codes, which helps bytes most; but scales for halves cost them as much as the products."""
    layout = LAYOUTS[name]
    return 48 if layout.is_byte else 13 if layout.halves else 32


def decoded_bytes(name: str) -> int:
    """Bytes of a decoded block of a panel: codes, scales, and what is added to the values."""
    layout = LAYOUTS[name]
    return LANES * (BLOCK + 4 * (1 + layout.has_minimum) * (1 + layout.halves))


@intrinsic(prefer_literal=True)
def configure_registers(typing_context: Any, name: Any, activations: Any) -> Any:
    """Four registers for sums, two for activations, two for codes."""
    columns = BLOCK // _halves(name.literal_value, activations.literal_value)

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        amx.configure(b, [(TOKENS, VECTOR)] * 4 + [(TOKENS, columns)] * 2 + [(columns // 4, VECTOR)] * 2)
        return context.get_dummy_value()

    return types.void(name, activations), lower


@intrinsic
def release_registers(typing_context: Any) -> Any:
    """The end of what `configure_registers` began."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        amx.release(b)
        return context.get_dummy_value()

    return types.void(), lower


@intrinsic(prefer_literal=True)
def gather_record(typing_context: Any, kind: Any, record: Any, out: Any) -> Any:
    """Copies a record of activations to a slot."""
    size = RECORDS[kind.literal_value]

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, record, out = args
        at = 0
        for part in (64, 32, 16, 8, 4):
            if size - at >= part:
                piece = emit.load(b, emit.advance(b, record, at), emit.vector(emit.I8, part))
                emit.store(b, piece, emit.advance(b, out, at))
                at += part
        return context.get_dummy_value()

    return types.void(kind, Address, Address), lower


@intrinsic(prefer_literal=True)
def decode_panel(typing_context: Any, name: Any, codes: Any, scales: Any, block: Any, out: Any) -> Any:
    """Writes a panel's block number `block`, decoded: codes as signed bytes, a vector for each four columns; scales; added
    values. `codes` and `scales` are addresses."""
    format_name = name.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, codes, scales, block, out = args
        layout = LAYOUTS[format_name]
        assert layout.decode is not None
        for column, quad in layout.decode(b, codes, 0):
            emit.store(b, quad, emit.advance(b, out, column // 4 * VECTOR))
        found, added = scales_of(b, format_name, scales, block)
        for i, v in enumerate([*found, *added]):
            emit.store(b, v, emit.advance(b, out, (BLOCK // 4 + i) * VECTOR))
        return context.get_dummy_value()

    return types.void(name, Address, Address, Int, Address), lower


class _Block:
    """The products of a block, half by half where there are two; `parity`: which of two sets of registers they use."""

    def __init__(self, b: Builder, name: str, kind: str, parity: int) -> None:
        self._b, self._parity = b, parity
        self.halves = _halves(name, kind)

    def start(self, half: int, records: Value, decoded: Value) -> None:
        """Computes the sums of one half in a register."""
        columns, sums = BLOCK // self.halves, self.halves * self._parity + half
        x, codes = 4 + sums % 2, 6 + sums % 2
        amx.load(self._b, x, emit.advance(self._b, records, columns * half), SLOT)
        amx.load(self._b, codes, emit.advance(self._b, decoded, columns // 4 * VECTOR * half), VECTOR)
        amx.zero(self._b, sums)
        amx.multiply_bytes(self._b, sums, x, codes)

    def store(self, half: int, out: Value) -> None:
        """Stores them."""
        amx.store(self._b, self.halves * self._parity + half, emit.advance(self._b, out, SUMS * half))


@intrinsic(prefer_literal=True)
def start_block(typing_context: Any, name: Any, activations: Any, parity: Any, records: Any, decoded: Any) -> Any:
    """Computes the sums of a block of gathered records and one of decoded codes, in registers."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        block = _Block(b, name.literal_value, activations.literal_value, parity.literal_value)
        for half in range(block.halves):
            block.start(half, *args[3:])
        return context.get_dummy_value()

    return types.void(name, activations, parity, Address, Address), lower


@intrinsic(prefer_literal=True)
def store_block(typing_context: Any, name: Any, activations: Any, parity: Any, out: Any) -> Any:
    """Stores the sums that `start_block` of this parity computed."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        block = _Block(b, name.literal_value, activations.literal_value, parity.literal_value)
        for half in range(block.halves):
            block.store(half, args[3])
        return context.get_dummy_value()

    return types.void(name, activations, parity, Address), lower


@intrinsic(prefer_literal=True)
def scale_block(
    typing_context: Any, name: Any, activations: Any, tile: Any, parity: Any, sums: Any, records: Any, decoded: Any,
    next_stored: Any, next_records: Any, next_decoded: Any,
) -> Any:  # fmt: skip
    """The tile plus a block's sums at the address `sums`, scaled. Meanwhile those of the block after it, of the other parity, go
    to `next_stored`, and those of the block after that are computed; spread between the tokens, as the processor executes what is
    near."""
    format_name, kind = name.literal_value, activations.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, _, totals, _, sums, records, decoded, next_stored, next_records, next_decoded = args
        values = [b.extract_value(totals, n) for n in range(tile.count)]
        begun = _Block(b, format_name, kind, parity.literal_value)
        stored = _Block(b, format_name, kind, 1 - parity.literal_value)
        apart = TOKENS // begun.halves
        for t in range(TOKENS):
            half, place = divmod(t, apart)
            if place == 0:
                begun.start(half, next_records, next_decoded)
            elif place == apart // 2:
                stored.store(half, next_stored)
            values[t] = _scaled(b, format_name, kind, sums, records, decoded, t, values[t])
        return tile_of(b, tile, values)

    return tile(name, activations, tile, parity, *[Address] * 6), lower


@intrinsic(prefer_literal=True)
def scale_last(typing_context: Any, name: Any, activations: Any, tile: Any, sums: Any, records: Any, decoded: Any) -> Any:
    """`scale_block` when no further block is to be begun."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, _, totals, sums, records, decoded = args
        values = [
            _scaled(b, name.literal_value, activations.literal_value, sums, records, decoded, t, b.extract_value(totals, t))
            for t in range(tile.count)
        ]
        return tile_of(b, tile, values)

    return tile(name, activations, tile, *[Address] * 3), lower


def _scaled(
    b: Builder, name: str, kind: str, sums: Value, records: Value, decoded: Value, token: int, total: Value
) -> Value:
    """A token's total plus its sums of one block."""
    layout = LAYOUTS[name]
    row = emit.advance(b, records, token * SLOT)
    count = 1 + layout.halves

    def vectors(first: int) -> list[Value]:
        return [
            emit.load(b, emit.advance(b, decoded, (BLOCK // 4 + first + i) * VECTOR), Floats.llvm, VECTOR)
            for i in range(count)
        ]

    scales, added = vectors(0), vectors(count) if layout.has_minimum else []
    starts = starts_of(b, name, kind, row) if added and layout.halves else []
    for h in range(_halves(name, kind)):
        products = emit.load(b, emit.advance(b, sums, SUMS * h + VECTOR * token), Words.llvm, VECTOR)
        total = add_scaled(b, name, kind, row, h, products, scales, added, starts, total)
    return total


def meet_tokens(decoded, count, begin, sums, records):  # type: ignore[no-untyped-def]
    """`count` decoded blocks of a panel, from number `begin` on, times TOKENS gathered tokens."""
    first, second = stack(STORED), stack(STORED)
    last = count - 1
    tile = zero_tile(TOKENS) if begin == 0 else load_tile(TOKENS, sums, VECTOR)
    start_block(FORMAT, ACTIVATIONS, 0, records, decoded)
    if count > 1:
        start_block(FORMAT, ACTIVATIONS, 1, records + TOKENS * SLOT, decoded + DECODED)
    store_block(FORMAT, ACTIVATIONS, 0, first)
    k = 0
    while k + 2 < count:
        x, codes = records + k * TOKENS * SLOT, decoded + k * DECODED
        tile = scale_block(FORMAT, ACTIVATIONS, tile, 0, first, x, codes, second, x + 2 * TOKENS * SLOT, codes + 2 * DECODED)
        after = min(k + 3, last) - k
        tile = scale_block(
            FORMAT, ACTIVATIONS, tile, 1, second, x + TOKENS * SLOT, codes + DECODED, first,
            x + after * TOKENS * SLOT, codes + after * DECODED,
        )  # fmt: skip
        k += 2
    if k < count:
        tile = scale_last(FORMAT, ACTIVATIONS, tile, first, records + k * TOKENS * SLOT, decoded + k * DECODED)
    if k + 1 < count:
        store_block(FORMAT, ACTIVATIONS, 1, second)
        tile = scale_last(FORMAT, ACTIVATIONS, tile, second, records + (k + 1) * TOKENS * SLOT, decoded + (k + 1) * DECODED)
    store_tile(sums, VECTOR, tile)


meet: Any = meet_tokens


def multiply_block(  # type: ignore[no-untyped-def]
    matrix, panel_bytes, scales_at, blocks, shift, height, low, high,
    index, first, last, x, x_stride, bias, residual, out, out_stride,
):  # fmt: skip
    """Panels [low, high) of a matrix times the activation rows index[first … last], at most ROWS of them."""
    gathered = stack(GATHERED)
    decoded = stack(SCRATCH)
    totals = stack(TOTALS)
    configure_registers(FORMAT, ACTIVATIONS)
    for base in range(low, high, RUN):
        top = min(base + RUN, high)
        for begin in range(0, blocks, CHUNK):
            count = min(CHUNK, blocks - begin)
            for row in range(first, last + 1):
                record = x + get_i32(index + 4 * row) * x_stride + begin * STEP
                number = row - first
                slot = gathered + (number // TOKENS * TOKENS * CHUNK + number % TOKENS) * SLOT
                for k in range(count):
                    gather_record(ACTIVATIONS, record + k * STEP, slot + k * TOKENS * SLOT)
            for p in range(base, top):
                codes = matrix + p * panel_bytes
                for k in range(count):
                    scales = codes + scales_at + ((begin + k) >> shift) * SCALES
                    decode_panel(FORMAT, codes + (begin + k) * CODES, scales, begin + k, decoded + k * DECODED)
                for row in range(0, last + 1 - first, TOKENS):
                    meet(decoded, count, begin, totals + ((p - base) * ROWS + row) * VECTOR, gathered + row * CHUNK * SLOT)
        for p in range(base, top):
            finish(totals + (p - base) * ROWS * VECTOR, VECTOR, p, first, last, height, bias, residual, out, out_stride)
    release_registers()


def block_function(name: str, activations: str) -> Any:
    """`multiply_block` for a format and a kind of activations."""
    layout, decoded = LAYOUTS[name], decoded_bytes(name)
    constants = {
        "FORMAT": name, "ACTIVATIONS": activations, "CODES": layout.block_bytes, "SCALES": layout.scale_step,
        "STEP": RECORDS[activations], "DECODED": decoded, "SCRATCH": CHUNK * decoded,
        "STORED": SUMS * _halves(name, activations),
    }  # fmt: skip
    its = inner(specialize(meet_tokens, f"meet_tokens_{name}_{activations}", **constants))
    return inner(specialize(multiply_block, f"multiply_tokens_{name}_{activations}", **constants, meet=its))


__all__ = ["NEAR", "ROWS", "RUN", "TOKENS", "block_function", "fewest"]
