"""How each number format lies in a weight panel, and the instructions that turn a block of it into products.

A panel is LANES rows of a matrix: block after block of 32 columns, each the rows' codes and then their scales, so that memory is
read in one straight line. Only scales that serve several blocks stand apart, behind all codes.
In a vector of codes (64 bytes where LANES = 16), the 32-bit lane r belongs to row r: four 8-bit codes, or eight 4-bit
ones, low nibbles for columns 4j … 4j + 3 and high nibbles for 16 + 4j … 16 + 4j + 3.

Activations come as rows of float32, or as int8 records of 44 bytes per block: 32 codes, the float32 scale, the int32 that
undoes the weights' offset, and scale · Σ codes as float32. In the finer kind, int8_g16, each 16 of the 32 codes have a scale and
an undoing int32 of their own: 52 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I8, I32, I64, Builder, Value, same
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import LANES, Address, Bytes, Floats, Int, Places, Tile, Words

BLOCK = 32  # columns that share an activation scale
RECORD = 44  # bytes of a quantized activation block
SCALE, START, SUM = 32, 36, 40  # offsets of its scale, start and scale · Σ codes
RECORDS = {"int8": 44, "int8_g16": 52}  # bytes of a record by kind
OFFSETS = {"int8": (32, 36, 40), "int8_g16": (32, 40, 48)}  # of its scales, starts and sum
FP4_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # FP4 values times two
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # ggml's kvalues_iq4nl


# The codes of a block: Bytes vectors, each with the first of its four columns. A vector is loaded when it is taken, as few
# registers hold what is not used at once.
Quads = Iterator[tuple[int, Value]]
Decode = Callable[[Builder, Value, int], Quads]


@dataclass(frozen=True)
class Layout:
    """A format in panels.

    Attributes:
        code_bytes: per row and block of 32 columns.
        scale_bytes: per row and scale group.
        scale: what the scale bytes are: e8m0, f16, bf16, or none.
        has_minimum: a second f16, the block's minimum, follows the scale.
        decode: (builder, address of a block's codes, offset) -> its codes, raised by `offset`.
        table: what 4-bit codes mean, if they are all that there is to a value but its scale.
        is_byte: codes are signed bytes, kept raised by 128 where the path wants it.
        is_grouped: a scale serves several blocks.
    """

    code_bytes: int
    scale_bytes: int
    scale: str
    decode: Decode | None
    table: tuple[int, ...] = ()
    has_minimum: bool = False
    is_byte: bool = False
    is_grouped: bool = False

    @property
    def block_bytes(self) -> int:
        """From one block of a panel to the next."""
        return LANES * (self.code_bytes + (0 if self.is_grouped else self.scale_bytes))

    @property
    def scale_step(self) -> int:
        """From the scales of one group of a panel to those of the next."""
        return LANES * self.scale_bytes if self.is_grouped else self.block_bytes


def _nibbles(b: Builder, codes: Value) -> Quads:
    """4-bit codes: of vector j the low halves of bytes are columns 4j …, the high halves columns 4j + 16 …"""
    words = emit.vector(ir.IntType(16), 2 * LANES)
    for j in range(4):
        packed = emit.load(b, emit.advance(b, codes, 4 * LANES * j), Bytes.llvm)
        yield 4 * j, b.and_(packed, same(packed.type, 15))
        high = b.bitcast(b.lshr(b.bitcast(packed, words), same(words, 4)), packed.type)
        yield 4 * j + 16, b.and_(high, same(packed.type, 15))


def _raised(b: Builder, v: Value, amount: int) -> Value:
    return b.add(v, same(v.type, amount & 255)) if amount else v


def _by_table(table: tuple[int, ...]) -> Decode:
    def decode(b: Builder, codes: Value, offset: int) -> Quads:
        raised = [v + offset for v in table]
        for column, v in _nibbles(b, codes):
            yield column, ACTIVE.lookup(b, raised, v)

    return decode


def _nibbles_less(zero: int) -> Decode:
    def decode(b: Builder, codes: Value, offset: int) -> Quads:
        for column, v in _nibbles(b, codes):
            yield column, _raised(b, v, offset - zero)

    return decode


def _five_bits_less(zero: int) -> Decode:
    def decode(b: Builder, codes: Value, offset: int) -> Quads:
        high = emit.load(b, emit.advance(b, codes, 16 * LANES), Words.llvm)  # bit i of byte j: of column 4i + j
        for column, low in _nibbles(b, codes):
            i = column // 4
            moved = b.shl(high, same(high.type, 4 - i)) if i < 4 else b.lshr(high, same(high.type, i - 4))
            bit = b.and_(b.bitcast(moved, low.type), same(low.type, 16))
            yield column, _raised(b, b.or_(low, bit), offset - zero)

    return decode


def _bytes(b: Builder, codes: Value, offset: int) -> Quads:
    stored = 128 if ACTIVE.biased_bytes else 0
    for j in range(8):
        v = emit.load(b, emit.advance(b, codes, 4 * LANES * j), Bytes.llvm)
        yield 4 * j, v if offset == stored else b.xor(v, same(v.type, 128))


LAYOUTS = {
    "mxfp4": Layout(16, 1, "e8m0", _by_table(FP4_DOUBLED), FP4_DOUBLED),
    "q4_0": Layout(16, 2, "f16", _nibbles_less(8), tuple(range(-8, 8))),
    "q4_1": Layout(16, 4, "f16", _nibbles_less(0), tuple(range(16)), has_minimum=True),
    "q5_0": Layout(20, 2, "f16", _five_bits_less(16)),
    "q5_1": Layout(20, 4, "f16", _five_bits_less(0), has_minimum=True),
    "iq4_nl": Layout(16, 2, "f16", _by_table(IQ4_NL), IQ4_NL),
    "q8_0": Layout(32, 2, "f16", _bytes, is_byte=True),
    "int8": Layout(32, 2, "bf16", _bytes, is_byte=True, is_grouped=True),
    "int8_g32": Layout(32, 2, "bf16", _bytes, is_byte=True),
    "bf16": Layout(64, 0, "none", None),
    "f16": Layout(64, 0, "none", None),
    "f32": Layout(128, 0, "none", None),
}


def _signed_codes(name: str) -> bool:
    """Whether the int8 kernel of a format multiplies signed codes, without offset."""
    wide = LAYOUTS[name].is_byte or name == "iq4_nl"
    return wide and not ACTIVE.biased_bytes


def _scale(b: Builder, layout: Layout, address: Value) -> Value:
    """The rows' scales, Floats."""
    if layout.scale == "e8m0":
        bytes_ = emit.load(b, address, emit.vector(I8, LANES))
        return b.bitcast(b.shl(b.zext(bytes_, Words.llvm), same(Words.llvm, 23)), Floats.llvm)
    halves = emit.load(b, address, emit.vector(ir.IntType(16), LANES))
    return ACTIVE.half_to_float(b, halves) if layout.scale == "f16" else emit.bf16_to_float(b, halves)


def _splat_at(b: Builder, address: Value, kind: ir.Type) -> Value:
    return emit.splat(b, emit.load(b, address, kind, 4), LANES)


def _four_bytes(b: Builder, address: Value) -> Value:
    """Four activation codes in every lane."""
    return b.bitcast(_splat_at(b, address, I32), Bytes.llvm)


def _times_int8(
    b: Builder, name: str, kind: str, codes: Value, scales: Value, rows: list[Value], totals: list[Value]
) -> list[Value]:
    """One block of int8 activations: totals + scale · x_scale · Σ code · x, for each half with its own x_scale if int8_g16."""
    layout = LAYOUTS[name]
    signed = _signed_codes(name)
    raised = not (signed or layout.has_minimum)
    assert layout.decode is not None
    weights = list(layout.decode(b, codes, ACTIVE.offset if raised else 0))
    dot = ACTIVE.dot_signed if signed else ACTIVE.dot_unsigned
    scale = _scale(b, layout, scales)
    minimum = _scale(b, layout, emit.advance(b, scales, 2 * LANES)) if layout.has_minimum else None
    result = []
    for row, total in zip(rows, totals, strict=True):
        zero = same(Words.llvm, 0)
        scale_at, start_at, sum_at = OFFSETS[kind]
        halves = 2 if kind == "int8_g16" else 1
        sums = [_splat_at(b, emit.advance(b, row, start_at + 4 * h), I32) if raised else zero for h in range(halves)]
        if len(rows) == 1 and halves == 1:  # two chains, as one would wait for itself
            sums.append(zero)
        for i, (column, w) in enumerate(weights):
            chain = column // 16 if halves == 2 else i % len(sums)
            sums[chain] = dot(b, sums[chain], w, _four_bytes(b, emit.advance(b, row, column)))
        if len(sums) > halves:
            sums = [b.add(*sums)]
        for h, products in enumerate(sums):
            x_scale = _splat_at(b, emit.advance(b, row, scale_at + 4 * h), F32)
            total = ACTIVE.fma(b, b.sitofp(products, Floats.llvm), b.fmul(scale, x_scale), total)
        if minimum is not None:
            total = ACTIVE.fma(b, minimum, _splat_at(b, emit.advance(b, row, sum_at), F32), total)
        result.append(total)
    return result


def _code_values(b: Builder, layout: Layout, codes: Value) -> Iterator[tuple[int, Value]]:
    """The codes of a block as Floats, each with its column."""
    assert layout.decode is not None
    if layout.table and ACTIVE.float_tables:
        for j in range(4):
            packed = emit.load(b, emit.advance(b, codes, 4 * LANES * j), Words.llvm)
            for half in range(8):
                index = b.lshr(packed, same(packed.type, 4 * half)) if half else packed
                yield 4 * j + half // 2 + 16 * (half % 2), ACTIVE.lookup_floats(b, layout.table, index)
        return
    for column, quad in layout.decode(b, codes, 0):
        words = b.bitcast(quad, Words.llvm)
        for i in range(4):
            yield column + i, b.sitofp(emit.byte_of_words(b, words, 8 * i), Floats.llvm)


def _times_float(
    b: Builder, name: str, codes: list[Value], scales: list[Value], rows: list[Value], totals: list[Value]
) -> list[Value]:
    """One block of float32 activations against quantized weights: a total for each row and panel, as `accumulate` numbers them.
    The scale meets the sum over the block, where there is no minimum to be added first."""
    layout = LAYOUTS[name]
    scale = [_scale(b, layout, s) for s in scales]
    minimum = [_scale(b, layout, emit.advance(b, s, 2 * LANES)) for s in scales] if layout.has_minimum else []
    sums = totals if minimum else [same(Floats.llvm, 0.0)] * len(totals)
    for panels in zip(*(_code_values(b, layout, c) for c in codes), strict=True):
        column, weights = panels[0][0], [v for _, v in panels]
        if minimum:
            weights = [ACTIVE.fma(b, w, s, m) for w, s, m in zip(weights, scale, minimum, strict=True)]
        x = [_splat_at(b, emit.advance(b, row, 4 * column), F32) for row in rows]
        sums = _add_products(b, weights, x, sums)
    if minimum:
        return sums
    pairs = zip(sums, totals, strict=True)
    return [ACTIVE.fma(b, s, scale[n % len(scale)], total) for n, (s, total) in enumerate(pairs)]


def _add_products(b: Builder, weights: Sequence[Value], x: list[Value], totals: list[Value]) -> list[Value]:
    """totals + weights · x, for each of x and each of the weights. A total is always the same chain of sums, however many others
    there are beside it: a token's result does not depend on the tokens that it is computed with."""
    panels = len(weights)
    return [ACTIVE.fma(b, weights[n % panels], x[n // panels], total) for n, total in enumerate(totals)]


UNIT = 8  # columns of a float format that one step covers
PAIR = 2  # and those of a small step, for what UNIT leaves over


def _float_weights(b: Builder, name: str, codes: Value, columns: int = UNIT) -> Iterator[Value]:
    """Columns of a float format's panel, an even number of them, as Floats."""
    if name == "bf16":
        for k in range(columns // 2):  # pairs of columns in each 32-bit lane
            pair = emit.load(b, emit.advance(b, codes, 4 * LANES * k), Words.llvm)
            yield b.bitcast(b.shl(pair, same(pair.type, 16)), Floats.llvm)
            yield b.bitcast(b.and_(pair, same(pair.type, 0xFFFF0000)), Floats.llvm)
        return
    for k in range(columns):
        if name == "f32":
            yield emit.load(b, emit.advance(b, codes, 4 * LANES * k), Floats.llvm)
        else:
            halves = emit.vector(ir.IntType(16), LANES)
            yield ACTIVE.half_to_float(b, emit.load(b, emit.advance(b, codes, 2 * LANES * k), halves))


def _times_unit(
    b: Builder, name: str, codes: list[Value], rows: list[Value], totals: list[Value], columns: int = UNIT
) -> list[Value]:
    """Columns of float weights and float32 activations, totals as in `_times_float`."""
    for k, weights in enumerate(zip(*(_float_weights(b, name, c, columns) for c in codes), strict=True)):
        x = [_splat_at(b, emit.advance(b, row, 4 * k), F32) for row in rows]
        totals = _add_products(b, weights, x, totals)
    return totals


@intrinsic(prefer_literal=True)
def accumulate(
    typing_context: Any, name: Any, activations: Any, tile: Any, panels: Any, codes: Any, scales: Any, rows: Any, at: Any
) -> Any:
    """The tile plus the products of one block (of UNIT columns for float formats) of some panels and some rows of activations.

    `name` is a format and `activations` "int8", "int8_g16" or "f32", both compile-time constants; `panels` are the panels'
    addresses, `codes` and `scales` the offsets of the block's codes and scales in them; `rows` are the rows' addresses and `at`
    the block's offset in them, all in bytes. The accumulator for row t and panel i is number t · panels + i.
    """
    format_name, kind = name.literal_value, activations.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, _, totals, bases, codes, scales, addresses, at = args
        accumulators = [b.extract_value(totals, n) for n in range(tile.count)]
        their_codes, their_scales = (
            [b.add(b.extract_value(bases, i), offset) for i in range(panels.count)] for offset in (codes, scales)
        )
        places = [b.add(b.extract_value(addresses, t), at) for t in range(rows.count)]
        if LAYOUTS[format_name].decode is None:
            results = _times_unit(b, format_name, their_codes, places, accumulators)
        elif kind in RECORDS:
            results = _times_int8(b, format_name, kind, their_codes[0], their_scales[0], places, accumulators)
        else:
            results = _times_float(b, format_name, their_codes, their_scales, places, accumulators)
        return _tile_of(b, tile, results)

    if not (isinstance(tile, Tile) and isinstance(rows, Places) and isinstance(panels, Places)):
        return None
    if tile.count != panels.count * rows.count or (kind in RECORDS and panels.count > 1):
        raise TypeError(f"a tile of {tile.count} for {rows.count} rows ({kind}) and {panels.count} panels")
    return tile(name, activations, tile, panels, Int, Int, rows, Int), lower


@intrinsic(prefer_literal=True)
def accumulate_pair(typing_context: Any, name: Any, tile: Any, panels: Any, codes: Any, rows: Any, at: Any) -> Any:
    """`accumulate` for PAIR columns of a float format."""
    format_name = name.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, totals, bases, codes, addresses, at = args
        accumulators = [b.extract_value(totals, n) for n in range(tile.count)]
        their_codes = [b.add(b.extract_value(bases, i), codes) for i in range(panels.count)]
        places = [b.add(b.extract_value(addresses, t), at) for t in range(rows.count)]
        return _tile_of(b, tile, _times_unit(b, format_name, their_codes, places, accumulators, PAIR))

    return tile(name, tile, panels, Int, rows, Int), lower


def _tile_of(b: Builder, tile: Tile, values: list[Value]) -> Value:
    result = ir.Constant(tile.llvm, ir.Undefined)
    for t, value in enumerate(values):
        result = b.insert_value(result, value, t)
    return result


@intrinsic(prefer_literal=True)
def decode_row(typing_context: Any, name: Any, codes: Any, scales: Any, lane: Any, out: Any) -> Any:
    """Writes one row (`lane`) of a block as float32 [32] (UNIT columns of a float format) to the address `out`."""
    format_name = name.literal_value

    def one(b: Builder, v: Value, lane: Value) -> Value:
        return b.extract_element(v, b.trunc(lane, I32))

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, codes, scales, lane, out = args
        layout = LAYOUTS[format_name]
        if layout.decode is None:
            values = [one(b, v, lane) for v in _float_weights(b, format_name, codes)]
        else:
            scale = one(b, _scale(b, layout, scales), lane)
            low = one(b, _scale(b, layout, emit.advance(b, scales, 2 * LANES)), lane) if layout.has_minimum else F32(0.0)
            values = [scale] * BLOCK
            for column, v in layout.decode(b, codes, 0):
                word = one(b, b.bitcast(v, Words.llvm), lane)
                for i in range(4):
                    code = b.sitofp(b.ashr(b.shl(word, I32(24 - 8 * i)), I32(24)), F32)
                    values[column + i] = b.fadd(b.fmul(code, scale), low)
        for k, value in enumerate(values):
            emit.store(b, value, b.add(out, I64(4 * k)))
        return context.get_dummy_value()

    return types.void(name, Address, Address, Int, Address), lower
