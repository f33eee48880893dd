"""How each number format lies in a weight panel, and the instructions that turn a block of it into products.

A panel is LANES rows of a matrix: block after block of 32 columns, each the rows' codes and then their scales, so that memory is
read in one straight line. Only scales that serve several blocks stand apart, behind all codes.
In a vector of codes (64 bytes where LANES = 16), the 32-bit lane r belongs to row r: four 8-bit codes, or eight 4-bit
ones, low nibbles for columns 4j … 4j + 3 and high nibbles for 16 + 4j … 16 + 4j + 3.

Activations come as rows of float32, or as int8 records of 44 bytes per block: 32 codes, the float32 scale, the int32 that
undoes the weights' offset, and scale · Σ codes as float32. Where sums are narrow (`Portable.narrow_sums`), two int16 stand for
the int32: what undoes the offset of the first two of every four columns, and of the others. In the finer kind, int8_g16, each
16 of the 32 codes have a scale and an undoing int32 of their own: 52 bytes. For weights in bf16 there are records of bfloat16, 64
bytes per block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numba_kernels.cpu.k_scales import group_scales
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I8, I32, I64, Builder, Value, same
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.tiles import Places, Tile
from numba_kernels.simd.values import LANES, Address, Bytes, Floats, Int, Words

BLOCK = 32  # columns that share an activation scale
HEAD = 8  # blocks of a k-quant whose scales stand together
RECORD = 44  # bytes of a quantized activation block
SCALE, START, SUM = 32, 36, 40  # offsets of its scale, start and scale · Σ codes
RECORDS = {"int8": 44, "int8_g16": 52, "bf16": 64}  # bytes of a record by kind
OFFSETS = {"int8": (32, 36, 40), "int8_g16": (32, 40, 48)}  # of its scales, starts and sum
FP4_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # FP4 values times two
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # ggml's kvalues_iq4nl


Shorts = emit.vector(ir.IntType(16), 2 * LANES)  # the int16 in a vector of codes

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
        scale: what the scale bytes are: e8m0, f16, bf16, none, or k, a k-quant's head of 256 columns (`k_scales`).
        has_minimum: a second f16, the block's minimum, follows the scale; of a k-quant, groups have minima too.
        halves: each 16 of the 32 columns have a scale (and minimum) of their own.
        decode: (builder, address of a block's codes, offset) -> its codes, raised by `offset`.
        reach: the greatest magnitude of a code.
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
    halves: bool = False
    reach: int = 16

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


def _pairs(b: Builder, codes: Value, column: int, up: int) -> Value:
    """Two bits of each code of four columns, moved up: of two vectors, see `k_panels`."""
    words = emit.load(b, emit.advance(b, codes, column // 16 * 4 * LANES), Words.llvm)
    move = up - column % 16 // 2
    moved = b.shl(words, same(words.type, move)) if move > 0 else b.lshr(words, same(words.type, -move)) if move else words
    return b.and_(b.bitcast(moved, Bytes.llvm), same(Bytes.llvm, 3 << up))


def _two_bits(b: Builder, codes: Value, offset: int) -> Quads:
    for column in range(0, BLOCK, 4):
        yield column, _raised(b, _pairs(b, codes, column, 0), offset)


def _three_bits_less(zero: int) -> Decode:
    def decode(b: Builder, codes: Value, offset: int) -> Quads:
        high = emit.load(b, emit.advance(b, codes, 8 * LANES), Words.llvm)
        for column in range(0, BLOCK, 4):
            i = column // 4
            moved = b.shl(high, same(high.type, 2 - i)) if i < 2 else b.lshr(high, same(high.type, i - 2))
            bit = b.and_(b.bitcast(moved, Bytes.llvm), same(Bytes.llvm, 4))
            yield column, _raised(b, b.or_(_pairs(b, codes, column, 0), bit), offset - zero)

    return decode


def _six_bits_less(zero: int) -> Decode:
    def decode(b: Builder, codes: Value, offset: int) -> Quads:
        for column, low in _nibbles(b, codes):
            high = _pairs(b, emit.advance(b, codes, 16 * LANES), column, 4)
            yield column, _raised(b, b.or_(low, high), offset - zero)

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
    "q5_1": Layout(20, 4, "f16", _five_bits_less(0), has_minimum=True, reach=31),
    "iq4_nl": Layout(16, 2, "f16", _by_table(IQ4_NL), IQ4_NL, reach=127),
    "q8_0": Layout(32, 2, "f16", _bytes, is_byte=True, reach=128),
    "int8": Layout(32, 2, "bf16", _bytes, is_byte=True, is_grouped=True, reach=128),
    "int8_g32": Layout(32, 2, "bf16", _bytes, is_byte=True, reach=128),
    "q2_k": Layout(8, 20, "k", _two_bits, has_minimum=True, is_grouped=True, halves=True),
    "q3_k": Layout(12, 14, "k", _three_bits_less(4), is_grouped=True, halves=True),
    "q4_k": Layout(16, 16, "k", _nibbles_less(0), has_minimum=True, is_grouped=True),
    "q5_k": Layout(20, 16, "k", _five_bits_less(0), has_minimum=True, is_grouped=True, reach=31),
    "q6_k": Layout(24, 18, "k", _six_bits_less(32), is_grouped=True, halves=True, reach=32),
    "bf16": Layout(64, 0, "none", None),
    "f16": Layout(64, 0, "none", None),
    "f32": Layout(128, 0, "none", None),
}


def is_narrow(name: str) -> bool:
    """Whether products of a format's codes are summed in 16 bits: 8 of them, of 16 columns, are at most 8 · 32 · 127 < 2^15."""
    return ACTIVE.narrow_sums and LAYOUTS[name].reach <= 32


def has_signed_codes(name: str) -> bool:
    """Whether the int8 kernel of a format multiplies signed codes, without offset."""
    wide = LAYOUTS[name].is_byte or name in ("iq4_nl", "q6_k")
    return wide and not ACTIVE.biased_bytes and not is_narrow(name)


def raised_by(name: str) -> int:
    """What the int8 kernel of a format raises codes by; 0 where they stay as they are."""
    if has_signed_codes(name) or LAYOUTS[name].has_minimum:
        return 0
    return 32 if is_narrow(name) and LAYOUTS[name].reach > 16 else ACTIVE.offset


def _scale(b: Builder, layout: Layout, address: Value) -> Value:
    """The rows' scales, Floats."""
    if layout.scale == "e8m0":
        bytes_ = emit.load(b, address, emit.vector(I8, LANES))
        return b.bitcast(b.shl(b.zext(bytes_, Words.llvm), same(Words.llvm, 23)), Floats.llvm)
    halves = emit.load(b, address, emit.vector(ir.IntType(16), LANES))
    return ACTIVE.half_to_float(b, halves) if layout.scale == "f16" else emit.bf16_to_float(b, halves)


def scales_of(b: Builder, name: str, address: Value, block: Value) -> tuple[list[Value], list[Value]]:
    """The rows' scales of block number `block`, and what is added to its values, Floats: one for all 32 columns or one for each
    half; the second list is empty where nothing is added."""
    layout = LAYOUTS[name]
    if layout.scale == "k":
        return group_scales(b, name, address, block)
    added = [_scale(b, layout, emit.advance(b, address, 2 * LANES))] if layout.has_minimum else []
    return [_scale(b, layout, address)], added


def _splat_at(b: Builder, address: Value, kind: ir.Type) -> Value:
    return emit.splat(b, emit.load(b, address, kind, 4), LANES)


def four_bytes(b: Builder, address: Value) -> Value:
    """Four activation codes in every lane."""
    return b.bitcast(_splat_at(b, address, I32), Bytes.llvm)


class Leaving:
    """Code for up to so many rows, one after the other, that is left before the first row that there is not.

    Rows that a tile lacks then cost nothing, and one tile serves any number of rows: the processor foresees where it leaves.
    """

    def __init__(self, b: Builder, count: Value, least: int) -> None:
        """count: how many rows there are; at least `least`."""
        self._b, self._count, self._least = b, count, least
        self._done: Any = None
        self._left: list[tuple[Any, int]] = []  # from which blocks, with how many rows done

    def before(self, row: int) -> None:
        """To be called before the code of each row."""
        if row < self._least:
            return
        self._done = self._done or self._b.append_basic_block("done")
        self._left.append((self._b.block, row))
        further = self._b.append_basic_block(f"row{row}")
        self._b.cbranch(self._b.icmp_signed(">", self._count, I64(row)), further, self._done)
        self._b.position_at_end(further)

    def join(self, results: list[Value], unchanged: list[Value]) -> list[Value]:
        """The results of rows that there are, and what the others had."""
        if not self._left:
            return results
        last = self._b.block
        self._b.branch(self._done)
        self._b.position_at_end(self._done)
        joined = []
        for t, (result, old) in enumerate(zip(results, unchanged, strict=True)):
            if t < self._least:
                joined.append(result)
                continue
            phi = self._b.phi(result.type)
            for block, done in self._left:
                phi.add_incoming(result if t < done else old, block)
            phi.add_incoming(result, last)
            joined.append(phi)
        return joined


def _times_int8(
    b: Builder, name: str, kind: str, codes: Value, scales: Value, block: Value, rows: list[Value], totals: list[Value],
    leaving: Leaving | None = None,
) -> list[Value]:  # fmt: skip
    """One block of int8 activations: totals + scale · x_scale · Σ code · x, for each half by itself where the weights or the
    activations have scales for halves."""
    layout = LAYOUTS[name]
    assert layout.decode is not None
    weights = list(layout.decode(b, codes, raised_by(name)))
    scale, added = scales_of(b, name, scales, block)
    halves = 2 if layout.halves or kind == "int8_g16" else 1
    result: list[Value] = []
    for row, total in zip(rows, totals, strict=True):
        if leaving:
            leaving.before(len(result))
        starts = starts_of(b, name, kind, row)
        for h in range(halves):
            part = [(w, emit.advance(b, row, column)) for column, w in weights if halves == 1 or column // 16 == h]
            start = starts[h] if raised_by(name) else None
            if is_narrow(name):
                products = _narrow_sum(b, layout, part, start)
            else:
                products = _sum(b, name, part, start, 2 if len(rows) == 1 and halves == 1 else 1)
            total = add_scaled(b, name, kind, row, h, products, scale, added, starts, total)
        result.append(total)
    return leaving.join(result, totals) if leaving else result


def _sum(b: Builder, name: str, pairs: list[tuple[Value, Value]], start: Value | None, chains: int) -> Value:
    """start + Σ code · x, Words, for pairs of codes and the addresses of x. There may be two sums, as one waits for itself."""
    dot = ACTIVE.dot_signed if has_signed_codes(name) else ACTIVE.dot_unsigned
    zero = same(Words.llvm, 0)
    sums = [zero if start is None else start, zero][:chains]
    for i, (w, x) in enumerate(pairs):
        sums[i % chains] = dot(b, sums[i % chains], w, four_bytes(b, x))
    return b.add(*sums) if chains == 2 else sums[0]


def _narrow_sum(b: Builder, layout: Layout, pairs: list[tuple[Value, Value]], start: Value | None) -> Value:
    """The same by way of 16-bit sums, which hold 16 columns each, or all 32 if codes are small. They may wrap: what fits is the
    sum of all products, start included."""
    each = len(pairs) if layout.reach <= 16 else 4
    total = None
    for first in range(0, len(pairs), each):
        sums = same(Shorts, 0) if start is None else start
        for w, x in pairs[first : first + each]:
            sums = ACTIVE.dot_narrow(b, sums, w, four_bytes(b, x))
        total = widened(b, sums) if total is None else b.add(total, widened(b, sums))
    return total


def widened(b: Builder, sums: Value) -> Value:
    """16-bit sums, Shorts, added in pairs: Words."""
    return ACTIVE.dot_words(b, same(Words.llvm, 0), sums, same(Shorts, 1))


def add_scaled(
    b: Builder, name: str, kind: str, row: Value, half: int, products: Value, scale: list[Value], added: list[Value],
    starts: list[Value], total: Value, record: tuple[int, ...] = (),
) -> Value:  # fmt: skip
    """total + scale · x_scale · products of one half, or of the whole, and what the rows' minima add.

    `record`: where a row's scales, starts and sum are, if not as in OFFSETS.
    """
    layout = LAYOUTS[name]
    scale_at, _, sum_at = record or OFFSETS[kind]
    x_scale = _splat_at(b, emit.advance(b, row, scale_at + (4 * half if kind == "int8_g16" else 0)), F32)
    total = ACTIVE.fma(b, b.sitofp(products, Floats.llvm), b.fmul(scale[half % len(scale)], x_scale), total)
    if added and layout.halves:  # Σ codes of the half, times −offset, is what it would start at
        start = widened(b, starts[half]) if ACTIVE.narrow_sums else starts[half]
        each = b.fmul(b.fmul(added[half], x_scale), same(Floats.llvm, -1.0 / ACTIVE.offset))
        return ACTIVE.fma(b, b.sitofp(start, Floats.llvm), each, total)
    if added and (half == 1 or kind != "int8_g16"):
        total = ACTIVE.fma(b, added[0], _splat_at(b, emit.advance(b, row, sum_at), F32), total)
    return total


def starts_of(b: Builder, name: str, kind: str, row: Value) -> list[Value]:
    """What the sums of a block, or of each half, start with, −raised_by · Σ codes: Words, or Shorts where sums are narrow.
    A record that has only the whole sum leaves the first half's to be computed. Empty where nothing starts."""
    layout = LAYOUTS[name]
    if not (raised_by(name) or (layout.has_minimum and layout.halves)):
        return []
    start_at = OFFSETS[kind][1]
    narrow = ACTIVE.narrow_sums
    halves = 2 if layout.halves or kind == "int8_g16" else 1
    if halves == 1 or kind == "int8_g16":
        found = [_splat_at(b, emit.advance(b, row, start_at + 4 * h), I32) for h in range(halves)]
        found = [b.bitcast(v, Shorts) for v in found] if narrow else found
    else:
        kind_of = Shorts if narrow else Words.llvm
        ones, first = same(Bytes.llvm, 1), same(kind_of, 0)
        for column in range(0, BLOCK // 2, 4):
            x = four_bytes(b, emit.advance(b, row, column))
            first = (ACTIVE.dot_narrow if narrow else ACTIVE.dot_unsigned)(b, first, ones, x)
        first = b.sub(same(kind_of, 0), b.mul(first, same(kind_of, ACTIVE.offset)))
        found = [first, b.sub(b.bitcast(_splat_at(b, emit.advance(b, row, start_at), I32), kind_of), first)]
    twice = raised_by(name) == 2 * ACTIVE.offset
    return [b.add(v, v) for v in found] if twice else found


def code_values(b: Builder, layout: Layout, codes: Value) -> Iterator[tuple[int, Value]]:
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
    b: Builder, name: str, codes: list[Value], scales: list[Value], block: Value, rows: list[Value], totals: list[Value]
) -> list[Value]:
    """One block of float32 activations against quantized weights: a total for each row and panel, as `accumulate` numbers them.
    The scale meets the sum over the block, where there is one scale and no minimum to be added first."""
    layout = LAYOUTS[name]
    found = [scales_of(b, name, s, block) for s in scales]
    scaled_first = layout.has_minimum or layout.halves
    sums = totals if scaled_first else [same(Floats.llvm, 0.0)] * len(totals)
    for panels in zip(*(code_values(b, layout, c) for c in codes), strict=True):
        column, weights = panels[0][0], [v for _, v in panels]
        if scaled_first:
            half = column // 16 if layout.halves else 0
            pairs = zip(weights, found, strict=True)
            weights = [ACTIVE.fma(b, w, s[half], m[half]) if m else b.fmul(w, s[half]) for w, (s, m) in pairs]
        x = [_splat_at(b, emit.advance(b, row, 4 * column), F32) for row in rows]
        sums = add_products(b, weights, x, sums)
    if scaled_first:
        return sums
    pairs = zip(sums, totals, strict=True)
    return [ACTIVE.fma(b, s, found[n % len(found)][0][0], total) for n, (s, total) in enumerate(pairs)]


def add_products(b: Builder, weights: Sequence[Value], x: list[Value], totals: list[Value]) -> list[Value]:
    """totals + weights · x, for each of x and each of the weights. A total is always the same chain of sums, however many others
    there are beside it: a token's result does not depend on the tokens that it is computed with."""
    panels = len(weights)
    return [ACTIVE.fma(b, weights[n % panels], x[n // panels], total) for n, total in enumerate(totals)]


UNIT = 8  # columns of a float format that one step covers
PAIR = 2  # and those of a small step, for what UNIT leaves over


def float_weights(b: Builder, name: str, codes: Value, columns: int = UNIT) -> Iterator[Value]:
    """Columns of a float format's panel, an even number of them, as Floats."""
    if name == "bf16":
        for k in range(columns // 2):
            yield from emit.bf16_halves(b, _pair_of_columns(b, codes, k))
        return
    for k in range(columns):
        if name == "f32":
            yield emit.load(b, emit.advance(b, codes, 4 * LANES * k), Floats.llvm)
        else:
            halves = emit.vector(ir.IntType(16), LANES)
            yield ACTIVE.half_to_float(b, emit.load(b, emit.advance(b, codes, 2 * LANES * k), halves))


def _pair_of_columns(b: Builder, codes: Value, k: int) -> Value:
    """Columns 2k and 2k + 1 of a bf16 panel: a pair in each 32-bit lane."""
    return emit.load(b, emit.advance(b, codes, 4 * LANES * k), Words.llvm)


def _times_bf16(b: Builder, codes: list[Value], rows: list[Value], totals: list[Value]) -> list[Value]:
    """UNIT columns of bf16 weights and bf16 activations, totals as in `_times_float`."""
    for k in range(UNIT // 2):
        weights = [_pair_of_columns(b, c, k) for c in codes]
        x = [_splat_at(b, emit.advance(b, row, 4 * k), I32) for row in rows]
        totals = [ACTIVE.dot_pairs(b, total, weights[n % len(codes)], x[n // len(codes)]) for n, total in enumerate(totals)]
    return totals


def _times_unit(
    b: Builder, name: str, codes: list[Value], rows: list[Value], totals: list[Value], columns: int = UNIT
) -> list[Value]:
    """Columns of float weights and float32 activations, totals as in `_times_float`."""
    for k, weights in enumerate(zip(*(float_weights(b, name, c, columns) for c in codes), strict=True)):
        x = [_splat_at(b, emit.advance(b, row, 4 * k), F32) for row in rows]
        totals = add_products(b, weights, x, totals)
    return totals


@intrinsic(prefer_literal=True)
def accumulate(
    typing_context: Any, name: Any, activations: Any, tile: Any, panels: Any, codes: Any, scales: Any, block: Any, rows: Any,
    at: Any,
) -> Any:  # fmt: skip
    """The tile plus the products of one block (of UNIT columns for float formats) of some panels and some rows of activations.

    `name` is a format and `activations` a kind of records or "f32", both compile-time constants; `panels` are the panels'
    addresses, `codes` and `scales` the offsets of the block's codes and scales in them, and `block` its number; `rows` are the
    rows' addresses and `at` the block's offset in them, all in bytes. The accumulator for row t and panel i is number
    t · panels + i.
    """

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        return _accumulated(b, name.literal_value, activations.literal_value, sig, args)

    if not (isinstance(tile, Tile) and isinstance(rows, Places) and isinstance(panels, Places)):
        return None
    _require_sizes(activations.literal_value, tile, panels, rows)
    return tile(name, activations, tile, panels, Int, Int, Int, rows, Int), lower


@intrinsic(prefer_literal=True)
def accumulate_first(
    typing_context: Any, name: Any, activations: Any, tile: Any, panels: Any, codes: Any, scales: Any, block: Any, rows: Any,
    at: Any, least: Any, count: Any,
) -> Any:  # fmt: skip
    """`accumulate` for the first `count` rows, which are at least `least` (a compile-time constant). What is in the tile for the
    others means nothing. Only with int8 activations are they left out; else they are computed with the others."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        *args, _, count = args
        leaving = Leaving(b, count, least.literal_value)
        return _accumulated(b, name.literal_value, activations.literal_value, sig, args, leaving)

    if not (isinstance(tile, Tile) and isinstance(rows, Places) and isinstance(panels, Places)):
        return None
    _require_sizes(activations.literal_value, tile, panels, rows)
    return tile(name, activations, tile, panels, Int, Int, Int, rows, Int, least, Int), lower


def _accumulated(b: Builder, name: str, kind: str, sig: Any, args: Any, leaving: Leaving | None = None) -> Value:
    """What `accumulate` returns, of its arguments."""
    _, _, totals, bases, codes, scales, block, addresses, at = args
    tile, panels, rows = sig.args[2], sig.args[3], sig.args[7]
    accumulators = [b.extract_value(totals, n) for n in range(tile.count)]
    their_codes, their_scales = _moved(b, panels, bases, codes), _moved(b, panels, bases, scales)
    places = _moved(b, rows, addresses, at)
    return tile_of(b, tile, _times(b, name, kind, their_codes, their_scales, block, places, accumulators, leaving))


def _require_sizes(kind: str, tile: Tile, panels: Places, rows: Places) -> None:
    if tile.count != panels.count * rows.count or (kind in OFFSETS and panels.count > 1):
        raise TypeError(f"a tile of {tile.count} for {rows.count} rows ({kind}) and {panels.count} panels")


@intrinsic(prefer_literal=True)
def accumulate_pair(typing_context: Any, name: Any, tile: Any, panels: Any, codes: Any, rows: Any, at: Any) -> Any:
    """`accumulate` for PAIR columns of a float format."""
    format_name = name.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, totals, bases, codes, addresses, at = args
        accumulators = [b.extract_value(totals, n) for n in range(tile.count)]
        their_codes, places = _moved(b, panels, bases, codes), _moved(b, rows, addresses, at)
        return tile_of(b, tile, _times_unit(b, format_name, their_codes, places, accumulators, PAIR))

    return tile(name, tile, panels, Int, rows, Int), lower


@intrinsic(prefer_literal=True)
def accumulate_head(
    typing_context: Any, name: Any, activations: Any, tile: Any, panels: Any, codes: Any, scales: Any, rows: Any, at: Any
) -> Any:
    """`accumulate` for the HEAD blocks whose scales a k-quant's head holds, from the first one's codes and activations: the head
    is read once, and which block is meant is known beforehand."""
    format_name, kind = name.literal_value, activations.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, _, totals, bases, codes, scales, addresses, at = args
        values = [b.extract_value(totals, n) for n in range(tile.count)]
        their_scales = _moved(b, panels, bases, scales)
        for block in range(HEAD):
            their_codes = _moved(b, panels, bases, b.add(codes, I64(block * LAYOUTS[format_name].block_bytes)))
            places = _moved(b, rows, addresses, b.add(at, I64(block * RECORDS.get(kind, 4 * BLOCK))))
            values = _times(b, format_name, kind, their_codes, their_scales, I64(block), places, values)
        return tile_of(b, tile, values)

    return tile(name, activations, tile, panels, Int, Int, rows, Int), lower


def _moved(b: Builder, places: Any, addresses: Value, offset: Value) -> list[Value]:
    """Addresses of type `places`, each with an offset added."""
    return [b.add(b.extract_value(addresses, i), offset) for i in range(places.count)]


def _times(
    b: Builder, name: str, kind: str, codes: list[Value], scales: list[Value], block: Value, places: list[Value],
    totals: list[Value], leaving: Leaving | None = None,
) -> list[Value]:  # fmt: skip
    """The accumulators plus the products of one block; see `accumulate`."""
    if kind == "bf16":
        return _times_bf16(b, codes, places, totals)
    if LAYOUTS[name].decode is None:
        return _times_unit(b, name, codes, places, totals)
    if kind in RECORDS:
        return _times_int8(b, name, kind, codes[0], scales[0], block, places, totals, leaving)
    return _times_float(b, name, codes, scales, block, places, totals)


def tile_of(b: Builder, tile: Tile, values: list[Value]) -> Value:
    result = ir.Constant(tile.llvm, ir.Undefined)
    for t, value in enumerate(values):
        result = b.insert_value(result, value, t)
    return result


@intrinsic(prefer_literal=True)
def decode_row(typing_context: Any, name: Any, codes: Any, scales: Any, block: Any, lane: Any, out: Any) -> Any:
    """Writes one row (`lane`) of block number `block` as float32 [32] (UNIT columns of a float format) to the address `out`."""
    format_name = name.literal_value

    def one(b: Builder, v: Value, lane: Value) -> Value:
        return b.extract_element(v, b.trunc(lane, I32))

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        _, codes, scales, block, lane, out = args
        layout = LAYOUTS[format_name]
        if layout.decode is None:
            values = [one(b, v, lane) for v in float_weights(b, format_name, codes)]
        else:
            found, added = scales_of(b, format_name, scales, block)
            scale, low = [one(b, v, lane) for v in found], [one(b, v, lane) for v in added] or [F32(0.0)] * len(found)
            values = [scale[0]] * BLOCK
            for column, v in layout.decode(b, codes, 0):
                word = one(b, b.bitcast(v, Words.llvm), lane)
                for i in range(4):
                    code = b.sitofp(b.ashr(b.shl(word, I32(24 - 8 * i)), I32(24)), F32)
                    half = column // 16 if layout.halves else 0
                    values[column + i] = b.fadd(b.fmul(code, scale[half]), low[half])
        for k, value in enumerate(values):
            emit.store(b, value, b.add(out, I64(4 * k)))
        return context.get_dummy_value()

    return types.void(name, Address, Address, Int, Int, Address), lower
