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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I8, I32, I64, Builder, Value, same
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import LANES, Address, Bytes, Floats, Int, Rows, Tile, Words

BLOCK = 32  # columns that share an activation scale
RECORD = 44  # bytes of a quantized activation block
SCALE, START, SUM = 32, 36, 40  # offsets of its scale, start and scale · Σ codes
RECORDS = {"int8": 44, "int8_g16": 52}  # bytes of a record by kind
OFFSETS = {"int8": (32, 36, 40), "int8_g16": (32, 40, 48)}  # of its scales, starts and sum
FP4_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # FP4 values times two
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # ggml's kvalues_iq4nl


@dataclass(frozen=True)
class Layout:
    """A format in panels.

    Attributes:
        code_bytes: per row and block of 32 columns.
        scale_bytes: per row and scale group.
        scale: what the scale bytes are: e8m0, f16, bf16, or none.
        has_minimum: a second f16, the block's minimum, follows the scale.
        decode: (builder, address of a block's codes, offset) -> eight Bytes vectors for columns 0–3, 4–7, …; the codes are
            raised by `offset`.
        is_byte: codes are signed bytes, kept raised by 128 where the path wants it.
        is_grouped: a scale serves several blocks.
    """

    code_bytes: int
    scale_bytes: int
    scale: str
    decode: Callable[[Builder, Value, int], list[Value]] | None
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


def _nibbles(b: Builder, codes: Value) -> list[Value]:
    """The eight vectors of 4-bit codes: four low halves, then four high ones."""
    packed = [emit.load(b, emit.advance(b, codes, 4 * LANES * j), Bytes.llvm) for j in range(4)]
    low = [b.and_(p, same(p.type, 15)) for p in packed]
    words = emit.vector(ir.IntType(16), 2 * LANES)
    high = [b.bitcast(b.lshr(b.bitcast(p, words), same(words, 4)), p.type) for p in packed]
    return low + [b.and_(p, same(p.type, 15)) for p in high]


def _raised(b: Builder, v: Value, amount: int) -> Value:
    return b.add(v, same(v.type, amount & 255)) if amount else v


def _by_table(table: tuple[int, ...]) -> Callable[[Builder, Value, int], list[Value]]:
    def decode(b: Builder, codes: Value, offset: int) -> list[Value]:
        raised = [v + offset for v in table]
        return [ACTIVE.lookup(b, raised, v) for v in _nibbles(b, codes)]

    return decode


def _nibbles_less(zero: int) -> Callable[[Builder, Value, int], list[Value]]:
    def decode(b: Builder, codes: Value, offset: int) -> list[Value]:
        return [_raised(b, v, offset - zero) for v in _nibbles(b, codes)]

    return decode


def _five_bits_less(zero: int) -> Callable[[Builder, Value, int], list[Value]]:
    def decode(b: Builder, codes: Value, offset: int) -> list[Value]:
        high = emit.load(b, emit.advance(b, codes, 16 * LANES), Words.llvm)  # bit i of byte j: of column 4i + j
        result = []
        for i, low in enumerate(_nibbles(b, codes)):
            moved = b.shl(high, same(high.type, 4 - i)) if i < 4 else b.lshr(high, same(high.type, i - 4))
            bit = b.and_(b.bitcast(moved, low.type), same(low.type, 16))
            result.append(_raised(b, b.or_(low, bit), offset - zero))
        return result

    return decode


def _bytes(b: Builder, codes: Value, offset: int) -> list[Value]:
    stored = 128 if ACTIVE.biased_bytes else 0
    vectors = [emit.load(b, emit.advance(b, codes, 4 * LANES * j), Bytes.llvm) for j in range(8)]
    return vectors if offset == stored else [b.xor(v, same(v.type, 128)) for v in vectors]


LAYOUTS = {
    "mxfp4": Layout(16, 1, "e8m0", _by_table(FP4_DOUBLED)),
    "q4_0": Layout(16, 2, "f16", _nibbles_less(8)),
    "q4_1": Layout(16, 4, "f16", _nibbles_less(0), has_minimum=True),
    "q5_0": Layout(20, 2, "f16", _five_bits_less(16)),
    "q5_1": Layout(20, 4, "f16", _five_bits_less(0), has_minimum=True),
    "iq4_nl": Layout(16, 2, "f16", _by_table(IQ4_NL)),
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
    weights = layout.decode(b, codes, ACTIVE.offset if raised else 0)
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
        for j, w in enumerate(weights):
            chain = j // 4 if halves == 2 else j % len(sums)
            sums[chain] = dot(b, sums[chain], w, _four_bytes(b, emit.advance(b, row, 4 * j)))
        if len(sums) > halves:
            sums = [b.add(*sums)]
        for h, products in enumerate(sums):
            x_scale = _splat_at(b, emit.advance(b, row, scale_at + 4 * h), F32)
            total = ACTIVE.fma(b, b.sitofp(products, Floats.llvm), b.fmul(scale, x_scale), total)
        if minimum is not None:
            total = ACTIVE.fma(b, minimum, _splat_at(b, emit.advance(b, row, sum_at), F32), total)
        result.append(total)
    return result


def _times_float(
    b: Builder, name: str, codes: list[Value], scales: list[Value], rows: list[Value], totals: list[Value]
) -> list[Value]:
    """One block of float32 activations against quantized weights: one panel and a total for each row, or one row and a total for
    each panel."""
    layout = LAYOUTS[name]
    assert layout.decode is not None
    scale = [_scale(b, layout, s) for s in scales]
    minimum = [_scale(b, layout, emit.advance(b, s, 2 * LANES)) for s in scales] if layout.has_minimum else []
    decoded = [[b.bitcast(v, Words.llvm) for v in layout.decode(b, c, 0)] for c in codes]
    for j in range(BLOCK // 4):
        for i in range(4):
            weights = [b.fmul(b.sitofp(emit.byte_of_words(b, d[j], 8 * i), Floats.llvm), s)
                       for d, s in zip(decoded, scale, strict=True)]  # fmt: skip
            if minimum:
                weights = [b.fadd(w, m) for w, m in zip(weights, minimum, strict=True)]
            x = [_splat_at(b, emit.advance(b, row, 16 * j + 4 * i), F32) for row in rows]
            totals = _add_products(b, weights, x, totals)
    return totals


def _add_products(b: Builder, weights: list[Value], x: list[Value], totals: list[Value]) -> list[Value]:
    """totals + weights · x, where one of these two is a single vector. A total is always the same chain of sums, however many
    others there are beside it: a token's result does not depend on the tokens that it is computed with."""
    return [ACTIVE.fma(b, weights[t % len(weights)], x[t % len(x)], total) for t, total in enumerate(totals)]


UNIT = 8  # columns of a float format that one step covers


def _float_weights(b: Builder, name: str, codes: Value) -> list[Value]:
    """UNIT columns of a float format's panel, as Floats."""
    if name == "f32":
        return [emit.load(b, emit.advance(b, codes, 4 * LANES * k), Floats.llvm) for k in range(UNIT)]
    if name == "f16":
        halves = emit.vector(ir.IntType(16), LANES)
        loaded = [emit.load(b, emit.advance(b, codes, 2 * LANES * k), halves) for k in range(UNIT)]
        return [ACTIVE.half_to_float(b, v) for v in loaded]
    result = []
    for k in range(UNIT // 2):  # pairs of columns in each 32-bit lane
        pair = emit.load(b, emit.advance(b, codes, 4 * LANES * k), Words.llvm)
        result.append(b.bitcast(b.shl(pair, same(pair.type, 16)), Floats.llvm))
        result.append(b.bitcast(b.and_(pair, same(pair.type, 0xFFFF0000)), Floats.llvm))
    return result


def _times_unit(b: Builder, name: str, codes: list[Value], rows: list[Value], totals: list[Value]) -> list[Value]:
    """UNIT columns of float weights and float32 activations, for rows or panels as in `_times_float`."""
    panels = [_float_weights(b, name, c) for c in codes]
    for k in range(UNIT):
        x = [_splat_at(b, emit.advance(b, row, 4 * k), F32) for row in rows]
        totals = _add_products(b, [weights[k] for weights in panels], x, totals)
    return totals


@intrinsic(prefer_literal=True)
def accumulate(
    typing_context: Any, name: Any, activations: Any, tile: Any, codes: Any, scales: Any, rows: Any, at: Any
) -> Any:
    """The tile plus the products of one block (of UNIT columns for float formats) of a panel and of rows + `at`.

    `name` is a format and `activations` "int8", "int8_g16" or "f32", both compile-time constants; `codes` and `scales` are the
    addresses of the block's codes and scales; `rows` are the tokens' rows of activations, `at` the block's offset in them,
    in bytes.
    """
    format_name, kind = name.literal_value, activations.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, _, totals, codes, scales, addresses, at = args
        accumulators = [b.extract_value(totals, t) for t in range(tile.tokens)]
        places = [b.add(b.extract_value(addresses, t), at) for t in range(tile.tokens)]
        if LAYOUTS[format_name].decode is None:
            results = _times_unit(b, format_name, [codes], places, accumulators)
        elif kind in RECORDS:
            results = _times_int8(b, format_name, kind, codes, scales, places, accumulators)
        else:
            results = _times_float(b, format_name, [codes], [scales], places, accumulators)
        return _tile_of(b, tile, results)

    if not (isinstance(tile, Tile) and isinstance(rows, Rows)):
        return None
    return tile(name, activations, tile, Address, Address, rows, Int), lower


@intrinsic(prefer_literal=True)
def accumulate_panels(
    typing_context: Any, name: Any, tile: Any, codes: Any, scales: Any, panel_bytes: Any, row: Any, at: Any
) -> Any:
    """The same for one row of float32 activations and as many panels, `panel_bytes` apart, as the tile has accumulators: a
    single sum would wait for itself."""
    format_name = name.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, totals, codes, scales, panel_bytes, addresses, at = args
        accumulators = [b.extract_value(totals, t) for t in range(tile.tokens)]
        offsets = [b.mul(panel_bytes, I64(t)) for t in range(tile.tokens)]
        code_places, scale_places = ([b.add(base, o) for o in offsets] for base in (codes, scales))
        place = [b.add(b.extract_value(addresses, 0), at)]
        if LAYOUTS[format_name].decode is None:
            results = _times_unit(b, format_name, code_places, place, accumulators)
        else:
            results = _times_float(b, format_name, code_places, scale_places, place, accumulators)
        return _tile_of(b, tile, results)

    if not (isinstance(tile, Tile) and isinstance(row, Rows)):
        return None
    return tile(name, tile, Address, Address, Int, row, Int), lower


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
            values = []
            for v in layout.decode(b, codes, 0):
                word = one(b, b.bitcast(v, Words.llvm), lane)
                for i in range(4):
                    code = b.sitofp(b.ashr(b.shl(word, I32(24 - 8 * i)), I32(24)), F32)
                    values.append(b.fadd(b.fmul(code, scale), low))
        for k, value in enumerate(values):
            emit.store(b, value, b.add(out, I64(4 * k)))
        return context.get_dummy_value()

    return types.void(name, Address, Address, Int, Address), lower
