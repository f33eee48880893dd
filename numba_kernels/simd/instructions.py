"""What each path emits: LLVM IR for the operations that differ between instruction sets, and those built upon them.

A function here takes an llvmlite builder and LLVM values and returns an LLVM value. Vectors are as wide as the kernels
want them; LLVM splits plain operations to the machine's registers, and `in_parts` does so for target intrinsics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, ClassVar

from llvmlite import ir
from numba.core import cgutils

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()


class BFloatType(type(F16).__base__):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    null, intrinsic_name = "0.0", "bf16"

    def __str__(self) -> str:
        return "bfloat"


BFloatType._create_instance()
BF16 = BFloatType()
Value = Any  # an llvmlite value; llvmlite has no type stubs
Builder = Any


def vector(element: ir.Type, count: int) -> ir.VectorType:
    return ir.VectorType(element, count)


def constant(element: ir.Type, values: Sequence[float]) -> Value:
    return ir.Constant(vector(element, len(values)), list(values))


def same(kind: ir.VectorType, value: float) -> Value:
    """A constant vector whose lanes are all `value`."""
    return ir.Constant(kind, [value] * kind.count)


def call(b: Builder, name: str, result: ir.Type, arguments: Sequence[Value]) -> Value:
    """A call of an LLVM intrinsic or C function by name."""
    signature = ir.FunctionType(result, [a.type for a in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, signature, name), arguments)


def shuffle(b: Builder, x: Value, y: Value, lanes: Sequence[int]) -> Value:
    return b.shuffle_vector(x, y, constant(I32, lanes))


def splat(b: Builder, scalar: Value, count: int) -> Value:
    """All lanes of a vector set to a scalar."""
    empty = ir.Constant(vector(scalar.type, count), ir.Undefined)
    return shuffle(b, b.insert_element(empty, scalar, I32(0)), empty, [0] * count)


def in_parts(b: Builder, size: int, operation: Callable[..., Value], *vectors: Value) -> Value:
    """Applies an operation on `size`-byte registers to wider vectors of equal width, part by part."""
    width = vectors[0].type.count * vectors[0].type.element.width // 8
    if width == size:
        return operation(*vectors)
    parts = []
    for part in range(width // size):
        pieces = []
        for v in vectors:
            each = v.type.count * size // width
            pieces.append(shuffle(b, v, v, range(part * each, (part + 1) * each)))
        parts.append(operation(*pieces))
    while len(parts) > 1:
        parts = [shuffle(b, low, high, range(low.type.count * 2)) for low, high in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def pointer(b: Builder, address: Value, kind: ir.Type) -> Value:
    return b.inttoptr(address, kind.as_pointer())


def load(b: Builder, address: Value, kind: ir.Type, align: int = 1) -> Value:
    value = b.load(pointer(b, address, kind))
    value.align = align
    return value


def store(b: Builder, value: Value, address: Value, align: int = 1) -> None:
    b.store(value, pointer(b, address, value.type)).align = align


def advance(b: Builder, address: Value, offset: int) -> Value:
    return b.add(address, I64(offset)) if offset else address


def byte_of_words(b: Builder, words: Value, shift: int) -> Value:
    """Byte `shift / 8` of each 32-bit lane, sign-extended."""
    if shift < 24:
        words = b.shl(words, same(words.type, 24 - shift))
    return b.ashr(words, same(words.type, 24))


class Portable:
    """Plain LLVM vectors: any CPU. The other paths replace what their machine has an instruction for.

    Attributes:
        name: as OSS_TOOLS_SIMD names it.
        architecture, features: where it can be executed.
        baseline, extra: the LLVM CPU, and features beside its, for which the path is compiled when forced on a better machine.
        lanes: 32-bit lanes of a vector; also the rows of a weight panel.
        tiles: how many tokens a register tile of matrix × matrix may hold, ascending; the first is 1.
        accumulators: of a tile that meets several panels at a time, at most.
        sums: vectors of sums that stay in registers beside what is multiplied.
        offset: what 4- and 5-bit codes are raised by to make them unsigned bytes.
        biased_bytes: 8-bit codes are kept raised by `offset` too, for an unsigned × signed dot product.
        float_tables: there is `lookup_floats`.
        leaves: there is a tile of bytes that jumps over the rows that it lacks: the largest, where there are few of them. It has
            as many sums as registers allow, and they stay there across jumps.
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
    sums: ClassVar[int] = 4
    offset: ClassVar[int] = 16
    biased_bytes: ClassVar[bool] = False
    float_tables: ClassVar[bool] = False
    leaves: ClassVar[bool] = False
    multiplies_pairs: ClassVar[bool] = False
    bf16_products: ClassVar[bool] = False
    narrow_sums: ClassVar[bool] = False
    blocked: ClassVar[bool] = False
    matrix_registers: ClassVar[bool] = False

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
        """Two vectors of float32 as the bfloat16 of one, in 32-bit lanes. Only with `bf16_products`."""
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

    def pause(self, b: Builder) -> None:
        """Tells the core that this is a spinning wait."""
        b.fence("seq_cst")


class X86(Portable):
    """What the x86 paths share."""

    architecture = "x86"

    def fma(self, b: Builder, x: Value, y: Value, z: Value) -> Value:
        return call(b, f"llvm.fma.v{x.type.count}f32", x.type, [x, y, z])

    def half_to_float(self, b: Builder, halves: Value) -> Value:
        count = halves.type.count
        return b.fpext(b.bitcast(halves, vector(F16, count)), vector(F32, count))

    def round_even(self, b: Builder, x: Value) -> Value:
        return call(b, f"llvm.rint.v{x.type.count}f32", x.type, [x])

    def pause(self, b: Builder) -> None:
        call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])


class Avx512(X86):
    """64-byte registers and vpdpbusd: 64 products of unsigned and signed bytes a cycle and port, without saturation."""

    name = "avx512"
    features = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "f16c", "fma"})
    baseline = ""
    lanes = 16
    tiles = (1, 2, 4, 8, 12)
    accumulators = 8
    sums = 16
    offset = 128
    biased_bytes = True
    float_tables = True
    leaves = True

    def dot_unsigned(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        return in_parts(b, 64, lambda s, c, v: call(b, "llvm.x86.avx512.vpdpbusd.512", s.type, [s, c, v]), sums, codes, x)

    def dot_signed(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        flip = same(codes.type, 128)
        raised = self.dot_unsigned(b, sums, b.xor(codes, flip), x)
        return b.sub(raised, self.dot_unsigned(b, same(sums.type, 0), flip, x))

    def dot_words(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        def part(s: Value, c: Value, v: Value) -> Value:
            return call(b, "llvm.x86.avx512.vpdpwssd.512", s.type, [s, b.bitcast(c, s.type), b.bitcast(v, s.type)])

        return in_parts(b, 64, part, sums, codes, x)

    def lookup(self, b: Builder, table: Sequence[int], codes: Value) -> Value:
        def part(c: Value) -> Value:
            return call(b, "llvm.x86.avx512.pshuf.b.512", c.type, [constant(I8, [v & 255 for v in table] * 4), c])

        return in_parts(b, 64, part, codes)

    def lookup_floats(self, b: Builder, table: Sequence[float], words: Value) -> Value:
        values = constant(F32, [float(v) for v in table])
        return call(b, "llvm.x86.avx512.permvar.sf.512", values.type, [values, words])


class Avx512Bf16(Avx512):
    """And vdpbf16ps: 32 products of bfloat16 an instruction, twice as many as multiply-adds of float32 have."""

    name = "avx512bf16"
    features = Avx512.features | {"avx512bf16"}
    bf16_products = True

    def dot_pairs(self, b: Builder, sums: Value, pairs: Value, x: Value) -> Value:
        kind = vector(BF16, 2 * self.lanes)
        return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", sums.type, [sums, b.bitcast(pairs, kind), b.bitcast(x, kind)])

    def round_to_bf16(self, b: Builder, low: Value, high: Value) -> Value:
        kind = vector(BF16, 2 * self.lanes)
        return b.bitcast(call(b, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", kind, [high, low]), vector(I32, self.lanes))


class Avx2(X86):
    """32-byte registers; pmaddubsw sums pairs in 16 bits with saturation, which the ranges of our codes never reach."""

    name = "avx2"
    features = frozenset({"avx2", "fma", "f16c"})
    baseline = "haswell"
    lanes = 8
    tiles = (1, 2, 4, 6)
    sums = 12
    narrow_sums = True
    blocked = True

    def dot_narrow(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        def part(s: Value, c: Value, v: Value) -> Value:
            return b.add(s, call(b, "llvm.x86.avx2.pmadd.ub.sw", s.type, [c, v]))

        return in_parts(b, 32, part, sums, codes, x)

    def dot_words(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        def part(s: Value, c: Value, v: Value) -> Value:
            return b.add(s, call(b, "llvm.x86.avx2.pmadd.wd", s.type, [c, v]))

        return in_parts(b, 32, part, sums, codes, x)

    def in_order(self, b: Builder, values: list[Value]) -> list[Value]:
        # An assembler text without an instruction, which takes the values in registers and may have any effect.
        kinds = [v.type for v in values]
        constraints = ",".join(["=x"] * len(values) + [str(i) for i in range(len(values))])
        result = kinds[0] if len(kinds) == 1 else ir.LiteralStructType(kinds)
        kept = b.asm(ir.FunctionType(result, kinds), "", constraints, values, side_effect=True)
        return [kept] if len(kinds) == 1 else [b.extract_value(kept, i) for i in range(len(values))]

    def dot_unsigned(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        def part(s: Value, c: Value, v: Value) -> Value:
            pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", vector(I16, 16), [c, v])
            quads = call(b, "llvm.x86.avx2.pmadd.wd", vector(I32, 8), [pairs, same(pairs.type, 1)])
            return b.add(s, quads)

        return in_parts(b, 32, part, sums, codes, x)

    def dot_signed(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        # |codes| ≤ 128 and |x| ≤ 127, so a pair's sum is at most 32512 and cannot saturate.
        magnitude = call(b, f"llvm.abs.v{codes.type.count}i8", codes.type, [codes, I1(0)])
        moved = in_parts(b, 32, lambda v, c: call(b, "llvm.x86.avx2.psign.b", v.type, [v, c]), x, codes)
        return self.dot_unsigned(b, sums, magnitude, moved)

    def lookup(self, b: Builder, table: Sequence[int], codes: Value) -> Value:
        def part(c: Value) -> Value:
            return call(b, "llvm.x86.avx2.pshuf.b", c.type, [constant(I8, [v & 255 for v in table] * 2), c])

        return in_parts(b, 32, part, codes)


class AvxVnni(Avx2):
    """32-byte registers and vpdpbusd in its VEX form: processors with VNNI and without AVX-512."""

    name = "avxvnni"
    features = Avx2.features | {"avxvnni"}
    extra = "+avxvnni"
    offset = 128
    biased_bytes = True
    narrow_sums = False

    def dot_unsigned(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        return in_parts(b, 32, lambda s, c, v: call(b, "llvm.x86.avx512.vpdpbusd.256", s.type, [s, c, v]), sums, codes, x)

    def dot_words(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        def part(s: Value, c: Value, v: Value) -> Value:
            return call(b, "llvm.x86.avx512.vpdpwssd.256", s.type, [s, b.bitcast(c, s.type), b.bitcast(v, s.type)])

        return in_parts(b, 32, part, sums, codes, x)

    dot_signed = Avx512.dot_signed


class Neon(Portable):
    """Arm's 16-byte registers, 32 of them; sdot multiplies signed bytes, tbl looks 16 entries up."""

    name = "neon"
    architecture = "arm"
    features = frozenset({"neon", "dotprod"})
    baseline = "neoverse-n1"
    lanes = 8
    tiles: ClassVar[tuple[int, ...]] = (1, 2, 4, 8)
    sums = 8

    def dot_signed(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        def part(s: Value, c: Value, v: Value) -> Value:
            return call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", s.type, [s, c, v])

        return in_parts(b, 16, part, sums, codes, x)

    def lookup(self, b: Builder, table: Sequence[int], codes: Value) -> Value:
        def part(c: Value) -> Value:
            entries = constant(I8, [v & 255 for v in table])
            return call(b, "llvm.aarch64.neon.tbl1.v16i8", c.type, [entries, c])

        return in_parts(b, 16, part, codes)

    def half_to_float(self, b: Builder, halves: Value) -> Value:
        count = halves.type.count
        return b.fpext(b.bitcast(halves, vector(F16, count)), vector(F32, count))

    def fma(self, b: Builder, x: Value, y: Value, z: Value) -> Value:
        return call(b, f"llvm.fma.v{x.type.count}f32", x.type, [x, y, z])

    def round_even(self, b: Builder, x: Value) -> Value:
        return call(b, f"llvm.rint.v{x.type.count}f32", x.type, [x])

    def pause(self, b: Builder) -> None:
        call(b, "llvm.aarch64.hint", ir.VoidType(), [I32(1)])


class NeonI8mm(Neon):
    """Armv8.6's matrix instructions: smmla multiplies two rows of eight signed bytes by two others, bfmmla of four bfloat16."""

    name = "i8mm"
    features = frozenset({"neon", "dotprod", "i8mm", "bf16"})
    tiles = (1, 2, 4, 8, 12)
    multiplies_pairs = True
    bf16_products = True

    def multiply_pairs(self, b: Builder, sums: Value, x: Value, y: Value) -> Value:
        return call(b, "llvm.aarch64.neon.smmla.v4i32.v16i8", sums.type, [sums, x, y])

    def dot_pairs(self, b: Builder, sums: Value, pairs: Value, x: Value) -> Value:
        def part(p: Value, v: Value, s: Value) -> Value:
            eight = vector(BF16, 8)
            return call(b, "llvm.aarch64.neon.bfdot.v4f32.v8bf16", s.type, [s, b.bitcast(p, eight), b.bitcast(v, eight)])

        return in_parts(b, 16, part, pairs, x, sums)

    def multiply_bf16_pairs(self, b: Builder, sums: Value, x: Value, y: Value) -> Value:
        eight = vector(BF16, 8)
        return call(b, "llvm.aarch64.neon.bfmmla", sums.type, [sums, b.bitcast(x, eight), b.bitcast(y, eight)])


# ---- built upon the above -------------------------------------------------------------------------------------------


def bf16_to_float(b: Builder, halves: Value) -> Value:
    """bfloat16 bits (i16 lanes) as float32."""
    count = halves.type.count
    wide = b.zext(halves, vector(I32, count))
    return b.bitcast(b.shl(wide, same(wide.type, 16)), vector(F32, count))


def bf16_halves(b: Builder, words: Value) -> tuple[Value, Value]:
    """The lower and the upper bfloat16 of 32-bit lanes, as float32."""
    floats = vector(F32, words.type.count)
    return b.bitcast(b.shl(words, same(words.type, 16)), floats), b.bitcast(
        b.and_(words, same(words.type, 0xFFFF0000)), floats
    )


def word_halves(b: Builder, pairs: Value) -> tuple[Value, Value]:
    """The first and the second int16 of each pair, as int32."""
    words = b.bitcast(pairs, vector(I32, pairs.type.count // 2))
    sixteen = same(words.type, 16)
    return b.ashr(b.shl(words, sixteen), sixteen), b.ashr(words, sixteen)


def larger(b: Builder, x: Value, y: Value) -> Value:
    """The larger of each lane; y where x is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def reduce(b: Builder, x: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """All lanes combined, halves upon halves."""
    count = x.type.count
    while count > 1:
        count //= 2
        x = combine(shuffle(b, x, x, range(count)), shuffle(b, x, x, range(count, 2 * count)))
    return b.extract_element(x, I32(0))


def across_lanes(b: Builder, vectors: Sequence[Value], combine: Callable[[Value, Value], Value]) -> Value:
    """All lanes combined of each of up to as many vectors as they have lanes, in a lane of its own; as `reduce` combines them."""
    lanes = vectors[0].type.count
    size = lanes  # lanes of what is left of each vector
    while size > 1:
        size //= 2
        # each vector has lanes // (2 · size) results to halve; two of them, halved, fill one
        low = [k * 2 * size + i for k in range(lanes // (2 * size)) for i in range(size)]
        high = [lane + size for lane in low]
        pairs = zip_longest(vectors[::2], vectors[1::2], fillvalue=vectors[-1])
        vectors = [
            combine(*(shuffle(b, x, y, [*half, *(lane + lanes for lane in half)]) for half in (low, high))) for x, y in pairs
        ]
    return vectors[0]


def sums_of_lanes(b: Builder, vectors: Sequence[Value]) -> Value:
    """The sum of each of up to as many vectors as they have lanes, in a lane of its own; added as `reduce` does."""
    return across_lanes(b, vectors, lambda x, y: b.fadd(x, y))


MAGIC = 1.5 * 2**23  # adding it leaves a float's nearest integer in the low bits


def round_to_words(b: Builder, x: Value) -> Value:
    """The nearest integers of float lanes, ties to even, for |x| < 2^22."""
    words = vector(I32, x.type.count)
    return b.sub(b.bitcast(b.fadd(x, same(x.type, MAGIC)), words), same(words, 0x4B400000))


# e^r on |r| <= ln 2 / 2: the Taylor polynomial of degree 7, whose next term is below 2^-27
EXP = [1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0]
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4


def exp(b: Builder, path: Portable, x: Value) -> Value:
    """e^x of float lanes; 0 below −87.3, e^88.3 above 88.3."""
    kind, words = x.type, vector(I32, x.type.count)
    high, low = same(kind, 88.3), same(kind, -87.3)
    clipped = b.select(b.fcmp_ordered(">", x, high), high, x)
    clipped = b.select(b.fcmp_ordered("<", clipped, low), low, clipped)
    power = round_to_words(b, b.fmul(clipped, same(kind, 1.4426950408889634)))
    whole = b.sitofp(power, kind)
    rest = path.fma(b, whole, same(kind, -LN2_HIGH), clipped)
    rest = path.fma(b, whole, same(kind, -LN2_LOW), rest)
    result = same(kind, EXP[0])
    for coefficient in EXP[1:]:
        result = path.fma(b, result, rest, same(kind, coefficient))
    scaled = b.bitcast(b.add(b.bitcast(result, words), b.shl(power, same(words, 23))), kind)
    return b.select(b.fcmp_ordered("<", x, low), same(kind, 0.0), scaled)
