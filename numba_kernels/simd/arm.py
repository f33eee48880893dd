"""The paths of Arm processors: NEON with the dot-product extension, and with matrix instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from llvmlite import ir

from numba_kernels.simd.instructions import BF16, F16, F32, I8, I32, Builder, Value, call, constant, in_parts, vector
from numba_kernels.simd.portable import Portable


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
