"""What the steps of attention need of vectors: scores of panels of keys, shares of the softmax, sums of values.

A tile has an accumulator for each of its rows and each of the panels, or vectors of values, that these meet side by side; that of
row t and vector i is number t · vectors + i. Numbers that all lanes share are loaded from memory, for all vectors at once.

`element` is what the cache holds, `products` what queries and shares are multiplied as: "f32", or "bf16", rounded to bfloat16 and
multiplied in pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numba_kernels.simd import instructions as emit
from numba_kernels.simd.instructions import F32, I16, I32, I64, Builder, Value, same
from numba_kernels.simd.path import ACTIVE
from numba_kernels.simd.tiles import Places, Tile
from numba_kernels.simd.values import LANES, Address, Floats, Int, Words, operation
from numba_kernels.simd.x86 import Avx2

LOG2E = 1.4426950408889634
LOWEST = -126.0  # 2^x of less is zero
ONES = 0x3F803F80  # two bfloat16
FEW_REGISTERS = isinstance(ACTIVE, Avx2)
HAS_SCALEF = "avx512dq" in ACTIVE.features
# 2^r with a relative error of 2.6e-6 on 0 <= r < 1, for shares that are rounded to bfloat16; of 7.5e-8 there; and on |r| <= 1/2
FLOOR_4 = (0.0134266857, 0.0522424728, 0.241280213, 0.693044841, 1)
FLOOR_5 = (0.00186713017, 0.00901702978, 0.0557999127, 0.240164444, 0.693151295, 1)
ROUND_5 = (0.00132647261, 0.00967151299, 0.0555073358, 0.240222424, 0.693147004, 1)


def places_of(rows: int) -> int:
    """Rows for which there is room in a tile's queries: a power of two."""
    return 1 << (rows - 1).bit_length()


def _tile_of(b: Builder, kind: Any, values: list[Value]) -> Value:
    result = ir.Constant(kind.llvm, ir.Undefined)
    for t, value in enumerate(values):
        result = b.insert_value(result, value, t)
    return result


def _values_of(b: Builder, tile: Value, kind: Any) -> list[Value]:
    return [b.extract_value(tile, t) for t in range(kind.count)]


def _splat_at(b: Builder, address: Value, kind: ir.Type) -> Value:
    return emit.splat(b, emit.load(b, address, kind, 4), LANES)


# ---- powers of two --------------------------------------------------------------------------------------------------


def _polynomial(b: Builder, coefficients: tuple[float, ...], r: Value) -> Value:
    result = same(r.type, coefficients[0])
    for coefficient in coefficients[1:]:
        result = ACTIVE.fma(b, result, r, same(r.type, coefficient))
    return result


def _exp2(b: Builder, x: Value, short: bool = False) -> Value:
    """2^x of Floats up to 127; 0 of −infinity. An integer's is exact."""
    kind = x.type
    if HAS_SCALEF:
        every, rounding, floor = I16(-1), I32(4), I32(9)
        rest = emit.call(b, "llvm.x86.avx512.mask.reduce.ps.512", kind, [x, floor, x, every, rounding])
        power = _polynomial(b, FLOOR_4 if short else FLOOR_5, rest)
        return emit.call(b, "llvm.x86.avx512.mask.scalef.ps.512", kind, [power, x, power, every, rounding])
    is_low = b.fcmp_ordered("<", x, same(kind, LOWEST))
    clipped = b.select(is_low, same(kind, LOWEST), x)
    power = emit.round_to_words(b, clipped)
    result = _polynomial(b, ROUND_5, b.fsub(clipped, b.sitofp(power, kind)))
    scaled = b.bitcast(b.add(b.bitcast(result, Words.llvm), b.shl(power, same(Words.llvm, 23))), kind)
    return b.select(is_low, same(kind, 0.0), scaled)


@operation(Floats, Floats)
def exp2(b: Builder, x: Value) -> Value:
    """2^x of lanes up to 127, to 2 units in the last place; 0 below −126. Exact for integers."""
    return _exp2(b, x)


@operation(Floats, Floats)
def whole_part(b: Builder, x: Value) -> Value:
    """The nearest integer, for |x| < 2^22; something near x beyond."""
    return ACTIVE.round_even(b, x)


@operation(Floats, Floats)
def seen_or_zero(b: Builder, x: Value) -> Value:
    """Lanes above −1e30 as they are (NaN too), others 0."""
    return b.select(b.fcmp_ordered("<=", x, same(x.type, -1e30)), same(x.type, 0.0), x)


@operation(types.boolean, Floats)
def all_ones(b: Builder, x: Value) -> Value:
    """Whether all lanes are 1."""
    bits = b.bitcast(b.fcmp_unordered("!=", x, same(x.type, 1.0)), ir.IntType(LANES))
    return b.icmp_unsigned("==", bits, ir.Constant(bits.type, 0))


# ---- addresses ------------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def load_places(typing_context: Any, count: Any, address: Any) -> Any:
    """`count` (a compile-time constant) addresses from memory, int64."""
    places = Places(count.literal_value)

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        return _tile_of(b, places, [emit.load(b, emit.advance(b, args[1], 8 * t), I64) for t in range(places.count)])

    return places(count, Address), lower


# ---- scores ---------------------------------------------------------------------------------------------------------


def _key_floats(b: Builder, element: str, panel: Value) -> list[Value]:
    """The first two columns of a panel of keys."""
    if element == "f32":
        return [emit.load(b, emit.advance(b, panel, 4 * LANES * i), Floats.llvm) for i in range(2)]
    if FEW_REGISTERS:  # none keeps a word until its upper half's turn; behind the last one there are values
        words = [emit.load(b, emit.advance(b, panel, 2 * i), Words.llvm) for i in range(2)]
        return [b.bitcast(b.shl(word, same(word.type, 16)), Floats.llvm) for word in words]
    return list(emit.bf16_halves(b, emit.load(b, panel, Words.llvm)))


@intrinsic(prefer_literal=True)
def add_scores(
    typing_context: Any, products: Any, name: Any, columns: Any, tile: Any, panels: Any, offset: Any, queries: Any
) -> Any:
    """The tile plus the products of `columns` (even) columns of panels of keys with those of the queries.

    name: of the element; panels: the addresses of the panels of keys; offset: of the columns in them, in bytes; queries: address
    of the columns in the queries as `prepare` has laid them out. A score is one chain of sums in the order of columns.
    """
    kind, element, count = products.literal_value, name.literal_value, columns.literal_value
    rows = tile.count // panels.count
    row_places = places_of(rows)

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        totals = _values_of(b, args[3], tile)
        bases = [b.add(b.extract_value(args[4], i), args[5]) for i in range(panels.count)]

        def multiply(numbers: int, kind: ir.Type, vectors: list[Value], product: Callable[..., Value]) -> None:
            for t in range(rows):
                x = _splat_at(b, emit.advance(b, args[6], 4 * (numbers * row_places + t)), kind)
                for i, vector in enumerate(vectors):
                    n = t * panels.count + i
                    totals[n] = product(totals[n], vector, x)

        for pair in range(count // 2):
            if kind == "bf16":
                words = [emit.load(b, emit.advance(b, base, 4 * LANES * pair), Words.llvm) for base in bases]
                multiply(pair, I32, words, lambda total, v, x: ACTIVE.dot_pairs(b, total, v, x))
                continue
            width = 4 if element == "f32" else 2
            keys = [_key_floats(b, element, emit.advance(b, base, 2 * width * LANES * pair)) for base in bases]
            for i in range(2):
                multiply(2 * pair + i, F32, [k[i] for k in keys], lambda total, v, x: ACTIVE.fma(b, v, x, total))
        return _tile_of(b, tile, totals)

    return tile(products, name, columns, tile, panels, Int, Address), lower


@intrinsic
def store_scores(typing_context: Any, address: Any, stride: Any, tile: Any, panels: Any) -> Any:
    """Stores the scores of each row, those of its panels beside each other, rows `stride` bytes apart."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for n in range(tile.count):
            at = b.add(args[0], b.add(b.mul(args[1], I64(n // panels.count)), I64(n % panels.count * 4 * LANES)))
            emit.store(b, b.extract_value(args[2], n), at)
        return context.get_dummy_value()

    return types.void(Address, Int, tile, panels), lower


# ---- the softmax ----------------------------------------------------------------------------------------------------


@intrinsic
def max_rows(typing_context: Any, tile: Any, address: Any, stride: Any) -> Any:
    """The larger of each lane of the tile and of vectors in memory, `stride` bytes apart."""

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        found = []
        for t, value in enumerate(_values_of(b, args[0], tile)):
            found.append(emit.larger(b, emit.load(b, b.add(args[1], b.mul(args[2], I64(t))), Floats.llvm), value))
        return _tile_of(b, tile, found)

    return tile(tile, Address, Int), lower


def _across(name: str, combine: Callable[[Builder, Value, Value], Value]) -> Any:
    """An intrinsic tile -> Floats: lane t is all lanes of the tile's vector t, combined."""

    def typing(typing_context: Any, tile: Any) -> Any:
        def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
            return emit.across_lanes(b, _values_of(b, args[0], tile), lambda x, y: combine(b, x, y))

        return (Floats(tile), lower) if isinstance(tile, Tile) else None

    typing.__name__ = name
    return intrinsic(typing)


sum_of_each = _across("sum_of_each", lambda b, x, y: b.fadd(x, y))
max_of_each = _across("max_of_each", lambda b, x, y: emit.larger(b, x, y))


@intrinsic(prefer_literal=True)
def add_shares(typing_context: Any, products: Any, tile: Any, scores: Any, shares: Any, stride: Any, references: Any) -> Any:
    """Writes the shares 2^(score · log2 e − reference) of LANES positions, or for products "bf16" of 2 · LANES, and adds them to
    the tile as they are written.

    references: float32, one for each row; shares: where the first row's go, as numbers of `products`; it may be before the
    scores. Rows of both are `stride` bytes apart.
    """
    kind = products.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        found = []
        for t, total in enumerate(_values_of(b, args[1], tile)):
            row = b.mul(args[4], I64(t))
            reference = b.fneg(_splat_at(b, emit.advance(b, args[5], 4 * t), F32))
            parts = []
            for i in range(2 if kind == "bf16" else 1):
                score = emit.load(b, emit.advance(b, b.add(args[2], row), 4 * LANES * i), Floats.llvm)
                parts.append(_exp2(b, ACTIVE.fma(b, score, same(Floats.llvm, LOG2E), reference), kind == "bf16"))
            if kind == "bf16":
                written = ACTIVE.round_to_bf16(b, *parts)
                found.append(ACTIVE.dot_pairs(b, total, written, same(Words.llvm, ONES)))
            else:
                written = parts[0]
                found.append(b.fadd(total, written))
            emit.store(b, written, b.add(args[3], row))
        return _tile_of(b, tile, found)

    return tile(products, tile, Address, Address, Int, Address), lower


# ---- values ---------------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def load_sums(typing_context: Any, rows: Any, vectors: Any, address: Any, stride: Any) -> Any:
    """A tile of `rows` · `vectors` (compile-time constants) sums: vectors beside each other, rows `stride` bytes apart."""
    count, each = rows.literal_value, vectors.literal_value
    tile = Tile(count * each)

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        found = []
        for t in range(count):
            row = b.add(args[2], b.mul(args[3], I64(t)))
            found += [emit.load(b, emit.advance(b, row, 4 * LANES * i), Floats.llvm) for i in range(each)]
        return _tile_of(b, tile, found)

    return tile(rows, vectors, Address, Int), lower


@intrinsic(prefer_literal=True)
def save_sums(typing_context: Any, vectors: Any, address: Any, stride: Any, tile: Any) -> Any:
    """Stores what `load_sums` has loaded."""
    each = vectors.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        for n, value in enumerate(_values_of(b, args[3], tile)):
            emit.store(b, value, b.add(args[1], b.add(b.mul(args[2], I64(n // each)), I64(n % each * 4 * LANES))))
        return context.get_dummy_value()

    return types.void(vectors, Address, Int, tile), lower


def pairs_of_rows(b: Builder, first: Value, second: Value, vectors: int) -> list[Value]:
    """Pairs of bfloat16 of the same column in two rows, LANES columns in a vector; of two vectors, each has every other four of
    their columns, as instructions interleave within 128 bits."""
    lanes = vectors * LANES
    x, y = (emit.load(b, at, emit.vector(I16, lanes)) for at in (first, second))
    if vectors == 1:
        order = [i + lanes * row for i in range(lanes) for row in (0, 1)]
        return [b.bitcast(emit.shuffle(b, x, y, order), Words.llvm)]
    found = []
    for half in (0, 4):
        columns = [8 * (i // 4) + half + i % 4 for i in range(LANES)]
        found.append(b.bitcast(emit.shuffle(b, x, y, [c + lanes * row for c in columns for row in (0, 1)]), Words.llvm))
    return found


def _value_floats(b: Builder, element: str, at: Value, vectors: int) -> list[Value]:
    """Floats of a row of values; of two vectors of bf16, one has the even columns and one the odd."""
    if element == "f32":
        return [emit.load(b, emit.advance(b, at, 4 * LANES * i), Floats.llvm) for i in range(vectors)]
    if vectors == 1:
        return [emit.bf16_to_float(b, emit.load(b, at, emit.vector(I16, LANES)))]
    return list(emit.bf16_halves(b, emit.load(b, at, Words.llvm)))


@intrinsic(prefer_literal=True)
def add_values(
    typing_context: Any, products: Any, name: Any, vectors: Any, tile: Any, first: Any, second: Any, shares: Any, stride: Any
) -> Any:
    """tile + shares · values of a position, or for products "bf16" of two, in so many `vectors`: 1 or an even number.

    name: of the element; first, second: addresses of the positions' values; shares: of the first row's float32 share, or two
    bfloat16, rows `stride` bytes apart. The order of columns in each two vectors is that of `in_order`.
    """
    kind, element, count = products.literal_value, name.literal_value, vectors.literal_value
    together, width = min(count, 2), 4 if element == "f32" else 2

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        totals = _values_of(b, args[3], tile)
        values: list[Value] = []
        for i in range(0, count, together):
            one, other = (emit.advance(b, at, i * LANES * width) for at in args[4:6])
            if kind == "bf16":
                values += pairs_of_rows(b, one, other, together)
            else:
                values += _value_floats(b, element, one, together)
        for t in range(tile.count // count):
            x = _splat_at(b, b.add(args[6], b.mul(args[7], I64(t))), I32 if kind == "bf16" else F32)
            for i, value in enumerate(values):
                n = t * count + i
                totals[n] = (
                    ACTIVE.dot_pairs(b, totals[n], value, x) if kind == "bf16" else ACTIVE.fma(b, value, x, totals[n])
                )
        return _tile_of(b, tile, totals)

    return tile(products, name, vectors, tile, Address, Address, Address, Int), lower


@intrinsic(prefer_literal=True)
def in_order(typing_context: Any, products: Any, name: Any, which: Any, first: Any, second: Any) -> Any:
    """The first or second (`which`, 0 or 1) LANES columns of two vectors of sums that `add_values` has made."""
    kind, element, half = products.literal_value, name.literal_value, which.literal_value

    def lower(context: Any, b: Builder, sig: Any, args: Any) -> Value:
        columns = range(half * LANES, (half + 1) * LANES)
        if kind == "bf16":
            lanes = [c // 8 * 4 + c % 4 + c % 8 // 4 * LANES for c in columns]
        elif element == "f32":
            lanes = list(columns)
        else:
            lanes = [c // 2 + c % 2 * LANES for c in columns]
        return emit.shuffle(b, args[3], args[4], lanes)

    return Floats(products, name, which, Floats, Floats), lower
