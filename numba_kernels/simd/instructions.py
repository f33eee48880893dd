"""LLVM IR that is the same for every instruction set: registers, memory, lanes.

A function here takes an llvmlite builder and LLVM values and returns an LLVM value. Vectors are as wide as the kernels
want them; LLVM splits plain operations to the machine's registers, and `in_parts` does so for target intrinsics. What differs
between instruction sets is in `portable`, `x86` and `arm`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

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
