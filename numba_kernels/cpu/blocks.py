"""How each number format lies in a weight panel, and how a block of it is decoded.

A panel is LANES rows of a matrix: block after block of 32 columns, each the rows' codes and then their scales, so that memory is
read in one straight line. Only scales that serve several blocks stand apart, behind all codes.
In a vector of codes (64 bytes where LANES = 16), the 32-bit lane r belongs to row r: four 8-bit codes, or eight 4-bit
ones, low nibbles for columns 4j … 4j + 3 and high nibbles for 16 + 4j … 16 + 4j + 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llvmlite import ir

from numba_kernels.cpu.k_scales import group_scales
from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import I8, Builder, Value, same
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.values import LANES, Bytes, Floats, Words

BLOCK = 32  # columns that share an activation scale
UNIT = 8  # columns of a float format that one step covers
PAIR = 2  # and those of a small step, for what UNIT leaves over
HEAD = 8  # blocks of a k-quant whose scales stand together
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


def float_weights(b: Builder, name: str, codes: Value) -> Iterator[Value]:
    """UNIT columns of a float format's panel, as Floats."""
    if name == "bf16":
        for k in range(UNIT // 2):
            yield from emit.bf16_halves(b, pair_of_columns(b, codes, k))
        return
    for k in range(UNIT):
        if name == "f32":
            yield emit.load(b, emit.advance(b, codes, 4 * LANES * k), Floats.llvm)
        else:
            halves = emit.vector(ir.IntType(16), LANES)
            yield ACTIVE.half_to_float(b, emit.load(b, emit.advance(b, codes, 2 * LANES * k), halves))


def pair_of_columns(b: Builder, codes: Value, k: int) -> Value:
    """Columns 2k and 2k + 1 of a bf16 panel: a pair in each 32-bit lane."""
    return emit.load(b, emit.advance(b, codes, 4 * LANES * k), Words.llvm)
