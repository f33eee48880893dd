"""The paths of x86 processors: AVX2, AVX2 with VNNI, AVX-512 with VNNI, and with products of bfloat16."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from numba_kernels.simd.instructions import (
    BF16,
    F16,
    F32,
    I1,
    I8,
    I16,
    I32,
    Builder,
    Value,
    call,
    constant,
    in_parts,
    same,
    vector,
)
from numba_kernels.simd.portable import Portable


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
    tiles = (1, 2, 4, 6, 8, 12)
    accumulators = 8
    together = 12
    sums = 16
    offset = 128
    biased_bytes = True
    float_tables = True

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
    together = 4
    narrow_sums = False

    def dot_unsigned(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        return in_parts(b, 32, lambda s, c, v: call(b, "llvm.x86.avx512.vpdpbusd.256", s.type, [s, c, v]), sums, codes, x)

    def dot_words(self, b: Builder, sums: Value, codes: Value, x: Value) -> Value:
        def part(s: Value, c: Value, v: Value) -> Value:
            return call(b, "llvm.x86.avx512.vpdpwssd.256", s.type, [s, b.bitcast(c, s.type), b.bitcast(v, s.type)])

        return in_parts(b, 32, part, sums, codes, x)

    dot_signed = Avx512.dot_signed
