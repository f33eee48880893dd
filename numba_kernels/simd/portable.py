"""The path of any CPU: plain LLVM vectors, and what the paths of `x86` and `arm` replace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from numba_kernels.simd.instructions import (
    BF16,
    F32,
    I32,
    MAGIC,
    Builder,
    Value,
    bf16_halves,
    byte_of_words,
    call,
    round_to_words,
    same,
    shuffle,
    vector,
    word_halves,
)

# e^r on |r| <= ln 2 / 2: the Taylor polynomial of degree 7, whose next term is below 2^-27
EXP = [1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0]
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4


class Portable:
    """Plain LLVM vectors: any CPU. The other paths replace what their machine has an instruction for.

    Attributes:
        name: as OSS_TOOLS_SIMD names it.
        architecture, features: where it can be executed.
        baseline, extra: the LLVM CPU, and features beside its, for which the path is compiled when forced on a better machine.
        lanes: 32-bit lanes of a vector; also the rows of a weight panel.
        tiles: how many tokens a register tile of matrix × matrix may hold, ascending; the first is 1.
        accumulators: of a tile that meets several panels at a time, at most.
        together: rows of bytes that meet a vector of weights one after the other; registers hold their sums and totals.
        sums: vectors of sums that stay in registers beside what is multiplied.
        offset: what 4- and 5-bit codes are raised by to make them unsigned bytes.
        biased_bytes: 8-bit codes are kept raised by `offset` too, for an unsigned × signed dot product.
        float_tables: there is `lookup_floats`.
        multiplies_pairs: there are `multiply_pairs` and `multiply_bf16_pairs`.
        bf16_products: `dot_pairs` is an instruction, and faster than multiply-adds of float32.
        narrow_sums: products of small codes are summed in 16 bits (`dot_narrow`), and activations carry such starts.
        blocked: many tokens meet weights that were decoded once for all of them (`cpu/blocked.py`).
        matrix_registers: there are those of `simd/amx.py`.
    """

    name: ClassVar[str] = "portable"
    architecture: ClassVar[str] = "any"
    features: ClassVar[frozenset[str]] = frozenset()
    baseline: ClassVar[str] = "generic"
    extra: ClassVar[str] = ""
    lanes: ClassVar[int] = 16
    tiles: ClassVar[tuple[int, ...]] = (1, 4)
    accumulators: ClassVar[int] = 4
    together: ClassVar[int] = 1
    sums: ClassVar[int] = 4
    offset: ClassVar[int] = 16
    biased_bytes: ClassVar[bool] = False
    float_tables: ClassVar[bool] = False
    multiplies_pairs: ClassVar[bool] = False
    bf16_products: ClassVar[bool] = False
    narrow_sums: ClassVar[bool] = False
    blocked: ClassVar[bool] = False
    matrix_registers: ClassVar[bool] = False

    @property
    def multiplies_bf16(self) -> bool:
        """Whether many tokens in bfloat16 meet weights in bfloat16 faster than tokens in float32 do."""
        return self.bf16_products or self.matrix_registers

    def dot_unsigned(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        """sums[i] += Σ codes[4i + j] · x[4i + j], j < 4; codes unsigned and at most 127 (255 if `biased_bytes`), x signed."""
        return self.dot_signed(b, sums, codes, x)

    def dot_signed(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        """The same for signed codes; x is never −128."""
        codes, x = b.bitcast(codes, sums.type), b.bitcast(x, sums.type)
        for shift in (0, 8, 16, 24):
            sums = b.add(sums, b.mul(byte_of_words(b, codes, shift), byte_of_words(b, x, shift)))
        return sums

    def dot_pairs(self, b: Builder, sums: Value, pairs: Value, x: Value) -> Value:
        """sums + Σ pairs · x of the two bfloat16 in each 32-bit lane. An instruction for it rounds in its own way, and takes
        subnormal numbers for zero."""
        pieces = [bf16_halves(b, v) for v in (pairs, x)]
        for first, second in zip(*pieces, strict=True):
            sums = self.fma(b, first, second, sums)
        return sums

    def round_to_bf16(self, b: Builder, low: Value, high: Value) -> Value:
        """Two vectors of float32 as the bfloat16 of one, in 32-bit lanes. Only with `multiplies_bf16`."""
        floats = shuffle(b, low, high, range(2 * low.type.count))
        return b.bitcast(b.fptrunc(floats, vector(BF16, floats.type.count)), vector(I32, low.type.count))

    def dot_narrow(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        """sums[i] += codes[2i] · x[2i] + codes[2i + 1] · x[2i + 1], modulo 2^16; codes unsigned and at most 128. Only with
        `narrow_sums`."""
        raise NotImplementedError(self.name)

    def dot_words(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        """sums[i] += codes[2i] · x[2i] + codes[2i + 1] · x[2i + 1] of int16, modulo 2^32."""
        for first, second in zip(word_halves(b, codes), word_halves(b, x), strict=True):
            sums = b.add(sums, b.mul(first, second))
        return sums

    def in_order(self, b: Builder, values: list[Value]) -> list[Value]:
        """The same values, computed before all that is emitted from here on, where the path has so few registers that the
        compiler's own order would spill them."""
        return values

    def lookup(self, b: Builder, table: Sequence[int], codes: Value) -> Value:
        """table[code] for byte vectors of codes 0..15; the table has 16 entries that fit a byte."""
        kind = codes.type
        level = [same(kind, v & 255) for v in table]
        for bit in range(4):
            mask = b.and_(codes, same(kind, 1 << bit))
            is_set = b.icmp_unsigned("!=", mask, same(kind, 0))
            level = [b.select(is_set, high, low) for low, high in zip(level[::2], level[1::2], strict=True)]
        return level[0]

    def lookup_floats(self, b: Builder, table: Sequence[float], words: Value) -> Value:
        """table[the low four bits of each lane] as float32, whatever the other bits; only with `float_tables`."""
        raise NotImplementedError(self.name)

    def multiply_pairs(self, b: Builder, sums: Value, x: Value, y: Value) -> Value:
        """sums[2i + j] += Σ x[8i + k] · y[8j + k], k < 8: four int32, 16 signed bytes each. Only with `multiplies_pairs`."""
        raise NotImplementedError(self.name)

    def multiply_bf16_pairs(self, b: Builder, sums: Value, x: Value, y: Value) -> Value:
        """sums[2i + j] + Σ x[4i + k] · y[4j + k], k < 4: four float32, the bits of eight bfloat16 each. Only with
        `multiplies_pairs`; as `dot_pairs` of two columns and then of the next two, bit for bit."""
        raise NotImplementedError(self.name)

    def half_to_float(self, b: Builder, halves: Value) -> Value:
        """IEEE half-precision bits (i16 lanes) as float32, subnormals, infinities and NaN included."""
        count = halves.type.count
        words, floats = vector(I32, count), vector(F32, count)
        wide = b.zext(halves, words)
        sign = b.shl(b.and_(wide, same(words, 0x8000)), same(words, 16))
        magnitude = b.shl(b.and_(wide, same(words, 0x7FFF)), same(words, 13))
        # 2^112 moves the exponent's bias from 15 to 127; subnormals become normal on the way.
        scaled = b.bitcast(b.fmul(b.bitcast(magnitude, floats), same(floats, 2.0**112)), words)
        special = b.icmp_unsigned(">=", magnitude, same(words, 0x7C00 << 13))
        scaled = b.select(special, b.or_(magnitude, same(words, 0x7F800000)), scaled)
        return b.bitcast(b.or_(scaled, sign), floats)

    def fma(self, b: Builder, x: Value, y: Value, z: Value) -> Value:
        """x · y + z, rounded once where the machine can."""
        return call(b, f"llvm.fmuladd.v{x.type.count}f32", x.type, [x, y, z])

    def round_even(self, b: Builder, x: Value) -> Value:
        """The nearest integers as floats, ties to even, for |x| < 2^22."""
        return b.fsub(b.fadd(x, same(x.type, MAGIC)), same(x.type, MAGIC))

    def exp(self, b: Builder, x: Value) -> Value:
        """e^x of float lanes; 0 below −87.3, e^88.3 above 88.3."""
        kind, words = x.type, vector(I32, x.type.count)
        high, low = same(kind, 88.3), same(kind, -87.3)
        clipped = b.select(b.fcmp_ordered(">", x, high), high, x)
        clipped = b.select(b.fcmp_ordered("<", clipped, low), low, clipped)
        power = round_to_words(b, b.fmul(clipped, same(kind, 1.4426950408889634)))
        whole = b.sitofp(power, kind)
        rest = self.fma(b, whole, same(kind, -LN2_HIGH), clipped)
        rest = self.fma(b, whole, same(kind, -LN2_LOW), rest)
        result = same(kind, EXP[0])
        for coefficient in EXP[1:]:
            result = self.fma(b, result, rest, same(kind, coefficient))
        scaled = b.bitcast(b.add(b.bitcast(result, words), b.shl(power, same(words, 23))), kind)
        return b.select(b.fcmp_ordered("<", x, low), same(kind, 0.0), scaled)

    def pause(self, b: Builder) -> None:
        """Tells the core that this is a spinning wait."""
        b.fence("seq_cst")
